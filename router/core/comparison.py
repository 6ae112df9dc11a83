"""What a decision compares: who holds what of a prompt, and how each pod is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from indexer.blocks import size_of
from indexer.index import PrefixIndex
from indexer.match import MISS, Hit
from indexer.rule import Rule
from router.core.demand import TEXT_BLOCK_TOKENS, Demand
from router.core.fleet import Fleet, Rank, RankId
from router.core.holdings import Holders
from scorer.candidates import Candidates
from scorer.load import PodLoad
from scorer.reuse import Reuse

_LOOK_S = 0.1  # between two looks at what changes little
_FULL_S = 30.0  # a pod that has given up something within this time has no room

_Found: TypeAlias = tuple[int, Hit, int, int]
"""Who holds something of a prompt: number, hit, tokens of the prompt as it reads it, tokens a block."""


class Comparison:
    """See the module."""

    def __init__(self, fleet: Fleet, index: PrefixIndex, reuse: Reuse, weights: tuple[float, float, float]) -> None:
        """`reuse`: of what is asked for; `weights`: what a block is worth, by its tier: gpu, cpu, disk."""
        self._reuse = reuse
        self._fleet = fleet
        self._index = index
        self._weights = weights
        self._looked_at = float("-inf")
        self._ranks: Sequence[Rank] = ()  # of the last decision, with what belongs to them
        self._loads: Sequence[PodLoad] = ()
        self._numbers: dict[RankId, int] = {}

    def candidates(
        self, demand: Demand, holders: Holders, ranks: Sequence[Rank], now: float
    ) -> tuple[Candidates, list[Hit]]:
        """All of `ranks` (at least one) beside each other, and what each of them holds of the prompt."""
        if not self._looked_at <= now < self._looked_at + _LOOK_S:
            self._look(now)
        loads, count, tokens = self._lined_up(ranks), len(ranks), demand.most_tokens
        middle = tokens / 2
        candidates = Candidates(
            tokens,
            [0] * count,
            [0.0] * count,
            [load.requests for load in loads],
            [load.prefill_tokens for load in loads],
            [load.backlog_s(now) if load.prefill_tokens or load.stated_s else 0.0 for load in loads],
            [(rate := load.rate).per_token + rate.per_position * middle for load in loads],
            [load.rate.factor for load in loads],
            [rank.room for rank in ranks],
            [rank.again for rank in ranks],
            [rank.fill for rank in ranks],
            ranks,
        )
        hits = [MISS] * count
        if demand.reads_cache:
            self._enter(candidates, hits, self._found(demand, holders, ranks))
        return candidates, hits

    def _lined_up(self, ranks: Sequence[Rank]) -> Sequence[PodLoad]:
        """The loads of `ranks`, which are mostly the same as the last time."""
        if ranks != self._ranks:  # ranks are equal to themselves alone: this is quick
            self._ranks, self._loads = ranks, [rank.load for rank in ranks]
            self._numbers = {rank.id: number for number, rank in enumerate(ranks)}
        return self._loads

    def _found(self, demand: Demand, holders: Holders, ranks: Sequence[Rank]) -> Iterable[_Found]:
        """Those of `ranks` that hold something of the prompt."""
        if holders.others or demand.by_version is not None:
            return _best(demand, holders, ranks)
        numbers, by_text, tokens, found = self._numbers, demand.text is not None, demand.tokens, []
        for grain, hits in holders.known[demand].items():
            size = TEXT_BLOCK_TOKENS if by_text else size_of(grain)
            for name, hit in hits.items():
                number = numbers.get(name)  # type: ignore[call-overload]
                if number is not None and (by_text or ranks[number].grain == grain):
                    found.append((number, hit, tokens, size))
        return found

    def _enter(self, candidates: Candidates, hits: list[Hit], found: Iterable[_Found]) -> None:
        """What those found hold, and need not compute for it."""
        ranks, of, matched, worth = self._ranks, None, 0, 0.0
        for number, hit, tokens, size in found:
            rank = ranks[number]
            rule, rate = rank.trust.rule, rank.load.rate
            if of != (hit, rule, tokens, size):  # mostly all have the same
                of = (hit, rule, tokens, size)
                matched, worth = self._reused(hit, rule, tokens, size)
                worth += candidates.tokens - tokens  # what it has not got to compute either
            hits[number] = hit
            candidates.matched[number], candidates.worths[number] = matched, worth
            candidates.tokens_s[number] = rate.per_token + rate.per_position * (matched + tokens) / 2

    def _reused(self, hit: Hit, rule: Rule | None, tokens: int, size: int) -> tuple[int, float]:
        """Tokens of a hit that are reused by a rule, and what they are worth."""
        matched = rule.blocks(hit, tokens, size) * size if rule is not None else 0
        if hit.gpu + hit.predicted == hit.blocks:
            return matched, float(matched)
        gpu, cpu, disk = self._weights
        return matched, matched * (gpu * (hit.gpu + hit.predicted) + cpu * hit.cpu + disk * hit.disk) / hit.blocks

    def _look(self, now: float) -> None:
        """At what changes little from one decision to the next: speeds and room."""
        self._looked_at = now
        for rank in self._fleet.ranks:
            rank.load.rate.look()
            if rank.pod.blocks is not None and rank.feed is not None:
                self._look_at_room(rank, rank.pod.blocks, now)

    def _look_at_room(self, rank: Rank, blocks: int, now: float) -> None:
        """Of a pod that has given up something a moment ago there is none: what seems free is in use."""
        size, removed, held = rank.block_size or 0, self._index.removed(rank.id), self._index.held(rank.id)
        if removed != rank.removed:
            rank.removed, rank.removed_at = removed, now
        idle_s = rank.recency.idle_s(held * size, now)
        full = now < rank.removed_at + _FULL_S
        rank.room = 0.0 if full else float((blocks - held) * size)
        rank.fill = 1.0 if full else min(1.0, held / max(1, blocks))
        rank.again = self._reuse.chance(idle_s)


def _best(demand: Demand, holders: Holders, ranks: Sequence[Rank]) -> Iterable[_Found]:
    """By the longer hit of what is known here and what other gateways know, of the version that each has."""
    for number, rank in enumerate(ranks):
        theirs = demand.of(rank)
        here, there = holders.here(theirs, rank), MISS
        if holders.others is not None:
            there = holders.others.get(rank.id, MISS)
        hit = there if there.blocks > here.blocks else here
        if hit is not MISS:
            yield number, hit, theirs.tokens, (rank.block_size or 0) if demand.text is None else TEXT_BLOCK_TOKENS
