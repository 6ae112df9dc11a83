"""What a candidate's price is made of, for people: computed again from the figures of the pick, never while picking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scorer.pick import Pick
from scorer.policies import PredictedTtft, Settings


def parts(picked: Pick, settings: Settings) -> list[dict[str, float]] | None:
    """Of each candidate's price, in seconds, what it is for; their sum is the price. None: the policy's are no seconds.

    `wait`: until its prefill can start, and for the decode steps of what is in flight there; `prefill`: to compute
    what it does not hold; `fleet`: that work, as the fleet's; `eviction`: what it gives up may have to be computed
    again; `slow_start`: it is new or was away.
    """
    if settings.policy not in ("predicted-ttft", "approximate"):
        return None
    columns, free = picked.candidates, replace(settings, eviction=0.0)
    own = PredictedTtft(replace(free, beta=0.0)).prices(columns, 0, None)
    with_fleet = PredictedTtft(free).prices(columns, 0, None)
    with_eviction = PredictedTtft(settings).prices(columns, 0, None)
    computing: Sequence[float] = [
        token_s * (columns.tokens - worth) for token_s, worth in zip(columns.tokens_s, columns.worths, strict=True)
    ]
    return [
        {
            "wait": alone - prefill,
            "prefill": prefill,
            "fleet": fleet - alone,
            "eviction": evicting - fleet,
            "slow_start": price - evicting,
        }
        for prefill, alone, fleet, evicting, price in zip(
            computing, own, with_fleet, with_eviction, picked.prices, strict=True
        )
    ]
