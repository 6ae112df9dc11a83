"""Stored blocks that can't be entered yet, as their parent was never seen, or as there is no room: kept, bounded."""

from __future__ import annotations

from collections import Counter

from indexer.events import BlockStored, Tier


class Orphans:
    """One pod's stores that wait, oldest forgotten first; `blocks_max` bounds the blocks in them."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._waiting: dict[int | None, list[BlockStored]] = {}  # by their parent, oldest parent first
        self._held: Counter[tuple[Tier, int]] = Counter()  # engine hashes in waiting stores
        self._removed: Counter[tuple[Tier, int]] = Counter()  # of those, removals to be applied after the store
        self.blocks = 0
        self.lost = 0  # blocks that were forgotten

    def add(self, event: BlockStored) -> None:
        self._waiting.setdefault(event.parent, []).append(event)
        self._held.update((event.tier, engine_hash) for engine_hash in event.hashes)
        self.blocks += len(event.hashes)
        while self.blocks > self._blocks_max:
            before = self.blocks
            self.adopt(next(iter(self._waiting)))
            self.lost += before - self.blocks

    def oldest(self) -> tuple[int | None, list[int]]:
        """The parent of those that wait for longest, and how many blocks each of these stores has."""
        parent = next(iter(self._waiting))
        return parent, [len(event.hashes) for event in self._waiting[parent]]

    def adopt(self, parent: int | None) -> tuple[list[BlockStored], list[tuple[Tier, int]]]:
        """Take out the stores that wait for `parent`, and the hashes among theirs that were removed meanwhile."""
        events = self._waiting.pop(parent, [])
        removed: list[tuple[Tier, int]] = []
        for event in events:
            self.blocks -= len(event.hashes)
            for engine_hash in event.hashes:
                block = (event.tier, engine_hash)
                self._held[block] -= 1
                if self._held[block] <= 0:
                    del self._held[block]
                    removed += [block] * self._removed.pop(block, 0)
        return events, removed

    def remove(self, tier: Tier, engine_hash: int) -> bool:
        """Note the removal of a block that waits here; False if it does not."""
        block = (tier, engine_hash)
        if self._removed[block] >= self._held[block]:
            return False
        self._removed[block] += 1
        return True
