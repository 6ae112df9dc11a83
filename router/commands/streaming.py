"""One streamed request to an OpenAI endpoint, and what its client saw: the demo and the bench are such clients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

_SHOWN_CHARS_MAX = 200  # of an answer that is an error
_WORDS = ("content", "reasoning_content", "reasoning")  # of a delta, by which an answer grows


class Unanswered(ValueError):
    """The endpoint gave no good answer; the message is one line."""


@dataclass(slots=True, frozen=True)
class Streamed:
    """A whole answer. `first_s`: to the first token, None where there was none; the counts are None if not told."""

    text: str
    first_s: float | None
    seconds: float
    chunks: int
    prompt_tokens: int | None
    cached_tokens: int | None
    answer_tokens: int | None
    pod: str | None
    predicted: int | None  # cached tokens, by warmroute


async def streamed(client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> Streamed:
    """Raises `httpx.HTTPError` or `Unanswered`."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    sent, first_s, text, chunks = time.monotonic(), None, [], 0
    usage: dict[str, Any] = {}
    async with client.stream("POST", path, json=asked) as response:
        if not response.is_success:
            raise Unanswered(f"{response.status_code}: {_message(await response.aread())}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = _chunk(line)
            if grown := _grown(chunk):
                first_s = time.monotonic() - sent if first_s is None else first_s
                chunks += 1
                text.append(grown)
            usage = chunk.get("usage") or usage
    return Streamed(
        "".join(text),
        first_s,
        time.monotonic() - sent,
        chunks,
        usage.get("prompt_tokens"),
        (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0 if usage else None),
        usage.get("completion_tokens"),
        response.headers.get("x-warmroute-pod"),
        _number(response.headers.get("x-warmroute-matched-tokens")),
    )


def _chunk(line: str) -> dict[str, Any]:
    try:
        chunk: dict[str, Any] = orjson.loads(line[6:])
    except ValueError:
        raise Unanswered(f"a chunk that is no JSON: {line[:_SHOWN_CHARS_MAX]}") from None
    if "error" in chunk:
        raise Unanswered(f"the stream ends with an error: {_said(chunk)}")
    return chunk


def _grown(chunk: dict[str, Any]) -> str:
    """What a chunk adds to the answer."""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if told := next((delta[word] for word in _WORDS if delta.get(word)), None) or choice.get("text"):
            return str(told)
    return ""


def _message(body: bytes) -> str:
    try:
        return _said(orjson.loads(body))
    except ValueError:
        return body[:_SHOWN_CHARS_MAX].decode(errors="replace")


def _said(answer: Any) -> str:
    said = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = said.get("message", said) if isinstance(said, dict) else said
    return " ".join(str(message).split())[:_SHOWN_CHARS_MAX]


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
