"""A tiny Qwen2 with random weights beside a given tokenizer: `make_model.py TOKENIZER_FOLDER MODEL_FOLDER`.

Runs in vLLM's venv. A few megabytes, so a server needs no hub and answers in milliseconds; what it says is noise, but
the tokenizer, the chat template and the block pool are real.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_VOCABULARY_MULTIPLE = 64  # embeddings are padded to this


def make_model(tokenizer_folder: Path, model_folder: Path) -> int:
    """Write the model; returns how many parameters it has."""
    model_folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, model_folder / name)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    vocabulary = -(-len(tokenizer) // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(model_folder)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    print(make_model(Path(sys.argv[1]), Path(sys.argv[2])), "parameters")
