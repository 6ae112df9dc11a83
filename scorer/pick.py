"""Score the candidates under a policy and pick one, with the reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scorer.candidates import Candidate, Candidates, Scored
from scorer.crowd import Crowd, Floats, Priced, Rivals
from scorer.policies import HOLDS_LONGEST, AskedPrompt, Policy

_CLOSE = 1e-3  # prices this near (seconds, or shares) are a tie
_SPARED = "others start slowly"
_TURN = 0.5 * (5**0.5 - 1)  # of a circle: every second turn, or third, goes around as evenly as all do


@dataclass(slots=True)
class Pick:
    """The candidate to send to, why, and all that were `seen` with what they were `priced`.

    They were not where all others are dearer by far: then `policy` does it for who asks.
    """

    best: Candidate
    seen: Rivals
    priced: Priced | None
    reason: str
    policy: Policy

    @property
    def candidates(self) -> Candidates:
        """All that were compared."""
        return self.seen.listed() if isinstance(self.seen, Crowd) else self.seen

    @property
    def prices(self) -> Sequence[float]:
        """Theirs."""
        if self.priced is None:
            return self.policy.prices(self.candidates, 0, None)
        return list(map(float, self.priced))


def pick(
    candidates: Rivals,
    policy: Policy,
    turn: int,
    slowness: Sequence[float] | None = None,
    asked: AskedPrompt | None = None,
) -> Pick:
    """The best of at least one candidate. `turn` counts picks: it breaks ties evenly, without chance.

    `slowness`: factors of the candidates' prices (see `slow_start`), None if there is nothing to raise. `asked`: for a
    policy that knows requests.
    """
    seen: Rivals
    prices: Priced
    if isinstance(candidates, Crowd) and policy.knows_crowds:
        sure = _surely(candidates, policy) if slowness is None else None
        if sure is not None:
            return Pick(sure, candidates, None, HOLDS_LONGEST, policy)
        seen, prices = candidates, policy.prices_of_many(candidates)
    else:
        listed = policy.view(candidates.listed() if isinstance(candidates, Crowd) else candidates, asked)
        seen, prices = listed, policy.prices(listed, turn, asked)
    best = _cheapest(seen, prices, policy.alike, turn)
    if slowness is None:
        return Pick(seen[best], seen, prices, policy.reason(seen, prices, best, asked), policy)
    slowed = [price * slow for price, slow in zip(prices, slowness, strict=True)]
    spared, best = best, _cheapest(seen, slowed, policy.alike, turn)
    spares = slowness[spared] > slowness[best]
    return Pick(seen[best], seen, slowed, _SPARED if spares else policy.reason(seen, prices, best, asked), policy)


def _surely(crowd: Crowd, policy: Policy) -> Candidate | None:
    """Who has the most of the prompt, alone, where that makes all others dearer by far: mostly a conversation's pod."""
    alone = crowd.alone
    if alone is None:
        return None
    one = crowd.member(alone, alone.numbers[0])
    bound = policy.most(one, crowd) * (1.0 + policy.alike) + _CLOSE
    if policy.least(crowd.others, crowd) <= bound:
        return None
    for group in crowd.groups:
        if group is not alone and policy.least(group, crowd) <= bound:
            return None
    return one


def _cheapest_of_many(crowd: Crowd, prices: Floats, share: float, turn: int) -> int:
    """As `_cheapest`, with what is alike narrowed down by one column after the other."""
    bound = prices.item(prices.argmin()) * (1.0 + share) + _CLOSE
    alike = (prices <= bound).nonzero()[0]
    if len(alike) == 1:
        return int(alike[0])
    lacking = np.maximum(crowd.tokens - crowd.matched - crowd.rooms, 0.0)
    for column in (lacking, -crowd.matched, crowd.requests):
        values = column[alike]
        alike = alike[values == values.min()]
    return int(alike[int(turn * _TURN % 1.0 * len(alike))])


def _cheapest(candidates: Rivals, prices: Priced, share: float, turn: int) -> int:
    if isinstance(candidates, Crowd):
        return _cheapest_of_many(candidates, np.asarray(prices), share, turn)
    bound = min(prices) * (1.0 + share) + _CLOSE
    alike = [number for number, price in enumerate(prices) if price <= bound]
    return alike[0] if len(alike) == 1 else _first(candidates, alike, turn)


def _first(candidates: Candidates, alike: list[int], turn: int) -> int:
    """Of prices that are alike: who gives up least, then the longest match, the fewest requests, whose turn it is."""
    matched, requests, rooms = candidates.matched, candidates.requests, candidates.rooms
    tokens = candidates.tokens
    if min(rooms) < tokens:
        lacking = [max(0.0, tokens - matched[number] - rooms[number]) for number in alike]
        least = min(lacking)
        if max(lacking) > least:
            alike = [number for number, tokens in zip(alike, lacking, strict=True) if tokens <= least]
    longest, fewest, tied = -1, 0, alike[:0]
    for number in alike:
        length, busy = matched[number], requests[number]
        if length > longest or (length == longest and busy < fewest):
            longest, fewest, tied = length, busy, [number]
        elif length == longest and busy == fewest:
            tied.append(number)
    return tied[int(turn * _TURN % 1.0 * len(tied))]


def scored(picked: Pick) -> list[Scored]:
    """All candidates with their scores: 1 for the pick and for what costs no more, 0.5 for twice its price."""
    prices = picked.prices
    paid = prices[picked.best.number]  # within what is alike, it need not be the lowest
    return [
        Scored(candidate, price, min(1.0, (paid + _CLOSE) / (price + _CLOSE)))
        for candidate, price in zip(picked.candidates, prices, strict=True)
    ]
