"""A byte-level BPE `tokenizer.json`, converted to tiktoken where that is provably exact.

Both libraries merge the best pair of neighbours until there is none, the leftmost of equals first. For
`tokenizers` a pair must be listed, and the first in the list is the best; for tiktoken its concatenation
must be a token, and the lowest id is the best. What happens within a stretch of text that no merge has
crossed is what happens to that stretch alone. So a token is only ever made by the one pair that makes it
when its own text is encoded. Hence both give equal ids for all texts if (1) merges are listed in the order
of the ids that they make and (2) no token's own text ends as an unlisted pair of neighbours (which tiktoken
would merge). A word that is a token as it stands is one for tiktoken, and for `tokenizers` if
`ignore_merges` is on; else (3) every token's own text must encode to that token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.pre_tokenizers import ByteLevel

from router.tokens.safe_cuts import GPT2_PATTERN, KNOWN_PATTERNS

Pair = Sequence[str]
"""Two tokens that are merged."""


class NotExact(Exception):
    """The conversion can't be shown to be exact; the message says why."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One entry of `added_tokens`: a string that is cut out of every text before anything else."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False

    @property
    def plain(self) -> bool:
        """Matched as it stands, without a look at its neighbours."""
        edges = self.content[:1] + self.content[-1:]
        return not (self.single_word or self.lstrip or self.rstrip or edges.strip() != edges or not edges)


@dataclass(frozen=True, slots=True)
class Conversion:
    """A tokenizer as tiktoken takes it. `nfc`: text between added tokens is brought into NFC before."""

    pattern: str
    ranks: dict[bytes, int]
    special: dict[str, int]
    nfc: bool

    def build(self) -> tiktoken.Encoding:
        return tiktoken.Encoding("", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.special)

    def token_bytes(self) -> NDArray[np.unsignedinteger[Any]]:
        """By token id: of how many bytes of text it is made. As small as may be: it is read at random."""
        sizes = {token: len(text) for text, token in self.ranks.items()}
        sizes.update((token, len(text.encode())) for text, token in self.special.items())
        table = np.zeros(max(sizes) + 1, dtype=np.min_scalar_type(max(sizes.values())))
        table[list(sizes)] = list(sizes.values())
        return table


def overlapping(tokens: Sequence[str]) -> set[str]:
    """Those of `tokens` that may share characters with another occurrence of one of them (or of themselves)."""
    known = set(tokens)
    starts: dict[str, set[str]] = {}
    for token in tokens:
        for size in range(1, len(token)):
            starts.setdefault(token[:size], set()).add(token)
    found: set[str] = set()
    for token in tokens:
        for begin in range(len(token)):
            others = starts.get(token[begin:], set()) if begin else starts.get(token, set())
            inner = {token[begin:end] for end in range(begin + 1, len(token) + 1)} & known - {token}
            if others or inner:
                found |= others | inner | {token}
    return found


def pattern_of(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The pattern that splits text into words, if the pre-tokenizer is one of the known ones; else None."""
    steps = _steps(pre_tokenizer, "pretokenizers")
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return None
    own = GPT2_PATTERN if steps[-1].get("use_regex", True) else None
    if len(steps) == 1:
        return own
    if len(steps) != 2 or own or steps[0].get("type") != "Split":
        return None
    if steps[0].get("behavior") != "Isolated" or steps[0].get("invert"):
        return None
    pattern = steps[0].get("pattern", {}).get("Regex")
    return pattern if pattern in KNOWN_PATTERNS else None


def is_nfc(normalizer: Mapping[str, Any] | None) -> bool:
    """Is the normaliser NFC alone? False: there is none at all. Any other: NotExact."""
    steps = _steps(normalizer, "normalizers")
    if any(step.get("type") != "NFC" for step in steps):
        raise NotExact("a normalizer other than NFC")
    return bool(steps)


def convert(description: Mapping[str, Any], added: Sequence[AddedToken], tokenizer: HFTokenizer) -> Conversion:
    """From a parsed `tokenizer.json`, the tokenizer made from it and all its added tokens; or NotExact."""
    pattern = pattern_of(description.get("pre_tokenizer"))
    if pattern is None:
        raise NotExact("the pre-tokenizer is not one of " + ", ".join(KNOWN_PATTERNS.values()))
    nfc = is_nfc(description.get("normalizer"))
    if not all(token.plain for token in added) or overlapping([token.content for token in added]):
        raise NotExact("added tokens that strip, need a word of their own, or overlap")
    if nfc and any(token.normalized for token in added):
        raise NotExact("added tokens that are matched after NFC")
    ranks = _ranks(description["model"], {token.content for token in added}, tokenizer)
    special = {token.content: token.id for token in added}
    return Conversion(pattern, ranks, special, nfc)


def _steps(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """A pre-tokenizer or normaliser as the list of its steps."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [step for inner in part[name] for step in _steps(inner, name)]
    return [part]


def _ranks(model: Mapping[str, Any], added: set[str], tokenizer: HFTokenizer) -> dict[bytes, int]:
    """The vocabulary as tiktoken takes it: bytes to id, without what only `added` tokens stand for."""
    if model.get("type") != "BPE":
        raise NotExact("the model is not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise NotExact(f"the model has {option}")
    vocab: Mapping[str, int] = model["vocab"]
    merges: list[Pair] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    alphabet = _alphabet()
    if not alphabet.keys() <= vocab.keys():
        raise NotExact("not all 256 bytes are in the vocabulary")
    made = {left + right for left, right in merges}
    kept = {token: rank for token, rank in vocab.items() if token in made or token not in added}
    if not all(token and alphabet.keys() >= set(token) for token in kept):
        raise NotExact("tokens that are no bytes")
    _check(kept, merges, bool(model.get("ignore_merges")), tokenizer)
    return {bytes(map(alphabet.__getitem__, token)): rank for token, rank in kept.items()}


def _alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary: the printable ones stand for themselves."""
    same = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(same)]
    letters = {chr(byte): byte for byte in same} | {chr(256 + i): byte for i, byte in enumerate(others)}
    assert letters.keys() == set(ByteLevel.alphabet())
    return letters


def _check(vocab: Mapping[str, int], merges: Sequence[Pair], whole_words: bool, tokenizer: HFTokenizer) -> None:
    """Raise NotExact unless the three conditions of this module hold. `whole_words`: the model's `ignore_merges`."""
    made = [vocab[left + right] for left, right in merges]
    if any(first > second for first, second in pairwise(made)):
        raise NotExact("merges that are not in the order of their ids")
    model = tokenizer.model
    model.ignore_merges = False
    try:
        for token in vocab:
            parts = len(model.tokenize(token))
            if parts == 2 or (parts > 2 and not whole_words):
                raise NotExact("a token that its own merges do not reach")
    finally:
        model.ignore_merges = whole_words
