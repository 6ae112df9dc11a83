"""Who could serve a request: one candidate a pod (or rank), with the figures that decide."""

from __future__ import annotations

from typing import NamedTuple

from scorer.load import PodLoad


class Candidate(NamedTuple):
    """`matched`: leading tokens the pod will not compute; `worth`: the same, weighed by tier; both of `tokens`."""

    number: int  # the caller's own handle
    tokens: int
    matched: int
    worth: float
    load: PodLoad

    @property
    def uncached(self) -> float:
        """Tokens of prefill this request costs the pod, loads from slower tiers priced in."""
        return self.tokens - self.worth


class Scored(NamedTuple):
    """A candidate's `price` under the policy (lower is better) and its score in [0, 1] (higher is better)."""

    candidate: Candidate
    price: float
    score: float


class Pick(NamedTuple):
    """The candidate to send to, all that were compared, and why."""

    best: Candidate
    scored: list[Scored]
    reason: str
