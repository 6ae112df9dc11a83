"""A virtual pod's events on their way to one gateway: after a moment, some never, asked for again as the feed has it.

Frames go through the gateway's own feed code, as bytes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from indexer.blocks import Tokens
from indexer.feed import Feed

_KEPT = 10_000  # batches that can be asked for again: vLLM's default
_encode = msgspec.msgpack.Encoder().encode

At = Callable[[float, Callable[[float], None]], None]
"""(when, what): do it then; it is told the time."""


class EventPath(NamedTuple):
    """From a pod to a gateway. `loss`: share of the frames."""

    delay_s: float
    loss: float


class Stretch(NamedTuple):
    """Blocks that were stored, one behind the other; `parent`: the one before them."""

    blocks: Sequence[int]
    parent: int | None
    tokens: Tokens
    size: int


class Publisher:
    """One pod's events for one gateway."""

    def __init__(self, feed: Feed, path: EventPath, at: At, rng: random.Random) -> None:
        self._feed = feed
        self._path = path
        self._at = at
        self._rng = rng
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._next = 0
        feed.replay_ended(True, 0.0)

    def publish(self, stored: Sequence[Stretch], removed: Sequence[int], now: float) -> None:
        """One batch, now."""
        events: list[object] = [
            ["BlockStored", list(each.blocks), each.parent, each.tokens.tolist(), each.size] for each in stored
        ]
        if removed:
            events.append(["BlockRemoved", list(removed)])
        number, payload = self._next, _encode([now, events])
        self._next += 1
        self._kept.append((number, payload))
        if self._rng.random() >= self._path.loss:
            self._at(now + self._path.delay_s, lambda time: self._hear(number, payload, time))

    def _hear(self, number: int, payload: bytes, now: float) -> None:
        self._ask(self._feed.frame(number, payload, now), now)
        while self._feed.go_on(now):
            pass

    def _ask(self, start: int | None, now: float) -> None:
        if start is not None:
            self._at(now + self._path.delay_s, lambda time: self._answer(start, time))

    def _answer(self, start: int, now: float) -> None:
        for number, payload in [each for each in self._kept if each[0] >= start]:
            self._feed.replayed(number, payload, now)
        self._ask(self._feed.replay_ended(True, now), now)
        while self._feed.go_on(now):
            pass
