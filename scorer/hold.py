"""Requests that wait for their pod: bound late, when the pod can soon begin with them.

A pod is promised work for no longer than a look-ahead; what is beyond waits here, where it may still go elsewhere. Who
comes with more than that waits until the pod is idle: else it would share the steps of whoever is computed, whose first
token comes later for it, and nobody's sooner.

With each first byte or end all who wait are placed again, in their order: short ones first, and who has waited long.
Who can't go yet is planned for the pod that is its best, and those behind see it as busier. Who comes is placed as if
it were the first: it goes at once where its pod is free and nobody waits for that one.

The order is fair between flows: of each, a request stands behind all the work that its own flow has asked for ahead of
it, and what has gone of that while others waited counts. So a flow with much to do can't keep another's few waiting.

Where most requests continue others (agents, chats), a request that has much to compute also waits while what lives in
the pod's cache leaves no room for it: else it drives out what is needed in a moment, and comes back to find itself
driven out. Nobody waits for longer than a limit; then it goes where it is best. Time comes in as `now`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from scorer.load import PodLoad

COLD_S = 3.0
"""A request that has so much to compute may wait for room among what lives."""
_WAITED = 0.3  # seconds of work that a second of waiting makes up for
_SAMPLES_MIN = 8  # measured prefills, before which speeds are a guess, and only who owes a first byte is busy
_FLOWS_KEPT = 64  # that had more than others, and wait for nothing now, beside as many as there are requests waiting
_AT_ONCE = 4  # requests that are placed again in one go: well under a millisecond
_WHILE_S = 10.0  # who waits for longer is one of a crowd, if it has much to compute
_NO_ROOM, _IN_PIECES = "what lives in the pod's cache leaves no room", "another prompt goes there in pieces"
_MOVES = 0.1  # of its cost, by which a request's may change and leave it where it is in the order
_TURN_OF_PRIORITY_S, _PRIORITY_MAX = 1e9, 1e5  # in what other workers are told of a turn
_BELIEVED_S = 1.0  # it is told again by then, if it still holds
_ROUND_S = 0.25  # between two rounds of those whose pod stays busy,
_EACH_S = 0.0025  # or so much for each who waits: a small share of the time, however many they are


class PodBounds(NamedTuple):
    """A pod with so many requests, or so many tokens of prompts that wait there, takes no more."""

    requests: float = float("inf")
    prefill_tokens: float = float("inf")

    def allow(self, load: PodLoad) -> bool:
        """Another request."""
        return load.requests < self.requests and load.prefill_tokens < self.prefill_tokens


class HoldLimits(NamedTuple):
    """`look_ahead_s`: work that a pod is promised at most, if it is not idle; 0: nobody waits. `wait_max_s`: for
    each; for room, with its prefill and what the pod has to do before. `waiting_max`: more are not kept waiting.
    `pods`: what each takes."""

    look_ahead_s: float
    wait_max_s: float
    waiting_max: int
    pods: PodBounds


@dataclass(slots=True, eq=False)
class Held:
    """One request that waits. `item` is the caller's own. `load`: where it would go, as of `placed_at`."""

    item: object | None
    flow: Hashable
    priority: int
    since: float
    cost_s: float = 0.0  # of its prefill there
    load: PodLoad | None = None  # None: it waits for room, and is planned for no pod
    placed_at: float = float("-inf")
    reason: str = ""
    place: tuple[int, float] = (0, 0.0)  # in the order of its flow
    standing: float = 0.0  # the same as one number, beside those who wait with other workers
    turn: tuple[int, float] = (0, 0.0)  # in the order of all

    def stand(self, cost_s: float) -> None:
        """In the order of its flow, and beside others."""
        self.cost_s = cost_s
        self.place = self.priority, cost_s + turn_at(self.since)
        urgency = min(max(float(self.priority), -_PRIORITY_MAX), _PRIORITY_MAX)
        self.standing = urgency * _TURN_OF_PRIORITY_S + self.place[1]


