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

A replay brings all that the publisher still has. What is older than its first batch is gone: the stream is `truncated`
until the publisher restarts or clears. What is missing in the middle when it has ended is lost: all that was believed
is forgotten (a lost removal would be a stale block), and what is held is applied. A history that has no end yet is
`behind`: it may lack removals, so nothing of it is to be believed until a live batch follows it, or its end came.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec

_T = TypeVar("_T")

Verdict: TypeAlias = Literal["in_order", "duplicate", "held", "late", "gap", "restart", "replayed", "closed", "lost"]


class Ready(msgspec.Struct, Generic[_T], gc=False):
    """What the caller does now, in this order: forget, apply, replay (instead of a replay that is under way)."""

    verdict: Verdict
    forget: bool = False
    apply: list[_T] = []
    replay_from: int | None = None


class Stream(Generic[_T]):
    """See the module. `held_max` bounds the batches kept while a replay runs, `held_bytes_max` their bytes; what
    overflows is lost as in a gap."""

    def __init__(self, held_max: int, held_bytes_max: int) -> None:
        self.expected = 0
        self.replaying = False
        self.truncated = False  # some history is unknown
        self.behind = False  # what is applied was true once; what became of it is not known yet
        self.waiting = False  # for what its publisher sent before: it comes from elsewhere
        self.dropped = 0  # batches that came and could not be kept
        self._held: dict[int, tuple[float, _T, int]] = {}  # clock, batch, bytes
        self._held_max = held_max
        self._held_bytes = 0
        self._held_bytes_max = held_bytes_max
        self._applied_clock = 0.0  # of batch `expected - 1`
        self._proven = True  # the replay under way comes from the publisher that we know
        self._doubted = False  # the replay under way replaces all that was applied
        self._newest = (-1, float("-inf"))  # number and clock of the newest live batch
        self._heard = -1  # number of the newest live batch since the replay was asked for

    def __repr__(self) -> str:
        doing = "replaying" if self.replaying else "in order"
        return f"<Stream {doing}, expects {self.expected}, holds {len(self._held)}>"

    def connected(self) -> Ready[_T]:
        """The feed was connected (again): is it the publisher that we know, and what did we miss?"""
        return Ready("held") if self.waiting else self._ask("late")

    def wait(self) -> None:
        """What a new stream's publisher sent before may come from elsewhere, by `resume`: until then, all is held."""
        self.waiting = self.replaying = self.behind = True

    @property
    def as_of(self) -> tuple[int, float]:
        """Number and clock of the last batch that was applied; -1: none was."""
        return self.expected - 1, self._applied_clock

    @property
    def sure(self) -> bool:
        """Nothing that was applied is in doubt."""
        return not self._doubted

    def resume(self, known: tuple[int, float, bool] | None, connected: bool) -> Ready[_T]:
        """The wait is over. `known`: elsewhere all is known up to the batch of this number and clock (and history
        before; or it is truncated); None: nothing is.

        It is believed if that very batch was held here, or once a replay has brought it. If another publisher's was
        held, it is to be forgotten. `connected`: somebody is there who can be asked.
        """
        if not self.waiting:  # its publisher has begun anew meanwhile
            return Ready("held")
        self.waiting = False
        if known is None:
            self.replaying = self.behind = connected
            return self._ask("late", self._heard) if connected else Ready("held")
        number, clock, truncated = known
        held = self._held.get(number)
        held_at = ((other, at) for other, (at, _, _) in self._held.items() if other != number)
        if any(at < clock if other > number else at > clock for other, at in held_at):
            held = None
        elif held is None or held[0] == clock:
            self.expected, self._applied_clock, self.truncated = number + 1, clock, truncated
        if not self.expected:
            ready = self._ask("restart", self._heard)
            ready.forget = True
            return ready
        for old in [old for old in self._held if old <= number]:
            self._drop(old)
        if held is None:
            return self._ask("late", self._heard)
        apply = self._contiguous()
        self._close()
        return Ready("closed", apply=apply, replay_from=number if self.replaying else None)

    @property
    def caught_up(self) -> bool:
        """Is the newest batch of all that came applied, and did the publisher itself send it?"""
        return self._heard == self.expected - 1 >= 0

    def live(self, number: int, clock: float, batch: _T, size: int = 0) -> Ready[_T]:
        """A batch of `size` bytes came from the publisher."""
        if number == self.expected and number > self._newest[0] and not self.replaying:
            self._newest = (number, clock)
            self.expected, self._applied_clock, self._heard, self.behind = number + 1, clock, number, False
            return Ready("in_order", apply=[batch])
        if number <= self._newest[0]:
            if clock > self._newest[1]:
                self._newest = (number, clock)
                return self._restart(number, clock, batch, size)
            if number < self.expected or not self.replaying:
                return Ready("duplicate")
            self._hold(number, clock, batch, size)
            return Ready("held")
        self._newest = (number, clock)
        if number < self.expected:  # a replay was faster, unless it was another publisher's
            if clock > self._applied_clock:
                return self._restart(number, clock, batch, size)
            self._heard = number
            self._close()
            return Ready("duplicate")
        self._hold(number, clock, batch, size)
        if self.replaying:
            self._heard = number
            return Ready("held")
        return self._ask("gap" if self.expected else "late", number)

    def replayed(self, number: int, clock: float, batch: _T, size: int = 0) -> Ready[_T]:
        """A batch of `size` bytes came from the replay socket; a replay's batches come in order."""
        if self._doubted:
            ready = self._from_the_start()
            ready.apply = self.replayed(number, clock, batch, size).apply
            return ready
        first: list[_T] = []
        if self.replaying and not self.expected and number:
            first = self._contiguous()  # all that its publisher said from 0 on came by itself
            if not first:
                self._begin_late(number)
        if not self.replaying or number < self.expected:
            if self._proven or number != self.expected - 1:
                return Ready("duplicate", apply=first)
            if clock != self._applied_clock:
                self._newest = (-1, self._applied_clock)
                return self._begin_anew(clock)
            self._proven = True
            return Ready("duplicate")
        if number > self.expected or not self._proven:
            self._hold(number, clock, batch, size)
            return Ready("held", apply=first)
        self._drop(number)  # it came late by itself, too
        self.expected, self._applied_clock = number + 1, clock
        apply = [*first, batch, *self._contiguous()]
        self._close()
        return Ready("replayed", apply=apply)

    def replay_ended(self, complete: bool) -> Ready[_T]:
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
        while self._held:  # each hole that is left is lost: go on behind the last one
            lost = True
            self.expected = min(self._held)
            apply = self._contiguous()
        if lost:
            self.truncated = True
        known = self.expected > 0 and (bool(apply) or not lost)
        self.behind = known and not complete and not self.caught_up
        return Ready("lost" if lost else "closed", forget=lost, apply=apply)

    def missing(self) -> int | None:
        """The first hole before something that came, after a replay. Pods drop silently when they send much at once; or
        the replay has brought nothing, as nothing had been said when it was asked for."""
        following = self.expected
        for number in sorted(self._held):
            if number != following:
                return following
            following = number + 1
        return None

    def resync(self) -> Ready[_T]:
        """What was made of the batches is in doubt: have them again, and forget once the first one is there."""
        self.replaying = self._doubted = self._proven = True
        self.waiting = False
        return Ready("late", replay_from=0)

    def forgotten(self) -> None:
        """What was made of the batches so far was forgotten: history is missing until it is read again."""
        self.truncated = self.truncated or self.expected > 0

    def cleared(self) -> None:
        """The pod said that it holds nothing, or has shown that what is known is enough: no history is missed."""
        self.truncated = False

    def _close(self) -> None:
        """Once all is there, up to the newest live batch, what a replay still brings is known."""
        if self.caught_up and not self._held:
            self.replaying = self.behind = False

    def _from_the_start(self) -> Ready[_T]:
        ready = self._begin_anew(float("-inf"))
        ready.verdict, ready.replay_from = "replayed", None
        return ready

    def _ask(self, verdict: Verdict, heard: int = -1) -> Ready[_T]:
        self.replaying, self._doubted, self._heard = True, False, heard
        self._proven = self.expected == 0
        self.behind = self.behind or self.expected == 0
        return Ready(verdict, replay_from=max(0, self.expected - 1))

    def _restart(self, number: int, clock: float, batch: _T, size: int) -> Ready[_T]:
        ready = self._begin_anew(clock)
        if number == 0:
            self.expected, self._applied_clock, self.replaying, self.behind = 1, clock, False, False
            ready.apply, ready.replay_from = [batch], None
        else:
            self._heard = number
            self._hold(number, clock, batch, size)
        return ready

    def _begin_late(self, number: int) -> None:
        """What the publisher still has begins here."""
        self.expected, self.truncated = number, True
        for old in [old for old in self._held if old < number]:
            self._drop(old)

    def _begin_anew(self, since: float) -> Ready[_T]:
        """Another publisher: of what is held, only batches later than `since` can be its."""
        for number in [number for number, (clock, _, _) in self._held.items() if clock <= since]:
            self._drop(number)
        self.expected, self.truncated, self._proven, self.replaying = 0, False, True, True
        self._doubted, self.waiting, self.behind = False, False, True
        self._heard = self._newest[0] if self._newest[0] in self._held else -1
        return Ready("restart", forget=True, replay_from=0)

    def _hold(self, number: int, clock: float, batch: _T, size: int) -> None:
        self._drop(number)
        self._held[number] = (clock, batch, size)
        self._held_bytes += size
        while len(self._held) > self._held_max or self._held_bytes > self._held_bytes_max:
            self._drop(min(self._held))
            self.dropped += 1

    def _drop(self, number: int) -> None:
        held = self._held.pop(number, None)
        if held is not None:
            self._held_bytes -= held[2]

    def _contiguous(self) -> list[_T]:
        batches = []
        while self.expected in self._held:
            self._applied_clock, batch, size = self._held.pop(self.expected)
            self._held_bytes -= size
            batches.append(batch)
            self.expected += 1
        return batches
