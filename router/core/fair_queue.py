"""The queue of requests that wait for room: deficit round robin between flows, strict between priorities. Pure.

Every flow whose turn it is may spend `_QUANTUM` prompt tokens more; so flows get like shares of prefill, whatever the
size of their requests, and a flow with much to do can't keep another waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

RESULTS = ("granted", "refused", "full", "timeout", "gone")
"""How waiting ends. granted, or refused when its turn came; full: there was no place in the queue; else it left."""

PRIORITY_MIN, PRIORITY_MAX = -8, 7  # what is beyond counts as these: so many levels are kept at most
_QUANTUM = 1024  # tokens that a flow may spend when its turn comes
_COST_MIN = 256  # a short prompt takes a place as well: at most 4 in a row
_COST_MAX = 8 * _QUANTUM  # more would not be fairer, and would be paid by going round so much more often


class Waiting(NamedTuple):
    """One request that waits. `item` is the caller's own; `group`: whoever shares it can go when this one can."""

    item: object
    flow: bytes
    priority: int
    cost: int
    group: str | None


class _Flow:
    """The requests of one flow, of one priority and group. It is only kept while there are any."""

    __slots__ = ("credit", "has_turn", "waiting")

    def __init__(self) -> None:
        self.credit = 0
        self.has_turn = False  # it has got what it may spend in this turn
        self.waiting: deque[Waiting] = deque()


class FairQueue:
    """At most `waiting_max` requests, at most `flow_max` of one flow; `waiting` says how many there are."""

    def __init__(self, waiting_max: int, flow_max: int) -> None:
        self._waiting_max = waiting_max
        self._flow_max = flow_max
        self._levels: dict[int, deque[_Flow]] = {}  # by priority; in the order of their turns
        self._flows: dict[tuple[int, bytes, str | None], _Flow] = {}
        self._of_flow: Counter[bytes] = Counter()  # over all priorities: else a flow could have a queue of each
        self._of_group: Counter[str | None] = Counter()
        self.waiting = 0

    @property
    def flows(self) -> int:
        """How many flows are kept: none without requests that wait."""
        return len(self._flows)

    def holds(self, group: str | None) -> bool:
        """Whether requests of this group wait: who comes later must not overtake them."""
        return group in self._of_group

    def put(self, item: object, flow: bytes, priority: int, tokens: int, group: str | None) -> Waiting | None:
        """Queue a request of `tokens` prompt tokens; None where there is no room for it."""
        if self.waiting >= self._waiting_max or self._of_flow[flow] >= self._flow_max:
            self._forget_if_none(flow)
            return None
        priority = min(max(priority, PRIORITY_MIN), PRIORITY_MAX)
        entry = Waiting(item, flow, priority, min(max(tokens, _COST_MIN), _COST_MAX), group)
        kept = self._flows.get((priority, flow, group))
        if kept is None:
            kept = self._flows[(priority, flow, group)] = _Flow()
            self._levels.setdefault(priority, deque()).append(kept)
        kept.waiting.append(entry)
        self._of_flow[flow] += 1
        self._of_group[group] += 1
        self.waiting += 1
        return entry

    def remove(self, entry: Waiting) -> None:
        """It does not wait any more; nothing happens if it did not."""
        flow = self._flows.get((entry.priority, entry.flow, entry.group))
        if flow is None:
            return
        for place, kept in enumerate(flow.waiting):
            if kept is entry:
                del flow.waiting[place]
                self._gone(entry, flow)
                return

    def serve(self, grant: Callable[[Waiting], bool]) -> None:
        """Offer those who wait to `grant`, in their order, as long as it takes any.

        `grant` says False where there is no room: nobody of that group is offered then. It must not change the queue.
        """
        full: set[str | None] = set()
        for priority in sorted(self._levels):
            self._serve_level(self._levels[priority], grant, full)

    def _serve_level(self, level: deque[_Flow], grant: Callable[[Waiting], bool], full: set[str | None]) -> None:
        skipped = 0  # flows in a row that can't go on
        while skipped < len(level):
            flow = level[0]
            entry = flow.waiting[0]
            if entry.group in full:
                skipped += 1
                level.rotate(-1)
            elif not flow.has_turn:
                flow.has_turn = True
                flow.credit += _QUANTUM
            elif flow.credit < entry.cost:
                flow.has_turn = False
                skipped = 0
                level.rotate(-1)
            elif grant(entry):
                flow.credit -= entry.cost
                flow.waiting.popleft()
                skipped = 0
                self._gone(entry, flow)
            else:
                full.add(entry.group)

    def _gone(self, entry: Waiting, flow: _Flow) -> None:
        self.waiting -= 1
        self._of_flow[entry.flow] -= 1
        self._of_group[entry.group] -= 1
        self._forget_if_none(entry.flow)
        if not self._of_group[entry.group]:
            del self._of_group[entry.group]
        if not flow.waiting:
            del self._flows[(entry.priority, entry.flow, entry.group)]
            self._levels[entry.priority].remove(flow)

    def _forget_if_none(self, flow: bytes) -> None:
        if not self._of_flow[flow]:
            del self._of_flow[flow]
