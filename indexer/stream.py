"""One feed's sequence: in order, duplicate, gap, restart. A state machine: numbers in, what to do out.

vLLM numbers its batches from 0 for each publisher process, and says nothing else about who it is. So two batches are
of one publisher if number and clock rise together, and a replay is asked from the last batch that was applied: only if
it comes back with the very clock that it had, the publisher is still the same.

=========  ==================================  =====================================================
state      a batch with number n comes         what follows
=========  ==================================  =====================================================
new        n = 0                               apply it: in order
new        n > 0                               hold it, replay from 0: joined late
in order   n as expected                       apply it
in order   n beyond                            hold it, replay from the last applied one: gap
any        n seen, but later by its clock      another publisher: forget all, as new: restart
any        n seen, not later by its clock      duplicate: nothing (held, if it is one that is missing)
replaying  n beyond                            hold it until the replay has ended
=========  ==================================  =====================================================

What is still missing when a replay has ended is lost: all that was believed is forgotten (a lost removal would be a
stale block), what is held is applied, and the stream is `truncated` until the publisher restarts or clears.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec

T = TypeVar("T")

Verdict: TypeAlias = Literal["in_order", "duplicate", "held", "late", "gap", "restart", "replayed", "closed", "lost"]


class Ready(msgspec.Struct, Generic[T]):
    """What the caller does now, in this order: forget, apply, replay (instead of a replay that is under way)."""

    verdict: Verdict
    forget: bool = False
    apply: list[T] = []
    replay_from: int | None = None


class Stream(Generic[T]):
    """See the module. `held_max` bounds the batches kept while a replay runs; what overflows is lost as in a gap."""

    def __init__(self, held_max: int) -> None:
        self.expected = 0
        self.replaying = False
        self.truncated = False  # some history is unknown
        self.dropped = 0  # batches that came and could not be kept
        self._held: dict[int, tuple[float, T]] = {}
        self._held_max = held_max
        self._applied_clock = 0.0  # of batch `expected - 1`
        self._proven = True  # the replay under way comes from the publisher that we know
        self._doubted = False  # the replay under way replaces all that was applied
        self._newest = (-1, float("-inf"))  # number and clock of the newest live batch

    def __repr__(self) -> str:
        doing = "replaying" if self.replaying else "in order"
        return f"<Stream {doing}, expects {self.expected}, holds {len(self._held)}>"

    def connected(self) -> Ready[T]:
        """The feed was connected (again): is it the publisher that we know, and what did we miss?"""
        return self._ask("late")

    def live(self, number: int, clock: float, batch: T) -> Ready[T]:
        """A batch came from the publisher."""
        if number <= self._newest[0]:
            if clock > self._newest[1]:
                self._newest = (number, clock)
                return self._restart(number, clock, batch)
            if number < self.expected or not self.replaying:
                return Ready("duplicate")
            self._hold(number, clock, batch)
            return Ready("held")
        self._newest = (number, clock)
        if self.replaying or number > self.expected:
            self._hold(number, clock, batch)
            if self.replaying:
                return Ready("held")
            return self._ask("gap" if self.expected else "late")
        if number < self.expected:
            return Ready("duplicate")  # a replay was faster
        self.expected, self._applied_clock = number + 1, clock
        return Ready("in_order", apply=[batch])

    def replayed(self, number: int, clock: float, batch: T) -> Ready[T]:
        """A batch came from the replay socket."""
        if self._doubted:
            ready = self._from_the_start()
            ready.apply = self.replayed(number, clock, batch).apply
            return ready
        if not self.replaying or number < self.expected:
            if self._proven or number != self.expected - 1:
                return Ready("duplicate")
            if clock != self._applied_clock:
                self._newest = (-1, self._applied_clock)
                return self._begin_anew(clock)
            self._proven = True
            return Ready("duplicate")
        if number > self.expected or not self._proven:
            self._hold(number, clock, batch)
            return Ready("held")
        self._held.pop(number, None)  # it came late by itself, too
        self.expected, self._applied_clock = number + 1, clock
        return Ready("replayed", apply=[batch, *self._contiguous()])

    def replay_ended(self, complete: bool) -> Ready[T]:
        """The replay is over; `complete`: its end marker came. Close the gap, or give up what was between."""
        if self._doubted and complete:
            ready = self._from_the_start()
            ready.apply = self.replay_ended(complete).apply
            return ready
        if complete and not self._proven:  # the last batch applied is not in its history: another publisher
            self._newest = (-1, self._applied_clock)
            return self._begin_anew(self._applied_clock)
        self.replaying = self._doubted = False
        lost = not self._proven
        apply = self._contiguous() if self._proven else []
        self._proven = True
        while self._held:  # each hole that is left is lost: go on behind the last one
            lost = True
            self.expected = min(self._held)
            apply = self._contiguous()
        if lost:
            self.truncated = True
        return Ready("lost" if lost else "closed", forget=lost, apply=apply)

    def missing(self) -> int | None:
        """The first hole behind something that a replay brought (pods drop silently when they send much at once)."""
        following = self.expected
        for number in sorted(self._held):
            if number != following and following > 0:
                return following
            following = number + 1
        return None

    def resync(self) -> Ready[T]:
        """What was made of the batches is in doubt: have them again, and forget once the first one is there."""
        self.replaying = self._doubted = self._proven = True
        return Ready("late", replay_from=0)

    def forgotten(self) -> None:
        """What was made of the batches so far was forgotten: history is missing until it is read again."""
        self.truncated = self.truncated or self.expected > 0

    def cleared(self) -> None:
        """The pod said that it holds nothing, or has shown that what is known is enough: no history is missed."""
        self.truncated = False

    def _from_the_start(self) -> Ready[T]:
        ready = self._begin_anew(float("-inf"))
        ready.verdict, ready.replay_from = "replayed", None
        return ready

    def _ask(self, verdict: Verdict) -> Ready[T]:
        self.replaying, self._doubted = True, False
        self._proven = self.expected == 0
        return Ready(verdict, replay_from=max(0, self.expected - 1))

    def _restart(self, number: int, clock: float, batch: T) -> Ready[T]:
        ready = self._begin_anew(clock)
        if number == 0:
            self.expected, self._applied_clock, self.replaying = 1, clock, False
            ready.apply, ready.replay_from = [batch], None
        else:
            self._hold(number, clock, batch)
        return ready

    def _begin_anew(self, since: float) -> Ready[T]:
        """Another publisher: of what is held, only batches later than `since` can be its."""
        self._held = {number: held for number, held in self._held.items() if held[0] > since}
        self.expected, self.truncated, self._proven, self.replaying = 0, False, True, True
        self._doubted = False
        return Ready("restart", forget=True, replay_from=0)

    def _hold(self, number: int, clock: float, batch: T) -> None:
        self._held[number] = (clock, batch)
        if len(self._held) > self._held_max:
            del self._held[min(self._held)]
            self.dropped += 1

    def _contiguous(self) -> list[T]:
        batches = []
        while self.expected in self._held:
            self._applied_clock, batch = self._held.pop(self.expected)
            batches.append(batch)
            self.expected += 1
        return batches
