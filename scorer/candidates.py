"""Who could serve a request: one candidate a pod (or rank), with the figures that decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


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


class Scored(NamedTuple):
    """A candidate's `price` under the policy (lower is better) and its score in [0, 1] (higher is better)."""

    candidate: Candidate
    price: float
    score: float


@dataclass(slots=True)
class Pick:
    """The candidate to send to, all that were compared with their prices, and why."""

    best: Candidate
    candidates: Sequence[Candidate]
    prices: Sequence[float]
    reason: str
