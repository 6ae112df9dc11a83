"""Sliding-window groups of one pod's hybrid model: which blocks they keep beside the full-attention group.

A hit of n blocks also needs the window's last blocks before n: `needed` of them, or all n if they are fewer. vLLM keeps
and drops them apart from the full-attention group's, under the same engine hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


class Windows:
    """Engine hashes by group, each with its number of copies: a dict entry each, for the pods of such models only."""

    def __init__(self) -> None:
        self.needed = 0  # blocks
        self._groups: dict[int, Counter[int]] = {}

    def store(self, group: int, needed: int, engine_hashes: Iterable[int], again: bool = False) -> None:
        """A group keeps these blocks; its window needs so many of them before a hit. `again`: no further copies."""
        self.needed = max(self.needed, needed)
        copies = self._groups.setdefault(group, Counter())
        copies.update([h for h in engine_hashes if h not in copies] if again else engine_hashes)

    def remove(self, group: int, engine_hashes: Iterable[int]) -> list[int]:
        """One copy less of each: the hashes that this group no longer keeps."""
        copies, gone = self._groups.get(group, Counter()), []
        for engine_hash in engine_hashes:
            if copies[engine_hash] > 1:
                copies[engine_hash] -= 1
            elif copies.pop(engine_hash, 0):
                gone.append(engine_hash)
        return gone

    def holds(self, engine_hash: int) -> bool:
        """Do all groups keep this block?"""
        return all(engine_hash in copies for copies in self._groups.values())


def longest_hit(stretches: Sequence[tuple[int, int]], needed: int, limit: int) -> int:
    """The longest hit of at most `limit` blocks that ends in enough of the window's blocks.

    `stretches`: (first block, block after the last) of what the window holds, in order.
    """
    if not needed:
        return limit
    for start, end in reversed(stretches):
        end = min(end, limit)
        if end > start and (start == 0 or end - start >= needed):
            return end
    return 0
