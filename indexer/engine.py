"""One pod's engine hashes (opaque, vLLM's own) to our rows, for one tier.

vLLM reports every physical copy of a block, so a hash may be stored several times and is gone only when each copy was
removed; more copies than one are rare and kept beside the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_ENTRIES_MIN = 1024

_Renamed: TypeAlias = tuple[list[int], list[int]]


class EngineMap:
    """Engine hash (64 bits) -> row, with copy counts; doubles as it fills, about 20 bytes an entry when full.

    A bucket is the remainder by a secret prime: a pod names its blocks as it likes, and must not be able to put them
    all into one.
    """

    def __init__(self, salt: int, entries: int = 0) -> None:
        """`salt`: a random 64-bit number, kept secret; the primes follow from it. `entries`: so many will come soon."""
        self._salt = salt
        self.copies: dict[int, int] = {}  # hash -> copies beyond the first
        self.aliases: dict[int, int] = {}  # row -> hashes beyond the first that name it
        self.named = 0  # hashes that name a row
        self.entries = 1  # ever used; entry 0 is none
        self._free = 0  # the entry that was freed last, which tells the one before; 0: there is none
        self._lay_out(max(_ENTRIES_MIN, 1 << entries.bit_length()))

    def __len__(self) -> int:
        return self.named

    @property
    def nbytes(self) -> int:
        return 4 * len(self._heads) + 16 * len(self._hashes)

    def find(self, engine_hash: int) -> int:
        """The row that this hash names, 0 if none."""
        hashes, following = self._hashes, self._next
        entry: int = self._heads[engine_hash % self._prime]
        while entry and hashes[entry] != engine_hash:
            entry = following[entry]
        return self._rows[entry] if entry else 0

    def name(self, engine_hashes: Sequence[int], rows: Sequence[int], again: bool = False) -> _Renamed:
        """Each hash names its row from now on; hashes for which there is no row name nothing.

        Returns the rows that their hash named before, which have a copy more (unless they are told of `again`); and
        those that lost a name: their hash named other content before, so the pod's events contradict each other, and
        the newer one counts.
        """
        while self.named + len(rows) >= len(self._hashes):
            self._grow()
        hashes, row_of, following, heads = self._hashes, self._rows, self._next, self._heads
        prime, entries, free, new = self._prime, self.entries, self._free, 0
        copied: list[int] = []
        lost: list[int] = []
        for engine_hash, row in zip(engine_hashes, rows, strict=False):
            bucket = engine_hash % prime
            entry = first = heads[bucket]
            while entry and hashes[entry] != engine_hash:
                entry = following[entry]
            if not entry:
                if free:
                    entry, free = free, following[free]
                else:
                    entry, entries = entries, entries + 1
                new += 1
                hashes[entry], following[entry], heads[bucket] = engine_hash, first, entry
            elif row_of[entry] == row:
                if not again:
                    self.copies[engine_hash] = self.copies.get(engine_hash, 0) + 1
                copied.append(row)
            else:
                self.copies.pop(engine_hash, None)
                lost.append(row_of[entry])
            row_of[entry] = row
        self.named, self.entries, self._free = self.named + new, entries, free
        return copied, lost

    def forget(self, engine_hashes: Sequence[int]) -> tuple[list[int], list[int]]:
        """A copy of each hash is gone: the rows that no hash names any more, and the hashes that named none."""
        hashes, row_of, following, heads = self._hashes, self._rows, self._next, self._heads
        copies, aliases, prime, free, freed = self.copies, self.aliases, self._prime, self._free, 0
        gone: list[int] = []
        unknown: list[int] = []
        for engine_hash in engine_hashes:
            if copies and engine_hash in copies:
                _count_down(copies, engine_hash)
                continue
            bucket = engine_hash % prime
            before, entry = 0, heads[bucket]
            while entry and hashes[entry] != engine_hash:
                before, entry = entry, following[entry]
            if not entry:
                unknown.append(engine_hash)
                continue
            if before:
                following[before] = following[entry]
            else:
                heads[bucket] = following[entry]
            row: int = row_of[entry]
            row_of[entry], following[entry] = 0, free
            free, freed = entry, freed + 1
            if aliases and row in aliases:
                _count_down(aliases, row)
            else:
                gone.append(row)
        self.named, self._free = self.named - freed, free
        return gone, unknown

    def named_again(self, rows: Iterable[int]) -> None:
        """These rows got a name while they had one."""
        for row in rows:
            self.aliases[row] = self.aliases.get(row, 0) + 1

    def unnamed(self, row: int) -> bool:
        """A row has lost a name: was it its last one?"""
        if row not in self.aliases:
            return True
        _count_down(self.aliases, row)
        return False

    def rows(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint32]:
        """All rows named (some twice, if two hashes name one), shape (n,); of entries `start` to `stop` only."""
        rows = self.row_array[start : self.entries if stop is None else min(stop, self.entries)]
        named: NDArray[np.uint32] = rows[rows != 0]
        return named

    def newest(self, count: int) -> list[int]:
        """At most `count` hashes, those that were named last first, as far as that is known."""
        entries = np.flatnonzero(self.row_array[: self.entries])[-count:]
        found: list[int] = self.hash_array[entries[::-1]].tolist()
        return found

    def _lay_out(self, entries: int) -> None:
        self._prime = _prime_from(entries * 3 // 4 + self._salt % (entries // 2))
        self.hash_array: NDArray[np.uint64] = np.zeros(entries, np.uint64)
        self.row_array: NDArray[np.uint32] = np.zeros(entries, np.uint32)
        self.next_array: NDArray[np.uint32] = np.zeros(entries, np.uint32)
        self.head_array: NDArray[np.uint32] = np.zeros(self._prime, np.uint32)
        self._hashes = self.hash_array.data
        self._rows = self.row_array.data
        self._next = self.next_array.data
        self._heads = self.head_array.data

    def _grow(self) -> None:
        """Double: entries keep their numbers, only the chains of the buckets are made anew."""
        hashes, rows, following = self.hash_array, self.row_array, self.next_array
        used = len(hashes)
        self._lay_out(2 * used)
        self.hash_array[:used], self.row_array[:used], self.next_array[:used] = hashes, rows, following
        self._chain(np.flatnonzero(rows).astype(np.uint32))

    def extend(self, engine_hashes: NDArray[np.uint64], rows: NDArray[np.uint32]) -> None:
        """As `name`, of many hashes at once, none of which is known, and no two alike."""
        first, end = self.entries, self.entries + len(rows)
        while end > len(self._hashes):
            self._grow()
        self.hash_array[first:end], self.row_array[first:end] = engine_hashes, rows
        self._chain(np.arange(first, end, dtype=np.uint32))
        self.named, self.entries = self.named + len(rows), end

    def _chain(self, entries: NDArray[np.uint32]) -> None:
        """Have these entries, which are in no chain, found by their hashes."""
        while entries.size:  # of those that fall into one bucket, one enters a round
            buckets = self.hash_array[entries] % np.uint64(self._prime)
            before = self.head_array[buckets]
            self.head_array[buckets] = entries
            entered = self.head_array[buckets] == entries
            self.next_array[entries[entered]] = before[entered]
            entries = entries[~entered]


def _prime_from(number: int) -> int:
    """The first prime that is not below `number`, which is at least 3."""
    number |= 1
    while not all(number % divisor for divisor in range(3, isqrt(number) + 1, 2)):
        number += 2
    return number


def _count_down(counts: dict[int, int], key: int) -> None:
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
