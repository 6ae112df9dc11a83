"""A model's tokenizer: text to token ids, equal to those of Hugging Face's `tokenizers`, several times faster.

Loaded from the model's folder. Where `vocabulary` can prove it exact, tiktoken does the work; else `tokenizers` does.
Both give the interpreter's lock away while they work.
"""

from __future__ import annotations

import json
import re
import threading
import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from tokenizers import AddedToken as HFAddedToken
from tokenizers import Tokenizer as HFTokenizer

from indexer.blocks import Tokens
from router.errors import ConfigError
from router.tokens.conversion import AddedToken, Conversion, NotExact, convert, is_nfc, overlapping, pattern_of
from router.tokens.safe_cuts import WINDOW_BYTES, Cuts

# tiktoken's regex engine keeps a stack entry per blank of a run and gives up at a million.
_TIKTOKEN_CHARS_MAX = 256 * 1024

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# What the conversion is tried on at load, beside the proof: it covers both libraries' own mistakes, too.
_BATTERY = (
    "",
    " ",
    "Hello, world! It's 12345678 o'clock, isn't it?  \n\n  \t x\r\n",
    "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": x != None}  # done\n\n\n",
    "   \n \n  leading\u00a0and\u3000wide  blanks   ",
    "na\u00efve cafe\u0301 \u1e9b\u0323 \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab \u212b \u0958",
    "\u4e2d\u6587\u5b57\u7b26\uff0c\u6d4b\u8bd5\u3002\u65e5\u672c\u8a9e\u3001\u30c6\u30b9\u30c8",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u0645\u0631\u062d\u0628\u0627 \u0928\u092e",
    "a" * 700 + " " * 300 + "\n" * 100 + "0" * 50 + "=-" * 100,
    "".join(map(chr, range(1, 0x250))),
)


