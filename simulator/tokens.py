"""Text to token ids and back by the model's own tokenizer, and the words that a simulated model answers with."""

from __future__ import annotations

import hashlib
import random
import re
from array import array
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

_WORD = re.compile("[Ġ▁][a-z]{2,12}")
"""An ordinary word in the spelling of byte-level and of SentencePiece vocabularies."""
_UNFINISHED = "\ufffd"
WORDS_MIN = 16
"""Below this the vocabulary has no ordinary words and any token that is not special serves."""


class Vocabulary:
    """A tokenizer with what the pod asks of it."""

    def __init__(self, folder: Path) -> None:
        """Reads `folder`/tokenizer.json; raises FileNotFoundError or ValueError."""
        path = folder / "tokenizer.json"
        if not path.exists():
            raise FileNotFoundError(f"no tokenizer.json in {folder}")
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is no tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocab.values()) + 1
        self.words = _words(vocab, set(self._tokenizer.get_added_tokens_decoder()))

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids; `special` adds what the tokenizer's post-processor adds (BOS). Frees the GIL."""
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoding.ids
        return ids

    def encode_last(self, text: str, special: bool, keep: int) -> list[int]:
        """As `encode`, cut to its last `keep` tokens; leading special tokens stay and count."""
        whole = self.encode(text, special)
        if len(whole) <= keep:
            return whole
        plain = self.encode(text, False)
        lead = len(whole) - len(plain) if whole[-len(plain) :] == plain else 0
        lead = min(lead, keep)
        return whole[:lead] + (plain[-(keep - lead) :] if keep > lead else [])

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special)
        return text

    def spell(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of each token."""
        return [self._tokenizer.id_to_token(token) or "" for token in token_ids]

    def answer(self, prompt: Sequence[int], variant: int, count: int) -> list[int]:
        """`count` words that depend on the prompt and `variant` alone."""
        seed = hashlib.sha256(array("I", (variant, *prompt)).tobytes()).digest()
        return random.Random(seed).choices(self.words, k=count)

    def natural_length(self, prompt: Sequence[int], low: int, high: int) -> int:
        """How long the answer to a prompt is when the client sets no limit."""
        return random.Random(repr((len(prompt), prompt[-1]))).randint(low, high)


class Speller:
    """The text of a growing answer: holds back tokens that end inside a character."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._pending: list[int] = []

    def add(self, token: int, last: bool = False) -> str:
        """The text that this token completes; may be empty."""
        self._pending.append(token)
        text = self._vocabulary.decode(self._pending)
        if text.endswith(_UNFINISHED) and not last:
            return ""
        self._pending.clear()
        return text


def _words(vocab: dict[str, int], added: set[int]) -> list[int]:
    words = sorted(token for text, token in vocab.items() if _WORD.fullmatch(text) and token not in added)
    if len(words) >= WORDS_MIN:
        return words
    return sorted(set(vocab.values()) - added) or sorted(vocab.values())
