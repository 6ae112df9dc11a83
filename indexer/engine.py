"""One pod's engine hashes (opaque, vLLM's own) to our rows, for one tier.

vLLM reports every physical copy of a block, so a hash may be stored several times and is gone only when each copy was
removed; more copies than one are rare and kept beside the table.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ENTRIES_MIN = 1024


class EngineMap:
    """Engine hash (64 bits) -> row, with copy counts; doubles as it fills, about 20 bytes an entry when full."""

    def __init__(self) -> None:
        self.copies: dict[int, int] = {}  # hash -> copies beyond the first
        self.aliases: dict[int, int] = {}  # row -> hashes beyond the first that name it
        self._count = 0
        self._lay_out(_ENTRIES_MIN)
        self._unused = 1
        self._free: list[int] = []

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return 4 * len(self._heads) + 16 * len(self._hashes)

    def find(self, engine_hash: int) -> int:
        """The row that this hash names, 0 if none."""
        hashes, following = self._hashes, self._next
        entry: int = self._heads[engine_hash & self._mask]
        while entry and hashes[entry] != engine_hash:
            entry = following[entry]
        return self._rows[entry] if entry else 0

    def add(self, engine_hash: int, row: int) -> None:
        """A hash that is not in the map."""
        if self._free:
            entry = self._free.pop()
        else:
            entry = self._unused
            if entry >= len(self._hashes):
                self._grow()
            self._unused += 1
        bucket = engine_hash & self._mask
        self._hashes[entry] = engine_hash
        self._rows[entry] = row
        self._next[entry] = self._heads[bucket]
        self._heads[bucket] = entry
        self._count += 1

    def remove(self, engine_hash: int) -> int:
        """Take a hash out: the row that it named, 0 if it was not there."""
        hashes, following = self._hashes, self._next
        bucket = engine_hash & self._mask
        before, entry = 0, self._heads[bucket]
        while entry and hashes[entry] != engine_hash:
            before, entry = entry, following[entry]
        if not entry:
            return 0
        if before:
            following[before] = following[entry]
        else:
            self._heads[bucket] = following[entry]
        row: int = self._rows[entry]
        self._rows[entry] = 0
        self._free.append(entry)
        self._count -= 1
        return row

    def rows(self) -> NDArray[np.uint32]:
        """All rows named (some twice, if two hashes name one), shape (n,)."""
        rows = self._row_array[: self._unused]
        named: NDArray[np.uint32] = rows[rows != 0]
        return named

    def _lay_out(self, entries: int) -> None:
        self._mask = entries - 1
        self._hash_array: NDArray[np.uint64] = np.zeros(entries, np.uint64)
        self._row_array: NDArray[np.uint32] = np.zeros(entries, np.uint32)
        self._next_array: NDArray[np.uint32] = np.zeros(entries, np.uint32)
        self._head_array: NDArray[np.uint32] = np.zeros(entries, np.uint32)
        self._hashes = self._hash_array.data
        self._rows = self._row_array.data
        self._next = self._next_array.data
        self._heads = self._head_array.data

    def _grow(self) -> None:
        """Double, when every entry is in use: entries keep their numbers, only the chains are made anew."""
        hashes, rows = self._hash_array, self._row_array
        used = len(hashes)
        self._lay_out(2 * used)
        self._hash_array[:used], self._row_array[:used] = hashes, rows
        entries = np.arange(1, used, dtype=np.uint32)
        while entries.size:  # of those that fall into one bucket, one enters a round
            buckets = self._hash_array[entries] & np.uint64(self._mask)
            before = self._head_array[buckets]
            self._head_array[buckets] = entries
            entered = self._head_array[buckets] == entries
            self._next_array[entries[entered]] = before[entered]
            entries = entries[~entered]
