"""Events of all feeds share the loop: one stretch of reading and believing in each of its turns, fair between feeds.

Who shares a ZMQ context shares its turns. A source is served as long as it has credit, gets as much as all others each
time that it comes round, and pays by the time that it took: so one feed's large batches hold back that feed, and not
those beside it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import zmq

log = logging.getLogger("warmroute.feeds")

_T = TypeVar("_T")

_SHARE = 8  # sources that have a part of one stretch, if all of them have much to do


class TurnTaker(Protocol):
    """Somebody with work that comes in pieces. `credit`: seconds that it may take now; it starts with 0."""

    credit: float

    def step(self) -> bool:
        """Do one piece; False: there was none."""


class Turns:
    """See the module. `slice_s`: the length of one stretch; it ends after the piece in which it is over."""

    def __init__(self, slice_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slice_s = slice_s
        self._quantum_s = slice_s / _SHARE
        self._first: deque[TurnTaker] = deque()
        self._waiting: deque[TurnTaker] = deque()
        self._known: set[TurnTaker] = set()  # those in either line
        self._next: asyncio.Handle | None = None

    def wake(self, source: TurnTaker, first: bool = False) -> None:
        """The source has work. `first`: others wait until it is done; for what is bounded."""
        if source not in self._known:
            self._known.add(source)
            (self._first if first else self._waiting).append(source)
        if self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._run)

    def forget(self, source: TurnTaker) -> None:
        """The source is gone."""
        if source in self._known:
            self._known.remove(source)
            (self._first if source in self._first else self._waiting).remove(source)

    def _run(self) -> None:
        self._next = None
        now = self._clock()
        until = now + self._slice_s
        while now < until and self._known:
            now = self._serve(self._first or self._waiting, now, until)
        if self._known:
            self._next = asyncio.get_running_loop().call_soon(self._run)

    def _serve(self, line: deque[TurnTaker], now: float, until: float) -> float:
        """Have the first in line work while it may; then it is the others' turn. Returns what time it is."""
        source, more = line[0], True
        source.credit = min(source.credit, 0.0) + self._quantum_s
        if source.credit <= 0:
            line.rotate(-1)
            return self._clock()
        while more and source.credit > 0 and now < until:
            try:
                more = source.step()
            except Exception:  # a fault of ours, with one piece: it ends neither the source nor the others
                log.exception("events could not be believed")
            before, now = now, self._clock()
            source.credit -= now - before
        if line and line[0] is source:  # it may have gone in its own step
            if more:
                line.rotate(-1)
            else:
                line.popleft()
                self._known.discard(source)
        return now


def shared(context: zmq.Context[zmq.Socket[bytes]], made: _T) -> _T:
    """What all who read by this context have together: `made`, if there is none of its kind yet."""
    return cast(_T, vars(context).setdefault(f"shared_{type(made).__name__}", made))
