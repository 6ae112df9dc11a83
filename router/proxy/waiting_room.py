"""Waiting for room: who comes when all is full waits its turn for a short while, and is let in by who leaves.

The order is `fairness`'s. What waits has a future and a timer of its own; what does not wait costs nothing here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

from router.config.keys import ShownKey
from router.core.decision import Core
from router.core.fair_queue import PRIORITY_MAX, Waiting
from router.errors import Busy, Full, RouterError, Saturated
from scorer.hold import Held, overdue
from scorer.sessions import NAME_CHARS_MAX

_LOOK_S = 0.05  # between two looks while somebody waits: pods come back without anybody leaving
_PRIORITY_CHARS_MAX = 12
_AGAIN_MAX_S = 60  # nobody is told to come again later
_TURN_SHARE = 0.1  # of the newest, in what is the mean time between two turns: about the last 10 count
_FLOW_HEADERS: tuple[bytes, ...] = (b"x-warmroute-flow", b"authorization", b"x-api-key")  # the first wins
_ANONYMOUS = b""
_BATCH = b"batch"  # yields to all others

_T = TypeVar("_T")


class Guest(Protocol[_T]):
    """A request that may have to wait."""

    @property
    def flow(self) -> bytes: ...
    @property
    def priority(self) -> int: ...
    @property
    def tokens(self) -> int:
        """Of its prompt."""

    @property
    def group(self) -> str | None:
        """Requests of one group can go to the same pods: its model."""

    def enter(self, held: Held | None = None) -> _T:
        """Take a place; `held`: how it waits. Raises `Full` where there is none yet, and what else may be wrong."""

    def leave(self, taken: _T) -> None:
        """Give a place back that was taken for somebody who is gone."""


class Grants:
    """How fast turns come while somebody waits."""

    def __init__(self) -> None:
        self._mean_s: float | None = None
        self._since = 0.0  # the last one, or since somebody waits

    def begin(self, now: float) -> None:
        """Somebody waits, and nobody did."""
        self._since = now

    def come(self, now: float) -> None:
        """One has come."""
        taken_s, mean_s = now - self._since, self._mean_s
        self._since = now
        self._mean_s = taken_s if mean_s is None else mean_s + _TURN_SHARE * (taken_s - mean_s)

    def again_s(self, waiting: int, now: float) -> int:
        """When so many will have had theirs: whole seconds, at least one."""
        each_s = max(now - self._since if waiting else 0.0, self._mean_s or 0.0)
        return max(1, math.ceil(min(waiting * each_s, _AGAIN_MAX_S)))


class WaitingRoom(Generic[_T]):
    """All who wait, on one loop. How it ended is counted in `results`, by the words of `fair_queue.RESULTS`."""

    def __init__(self, core: Core, wait_max_s: float, results: Counter[str]) -> None:
        """`wait_max_s`: for room; `results` are of that too."""
        self._core = core
        self._queue = core.queue
        self._wait_max_s = wait_max_s
        self._look_timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._grants = Grants()
        self.results = results

    async def wait(self, guest: Guest[_T], full: Full) -> _T:
        """What `guest.enter` gives when its turn comes; raises `Saturated`, or what `enter` raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        if isinstance(full, Busy):
            return await self._wait_for_pod(guest, full.cost_s, future)
        entry = self._queue.put((guest, future), guest.flow, guest.priority, guest.tokens, guest.group)
        if entry is None:
            self.results["full"] += 1
            raise Saturated(full.message, self._again_s()) from None
        if self._queue.waiting == 1:
            self._grants.begin(time.monotonic())
        self._look_later(loop)
        timer = loop.call_later(self._wait_max_s, self._too_long, entry, future, full)
        try:
            return await future
        except asyncio.CancelledError:
            self.results["gone"] += 1
            self._queue.remove(entry)
            if not future.cancelled() and future.exception() is None:
                guest.leave(future.result())  # its turn came in the moment in which it left
                self.serve()
            raise
        finally:
            timer.cancel()

    async def _wait_for_pod(self, guest: Guest[_T], cost_s: float, future: asyncio.Future[_T]) -> _T:
        """Until the pod that is best can soon begin with it; where too many wait, it goes there at once."""
        held = self._core.hold.put((guest, future), guest.flow, guest.priority, cost_s, time.monotonic())
        if held is None:
            return guest.enter(overdue())
        self._look_later(asyncio.get_running_loop())
        try:
            return await future
        except asyncio.CancelledError:
            self._core.hold.remove(held)
            if future.done() and not future.cancelled() and future.exception() is None:
                guest.leave(future.result())
                self.serve()
            raise

    def serve(self) -> None:
        """There may be room."""
        if self._queue.waiting:
            self._queue.serve(self._grant)
        if self._core.hold.waiting:
            self._serve_soon()

    def _serve_soon(self) -> None:
        """Once for all that happens meanwhile; others have their turns between."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._serve_held)

    def _serve_held(self) -> None:
        self._soon = None
        core = self._core
        if core.hold.waiting and core.serve_held(time.monotonic(), self._place):
            self._serve_soon()

    def _place(self, held: Held) -> bool:
        guest, future = cast("tuple[Guest[_T], asyncio.Future[_T]]", held.item)
        if not future.done():
            try:
                future.set_result(guest.enter(held))
            except Busy:
                return False
            except Full:
                held.load = None  # it waits for more than a pod
                return False
            except RouterError as error:
                future.set_exception(error)
        return True

    def _grant(self, entry: Waiting) -> bool:
        guest, future = cast("tuple[Guest[_T], asyncio.Future[_T]]", entry.item)
        if future.done():  # its client left, or its time is over, a moment ago
            return True
        try:
            taken = self._enter_or_hold(guest, future)
            if taken is not None:
                future.set_result(taken)
        except Full:
            return False
        except RouterError as error:
            self.results["refused"] += 1
            future.set_exception(error)
        else:
            self.results["granted"] += 1
            self._grants.come(time.monotonic())
        return True

    def _enter_or_hold(self, guest: Guest[_T], future: asyncio.Future[_T]) -> _T | None:
        """There is room somewhere; None: a pod without is better for it, and it waits for that one from now on."""
        try:
            return guest.enter()
        except Busy as busy:
            item, now = (guest, future), time.monotonic()
            if self._core.hold.put(item, guest.flow, guest.priority, busy.cost_s, now) is not None:
                return None
            return guest.enter(overdue())

    def _too_long(self, entry: Waiting, future: asyncio.Future[_T], full: Full) -> None:
        if future.done():
            return
        guest, _ = cast("tuple[Guest[_T], asyncio.Future[_T]]", entry.item)
        self._queue.remove(entry)
        try:
            future.set_result(guest.enter(overdue()))  # it may wait for one pod, and find room at another
        except Full:
            self.results["timeout"] += 1
            text = f"{full.message} No room came within {self._wait_max_s:g} s."
            future.set_exception(Saturated(text, self._again_s()))
        except RouterError as error:
            future.set_exception(error)

    def _again_s(self) -> int:
        return self._grants.again_s(self._queue.waiting, time.monotonic())

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._look_timer is None:
            self._look_timer = loop.call_later(_LOOK_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look_timer = None
        self.serve()
        if self._queue.waiting or self._core.hold.waiting:
            self._look_later(loop)


class ClaimRules(NamedTuple):
    """What is believed of what requests say of themselves."""

    headers: bool
    """`x-warmroute-flow` and priorities, of anybody. Else the flow is the API key that was shown, or the address."""
    priority_min: int
    """Where they are not believed: nobody is more urgent than this, but for who has a key with a bound of its own."""
    session_headers: tuple[bytes, ...] = ()
    """Those that name a session, lower case."""


@dataclass(slots=True, eq=False)
class Claims:
    """Whose request it is, and how urgent, as far as that is believed: looked at when it has to wait; its session."""

    rules: ClaimRules
    headers: Sequence[tuple[bytes, bytes]]
    key: ShownKey | None = None  # the good API key that was shown
    address: str = ""  # of the client
    priority: object = None  # as the body gives it

    def flow(self) -> bytes:
        if self.rules.headers:
            return flow_of(self.headers)
        return self.key.digest if self.key is not None else self.address.encode()

    def urgency(self) -> int:
        """Lower goes first."""
        claimed = priority_of(self.headers, self.priority)
        if self.key is not None and self.key.priority_min is not None:
            return max(claimed, self.key.priority_min)
        return claimed if self.rules.headers else max(claimed, self.rules.priority_min)

    def session(self) -> str | None:
        """As a header names it."""
        names = self.rules.session_headers
        for name, value in self.headers:
            if name in names and value:
                return value[:NAME_CHARS_MAX].decode("latin-1")
        return None


def flow_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Whose request it is: `x-warmroute-flow`, else an API key; requests with neither are one flow."""
    found = {name: value for name, value in headers if name in _FLOW_HEADERS and value}
    for name in _FLOW_HEADERS:
        if name in found:
            return found[name]
    return _ANONYMOUS


def priority_of(headers: Sequence[tuple[bytes, bytes]], given: object) -> int:
    """Lower goes first: `x-warmroute-priority` (a number, or `batch`, after all others), else `given` (the body's); 0
    where that is neither."""
    for name, value in headers:
        if name == b"x-warmroute-priority" and len(value) <= _PRIORITY_CHARS_MAX:
            if value.lower() == _BATCH:
                return PRIORITY_MAX
            try:
                return int(value)
            except ValueError:
                return 0
    return given if isinstance(given, int) else 0
