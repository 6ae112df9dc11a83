"""The named policies: each prices the candidates of one request; the lowest price is picked.

`predicted-ttft`: seconds until the first token if sent there, counting what this request costs the fleet: `backlog +
cost(uncached) + beta * cost(uncached) of the fleet + eviction * again * cost(evicted + growth) + requests *
request_s`. Its own wait is at the pod's speed, the fleet's work at the fleet's. `again` is how likely what is given up
is asked for once more; `growth`: what is new of a prompt will be followed by more, for which there is less room in a
pod that is fuller than others. `weighted`: a blend of matched share and load, as other routers have it. `round-robin`
and `least-load` know nothing of caches, and are there to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from scorer.candidates import Candidates

_EVEN = 0.05  # of a cache: pods are no fuller than others for so much
_GROWTH = 4.0  # of what is new of a prompt: so much more is taken to follow it

PolicyName: TypeAlias = Literal["predicted-ttft", "weighted", "round-robin", "least-load"]


@dataclass(slots=True, frozen=True)
class Settings:
    """`beta`: how much of the fleet's work counts beside this request's own wait (0-1 at low load, 4-8 at the knee).

    `eviction`: how much it counts that what a pod gives up may have to be computed again.
    `request_s`: seconds that each request in flight is taken to delay another's first token by its decode steps.
    """

    policy: PolicyName = "predicted-ttft"
    beta: float = 1.0
    request_s: float = 0.002
    eviction: float = 4.0


Policy: TypeAlias = Callable[[Candidates, Settings, int], list[float]]
"""(candidates, settings, turn: how many picks were made before) -> prices."""


def predicted_ttft(candidates: Candidates, settings: Settings, turn: int) -> list[float]:
    """Seconds until the first token if sent there, and what the work costs the fleet."""
    beta, eviction, request_s, tokens = settings.beta, settings.eviction, settings.request_s, float(candidates.tokens)
    emptiest, growth = min(candidates.fills) + _EVEN, _GROWTH * (tokens - max(candidates.matched))
    return [
        backlog_s
        + requests * request_s
        + token_s
        * (
            (tokens - worth) * (1.0 + beta / factor)
            if room >= tokens and fill <= emptiest
            else (tokens - worth) * (1.0 + beta / factor)
            + eviction * again * (max(0.0, tokens - matched - room) + growth * max(0.0, fill - emptiest))
        )
        for matched, worth, requests, backlog_s, token_s, factor, room, again, fill in zip(
            candidates.matched,
            candidates.worths,
            candidates.requests,
            candidates.backlogs_s,
            candidates.tokens_s,
            candidates.factors,
            candidates.rooms,
            candidates.again,
            candidates.fills,
            strict=True,
        )
    ]


def weighted(candidates: Candidates, settings: Settings, turn: int) -> list[float]:
    """Shares in [0, 1]: three parts of what is not matched, two of the load beside the busiest."""
    busiest, tokens = max(candidates.requests) or 1, max(1, candidates.tokens)
    return [
        1.0 - 2 * (1 - requests / busiest) / 5 - 3 * worth / tokens / 5
        for requests, worth in zip(candidates.requests, candidates.worths, strict=True)
    ]


def round_robin(candidates: Candidates, settings: Settings, turn: int) -> list[float]:
    """Places until it is a candidate's turn."""
    count = len(candidates)
    return [float((place - turn) % count) for place in range(count)]


def least_load(candidates: Candidates, settings: Settings, turn: int) -> list[float]:
    """Requests in flight, and the seconds of prefill that they still need."""
    columns = zip(candidates.requests, candidates.prefill_tokens, candidates.tokens_s, strict=True)
    return [requests + prefill_tokens * token_s for requests, prefill_tokens, token_s in columns]


POLICIES: dict[PolicyName, Policy] = {
    "predicted-ttft": predicted_ttft,
    "weighted": weighted,
    "round-robin": round_robin,
    "least-load": least_load,
}
