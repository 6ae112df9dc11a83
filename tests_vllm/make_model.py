"""A tiny Qwen2 with random weights beside a given tokenizer: `make_model.py TOKENIZER_FOLDER MODEL_FOLDER`; and, in the
folder `eagle3` inside of the model's, an EAGLE-3 head for it, whose drafts are hardly ever accepted.

Runs in vLLM's venv. A few megabytes, so a server needs no hub and answers in milliseconds; what it says is noise, but
the tokenizer, the chat template and the block pool are real.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
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
    make_head(config, model_folder / "eagle3")
    return sum(parameter.numel() for parameter in model.parameters())


def make_head(config: Qwen2Config, folder: Path) -> None:
    """Write an EAGLE-3 head: one layer over the hidden states of three of the model's."""
    folder.mkdir(exist_ok=True)
    width, inner, heads, shared = config.hidden_size, config.intermediate_size, 4, 2
    size = width // heads
    shapes = {
        "midlayer.self_attn.q_proj": (width, 2 * width),
        "midlayer.self_attn.k_proj": (shared * size, 2 * width),
        "midlayer.self_attn.v_proj": (shared * size, 2 * width),
        "midlayer.self_attn.o_proj": (width, width),
        "midlayer.mlp.gate_proj": (inner, width),
        "midlayer.mlp.up_proj": (inner, width),
        "midlayer.mlp.down_proj": (width, inner),
        "fc": (width, 3 * width),
        "lm_head": (config.vocab_size, width),
    }
    norms = ("midlayer.input_layernorm", "midlayer.hidden_norm", "midlayer.post_attention_layernorm", "norm")
    weights = {f"{name}.weight": (torch.randn(shape) * 0.05).bfloat16() for name, shape in shapes.items()}
    weights.update((f"{name}.weight", torch.ones(width).bfloat16()) for name in norms)
    save_file(weights, folder / "model.safetensors")
    described = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": size,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]},
    }
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")


if __name__ == "__main__":
    print(make_model(Path(sys.argv[1]), Path(sys.argv[2])), "parameters")
