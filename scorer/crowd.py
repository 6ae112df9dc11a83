"""Many candidates at once: the figures of a large fleet by columns that are arrays, for policies that price those.

Lists are quicker for few. What stands from one request to the next is kept, and so is what is in flight: a decision
looks only at the loads that have changed since the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.candidates import Candidate, Candidates, PodFacts
from scorer.load import PodLoad

MANY = 16
"""Candidates from which on arrays cost less than lists."""

Floats: TypeAlias = NDArray[np.float64]


class Crowd:
    """The candidates of one request, numbered from 0: `Candidates` as arrays, tokens and requests too."""

    __slots__ = (
        "again",
        "backlogs_s",
        "factors",
        "fills",
        "longest",
        "matched",
        "pods",
        "prefill_tokens",
        "regulars",
        "requests",
        "rooms",
        "tokens",
        "tokens_s",
        "turns",
        "worths",
    )  # fmt: skip

    def __init__(self, regulars: Regulars, tokens: int, turns: float, now: float) -> None:
        self.regulars = regulars
        self.pods = regulars.pods
        self.tokens = tokens
        self.turns = turns
        self.longest = 0
        """As of `Candidates`."""
        count = len(regulars.pods)
        self.matched = np.zeros(count)
        self.worths = np.zeros(count)
        self.requests, self.prefill_tokens, self.backlogs_s = regulars.loads_at(now)
        self.tokens_s: Floats = regulars.per_token + regulars.per_position * (tokens / 2)
        self.factors, self.rooms, self.again = regulars.factors, regulars.rooms, regulars.again
        self.fills = regulars.fills

    def hold(self, numbers: Sequence[int], matched: int, worth: float, middle: float) -> None:
        """These have so many tokens matched, which are worth so much; `middle`: of those that are left to compute."""
        where = numbers[0] if len(numbers) == 1 else np.array(numbers)
        regulars = self.regulars
        self.matched[where] = matched
        self.worths[where] = worth
        self.tokens_s[where] = regulars.per_token[where] + regulars.per_position[where] * middle
        if matched > self.longest:
            self.longest = matched

    @property
    def holder(self) -> int:
        """The first one that has."""
        return int(self.matched.argmax())

    def __len__(self) -> int:
        return len(self.pods)

    def __getitem__(self, number: int) -> Candidate:
        matched = self.matched.item(number)
        evicted = self.tokens - matched - self.rooms.item(number)
        return Candidate(
            number, self.tokens, int(matched), self.worths.item(number), int(self.requests.item(number)),
            int(self.prefill_tokens.item(number)), self.backlogs_s.item(number), self.tokens_s.item(number),
            int(evicted) if evicted > 0.0 else 0, self.again.item(number), self.fills.item(number),
            self.factors.item(number),
        )  # fmt: skip

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
    """What stands of many candidates from one request to the next, and the loads that have moved."""

    __slots__ = (
        "_beta", "_dear", "_eviction", "_moved", "_numbers", "_prefill_tokens", "_requests", "_shares", "_working",
        "again", "emptiest", "factors", "fills", "fullest", "least_room", "per_position", "per_token", "pods", "rooms",
    )  # fmt: skip

    def __init__(
        self,
        pods: Sequence[PodFacts],
        loads: Sequence[PodLoad],
        speeds: Sequence[tuple[float, float]],
        factors: Sequence[float],
        rooms: Sequence[float],
        again: Sequence[float],
        fills: Sequence[float],
    ) -> None:
        """By column, at least one of each; `speeds`: seconds a token, and for each one before it."""
        self.pods = pods
        self.per_token, self.per_position = np.array(speeds).T.copy()
        self.factors = np.array(factors)
        self.rooms, self.again = np.array(rooms), np.array(again)
        self.least_room = min(rooms)
        self._numbers = {load: number for number, load in enumerate(loads)}
        self._moved: set[PodLoad] = set(loads)
        for load in loads:
            load.moved = self._moved
        self._requests = np.zeros(len(loads))
        self._prefill_tokens = np.zeros(len(loads))
        self._working: dict[int, PodLoad] = {}  # those with a backlog
        self._beta, self._shares = 0.0, np.ones(len(loads))
        self._eviction, self._dear = 0.0, np.zeros(len(loads))
        self.fills = np.array(fills)
        self.emptiest, self.fullest = min(fills), max(fills)

    def fill(self, number: int, fill: float) -> None:
        """So much of its cache is in use. Decisions keep the column that they saw."""
        before, fills = self.fills.item(number), self.fills.copy()
        fills[number], self.fills = fill, fills
        if fill < self.emptiest or before == self.emptiest:
            self.emptiest = fills.item(fills.argmin())
        if fill > self.fullest or before == self.fullest:
            self.fullest = fills.item(fills.argmax())

    def shares(self, beta: float) -> Floats:
        """What one second of each one's work counts for: its own, and beta times that of the fleet."""
        if beta != self._beta:
            self._beta, self._shares = beta, 1.0 + beta / self.factors
        return self._shares

    def dear(self, eviction: float) -> Floats:
        """How much it counts what each one gives up, for every token."""
        if eviction != self._eviction:
            self._eviction, self._dear = eviction, eviction * self.again
        return self._dear

    def loads_at(self, now: float) -> tuple[Floats, Floats, Floats]:
        """Requests, prefill tokens, and seconds of backlog of each."""
        requests, prefill_tokens, working = self._requests, self._prefill_tokens, self._working
        for load in self._moved:
            number = self._numbers[load]
            requests[number], prefill_tokens[number] = load.requests, load.prefill_tokens
            if load.prefill_tokens or load.stated_s:
                working[number] = load
            else:
                working.pop(number, None)
        self._moved.clear()
        backlogs_s = np.zeros(len(requests))
        for number, load in working.items():
            backlogs_s[number] = load.backlog_s(now)
        return requests.copy(), prefill_tokens.copy(), backlogs_s


def _whole(column: Floats) -> list[int]:
    return [int(value) for value in column.tolist()]
