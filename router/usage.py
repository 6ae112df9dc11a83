"""What a pod says it computed, read from the end of a response body without touching the body. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

# The end of a stream that is kept: the usage chunk (about 500 bytes) and `[DONE]`, with room to spare.
TAIL_BYTES = 8 * 1024

_KEY = b'"usage"'  # inside a string value it would be \"usage\", so a match is a key
_OPENS = re.compile(rb"\s*:\s*(?=\{)")


class Usage(NamedTuple):
    """`cached_tokens` is None where the pod does not say (vLLM up to 0.23 says nothing for zero)."""

    prompt_tokens: int
    cached_tokens: int | None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Wire(msgspec.Struct):
    """Chat and completions say prompt_tokens, responses and messages say input_tokens."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class Tail:
    """The last `TAIL_BYTES` (or the last chunk, where that is larger) of the chunks that went by."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept = b""

    def add(self, chunk: bytes) -> None:
        """Look at one chunk."""
        if not self.kept or len(chunk) >= TAIL_BYTES:
            self.kept = chunk
        else:
            self.kept = (self.kept + chunk)[-TAIL_BYTES:]


def read_usage(tail: bytes) -> Usage | None:
    """The last `"usage"` object in the end of a JSON or SSE body; None without one that can be read."""
    at = tail.rfind(_KEY)
    opens = _OPENS.match(tail, at + len(_KEY)) if at >= 0 else None
    if opens is None:
        return None
    end = _closing_brace(tail, opens.end())
    try:
        wire = msgspec.json.decode(tail[opens.end() : end], type=_Wire)
    except msgspec.DecodeError:  # ValidationError is one too
        return None
    tokens = wire.prompt_tokens if wire.prompt_tokens is not None else wire.input_tokens
    details = wire.prompt_tokens_details or wire.input_tokens_details
    return None if tokens is None else Usage(tokens, details.cached_tokens if details else None)


def _closing_brace(text: bytes, start: int) -> int:
    """The place behind the brace that closes the one at `start`; a usage object has no braces in strings."""
    end = start
    while (end := text.find(b"}", end) + 1) and text.count(b"{", start, end) != text.count(b"}", start, end):
        pass
    return end or len(text)
