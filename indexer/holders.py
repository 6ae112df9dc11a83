"""Holder sets: equal sets of holders share one small number, so a block's holders cost four bytes.

Blocks of one conversation have the same holders, so there are few distinct sets. A set is an int mask; bit
`plane * width + pod` says that the pod holds the block in that plane (gpu, predicted, cpu, disk).
"""

from __future__ import annotations


class HolderSets:
    """Interned masks with reference counts; id 0 is the empty set and stays."""

    def __init__(self, width: int, planes: int) -> None:
        self.masks = [0]
        self.counts = [0]  # rows that have this set; meaningless for id 0
        self._ids = {0: 0}
        self._free: list[int] = []
        self._pods: list[int] = [0]
        self._shifts = [plane * width for plane in range(1, planes)]
        self._low = (1 << width) - 1

    def __len__(self) -> int:
        return len(self._ids)

    def number(self, mask: int) -> int:
        """The number of a set. Its rows must be moved to it before another one is asked for."""
        number = self._ids.get(mask)
        return self._intern(mask) if number is None else number

    def move(self, old: int, new: int, rows: int) -> None:
        """So many rows have the set `new` instead of `old`; the last one that leaves a set gives its number back."""
        counts = self.counts
        counts[new] += rows
        if old:
            counts[old] -= rows
            if not counts[old]:
                del self._ids[self.masks[old]]
                self._free.append(old)

    def pods(self, number: int) -> int:
        """The mask of pods that hold a block of this set in any plane."""
        return self._pods[number]

    def _intern(self, mask: int) -> int:
        pods = mask & self._low
        for shift in self._shifts:
            pods |= (mask >> shift) & self._low
        if self._free:
            number = self._free.pop()
            self.masks[number], self.counts[number], self._pods[number] = mask, 0, pods
        else:
            number = len(self.masks)
            self.masks.append(mask)
            self.counts.append(0)
            self._pods.append(pods)
        self._ids[mask] = number
        return number
