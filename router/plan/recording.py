"""Recorded requests, one JSON object a line: as they are written, and read again. Pure.

Each line can be read as Mooncake published its traces: `timestamp` (ms, since the epoch), `input_length` and
`output_length` (tokens), `hash_ids` (one a block of the prompt; equal ids from the first on: an equal beginning; what
is no whole block has one that nobody has again). Beside these: `pod`, `status`, `ttft` and `took` (seconds, null where
that was not seen) and `cached` (tokens, as the pod told). Some lines have `fleet`, too: what was known of the pods.
Lines come in the order in which requests ended. Never a text: ids are keyed hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from indexer.blocks import Keys
from router.errors import BadRecording

_ID_BITS = 53  # as many as every reader of JSON takes exactly
_ID_MASK = (1 << _ID_BITS) - 1
_POD_KEYS = ("pod", "kv_tokens", "factor")


class Entry(NamedTuple):
    """One request that is over. `answer`: tokens, maybe estimated; times in seconds, None where they are not known."""

    at_ms: int
    tokens: int
    answer: int
    blocks: Sequence[int]
    pod: str | None = None
    status: int = 200
    ttft_s: float | None = None
    took_s: float | None = None
    cached: int | None = None


class RecordedPod(NamedTuple):
    """One pod, as the gateway knew it. `factor`: by which it is slower than the fleet."""

    pod: str
    kv_tokens: int | None
    factor: float


class RecordedFleet(NamedTuple):
    """All of them. Seconds of a prefill are `base_s + factor * tokens * (token_s + position_s * middle)`."""

    pods: Sequence[RecordedPod]
    block_size: int
    base_s: float
    token_s: float
    position_s: float
    policy: str

    def as_values(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "pods": [pod._asdict() for pod in self.pods]}


class Recording(NamedTuple):
    """All requests in the order in which they came. `size`: tokens a block; `fleet`: the newest that is told."""

    entries: Sequence[Entry]
    size: int
    fleet: RecordedFleet | None


def line_of(entry: Entry, fleet: RecordedFleet | None) -> bytes:
    """With its end."""
    told: dict[str, Any] = {
        "timestamp": entry.at_ms,
        "input_length": entry.tokens,
        "output_length": entry.answer,
        "hash_ids": entry.blocks,
        "pod": entry.pod,
        "status": entry.status,
        "ttft": None if entry.ttft_s is None else round(entry.ttft_s, 6),
        "took": None if entry.took_s is None else round(entry.took_s, 6),
        "cached": entry.cached,
    }
    if fleet is not None:
        told["fleet"] = fleet.as_values()
    return orjson.dumps(told) + b"\n"


def ids_of(keys: Keys, size: int, tokens: int, number: int) -> list[int]:
    """Of a prompt with these `keys`, one a block of `size` tokens; `number`: another one for each prompt."""
    ids: list[int] = (keys & np.uint64(_ID_MASK)).tolist()
    last = ids[-1] if ids else tokens
    lacking = -(-tokens // size) - len(ids)
    return ids + [(last * 0x9E37_79B9 + 0x2545_F491 * number + place) & _ID_MASK for place in range(lacking)]


def read_recording(lines: Iterable[bytes]) -> Recording:
    """Raises `BadRecording` naming the first line that is none."""
    entries: list[Entry] = []
    fleet: RecordedFleet | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            told = orjson.loads(line)
            entries.append(_entry(told))
            fleet = _fleet(told["fleet"]) if told.get("fleet") is not None else fleet
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            raise BadRecording(
                f"line {number}: it is no recorded request: a JSON object with timestamp, input_length, output_length "
                "and hash_ids"
            ) from None
    if not entries:
        raise BadRecording("there is no request in it")
    entries = _numbered(sorted(entries, key=lambda entry: entry.at_ms))
    size = fleet.block_size if fleet is not None else 0
    return Recording(entries, size or _size(entries), fleet)


def coarser(recording: Recording, blocks_max: int) -> Recording:
    """The same in larger blocks, so that a prompt has no more than so many of them on the average."""
    blocks = sum([len(entry.blocks) for entry in recording.entries])
    step = -(-blocks // (blocks_max * len(recording.entries)))
    if step <= 1:
        return recording
    entries = [entry._replace(blocks=_joined(entry, recording.size, step)) for entry in recording.entries]
    return Recording(entries, recording.size * step, recording.fleet)


def _joined(entry: Entry, size: int, step: int) -> Sequence[int]:
    """An id stands for all before it, so the last one stands for those that are made one."""
    whole = entry.tokens // size
    ids = entry.blocks[step - 1 : whole : step]
    return ids if entry.tokens == len(ids) * size * step or not entry.blocks else [*ids, entry.blocks[-1]]


def _numbered(entries: Iterable[Entry]) -> list[Entry]:
    """The same with small numbers for ids."""
    numbers: dict[int, int] = {}
    return [
        entry._replace(blocks=[numbers.setdefault(block, len(numbers)) for block in entry.blocks]) for entry in entries
    ]


def _entry(told: Mapping[str, Any]) -> Entry:
    tokens, answer, blocks = int(told["input_length"]), int(told["output_length"]), told["hash_ids"]
    if tokens < 0 or answer < 0 or not all(type(block) is int for block in blocks):
        raise ValueError
    return Entry(
        int(told["timestamp"]), max(1, tokens), max(1, answer), blocks, told.get("pod"), int(told.get("status", 200)),
        _number(told, "ttft"), _number(told, "took"), told.get("cached"),
    )  # fmt: skip


def _number(told: Mapping[str, Any], name: str) -> float | None:
    value = told.get(name)
    return None if value is None else float(value)


def _fleet(told: Mapping[str, Any]) -> RecordedFleet:
    pods = [RecordedPod(*(each[key] for key in _POD_KEYS)) for each in told["pods"]]
    return RecordedFleet(**{**told, "pods": pods})


def _size(entries: Sequence[Entry]) -> int:
    """Tokens a block: the least power of 2 that fits all prompts."""
    least = max([-(-entry.tokens // len(entry.blocks)) for entry in entries if entry.blocks], default=1)
    size: int = 1 << (least - 1).bit_length()
    return size
