"""What prompts that other workers have sent use of the pods' caches: known here as if they had been sent from here.

Of what comes from other hosts, the end may be lost. So nothing is taken to be in use for longer than some time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

from scorer.board import Board
from scorer.chains import Chain, Chains
from scorer.recency import Recency
from scorer.uses import UseBegan, UseEnded
from scorer.working_set import WorkingSet

_IN_USE_MAX_S = 600.0


class UsedCache(Protocol):
    """A rank, as far as prompts use its cache."""

    recency: Recency
    lives: WorkingSet


class OtherWorkers:
    """Of this host and of others, as they tell on the board."""

    def __init__(self, board: Board, chains: Chains, cache_of: Callable[[Hashable], UsedCache | None]) -> None:
        """`cache_of`: of a rank; None: it is not known."""
        self._board = board
        self._chains = chains
        self._cache_of = cache_of
        self._used: dict[tuple[int, int], tuple[UsedCache, Chain, float]] = {}
        """By whom, and the how manieth of its: since when."""

    def listen(self, now: float) -> None:
        """Have what they have told since."""
        self._board.listen(now)
        for worker, number, told in self._board.uses():
            if isinstance(told, UseBegan):
                self._begin(worker, number, told, now)
            elif isinstance(told, UseEnded):
                self._end((worker, told.number), told.served, now)
            else:
                for use in [use for use in self._used if use[0] == worker]:
                    self._end(use, True, now)
        while self._used and now - next(iter(self._used.values()))[2] > _IN_USE_MAX_S:
            self._end(next(iter(self._used)), True, now)

    def _begin(self, worker: int, number: int, told: UseBegan, now: float) -> None:
        rank = self._board.rank(told.rank)
        chain = self._chains.hear(told.at, told.keys, told.known, told.tokens, now)
        cache = None if rank is None else self._cache_of(rank)
        if chain is not None and cache is not None:
            cache.recency.begin(chain, told.computed, chain.tokens, chain.above, chain.shared)
            cache.lives.begin(chain)
            self._used[worker, number] = cache, chain, now

    def _end(self, use: tuple[int, int], served: bool, now: float) -> None:
        if use not in self._used:
            return
        cache, chain, _ = self._used.pop(use)
        if served:
            self._chains.mix.answered()
        cache.recency.end(chain, served, now)
        cache.lives.end(chain, served, now)
