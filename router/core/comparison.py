"""What a decision compares: who holds what of a prompt, and how each pod is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexer.index import PrefixIndex
from indexer.match import MISS, Hit
from router.core.demand import TEXT_BLOCK_TOKENS, Demand
from router.core.fleet import Fleet, Rank
from router.core.holdings import Holders
from scorer.candidates import Candidates, Held

_FEW = 4  # candidates that are looked at as a whole for every decision
_LOOK_S = 0.1  # between two such looks at more of them


class Comparison:
    """See the module."""

    def __init__(self, fleet: Fleet, index: PrefixIndex, weights: tuple[float, float, float]) -> None:
        """`weights`: what a block is worth, by its tier: gpu, cpu, disk."""
        self._fleet = fleet
        self._index = index
        self._weights = weights
        self._looked_at = float("-inf")
        self._ranks: Sequence[Rank] = ()  # of the last decision, and their numbers
        self._numbers: dict[Any, int] = {}

    def candidates(
        self, demand: Demand, holders: Holders, ranks: Sequence[Rank], now: float
    ) -> tuple[Candidates, list[Hit]]:
        """All of `ranks` (at least one) beside each other, and what each of them holds of the prompt."""
        self._look(ranks, now)
        hits, held = [MISS] * len(ranks), {}
        for number, hit in self._hits(demand, holders, ranks).items():
            hits[number], held[number] = hit, self._held(demand, ranks[number], hit)
        middle, loads = demand.most_tokens / 2, [rank.load for rank in ranks]
        promised = [load.prefill_tokens for load in loads]
        candidates = Candidates(
            demand.most_tokens,
            [load.requests for load in loads],
            promised,
            [
                load.backlog_s(now) if tokens or load.stated_s else 0.0
                for load, tokens in zip(loads, promised, strict=True)
            ],
            [(rate := load.rate).per_token + rate.per_position * middle for load in loads],
            [rank.room for rank in ranks],
            held,
        )
        return candidates, hits

    def _hits(self, demand: Demand, holders: Holders, ranks: Sequence[Rank]) -> dict[int, Hit]:
        """What those of `ranks` that hold something of the prompt hold of it, and will read; by number."""
        if not demand.reads_cache:
            return {}
        if holders.others or demand.by_version is not None:
            best = [_best(demand.of(rank), holders, rank) for rank in ranks]
            return {number: hit for number, hit in enumerate(best) if hit is not MISS}
        numbers, by_text, held = self._numbered(ranks), demand.text is not None, {}
        for grain, hits in holders.known[demand].items():
            for name, hit in hits.items():
                number = numbers.get(name)
                if number is not None and (by_text or ranks[number].grain == grain):
                    held[number] = hit
        return held

    def _numbered(self, ranks: Sequence[Rank]) -> dict[Any, int]:
        """The place of each rank in `ranks`, which are mostly the same as the last time."""
        if ranks != self._ranks:  # ranks are equal to themselves alone: this is quick
            self._ranks, self._numbers = ranks, {rank.id: number for number, rank in enumerate(ranks)}
        return self._numbers

    def _look(self, ranks: Sequence[Rank], now: float) -> None:
        """At what changes little from one decision to the next: speeds and room. Of many, only now and then."""
        if len(ranks) > _FEW:
            if self._looked_at <= now < self._looked_at + _LOOK_S:
                return
            self._looked_at, ranks = now, list(self._fleet.ranks)
        for rank in ranks:
            rank.load.rate.look()
            blocks = rank.pod.blocks
            if blocks is not None and rank.feed is not None:
                rank.room = float((blocks - self._index.held(rank.id)) * (rank.block_size or 0))

    def _held(self, demand: Demand, rank: Rank, hit: Hit) -> Held:
        tokens, rule, rate = demand.of(rank).tokens, rank.trust.rule, rank.load.rate
        size = (rank.block_size or 0) if demand.text is None else TEXT_BLOCK_TOKENS
        matched = rule.blocks(hit, tokens, size) * size if rule is not None else 0
        worth = float(matched) if hit.gpu + hit.predicted == hit.blocks else matched * self._share(hit)
        if demand.by_version is not None:
            worth += demand.most_tokens - tokens  # what it has not got to compute either
        return Held(matched, worth, rate.per_token + rate.per_position * (matched + tokens) / 2)

    def _share(self, hit: Hit) -> float:
        gpu, cpu, disk = self._weights
        return (gpu * (hit.gpu + hit.predicted) + cpu * hit.cpu + disk * hit.disk) / hit.blocks


def _best(demand: Demand, holders: Holders, rank: Rank) -> Hit:
    """The longer hit of what is known here and what other gateways know."""
    here, there = holders.here(demand, rank), MISS
    if holders.others is not None:
        there = holders.others.get(rank.id, MISS)
    return there if there.blocks > here.blocks else here
