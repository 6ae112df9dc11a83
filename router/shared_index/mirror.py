"""Which pods this gateway writes to the shared index, and what: its own index of them, copied and kept equal.

Pure: `collect` says what to send, `sent` takes the answers, and somebody else talks to Redis. A pod is copied whole at
first (in slices, while changes go on being sent), then only its changes are; a slow copy goes on for ever, so that no
TTL ends what is held. Reading the index and taking the changes are one step, so what is sent is in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from indexer.changes import TIER_BITS, Changes
from indexer.events import TIERS
from indexer.index import PrefixIndex
from router.core.fleet import Fleet, Rank, RankId

WRITE_BLOCKS_MAX = 500
"""Blocks of one script: about 1 ms, in which Redis answers nobody else."""
_SLICES_MAX = 2
"""Slices of copies in one go: with a hundred goes a second, a fifth of what Redis can do."""
_REFRESHES = 3  # copies in one TTL of a block


class Write(NamedTuple):
    """One change of one pod, in order: `anew` first (it holds nothing, in a new slot), then `codes` by block key.

    `complete`: from now on it is known whether all is there; None: as before.
    """

    pod: str
    codes: Mapping[int, int]
    anew: bool = False
    complete: bool | None = None


@dataclass(slots=True)
class _Copy:
    """One pod whose state is kept in Redis. `tier` and `start`: how far the copy under way is; tier None: none is."""

    name: str
    changes: Changes
    tier: int | None = 0
    start: int = 0
    complete: bool = False
    copied_at: float = 0.0


class Mirror:
    """See the module."""

    def __init__(self, index: PrefixIndex, fleet: Fleet, queue_max: int, block_ttl_s: float) -> None:
        self.counts: Counter[str] = Counter()
        self._index = index
        self._fleet = fleet
        self._queue_max = queue_max
        self._refresh_s = block_ttl_s / _REFRESHES
        self._copies: dict[RankId, _Copy] = {}

    @property
    def owned(self) -> Collection[RankId]:
        """Pods (ranks) that are written by this gateway."""
        return self._copies.keys()

    @property
    def names(self) -> list[str]:
        """How these are called in Redis."""
        return [copy.name for copy in self._copies.values()]

    @property
    def complete(self) -> int:
        """Of those, the ones that others may ask for."""
        return sum(copy.complete for copy in self._copies.values())

    @property
    def dropped(self) -> int:
        """Changes that found no room."""
        return self.counts["dropped"] + sum(copy.changes.dropped for copy in self._copies.values())

    # --- whom to own ---

    def sort(self) -> tuple[list[RankId], list[RankId], list[RankId]]:
        """Of the fleet as it is now: whom to take if nobody else has, whom to go on with, whom to leave."""
        fit = {rank.id for rank in self._fleet.ranks if self._is_fit(rank)}
        wanted = [name for name in fit if name not in self._copies]
        kept = [name for name in self._copies if name in fit]
        return wanted, kept, [name for name in self._copies if name not in fit]

    def own(self, pod: RankId) -> None:
        """The pod was taken; in Redis it holds nothing yet."""
        changes = Changes(self._queue_max)
        self._copies[pod] = _Copy(named(pod), changes)
        self._index.watch(pod, changes)
        self.counts["copies"] += 1

    def disown(self, pods: Iterable[RankId]) -> None:
        """Others write these pods, or nobody does."""
        for pod in pods:
            copy = self._copies.pop(pod, None)
            if copy is not None:
                self.counts["dropped"] += copy.changes.dropped
                if pod in self._index.pods:
                    self._index.watch(pod, None)

    # --- what to send ---

    def collect(self, now: float) -> list[Write]:
        """What has changed since the last time, and some slices of copies under way."""
        writes: list[Write] = []
        for pod, copy in self._copies.items():
            writes += self._changes(pod, copy)
        left = _SLICES_MAX
        for pod, copy in self._copies.items():
            if not left:
                break
            if copy.tier is None and now >= copy.copied_at + self._refresh_s:
                copy.tier, copy.start = 0, 0
            while left and copy.tier is not None:
                writes.append(self._slice(pod, copy, now))
                left -= 1
        return writes

    def sent(self, writes: Sequence[Write], results: Sequence[int]) -> None:
        """What became of them."""
        lost = set()
        for write, result in zip(writes, results, strict=True):
            if result < 0:
                lost.add(write.pod)
                continue
            self.counts["blocks"] += len(write.codes)
            self.counts["refused"] += result
        self.disown([pod for pod, copy in self._copies.items() if copy.name in lost])

    # --- inside ---

    def _is_fit(self, rank: Rank) -> bool:
        """May others rely on what we know of it? While a gap is being closed, on what we knew until then."""
        feed, groups = rank.feed, self._index.groups(rank.id)
        if feed is None or (groups is not None and groups.hybrid):
            return False
        return feed.state == "exact" or (rank.id in self._copies and feed.replaying and not feed.truncated)

    def _changes(self, pod: RankId, copy: _Copy) -> Iterator[Write]:
        delta = copy.changes.take()
        if delta.lost:  # what is there is not to be relied on: from the start
            self.counts["rewritten"] += 1
            copy.tier, copy.start, copy.complete = 0, 0, False
            yield Write(copy.name, {}, anew=True, complete=False)
            return
        if delta.cleared:  # it holds nothing but what follows
            copy.tier, copy.complete = None, True
            yield Write(copy.name, {}, anew=True, complete=not delta.blocks)
        keys = list(delta.blocks)
        for first in range(0, len(keys), WRITE_BLOCKS_MAX):
            codes = {key: delta.blocks[key] for key in keys[first : first + WRITE_BLOCKS_MAX]}
            last = first + WRITE_BLOCKS_MAX >= len(keys)
            yield Write(copy.name, codes, complete=True if delta.cleared and last else None)

    def _slice(self, pod: RankId, copy: _Copy, now: float) -> Write:
        assert copy.tier is not None
        tier = TIERS[copy.tier]
        keys, copy.start = self._index.confirmed(pod, tier, copy.start, WRITE_BLOCKS_MAX)
        if not copy.start:
            following = copy.tier + 1
            copy.tier = following if following < len(TIERS) else None
        if copy.tier is None:
            copy.complete, copy.copied_at = True, now
        codes = dict.fromkeys(keys.tolist(), TIER_BITS[tier])
        return Write(copy.name, codes, complete=True if copy.tier is None else None)


def named(pod: RankId) -> str:
    """How a rank is called in Redis."""
    return f"{pod.pod}/{pod.rank}"
