"""Who could serve a request: one candidate a pod (or rank), with the figures that decide.

A decision looks at some figures of all pods and at all figures of some: so they are kept by column, and a `Candidate`
is put together for who asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    token_s: float  # of prefill, for each token
    evicted: int = 0  # cached tokens that the pod must give up to take this request; 0 if its room is not known


class Held(NamedTuple):
    """What a pod has of the prompt: see `Candidate`."""

    matched: int
    worth: float
    token_s: float  # of the rest


@dataclass(slots=True)
class Candidates:
    """All of them, by column; `held` has those that match, by number. They are numbered from 0."""

    tokens: int
    requests: list[int]
    prefill_tokens: list[int]
    backlogs_s: list[float]
    tokens_s: list[float]  # of a prompt of which nothing is held
    rooms: list[float]  # tokens for which nothing is given up
    held: Mapping[int, Held]

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, number: int) -> Candidate:
        held = self.held.get(number)
        matched, worth, token_s = (0, 0.0, self.tokens_s[number]) if held is None else held
        figures = (
            number, self.tokens, matched, worth, self.requests[number], self.prefill_tokens[number],
            self.backlogs_s[number], token_s, int(max(0.0, self.tokens - matched - self.rooms[number])),
        )  # fmt: skip
        return _new(Candidate, figures)

    def __iter__(self) -> Iterator[Candidate]:
        return (self[number] for number in range(len(self.requests)))

    def matched(self, number: int) -> int:
        """Leading tokens that it will not compute."""
        held = self.held.get(number)
        return 0 if held is None else held.matched


def by_column(candidates: Iterable[Candidate]) -> Candidates:
    """At least one, of one request, numbered from 0."""
    given = list(candidates)
    return Candidates(
        given[0].tokens,
        [each.requests for each in given],
        [each.prefill_tokens for each in given],
        [each.backlog_s for each in given],
        [each.token_s for each in given],
        [float(each.tokens - each.matched - each.evicted) if each.evicted else _ROOMY for each in given],
        {each.number: Held(each.matched, each.worth, each.token_s) for each in given if each.matched},
    )


class Scored(NamedTuple):
    """A candidate's `price` under the policy (lower is better) and its score in [0, 1] (higher is better)."""

    candidate: Candidate
    price: float
    score: float


@dataclass(slots=True)
class Pick:
    """The candidate to send to, all that were compared with their prices, and why."""

    best: Candidate
    candidates: Candidates
    prices: Sequence[float]
    reason: str
