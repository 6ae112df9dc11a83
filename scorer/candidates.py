"""Who could serve a request: one candidate a pod (or rank), with the figures that decide.

A decision looks at some figures of all pods and at all figures of one: so they are kept by column, and a `Candidate`
is put together for who asks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

_new = tuple.__new__
_ROOMY = float("inf")


class Candidate(NamedTuple):
    """Figures of one pod for one request, as of the decision.

    `matched`: leading tokens that the pod will not compute; `worth`: the same, weighed by tier; both of `tokens`.
    """

    number: int  # the caller's own handle
    tokens: int
    matched: int
    worth: float
    requests: int  # in flight through this router
    prefill_tokens: int  # promised, not yet computed
    backlog_s: float  # until a prefill that comes now could start
    token_s: float  # of prefill, for each token that is to be computed
    evicted: int  # cached tokens that the pod must give up to take this request; 0 if its room is not known
    again: float  # how likely what it gives up next is asked for again
    fill: float  # share of its cache that is in use; 1 where that is not known
    factor: float  # by which it is slower than the fleet


class PodFacts(Protocol):
    """What is known of a candidate whatever is asked, for policies that want to know."""

    @property
    def name(self) -> Hashable:
        """The same for as long as it is there, and written the same in all gateways."""

    @property
    def capacity(self) -> int | None:
        """Tokens that its cache holds, if that is known."""

    @property
    def used(self) -> float:
        """Share of its cache that requests use now, as far as that is known."""


class Stranger(NamedTuple):
    """A candidate of which nothing is known but what it is called."""

    name: Hashable
    capacity: int | None = None
    used: float = 0.0


@dataclass(slots=True)
class Candidates:
    """All of them, by column, numbered from 0: see `Candidate`."""

    tokens: int
    matched: list[int]
    worths: list[float]
    requests: list[int]
    prefill_tokens: list[int]
    backlogs_s: list[float]
    tokens_s: list[float]
    factors: list[float]
    rooms: list[float]  # tokens for which nothing is given up
    again: list[float]
    fills: list[float]
    pods: Sequence[PodFacts]
    turns: float = 4.0  # that are taken to follow, of the context that the prompt begins or continues

    def delay(self, later_s: Sequence[float]) -> None:
        """Each one's prefill starts so much later."""
        self.backlogs_s = [backlog_s + more for backlog_s, more in zip(self.backlogs_s, later_s, strict=True)]

    @property
    def longest(self) -> int:
        """The most that anyone has matched."""
        return max(self.matched)

    @property
    def holder(self) -> int:
        """The first one that has."""
        return self.matched.index(self.longest)

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, number: int) -> Candidate:
        matched = self.matched[number]
        evicted = self.tokens - matched - self.rooms[number]
        figures = (
            number, self.tokens, matched, self.worths[number], self.requests[number], self.prefill_tokens[number],
            self.backlogs_s[number], self.tokens_s[number], int(evicted) if evicted > 0.0 else 0,
            self.again[number], self.fills[number], self.factors[number],
        )  # fmt: skip
        return _new(Candidate, figures)

    def __iter__(self) -> Iterator[Candidate]:
        return (self[number] for number in range(len(self.requests)))


def by_column(candidates: Iterable[Candidate]) -> Candidates:
    """At least one, of one request, numbered from 0."""
    given = list(candidates)
    return Candidates(
        given[0].tokens,
        [each.matched for each in given],
        [each.worth for each in given],
        [each.requests for each in given],
        [each.prefill_tokens for each in given],
        [each.backlog_s for each in given],
        [each.token_s for each in given],
        [each.factor for each in given],
        [float(each.tokens - each.matched - each.evicted) if each.evicted else _ROOMY for each in given],
        [each.again for each in given],
        [each.fill for each in given],
        [Stranger(each.number) for each in given],
    )


class Scored(NamedTuple):
    """A candidate's `price` under the policy (lower is better) and its score in [0, 1] (higher is better)."""

    candidate: Candidate
    price: float
    score: float
