"""The named policies: each prices the candidates of one request; the lowest price is picked.

`predicted-ttft`: seconds until the first token if sent there, counting what this request costs the fleet:
`backlog + (1 + beta) * cost(uncached) + eviction * cost(evicted) + requests * request_s`. `weighted`: a blend of
matched share and load, as other routers have it. `round-robin` and `least-load` know nothing of caches, and are there
to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from scorer.candidates import Candidate

PolicyName: TypeAlias = Literal["predicted-ttft", "weighted", "round-robin", "least-load"]


@dataclass(slots=True, frozen=True)
class Settings:
    """`beta`: how much of the fleet's work counts beside this request's own wait (0-1 at low load, 4-8 at the knee).

    `eviction`: how likely what a pod gives up for a request is asked for again.
    `request_s`: seconds that each request in flight is taken to delay another's first token by its decode steps.
    """

    policy: PolicyName = "predicted-ttft"
    beta: float = 1.0
    request_s: float = 0.002
    eviction: float = 0.5


Policy: TypeAlias = Callable[[Sequence[Candidate], Settings, int], list[float]]
"""(candidates, settings, turn: how many picks were made before) -> prices."""


def predicted_ttft(candidates: Sequence[Candidate], settings: Settings, turn: int) -> list[float]:
    """Seconds until the first token if sent there, and what the work costs the fleet."""
    factor, eviction, request_s = 1.0 + settings.beta, settings.eviction, settings.request_s
    return [  # unpacked: attributes of so many would be half of the pick
        backlog_s + (factor * (tokens - worth) + eviction * evicted) * token_s + requests * request_s
        for _, tokens, _, worth, requests, _, backlog_s, token_s, evicted in candidates
    ]


def weighted(candidates: Sequence[Candidate], settings: Settings, turn: int) -> list[float]:
    """Shares in [0, 1]: three parts of what is not matched, two of the load beside the busiest."""
    busiest = max(c.requests for c in candidates) or 1
    return [1.0 - (3 * c.worth / max(1, c.tokens) + 2 * (1 - c.requests / busiest)) / 5 for c in candidates]


def round_robin(candidates: Sequence[Candidate], settings: Settings, turn: int) -> list[float]:
    """Places until it is a candidate's turn."""
    count = len(candidates)
    return [float((place - turn) % count) for place in range(count)]


def least_load(candidates: Sequence[Candidate], settings: Settings, turn: int) -> list[float]:
    """Requests in flight, and the seconds of prefill that they still need."""
    return [c.requests + c.prefill_tokens * c.token_s for c in candidates]


POLICIES: dict[PolicyName, Policy] = {
    "predicted-ttft": predicted_ttft,
    "weighted": weighted,
    "round-robin": round_robin,
    "least-load": least_load,
}
