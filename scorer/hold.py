"""Requests that wait for their pod: bound late, when the pod can soon begin with them.

A pod is promised work for no longer than a look-ahead; what is beyond waits here, where it may still go elsewhere. With
each first byte or end all who wait are placed again, in their order: short ones first, and who has waited for long. Who
can't go yet is planned for the pod that is its best, and those behind see it as busier.

Where most requests continue others (agents, chats), a request that has much to compute also waits while what lives in
the pod's cache leaves no room for it: else it drives out what is needed in a moment, and comes back to find itself
driven out. Nobody waits for longer than a limit; then it goes where it is best. Time comes in as `now`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from scorer.load import PodLoad

COLD_S = 3.0
"""A request that has so much to compute may wait for room among what lives."""
LIVE_S = 60.0
"""What was used within this time lives."""
CONTINUING_MIN = 0.6
"""Share of requests that continue others, from which on it is worth to wait for room."""
ANSWER_TOKENS = 500
"""Taken to be added by an answer."""
_WAITED = 0.3  # seconds of work that a second of waiting makes up for
_SAMPLES_MIN = 8  # measured prefills, before which speeds are a guess, and nobody waits for what may be none
_AT_ONCE = 4  # requests that are placed again in one go: well under a millisecond
_ROUND_S = 0.25  # between two rounds of those whose pod stays busy,
_EACH_S = 0.0025  # or so much for each who waits: a small share of the time, however many they are


class HoldLimits(NamedTuple):
    """`look_ahead_s`: work that a pod is promised at most, but for one request; 0: nobody waits. `wait_max_s`: for
    each. `waiting_max`: more are not kept waiting."""

    look_ahead_s: float
    wait_max_s: float
    waiting_max: int


@dataclass(slots=True, eq=False)
class Held:
    """One request that waits. `item` is the caller's own. `load`: where it would go, as of `placed_at`."""

    item: object | None
    priority: int
    since: float
    cost_s: float = 0.0  # of its prefill there
    load: PodLoad | None = None  # None: it waits for room, and is planned for no pod
    placed_at: float = float("-inf")
    reason: str = ""


def overdue() -> Held:
    """How somebody waits who must not any longer."""
    return Held(None, 0, float("-inf"))


class Hold:
    """All who wait. `planned`: seconds of work that was planned for pods ahead of who is placed now."""

    def __init__(self, limits: HoldLimits) -> None:
        self.limits = limits
        self.planned: dict[PodLoad, float] = {}
        self._waiting: dict[Held, None] = {}
        self._round_at = float("-inf")  # the last one's beginning

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._waiting)

    def put(self, item: object, priority: int, now: float) -> Held | None:
        """Somebody has to wait; None: too many do."""
        if len(self._waiting) >= self.limits.waiting_max:
            return None
        held = Held(item, priority, now)
        self._waiting[held] = None
        return held

    def remove(self, held: Held) -> None:
        """It is gone; nothing happens if it was."""
        self._waiting.pop(held, None)

    def must_wait(self, load: PodLoad, cost_s: float, lacks_room: bool, held: Held | None, now: float) -> bool:
        """Whether who is best placed there has to. `lacks_room`: beside what lives. `held`: it does already."""
        waits = self._is_busy(load, now) or load in self.planned
        if held is None:
            return waits or lacks_room
        held.cost_s, held.placed_at = cost_s, now
        held.load = None if lacks_room and not waits else load
        held.reason = "what lives in the pod's cache leaves no room" if lacks_room else "the pod is busy"
        return (waits or lacks_room) and now < held.since + self.limits.wait_max_s

    def serve(self, loads: Iterable[PodLoad], now: float, offer: Callable[[Held], bool]) -> bool:
        """Place who waits again, in order. `offer` places one, and says whether it is gone. `loads`: of all pods.

        Offered are those whose pod has room now; the others in rounds, from the first to the last: what has changed
        elsewhere may be better for them. True: there are more to offer, in a moment.
        """
        planned, offered = self.planned, 0
        if now >= self._round_at + max(_ROUND_S, _EACH_S * len(self._waiting)):
            self._round_at = now
        busy = {load for load in loads if self._is_busy(load, now)}
        planned.clear()
        for held in sorted(self._waiting, key=lambda held: (held.priority, held.cost_s - _WAITED * (now - held.since))):
            load = held.load
            if held.placed_at < self._round_at or not (load is None or load in planned or load in busy):
                if offered >= _AT_ONCE:
                    return True
                offered += 1
                gone, load = offer(held), held.load
                if gone:
                    self._waiting.pop(held, None)
                    if load is not None and self._is_busy(load, now):
                        busy.add(load)
                    continue
            if load is not None:
                planned[load] = planned.get(load, 0.0) + held.cost_s
        return False

    def _is_busy(self, load: PodLoad, now: float) -> bool:
        return load.rate.fleet.samples >= _SAMPLES_MIN and load.backlog_s(now) >= self.limits.look_ahead_s
