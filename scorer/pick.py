"""Score the candidates under a policy and pick one, with the reason in words."""

from __future__ import annotations

from collections.abc import Sequence

from scorer.candidates import Candidate, Pick, Scored
from scorer.policies import POLICIES, Settings

_CLOSE = 1e-3  # prices this near (seconds, or shares) are a tie
_ALIKE = 0.1  # and so are prices within this share: speeds of equal pods are not measured any better


def pick(
    candidates: Sequence[Candidate], settings: Settings, turn: int, slowness: Sequence[float] | None = None
) -> Pick:
    """The best of at least one candidate. `turn` counts picks: it breaks ties evenly, without chance.

    `slowness`: factors of the candidates' prices (see `slow_start`), None if there is nothing to raise.
    """
    prices = POLICIES[settings.policy](candidates, settings, turn)
    if slowness is not None:
        prices = [price * slow for price, slow in zip(prices, slowness, strict=True)]
    bound = min(prices) * (1.0 + _ALIKE) + _CLOSE
    alike = [candidate for candidate, price in zip(candidates, prices, strict=True) if price <= bound]
    best = alike[0] if len(alike) == 1 else _first(alike, turn)
    return Pick(best, candidates, prices, _reason(candidates, best, settings))


def _first(alike: Sequence[Candidate], turn: int) -> Candidate:
    """Of prices that are alike: the longest match, then the fewest requests, then whoever's turn it is."""
    ranked = [(candidate.matched, -candidate.requests) for candidate in alike]
    first = max(ranked)
    tied = [candidate for candidate, rank in zip(alike, ranked, strict=True) if rank == first]
    return tied[turn % len(tied)]


def scored(picked: Pick) -> list[Scored]:
    """All candidates with their scores: 1 for the lowest price, 0.5 for twice that."""
    least = min(picked.prices)
    return [
        Scored(candidate, price, (least + _CLOSE) / (price + _CLOSE))
        for candidate, price in zip(picked.candidates, picked.prices, strict=True)
    ]


def _reason(candidates: Sequence[Candidate], chosen: Candidate, settings: Settings) -> str:
    if settings.policy == "round-robin":
        return "turn"
    longest = max([c.matched for c in candidates])
    if not longest:
        return "least loaded: nobody holds a prefix"
    if chosen.matched == longest:
        return "holds the longest prefix"
    return "less loaded than the holder of the longest prefix"
