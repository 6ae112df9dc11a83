"""Texts that tokenizers get wrong, and the tokenizers that the tests try them on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VECTORS = Path(__file__).parents[1] / "vectors"
TINY_QWEN = VECTORS / "vllm-0.32.0" / "tokenizer"
TINY_LLAMA = VECTORS / "vllm-0.20.2" / "tokenizer"

FRAGMENTS = (
    *("a", "Z", "word", " the", "1", "23", "4567", "x1", ".", ",", "!?", "...", "(", ")", "{", "_", "//", "=="),
    *("  ", "\n", "\r\n", "\t", "\n\n\n", " \n ", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\x00", "\ufeff"),
    *("'s", "'", "'LL", "\u017f", "don't", "\u2019t", "`", '"', "\\u0041", "<", ">", "|", "<|", "|>", "</", "<|im"),
    *("\u00e9", "e\u0301", "\u0338", "\u0301", "\u0345", "\u0300\u0323", "\u212a", "\u037e", "\u1100\u1161\u11a8"),
    *("\ud55c\uad6d", "\u4e2d\u6587", "\uff0c", "\u3002", "\u30fc", "\u304b\u3099", "\u30a2", "\u30fb"),
    *("\U00011935\U00011930", "\u0958", "\u1e9b\u0323"),
    *("\u0928\u092e\u0938\u094d\u0924\u0947", "\u0416", "\u0434\u043e\u043c", "\u0645\u0631\u062d", "\u00df", "\u0130"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469", "\u200d", "\U0001d7d8", "\u0663", "\u00bd", "\u2167"),
    *("def f(x):\n\treturn x", '{"a": [1, 2]}', "https://x.y/z?q=1", "SGVsbG8=", "0x1F", "a.b(c)[d]"),
)  # fmt: skip


def texts(seed: int, count: int, added: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    """`count` hostile texts: fragments, added tokens (whole and torn), vocabulary entries, any characters."""
    rnd = random.Random(seed)
    torn = [token[:-1] for token in added[:4]] + [token[1:] for token in added[:4]]
    pool = [*FRAGMENTS, *added, *torn]
    spans = ((32, 126), (0, 0x2FF), (0x300, 0x33FF), (0x3000, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF))
    for turn in range(count):
        kind = turn % 4
        if kind <= 1:
            yield "".join(rnd.choices(pool, k=rnd.randint(1, 60)))
        elif kind == 2:
            yield "".join(rnd.choices(words, k=rnd.randint(1, 40)))
        else:
            yield "".join(chr(rnd.randint(*rnd.choice(spans))) for _ in range(rnd.randint(1, 60)))


def gpt2_style(folder: Path) -> Path:
    """A folder with a small byte-level BPE tokenizer in GPT-2's style, trained here: BOS and EOS around each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [" ".join(FRAGMENTS) * 3, (VECTORS / "vllm-0.32.0" / "README.md").read_text("utf-8")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=True), AddedToken("</tool>", normalized=True)])
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[end]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
