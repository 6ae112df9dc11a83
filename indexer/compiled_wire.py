"""The compiled way of reading events: `Reader.decode` gives what `wire.decode` gives.

A payload in which anything is not plain is left as a whole to `wire.decode`, so there is one judge of what is bad.
Imported only where this way is chosen: it needs numba.
"""

from __future__ import annotations

from array import array
from math import isfinite

import numpy as np

from indexer import wire
from indexer.compiled_scan import BEHIND, CLEARED, REMOVED, WIDTH, scan
from indexer.events import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event

_BYTES_MIN = 1 << 16  # of a payload, for which there is room from the start
_EVENT_BYTES = 15  # what the shortest event takes
_HASH_MASK = 0xFFFF_FFFF_FFFF_FFFF


class Reader:
    """Keeps room for what `scan` says of one payload; values share nothing with it."""

    def __init__(self) -> None:
        self._head = np.zeros(2, np.uint64)
        self._clock, self._rank = self._head[:1].view(np.float64).data, self._head[1:].view(np.int64).data
        self._lay_out(_BYTES_MIN)

    def decode(self, payload: bytes | memoryview) -> Batch:
        """As `wire.decode`."""
        size = len(payload)
        if size >= len(self._data):
            self._lay_out(2 * size)
        self._bytes[:size], self._bytes[size] = payload, BEHIND
        count = scan(self._data[: size + 1], self._events, self._hashes, self._tokens, self._head)
        clock = self._clock[0]
        if count < 0 or not isfinite(clock):
            return wire.decode(payload)
        try:
            events = [self._value(*row) for row in self._events[:count].tolist()]
        except ValueError:
            return wire.decode(payload)
        rank = self._rank[0]
        return Batch(clock, events, rank if rank >= 0 else None)

    def _value(
        self, kind: int, start: int, end: int, first: int, last: int, has_parent: int, parent: int, size: int,
        lora: int, medium: int, medium_end: int, adapter: int, adapter_end: int, extras: int, group: int, spec: int,
        spec_end: int, window: int, *_rest: int,
    ) -> Event:  # fmt: skip
        """The event of a row; ValueError if it contradicts itself."""
        if kind == CLEARED:
            return AllBlocksCleared()
        hashes = array("Q", self._hashes[start:end].tobytes())
        tier = wire.tier_of(self._text(medium, medium_end))
        if kind == REMOVED:
            return BlockRemoved(hashes, tier, None if group < 0 else group)
        event = BlockStored(
            hashes,
            parent & _HASH_MASK if has_parent else None,
            self._tokens[first:last].copy(),
            size,
            tier,
            None if lora < 0 else lora,
            self._text(adapter, adapter_end),
            None if extras < 0 else [None] * extras,
            None if group < 0 else group,
            self._text(spec, spec_end),
            None if window < 0 else window,
        )
        wire.check(event)
        return event

    def _text(self, start: int, end: int) -> str | None:
        return None if start < 0 else str(self._bytes[start:end], "ascii")

    def _lay_out(self, size: int) -> None:
        self._data = np.zeros(size + 1, np.uint8)
        self._bytes = self._data.data
        self._events = np.zeros((size // _EVENT_BYTES + 1, WIDTH), np.int64)
        self._hashes = np.zeros(size, np.uint64)
        self._tokens = np.zeros(size, np.uint32)
