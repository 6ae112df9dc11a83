"""Many candidates at once: the figures of a large fleet by columns that are arrays, for policies that price those.

Lists are quicker for few. What stands from one request to the next is kept, and so is what is in flight: a decision
looks only at the loads that have changed since the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.candidates import Candidate, Candidates, PodFacts
from scorer.load import PodLoad

MANY = 16
"""Candidates from which on arrays cost less than lists."""
_ROUNDED = 1.0 - 1e-9  # sums come out a little different in another order

Floats: TypeAlias = NDArray[np.float64]
_new = tuple.__new__


class Alike(NamedTuple):
    """Candidates that have the same: so many tokens matched, which are worth so much; `middle`: of those that are left
    to compute."""

    numbers: Sequence[int]
    matched: int
    worth: float
    middle: float


class Crowd:
    """The candidates of one request, numbered from 0: `Candidates` as arrays, tokens and requests too.

    What few decisions look at is made when somebody does.
    """

    __slots__ = (
        "_backlogs_s", "_busy_s", "_matched", "_tokens_s", "_worths", "again", "alone", "emptiest", "factors", "fills",
        "fullest", "groups", "longest", "pods", "prefill_tokens", "regulars", "requests", "rooms", "tokens", "turns",
    )  # fmt: skip

    def __init__(self, regulars: Regulars, tokens: int, turns: float, now: float) -> None:
        self.regulars = regulars
        self.pods = regulars.pods
        self.tokens = tokens
        self.turns = turns
        self.longest = 0
        """As of `Candidates`."""
        self.alone: Alike | None = None
        """Of one candidate, which alone has so much; None: several have, or nobody has anything."""
        self.groups: list[Alike] = []
        self.requests, self.prefill_tokens, self._busy_s = regulars.loads_at(now)
        self.factors, self.rooms, self.again = regulars.factors, regulars.rooms, regulars.again
        self.fills, self.emptiest, self.fullest = regulars.fills, regulars.emptiest, regulars.fullest
        self._backlogs_s: Floats | None = None
        self._matched: Floats | None = None
        self._worths: Floats | None = None
        self._tokens_s: Floats | None = None

    def hold(self, group: Alike) -> None:
        """These have something; nobody is in two groups, and who is in none has nothing."""
        self.groups.append(group)
        if group.matched > self.longest:
            self.longest, self.alone = group.matched, group if len(group.numbers) == 1 else None
        elif group.matched == self.longest:
            self.alone = None

    @property
    def others(self) -> Alike:
        """Those who have nothing: what is the same of all."""
        return _new(Alike, ((), 0, 0.0, self.tokens / 2))

    @property
    def matched(self) -> Floats:
        if self._matched is None:
            self._matched = self._of_groups([group.matched for group in self.groups])
        return self._matched

    @property
    def worths(self) -> Floats:
        if self._worths is None:
            self._worths = self._of_groups([group.worth for group in self.groups])
        return self._worths

    @property
    def tokens_s(self) -> Floats:
        if self._tokens_s is None:
            per_token, per_position = self.regulars.per_token, self.regulars.per_position
            self._tokens_s = per_token + per_position * (self.tokens / 2)
            for group in self.groups:
                where = np.array(group.numbers)
                self._tokens_s[where] = per_token[where] + per_position[where] * group.middle
        return self._tokens_s

    @property
    def backlogs_s(self) -> Floats:
        if self._backlogs_s is None:
            self._backlogs_s = np.zeros(len(self.pods))
            for number, backlog_s in self._busy_s.items():
                self._backlogs_s[number] = backlog_s
        return self._backlogs_s

    def delay(self, later_s: Sequence[float]) -> None:
        """As of `Candidates`."""
        self._backlogs_s = self.backlogs_s + np.array(later_s)

    @property
    def holder(self) -> int:
        """As of `Candidates`."""
        return int(self.matched.argmax())

    def __len__(self) -> int:
        return len(self.pods)

    def __getitem__(self, number: int) -> Candidate:
        for group in self.groups:
            if number in group.numbers:
                return self.member(group, number)
        return self.member(self.others, number)

    def member(self, group: Alike, number: int) -> Candidate:
        """One of a group."""
        _, matched, worth, middle = group
        (per_token, per_position), factor, room, again = self.regulars.each[number]
        evicted, backlogs_s = self.tokens - matched - room, self._backlogs_s
        figures = (
            number, self.tokens, matched, worth, int(self.requests.item(number)),
            int(self.prefill_tokens.item(number)),
            self._busy_s.get(number, 0.0) if backlogs_s is None else backlogs_s.item(number),
            per_token + per_position * middle, int(evicted) if evicted > 0.0 else 0, again, self.fills.item(number),
            factor,
        )  # fmt: skip
        return _new(Candidate, figures)

    def _of_groups(self, values: Sequence[float]) -> Floats:
        """A column of what each group has; who has nothing has 0."""
        column = np.zeros(len(self.pods))
        for group, value in zip(self.groups, values, strict=True):
            column[np.array(group.numbers)] = value
        return column

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.listed())

    def listed(self) -> Candidates:
        """The same by columns that are lists."""
        return Candidates(
            self.tokens, _whole(self.matched), self.worths.tolist(), _whole(self.requests),
            _whole(self.prefill_tokens), self.backlogs_s.tolist(), self.tokens_s.tolist(), self.factors.tolist(),
            self.rooms.tolist(), self.again.tolist(), self.fills.tolist(), self.pods, self.turns,
        )  # fmt: skip


Rivals: TypeAlias = Candidates | Crowd
Priced: TypeAlias = Sequence[float] | Floats


class Regulars:
    """What stands of many candidates from one request to the next, and their loads, if it is told when one changes."""

    __slots__ = (
        "_beta", "_cells", "_dear", "_eviction", "_least_per_position", "_least_per_token", "_least_share", "_numbers",
        "_prefill_tokens", "_requests", "_shares", "_working", "again", "each", "emptiest", "factors", "fills",
        "fullest", "least_room", "per_position", "per_token", "pods", "rooms",
    )  # fmt: skip

    def __init__(
        self,
        pods: Sequence[PodFacts],
        loads: Mapping[PodLoad, int],
        speeds: Sequence[tuple[float, float]],
        factors: Sequence[float],
        rooms: Sequence[float],
        again: Sequence[float],
        fills: Sequence[float],
    ) -> None:
        """By column, at least one of each; `loads`: with their numbers, in order; `speeds`: seconds a token, and for
        each one before it."""
        self.pods = pods
        self.each = list(zip(speeds, factors, rooms, again, strict=True))
        per_token, per_position = [one for one, _ in speeds], [more for _, more in speeds]
        self.per_token, self.per_position = np.array(per_token), np.array(per_position)
        self._least_per_token, self._least_per_position = min(per_token), min(per_position)
        self.factors = np.array(factors)
        self.rooms, self.again = np.array(rooms), np.array(again)
        self.least_room = min(rooms)
        self._numbers = loads
        self._requests, self._prefill_tokens = np.zeros(len(loads)), np.zeros(len(loads))
        self._cells: tuple[memoryview[Any], memoryview[Any]] = self._requests.data, self._prefill_tokens.data
        self._working: dict[int, PodLoad] = {}  # those with a backlog
        self._beta, self._shares, self._least_share = 0.0, np.ones(len(loads)), 1.0
        self._eviction, self._dear = 0.0, np.zeros(len(loads))
        self.fills = np.array(fills)
        self.emptiest, self.fullest = min(fills), max(fills)
        for load in loads:
            if load.requests or load.stated_s:
                self.heed(load)

    def heed(self, load: PodLoad) -> None:
        """It has changed; nothing happens where it is none of theirs."""
        number = self._numbers.get(load)
        if number is None:
            return
        requests, prefill_tokens = self._cells
        requests[number], prefill_tokens[number] = load.requests, load.prefill_tokens
        if load.prefill_tokens or load.stated_s:
            self._working[number] = load
        else:
            self._working.pop(number, None)

    def fill(self, number: int, fill: float) -> None:
        """So much of its cache is in use. Decisions keep the column that they saw."""
        before, fills = self.fills.item(number), self.fills.copy()
        fills[number], self.fills = fill, fills
        if fill <= self.emptiest:
            self.emptiest = fill
        elif before == self.emptiest:
            self.emptiest = fills.item(fills.argmin())
        if fill >= self.fullest:
            self.fullest = fill
        elif before == self.fullest:
            self.fullest = fills.item(fills.argmax())

    def shares(self, beta: float) -> Floats:
        """What one second of each one's work counts for: its own, and beta times that of the fleet."""
        if beta != self._beta:
            self._beta, self._shares = beta, 1.0 + beta / self.factors
            self._least_share = float(self._shares.min())
        return self._shares

    def least_s(self, beta: float, left: float, middle: float) -> float:
        """No price of anyone who has to compute so many tokens is lower."""
        self.shares(beta)
        return (self._least_per_token + self._least_per_position * middle) * left * self._least_share * _ROUNDED

    def dear(self, eviction: float) -> Floats:
        """How much it counts what each one gives up, for every token."""
        if eviction != self._eviction:
            self._eviction, self._dear = eviction, eviction * self.again
        return self._dear

    def loads_at(self, now: float) -> tuple[Floats, Floats, dict[int, float]]:
        """Requests and prefill tokens of each, and seconds of backlog of those that have one."""
        busy_s = {number: load.backlog_s(now) for number, load in self._working.items()}
        return self._requests.copy(), self._prefill_tokens.copy(), busy_s


def _whole(column: Floats) -> list[int]:
    return [int(value) for value in column.tolist()]