_place, _turn = attrgetter("place"), attrgetter("turn")


def turn_at(now: float) -> float:
    """What the turn of somebody who comes now begins with."""
    return _WAITED * now


def overdue() -> Held:
    """How somebody waits who must not any longer."""
    return Held(None, None, 0, float("-inf"))


_NOBODY = Held(None, None, 0, 0.0), 0.0
_ANY, _NOTHING = float("inf"), -1.0  # work
_LAST = float("inf")  # the turn of who comes, behind all who wait


@dataclass(slots=True, eq=False)
class _Flow:
    """`waiting`: its requests that do, in its order, if that is `ordered`. `asked_s`: work that went, counted from who
    had the least when it came."""

    asked_s: float
    waiting: dict[Held, None] = field(default_factory=dict)
    ordered: bool = True


class Hold:
    """All who wait. `planned`: seconds of work that was planned for pods, ahead of who is placed again now; `rests`:
    that is still to come of prompts that go there in pieces."""

    def __init__(self, limits: HoldLimits) -> None:
        self.limits = limits
        self.planned: dict[PodLoad, float] = {}
        self.rests: dict[PodLoad, float] = {}
        self._waiting: dict[Held, None] = {}  # in the order of all, if that is `_ordered`
        self._ordered = True
        self._flows: dict[Hashable, _Flow] = {}  # those that wait, and those that had more than these
        self._round_at = float("-inf")  # the last one's beginning
        self._firsts: dict[PodLoad, tuple[Held, float]] = {}  # who waits for each pod, as was told, until when

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def flows(self) -> int:
        """How many are remembered."""
        return len(self._flows)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._waiting)

    def put(self, item: object, flow: Hashable, priority: int, cost_s: float, now: float) -> Held | None:
        """Somebody has to wait, whose prefill costs so much where it is best placed; None: too many do."""
        if len(self._waiting) >= self.limits.waiting_max:
            return None
        held = Held(item, flow, priority, now)
        held.stand(cost_s)
        of = self._flow(flow)
        self._waiting[held] = of.waiting[held] = None
        self._ordered = of.ordered = False
        return held

    def cold(self, now: float) -> int:
        """So many have waited for a while, and have much to compute."""
        return sum(held.cost_s > COLD_S and now - held.since > _WHILE_S for held in self._waiting)

    def remove(self, held: Held) -> None:
        """It is gone; nothing happens if it was."""
        if held in self._waiting:
            flow = self._flows[held.flow]
            del self._waiting[held], flow.waiting[held]
            flow.ordered = False
            load = held.load
            if load is not None and self._firsts.get(load, _NOBODY)[0] is held:
                del self._firsts[load]
                load.await_here(0.0, 0.0)

    def must_wait(self, load: PodLoad, cost_s: float, lacks_room: bool, held: Held | None, now: float) -> bool:
        """Whether who is best placed there has to. `lacks_room`: beside what lives. `held`: it does already."""
        waits = cost_s > self._room_s(load, now) or load in self.planned
        if held is None:
            return waits or lacks_room or load.is_awaited(_LAST, now)
        waits = waits or load.is_awaited(held.standing, now)
        before_s, held.cost_s, held.placed_at = held.cost_s, cost_s, now
        if abs(cost_s - before_s) > _MOVES * before_s and held in self._waiting:
            held.stand(cost_s)
            self._ordered = self._flows[held.flow].ordered = False
        held.load = None if lacks_room and not waits else load
        held.reason = "the pod is busy" if not lacks_room else _IN_PIECES if load in self.rests else _NO_ROOM
        left_s = held.since + self.limits.wait_max_s - now
        return (waits and left_s > 0.0) or (lacks_room and left_s > load.backlog_s(now) + cost_s)

    def serve(self, loads: Iterable[PodLoad], now: float, offer: Callable[[Held], bool]) -> bool:
        """Place who waits again, in order. `offer` places one, and says whether it is gone. `loads`: of all pods.

        Offered are those whose pod has room now; the others in rounds, from the first to the last: what has changed
        elsewhere may be better for them. True: there are more to offer, in a moment.
        """
        if now >= self._round_at + max(_ROUND_S, _EACH_S * len(self._waiting)):
            self._round_at = now
        planned, round_at, left, more = self.planned, self._round_at, _AT_ONCE, False
        rooms = {load: self._room_s(load, now) for load in loads}
        planned.clear()
        firsts: dict[PodLoad, Held] = {}
        for held in self._in_order():
            load = held.load
            waits = (
                load is None
                or load in planned
                or held.cost_s > rooms.get(load, _ANY)
                or load.is_awaited(held.standing, now)
            )
            if not waits or held.placed_at < round_at:
                if left > waits:  # one of them is for those that need not wait
                    left -= 1
                    gone, load = offer(held), held.load
                    if gone:
                        self._flows[held.flow].asked_s += held.cost_s
                        self.remove(held)
                        if load is not None:
                            rooms[load] = self._room_s(load, now)
                        continue
                else:
                    more = True
            if load is not None:
                before_s = planned.get(load)
                if before_s is None:
                    firsts[load] = held
                    before_s = 0.0
                planned[load] = before_s + held.cost_s
        self._tell(firsts, now)
        return more

    def _tell(self, firsts: dict[PodLoad, Held], now: float) -> None:
        """Other workers are told who waits for which pod, and told again before they believe it no more."""
        told, until = self._firsts, now + _BELIEVED_S
        for load in told.keys() - firsts.keys():
            del told[load]
            load.await_here(0.0, 0.0)
        for load, held in firsts.items():
            before, believed = told.get(load, _NOBODY)
            if before is not held or believed < now + _BELIEVED_S / 2:
                told[load] = held, until
                load.await_here(held.standing, until)

    def _in_order(self) -> Sequence[Held]:
        """All who wait; most are where they were the last time."""
        if self._ordered:
            return list(self._waiting)
        self._ordered = True
        if len(self._flows) == 1:
            ordered = sorted(self._waiting, key=_place)
        else:
            for flow in self._flows.values():
                if not flow.ordered:
                    _order(flow)
            ordered = sorted(self._waiting, key=_turn)
        self._waiting = dict.fromkeys(ordered)
        return ordered

    def _flow(self, name: Hashable) -> _Flow:
        """It begins where the one is that waits and has had the least, unless it has had more."""
        flow = self._flows.get(name)
        if flow is not None and flow.waiting:
            return flow
        least_s = min([each.asked_s for each in self._flows.values() if each.waiting], default=0.0)
        if not self._waiting or len(self._flows) > 2 * len(self._waiting) + _FLOWS_KEPT:
            self._flows = {name: each for name, each in self._flows.items() if each.waiting}
        if flow is None or flow.asked_s < least_s or not self._waiting:
            flow = _Flow(least_s)
        self._flows[name] = flow
        return flow

    def _room_s(self, load: PodLoad, now: float) -> float:
        """Of work that the pod may be promised now: who is idle takes anything, who has as much as it may nothing."""
        if not self.limits.pods.allow(load):
            return _NOTHING
        backlog_s = load.backlog_s(now)
        known = load.rate.fleet.samples >= _SAMPLES_MIN or load.owes
        return self.limits.look_ahead_s - backlog_s if known and backlog_s > 0.0 else _ANY


def _order(flow: _Flow) -> None:
    """Short ones first, and who has waited for long; each behind the work that was asked for before it."""
    ordered, asked_s = sorted(flow.waiting, key=_place), flow.asked_s
    for held in ordered:
        asked_s += held.cost_s
        held.turn = (held.priority, asked_s)
    flow.waiting, flow.ordered = dict.fromkeys(ordered), True
