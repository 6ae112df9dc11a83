"""How many leading blocks of a prompt each pod holds: the answer, and the walk that finds it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.blocks import Keys
from indexer.holders import HolderSets
from indexer.pages import PAGE, Pages

Holder: TypeAlias = Hashable
"""Whoever publishes one feed: the index does not look inside."""

_SHORT = 8 * PAGE  # keys of a chain that is looked up one by one: numpy's fixed costs are not worth it
_FIRST = 3 * PAGE  # keys of a longer chain that are, so that a short prefix costs little
_GROWTH = 40  # each further stretch is this much longer than all before: a short prefix costs little


class Hit(NamedTuple):
    """Leading blocks that a pod can use; each counted once, in the best plane that holds it.

    Of pods with several KV-cache groups a hit may end in some places only: `ends` has (fewest, most) blocks of each
    stretch of them, in order, and `blocks` is the last; their `run` of blocks without a gap may be longer.
    Of pods with tiers below their own cache, `near` leading blocks are in that, and `lower` is what the others hold, as
    (first block, block after the last).
    """

    blocks: int
    gpu: int
    predicted: int = 0
    cpu: int = 0
    disk: int = 0
    run: int = 0
    ends: tuple[tuple[int, int], ...] | None = None
    near: int = 0
    lower: tuple[tuple[int, int], ...] = ()

    @property
    def leading(self) -> int:
        """The blocks of the pod's own cache without a gap, wherever a hit may end."""
        if self.lower:
            return self.near
        return self.blocks if self.ends is None else self.run

    def usable(self, blocks_max: int) -> int:
        """The blocks that can be used of it, of at most `blocks_max` of the pod's own cache.

        A lower tier goes on from there, and may give all of a prompt.
        """
        if self.lower:
            return reach(min(self.near, blocks_max), self.lower)
        if self.blocks <= blocks_max:
            return self.blocks
        if self.ends is None:
            return blocks_max
        return next((min(last, blocks_max) for first, last in reversed(self.ends) if first <= blocks_max), 0)


MISS = Hit(0, 0)


def reach(near: int, lower: Sequence[tuple[int, int]]) -> int:
    """How far `near` leading blocks of a pod's own cache are continued by what its lower tiers hold."""
    return next((end for start, end in lower if start <= near < end), near)


@dataclass(slots=True)
class Match:
    """The hits of all pods that hold at least block 0, as of one moment.

    `rows` and `frontier` say what the answer hangs on, so that `PrefixIndex.unchanged` can tell whether it still holds.
    """

    hits: Mapping[Holder, Hit]
    blocks: int
    version: int
    epoch: int
    frontier: int
    rows: NDArray[np.uint32]
    _pages: NDArray[np.uint32] | None = field(default=None, repr=False)

    def pages(self) -> NDArray[np.uint32]:
        """The pages that the answer hangs on."""
        if self._pages is None:
            pages = self.rows // PAGE
            self._pages = pages[np.flatnonzero(np.diff(pages, prepend=np.uint32(0)))]
        return self._pages


class Walk:
    """One walk along a chain of keys: ANDs the holder sets and notes where pods drop out."""

    def __init__(self, pages: Pages, sets: HolderSets, active: int) -> None:
        self._pages = pages
        self._sets = sets
        self._active = active
        self.left = active  # pods that held every block so far
        self.first = 0  # pods that hold block 0
        self.drops: list[tuple[int, int]] = []  # (blocks held, pods that hold just these)
        self.runs: list[tuple[int, int]] = []  # (first block, holder set) wherever the set changes
        self.rows: list[NDArray[np.uint32]] = []
        self.frontier = 0  # the key that ended the walk, if it has no row

    def go(self, keys: Keys) -> int:
        """Walk to the first block that nobody is left to hold; returns how many blocks were looked at."""
        done = self._one_by_one(keys if len(keys) <= _SHORT else keys[:_FIRST])
        while self.left and done < len(keys):
            stretch = keys[done : done * _GROWTH]
            self._stretch(stretch, done)
            done += len(stretch)
        return done

    def _step(self, block: int, number: int) -> None:
        """The holder set changes to `number` at `block`."""
        left = self.left & self._sets.pods(number)
        if left != self.left:
            self.drops.append((block, self.left & ~left))
            self.left = left
        self.runs.append((block, number))

    def _one_by_one(self, keys: Keys) -> int:
        find, stored, sets = self._pages.find, self._pages.keys, self._pages.sets
        row, last, rows = 0, -1, []
        for block, key in enumerate(keys.tolist()):
            row = row + 1 if stored[row + 1] == key else find(key)
            rows.append(row)
            number = sets[row]
            if number != last:
                self._step(block, number)
                last = number
                if not self.left:
                    break
        if not row and rows:
            self.frontier = int(keys[len(rows) - 1])
        if self.runs:
            self.first = self._active & self._sets.pods(self.runs[0][1])
        self.rows.append(np.array(rows, np.uint32))
        return len(rows)

    def _stretch(self, keys: Keys, start: int) -> None:
        rows = self._pages.find_chain(keys, int(self.rows[-1][-1]))
        numbers = self._pages.set_array[rows]
        borders = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        end = 0
        for end, number in zip([0, *borders.tolist()], [numbers[0], *numbers[borders]], strict=True):
            self._step(start + end, int(number))
            if not self.left:
                rows = rows[: end + 1]
                if not rows[end]:
                    self.frontier = int(keys[end])
                break
        self.rows.append(rows)


Runs: TypeAlias = Sequence[tuple[int, int]]
"""(first block, number of its holder set) wherever that set changes along a chain."""


def stretches(runs: Runs, sets: Sequence[int], inside: int, blocks: int) -> list[tuple[int, int]]:
    """Of the first `blocks` blocks, (start, end) of those that have one of the bits `inside`."""
    found: list[tuple[int, int]] = []
    for number, (start, held) in enumerate(runs):
        if start >= blocks:
            break
        if sets[held] & inside:
            end = runs[number + 1][0] if number + 1 < len(runs) else blocks
            first = found.pop()[0] if found and found[-1][1] == start else start
            found.append((first, min(end, blocks)))
    return found


def by_plane(runs: Runs, sets: Sequence[int], planes: Sequence[int], blocks: int) -> Hit:
    """The hit of one pod, whose bits in each plane are `planes`: of each block the best plane counts."""
    counts = [0, 0, 0, 0]
    for number, (start, held) in enumerate(runs):
        if start >= blocks:
            break
        end = runs[number + 1][0] if number + 1 < len(runs) else blocks
        for plane in range(len(counts)):
            if sets[held] & planes[plane]:
                counts[plane] += min(end, blocks) - start
                break
    gpu, predicted, cpu, disk = counts
    return Hit(blocks, gpu, predicted, cpu, disk)


def by_tier(runs: Runs, sets: Sequence[int], planes: Sequence[int], blocks: int) -> Hit:
    """As `by_plane`, of a pod with lower tiers: what its own cache holds, and what they hold from there on."""
    gpu, predicted, cpu, disk = planes[:4]
    own = stretches(runs, sets, gpu | predicted, blocks)
    lower = stretches(runs, sets, cpu | disk, blocks)
    near = own[0][1] if own and not own[0][0] else 0
    hit = by_plane(runs, sets, planes, reach(near, lower))
    return hit._replace(near=near, lower=tuple(lower)) if lower else hit
