"""Score the candidates under a policy and pick one, with the reason in words."""

from __future__ import annotations

from collections.abc import Sequence

from scorer.candidates import Candidate, Candidates, Pick, Scored, by_column
from scorer.policies import POLICIES, Settings

_CLOSE = 1e-3  # prices this near (seconds, or shares) are a tie
_ALIKE = 0.1  # and so are prices within this share: speeds of equal pods are not measured any better


def pick(
    candidates: Candidates | Sequence[Candidate],
    settings: Settings,
    turn: int,
    slowness: Sequence[float] | None = None,
) -> Pick:
    """The best of at least one candidate. `turn` counts picks: it breaks ties evenly, without chance.

    `slowness`: factors of the candidates' prices (see `slow_start`), None if there is nothing to raise.
    """
    columns = candidates if isinstance(candidates, Candidates) else by_column(candidates)
    prices = POLICIES[settings.policy](columns, settings, turn)
    if slowness is not None:
        prices = [price * slow for price, slow in zip(prices, slowness, strict=True)]
    bound = min(prices) * (1.0 + _ALIKE) + _CLOSE
    alike = [number for number, price in enumerate(prices) if price <= bound]
    best = alike[0] if len(alike) == 1 else _first(columns, alike, turn)
    return Pick(columns[best], columns, prices, _reason(columns, best, settings))


def _first(candidates: Candidates, alike: list[int], turn: int) -> int:
    """Of prices that are alike: who gives up least, then the longest match, the fewest requests, whose turn it is."""
    matched, requests, rooms = candidates.matched, candidates.requests, candidates.rooms
    tokens = candidates.tokens
    lacking = [max(0.0, tokens - matched[number] - rooms[number]) for number in alike]
    least = min(lacking)
    if max(lacking) > least:
        alike = [number for number, tokens in zip(alike, lacking, strict=True) if tokens <= least]
    longest = max([matched[number] for number in alike])
    if longest:
        alike = [number for number in alike if matched[number] == longest]
    fewest = min([requests[number] for number in alike])
    tied = [number for number in alike if requests[number] == fewest]
    return tied[turn % len(tied)]


def scored(picked: Pick) -> list[Scored]:
    """All candidates with their scores: 1 for the lowest price, 0.5 for twice that."""
    least = min(picked.prices)
    return [
        Scored(candidate, price, (least + _CLOSE) / (price + _CLOSE))
        for candidate, price in zip(picked.candidates, picked.prices, strict=True)
    ]


def _reason(candidates: Candidates, chosen: int, settings: Settings) -> str:
    if settings.policy == "round-robin":
        return "turn"
    longest = max(candidates.matched)
    if not longest:
        return "least loaded: nobody holds a prefix"
    if candidates.matched[chosen] == longest:
        return "holds the longest prefix"
    if candidates.backlogs_s[chosen] >= candidates.backlogs_s[candidates.matched.index(longest)]:
        return "gives up less than the holder of the longest prefix"
    return "less loaded than the holder of the longest prefix"
