"""The texts of prompts whose tokens are not known: bytes that begin alike where the prompts' tokens probably do.

For images, for APIs whose prompts only the pod renders, for whatever could not be tokenized in time: a request goes
where one with the same beginning went before. That is a guess by our own picks, so nothing is promised to the client.

Why it stays: on Mooncake's conversation trace, simulated over four pods with room for 2,000 blocks of 512 tokens each,
it finds 15 % of all prompt tokens cached where load alone finds 7 %; TTFT p50 falls by 8 %, p90 rises by 4 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson
import xxhash

from indexer.blocks import Keys, KeySpace
from router.core.demand import TEXT_BLOCK_TOKENS
from router.prompts.decoding import Fields
from router.prompts.messages import text_of_part
from router.prompts.prompt import Prompt

_BYTES_PER_TOKEN = 4  # of English text with today's vocabularies; of other scripts fewer, so this promises too little
_WORD_BYTES = 4  # the key space takes words of 32 bits where tokens would be
_DIGEST_REPEATS = 32  # an image counts as 256 tokens: more than that in most models, and not nothing
_OPENINGS = ("system", "instructions", "tools")  # what templates write before the conversation
_TURNS = ("messages", "input")


class Beginning(NamedTuple):
    """The beginning of a prompt's text: the keys of its whole blocks, and about how many tokens all of the text has.

    `tokens` is None where the text goes on after what was looked at.
    """

    keys: Keys
    tokens: int | None


def beginning_of(space: KeySpace, prompt: Prompt, bytes_max: int) -> Beginning | None:
    """What the first `bytes_max` bytes of a prompt's text are; None if nothing is known of it."""
    parts, size = [], 0
    for part in _parts(prompt):
        parts.append(part)
        size += len(part)
        if size > bytes_max:
            break
    if not size:
        return None
    text = b"".join(parts)
    blocks = min(size, bytes_max) // (TEXT_BLOCK_TOKENS * _BYTES_PER_TOKEN)
    words = TEXT_BLOCK_TOKENS * _BYTES_PER_TOKEN // _WORD_BYTES
    content = np.frombuffer(text, dtype=np.uint32, count=blocks * words)
    keys = space.chain(content, words, None, prompt.model or "", prompt.cache_salt)
    return Beginning(keys, size // _BYTES_PER_TOKEN if size <= bytes_max else None)


def _parts(prompt: Prompt) -> Iterator[bytes]:
    if prompt.prompts:
        first = prompt.prompts[0]
        yield first.encode() if isinstance(first, str) else first.tobytes()
        return
    fields = prompt.fields
    for name in _OPENINGS:
        if fields.get(name):
            yield _json(fields[name])
    for name in _TURNS:
        turns = fields.get(name)
        if isinstance(turns, str):
            yield turns.encode()
        elif isinstance(turns, list):
            yield from _turns(turns)


def _turns(turns: Iterable[Any]) -> Iterator[bytes]:
    for turn in turns:
        content = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(content, list):
            yield _json(turn)
            continue
        yield _json(_without_content(turn))
        for part in content:
            yield _json(part) if text_of_part(part) is not None else _digest(part)


def _without_content(turn: Fields) -> Fields:
    return {name: value for name, value in turn.items() if name != "content"}


def _digest(part: object) -> bytes:
    """In place of what is no text: as different as that is, and of a weight of its own."""
    return xxhash.xxh3_128_hexdigest(_json(part)).encode() * _DIGEST_REPEATS


def _json(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # Python's own reader takes numbers and texts that orjson does not write
        return repr(value).encode()
