"""Score the candidates under a policy and pick one, with the reason in words."""

from __future__ import annotations

from collections.abc import Sequence

from scorer.candidates import Candidate, Pick, Scored
from scorer.policies import POLICIES, Settings

_CLOSE = 1e-3  # prices this near (seconds, or shares) are a tie: the turn decides, not the order of the list


def pick(
    candidates: Sequence[Candidate], settings: Settings, turn: int, slowness: Sequence[float] | None = None
) -> Pick:
    """The best of at least one candidate. `turn` counts picks: it breaks ties evenly, without chance.

    `slowness`: factors of the candidates' prices (see `slow_start`), None if there is nothing to raise.
    """
    prices = POLICIES[settings.policy](candidates, settings, turn)
    if slowness is not None:
        prices = [price * slow for price, slow in zip(prices, slowness, strict=True)]
    least = min(prices)
    tied = [place for place, price in enumerate(prices) if price <= least + _CLOSE]
    best = tied[turn % len(tied)]
    scored = [
        Scored(candidate, price, (least + _CLOSE) / (price + _CLOSE))
        for candidate, price in zip(candidates, prices, strict=True)
    ]
    return Pick(candidates[best], scored, _reason(candidates, best, settings))


def _reason(candidates: Sequence[Candidate], best: int, settings: Settings) -> str:
    chosen = candidates[best]
    if settings.policy == "round-robin":
        return "turn"
    longest = max(c.matched for c in candidates)
    if not longest:
        return "least loaded: nobody holds a prefix"
    if chosen.matched == longest:
        return "holds the longest prefix"
    return "less loaded than the holder of the longest prefix"
