"""What a pod says it computed, read from the end of a response body without touching the body. Pure."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson

# The end of a stream that is kept: the usage chunk (about 500 bytes) and `[DONE]`, with room to spare.
TAIL_BYTES = 8 * 1024

_CHUNKS_MAX = 64  # an object for each would weigh more than what is in them

_KEY = b'"usage"'  # inside a string value it would be \"usage\", so a match is a key
_FLAT = rb"\{[^{}]*+\}"  # a usage object has no braces in strings …
_AROUND = rb"\{[^{}]*+(?:%b[^{}]*+)*+\}"  # … but objects, which may have objects
_VALUE = re.compile(rb"\s*+:\s*+(%b)" % (_AROUND % (_AROUND % _FLAT)))


@dataclass(slots=True)
class Usage:
    """`cached_tokens` is None where the pod does not say (vLLM up to 0.23 says nothing for zero)."""

    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int | None = field(default=None, compare=False)


class Tail:
    """The last `TAIL_BYTES` (or the last chunk, where that is larger) of the chunks that went by."""

    __slots__ = ("_chunks", "_size")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """Look at one chunk."""
        chunks = self._chunks
        chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(chunks[0]) >= TAIL_BYTES:
            self._size -= len(chunks.popleft())
        if len(chunks) >= _CHUNKS_MAX:
            self._chunks = deque((self.kept,))
            self._size = len(self._chunks[0])

    @property
    def kept(self) -> bytes:
        """What there is of them, as one."""
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)[-TAIL_BYTES:]


def read_usage(tail: bytes) -> Usage | None:
    """The last `"usage"` object in the end of a JSON or SSE body; None without one that can be read."""
    at = tail.rfind(_KEY)
    value = _VALUE.match(tail, at + len(_KEY)) if at >= 0 else None
    if value is None:
        return None
    try:
        said: dict[str, Any] = orjson.loads(value[1])
    except orjson.JSONDecodeError:
        return None
    tokens = _first(said, "prompt_tokens", "input_tokens")  # the latter: responses and messages
    details = _first(said, "prompt_tokens_details", "input_tokens_details")
    cached = details.get("cached_tokens") if type(details) is dict else None
    if type(tokens) is not int or not (cached is None or type(cached) is int):
        return None
    made = _first(said, "completion_tokens", "output_tokens")
    return Usage(tokens, cached, made if type(made) is int else None)


def _first(said: dict[str, Any], name: str, other: str) -> object:
    value = said.get(name)
    return said.get(other) if value is None else value