class _Engines:
    """One tiktoken engine a thread: its regex part is half as fast in any thread but the first that used it."""

    def __init__(self, conversion: Conversion, threads: int) -> None:
        """Builds them all now, for the loading thread and `threads` others: each takes 0.2 s, with the lock held."""
        self._own = threading.local()
        self._first = self._own.engine = conversion.build()
        self._spare = [conversion.build() for _ in range(threads)]
        self._bytes = conversion.token_bytes()

    def mine(self) -> tiktoken.Encoding:
        """The calling thread's; one thread too many shares that of the loading thread."""
        engine: tiktoken.Encoding | None = getattr(self._own, "engine", None)
        if engine is None:
            engine = self._own.engine = self._spare.pop() if self._spare else self._first
        return engine

    def count(self, ids: Tokens, nbytes: int) -> int | None:
        """How many of a text's last tokens its last `nbytes` are; None where they begin inside a token."""
        for most in (nbytes // 2, nbytes):  # mostly a token has more bytes; each look-up is a miss of the CPU's caches
            sums = self._bytes.take(ids[: -most - 1 : -1]).cumsum(dtype=np.uint32)
            place = int(sums.searchsorted(nbytes))
            if place < len(sums):
                return place + 1 if sums[place] == nbytes else None
        return None


class Tokenizer:
    """One model's tokenizer. Immutable after loading; safe to use from several threads."""

    def __init__(self, folder: Path, window_bytes: int = WINDOW_BYTES, threads: int = 1) -> None:
        """Reads `tokenizer.json` (and `tokenizer_config.json`): 0.1 to 1.5 s of work. ConfigError names a bad file.

        `threads`: how many beside this one will use it.
        """
        path = folder / "tokenizer.json"
        description = _read(path)
        try:
            self._whole = HFTokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises plain Exception
            raise _unusable(path, error) from error
        self._whole.add_tokens(_extra_tokens(folder / "tokenizer_config.json", description))
        self._whole.no_truncation()
        self._whole.no_padding()
        added = [_added(number, token) for number, token in self._whole.get_added_tokens_decoder().items()]
        self.prefix, self.suffix = self._frame(path)
        self.cuts = _cuts(description, added, window_bytes)
        self._special = re.compile("|".join(re.escape(token.content) for token in added) or r"(?!)")
        self._nfc = False
        self._fast: _Engines | None = None
        self.why_slow: str | None = None
        try:
            conversion = convert(description, added, self._whole)
            self._nfc = conversion.nfc
            fast = _Engines(conversion, threads)
            self._try_out(fast, added)
            self._fast = fast
        except NotExact as reason:
            self.why_slow = str(reason)

    def __repr__(self) -> str:
        engine = "tiktoken" if self._fast else f"tokenizers: {self.why_slow}"
        return f"<Tokenizer {engine}, cuts inside text: {self.cuts.inside}>"

    @property
    def fast(self) -> bool:
        """Does tiktoken do the work?"""
        return self._fast is not None

    def encode(self, text: str, add_special_tokens: bool) -> Tokens:
        """The ids of `text`, as `tokenizers` gives them."""
        ids = self._encode_whole(text) if self._fast is None else self._encode_fast(self._fast.mine(), text)
        if not add_special_tokens or not (len(self.prefix) or len(self.suffix)):
            return ids
        return np.concatenate([self.prefix, ids, self.suffix])

    def encode_cut(self, data: bytes, ends: Sequence[int]) -> tuple[Tokens, list[int] | None]:
        """The ids of `data` (UTF-8), without those of the post-processor, and how many come before each of its `ends`.

        These are safe cuts, and `len(data)`. None in place of the counts: `count` tells what is wanted of them.
        """
        fast, text = self._fast, data.decode()
        if fast is not None and (len(ends) == 1 or not self._nfc or surely_nfc(text)):
            ids = self._encode_fast(fast.mine(), text)
            return ids, [len(ids)] if len(ends) == 1 else None
        parts = [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
        if fast is not None:
            encoded = [self._encode_fast(fast.mine(), part) for part in parts]
        else:
            encodings = self._whole.encode_batch_fast(parts, add_special_tokens=False)
            encoded = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        return np.concatenate(encoded), list(accumulate(map(len, encoded)))

    def count(self, ids: Tokens, nbytes: int) -> int | None:
        """How many of a text's last ids its last `nbytes` are; None where they begin inside a token."""
        return None if self._fast is None else self._fast.count(ids, nbytes)

    def _encode_fast(self, fast: tiktoken.Encoding, text: str) -> Tokens:
        if len(text) > _TIKTOKEN_CHARS_MAX:
            return self._encode_whole(text)
        if self._nfc and not surely_nfc(text):
            return self._encode_composed(fast, text)
        special = self._special.findall(text)
        return fast.encode_to_numpy(text, allowed_special=set(special), disallowed_special=())

    def _encode_composed(self, fast: tiktoken.Encoding, text: str) -> Tokens:
        """With NFC: text between added tokens is composed for itself, and makes no new added tokens."""
        compose = self._whole.normalizer.normalize_str
        ids: list[Tokens] = []
        start = 0
        for match in [*self._special.finditer(text), None]:
            between = text[start : match.start() if match else None]
            if between:
                ids.append(fast.encode_to_numpy(compose(between), disallowed_special=()))
            if match:
                ids.append(np.array([fast.encode_single_token(match.group())], dtype=np.uint32))
                start = match.end()
        return np.concatenate(ids) if ids else np.zeros(0, np.uint32)

    def _encode_whole(self, text: str) -> Tokens:
        ids = self._whole.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return np.array(ids, dtype=np.uint32)

    def _frame(self, path: Path) -> tuple[Tokens, Tokens]:
        """The ids that the post-processor puts before and after a text's own, as (BOS …) and (… EOS)."""
        plain, full = (self._whole.encode("a", add_special_tokens=special).ids for special in (False, True))
        for start in range(len(full) - len(plain) + 1):
            prefix, suffix = full[:start], full[start + len(plain) :]
            if all(
                prefix + self._whole.encode(text, add_special_tokens=False).ids + suffix
                == self._whole.encode(text, add_special_tokens=True).ids
                for text in ("", "a", "a a", "b\n")
            ):
                return np.array(prefix, dtype=np.uint32), np.array(suffix, dtype=np.uint32)
        raise ConfigError(f"{path}: the post-processor does more than to put tokens before and after")

    def _try_out(self, fast: _Engines, added: Sequence[AddedToken]) -> None:
        """Raise NotExact if the converted tokenizer differs on any text of the battery."""
        texts = list(_BATTERY)
        texts += [f"x {token.content}\u0338 y{token.content}{token.content}\n" for token in added]
        expected = self._whole.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, expected, strict=True):
            if self._encode_fast(fast.mine(), text).tolist() != encoding.ids:
                raise NotExact("tiktoken gives other ids")


def surely_nfc(text: str) -> bool:
    """Is `text` in NFC for every Unicode version? False where Python can't be sure."""
    return text.isascii() or (_NEWER.search(text) is None and unicodedata.is_normalized("NFC", text))


# Blocks where Unicode 13 and later put characters that compose: libraries of other versions differ on them.
_NEWER = re.compile("[\U00010570-\U000105ff\U00011300-\U000119ff\U00016100-\U00016dff]")


def _cuts(description: dict[str, Any], added: Sequence[AddedToken], window_bytes: int) -> Cuts:
    """The places where this tokenizer's texts may be cut."""
    unsafe = overlapping([token.content for token in added])
    safe = [
        token.content
        for token in added
        if token.plain and not token.normalized and token.content not in unsafe and not _wordlike(token)
    ]
    plain_normalizer = True
    try:
        nfc = is_nfc(description.get("normalizer"))
    except NotExact:
        nfc = plain_normalizer = False
    plain = not unsafe and all(token.plain and not (nfc and token.normalized) for token in added)
    words = pattern_of(description.get("pre_tokenizer")) is not None and description["model"].get("type") == "BPE"
    return Cuts(safe, inside=words and plain and plain_normalizer, window_bytes=window_bytes)


def _added(number: int, token: HFAddedToken) -> AddedToken:
    return AddedToken(number, token.content, **{flag: getattr(token, flag) for flag in _FLAGS})


def _wordlike(token: AddedToken) -> bool:
    """Would the token's first character be part of a word? Then a neighbour that needs a word of its own sees it."""
    return token.content[0].isalnum() or token.content[0] == "_"


def _extra_tokens(path: Path, description: dict[str, Any]) -> list[HFAddedToken]:
    """Added tokens that `tokenizer_config.json` has and `tokenizer.json` has not, or with other flags.

    transformers adds them again at load, and so do pods.
    """
    if not path.exists():
        return []
    known = {t["content"]: [t[flag] for flag in _FLAGS] for t in description.get("added_tokens") or ()}
    listed = _read(path).get("added_tokens_decoder") or {}
    try:
        return [
            HFAddedToken(entry["content"], **{flag: entry[flag] for flag in _FLAGS})
            for _, entry in sorted(listed.items(), key=lambda item: int(item[0]))
            if known.get(entry["content"]) != [entry[flag] for flag in _FLAGS]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unusable(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    """A JSON object in a file; ConfigError names the file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise _unusable(path, error) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not usable: not a JSON object")
    return content


def _unusable(path: Path, error: Exception) -> ConfigError:
    lines = str(error).splitlines() or [type(error).__name__]
    return ConfigError(f"{path} is not usable: {lines[0][:200]}")
