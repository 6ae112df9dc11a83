"""Rows and who holds them: pages and holder sets, changed together.

`version` counts changes; every page is stamped with that of its last one, so that a match knows whether it still holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.holders import HolderSets
from indexer.pages import PAGE, Pages

_MANY = 192  # from so many rows on, numpy beats a Python loop


class Table:
    """Every row's holder set is changed here, and only here. Whoever changes something counts `version` up before."""

    def __init__(self, pages: Pages, sets: HolderSets) -> None:
        self.pages = pages
        self.sets = sets
        self.version = 0

    def hold(self, rows: list[int], mask: int, instead_of: int = 0) -> list[int]:
        """Set the bits `mask` of rows, and clear those of `instead_of`; returns the rows that had them set before."""
        if len(rows) == 1:
            return rows[:1] if self._exchange(rows[0], mask, instead_of) & mask else []
        if len(rows) >= _MANY and _differ(rows):
            return self._hold_many(rows, mask, instead_of)
        numbers, sets, masks = self.pages.sets, self.sets, self.sets.masks
        held: list[int] = []
        old, new, told, moved = -1, 0, False, 0
        page, more = 0, 0
        for row in rows:
            number: int = numbers[row]
            if number != old:  # neighbours mostly have the same holders
                if moved:
                    sets.move(old, new, moved)
                old, moved = number, 0
                before = masks[old]
                told = bool(before & mask)
                new = old if told and not before & instead_of else sets.number(before & ~instead_of | mask)
            if told:
                held.append(row)
                if new == old:
                    continue
            if row // PAGE != page:
                if page:
                    self._changed(page, more)
                page, more = row // PAGE, 0
            numbers[row] = new
            moved += 1
            more += not old
        if moved:
            sets.move(old, new, moved)
        if page:
            self._changed(page, more)
        return held

    def unhold(self, rows: Sequence[int], mask: int) -> None:
        """Clear the bits `mask` of rows; a page of which no row is held is given back."""
        if len(rows) == 1:
            self._exchange(rows[0], 0, mask)
            return
        if len(rows) >= _MANY and _differ(rows):
            self._unhold_many(rows, mask)
            return
        numbers, sets, masks = self.pages.sets, self.sets, self.sets.masks
        old, new, moved = -1, 0, 0
        page, less = 0, 0
        for row in rows:
            number: int = numbers[row]
            if number != old:
                if moved:
                    sets.move(old, new, moved)
                old, moved = number, 0
                before = masks[old]
                new = sets.number(before & ~mask) if before & mask else old
            if new == old:
                continue
            if row // PAGE != page:
                if page:
                    self._changed(page, -less)
                page, less = row // PAGE, 0
            numbers[row] = new
            moved += 1
            less += not new
        if moved:
            sets.move(old, new, moved)
        if page:
            self._changed(page, -less)

    def _exchange(self, row: int, mask: int, instead_of: int) -> int:
        """As `hold` and `unhold`, of one row, as a pod stores and removes while it decodes; its mask before."""
        numbers, sets = self.pages.sets, self.sets
        old: int = numbers[row]
        before = sets.masks[old]
        after = before & ~instead_of | mask
        if after != before:
            numbers[row] = new = sets.number(after)
            sets.move(old, new, 1)
            self._changed(row // PAGE, (not old) - (not new))
        return before

    def _hold_many(self, rows: Sequence[int], mask: int, instead_of: int) -> list[int]:
        held: list[int] = []
        for number, same in self._by_set(rows):
            before = self.sets.masks[number]
            told = bool(before & mask)
            if told:
                held += same.tolist()
                if not before & instead_of:
                    continue
            self._move(same, number, before & ~instead_of | mask)
            if not number:
                np.add.at(self.pages.live_array, same // PAGE, np.uint8(1))
        return held

    def _unhold_many(self, rows: Sequence[int], mask: int) -> None:
        for number, same in self._by_set(rows):
            before = self.sets.masks[number]
            if not before & mask:
                continue
            self._move(same, number, before & ~mask)
            if not before & ~mask:
                live, pages = self.pages.live_array, same // PAGE
                np.subtract.at(live, pages, np.uint8(1))
                for page in set(pages[live[pages] == 0].tolist()):  # numpy's `unique` imports for 16 ms at first
                    self.pages.release(page)

    def _by_set(self, rows: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """The rows in their order, as runs that have the same holder set, which may be changed meanwhile."""
        array = np.array(rows, np.uint32)
        numbers = self.pages.set_array[array]
        ends = [*(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(array)]
        start = 0
        for end in ends:
            yield int(numbers[start]), array[start:end]
            start = end

    def _move(self, rows: NDArray[np.uint32], old: int, mask: int) -> None:
        """Rows that have the set `old` get the set `mask`."""
        new = self.sets.number(mask)
        self.pages.set_array[rows] = new
        self.sets.move(old, new, len(rows))
        self.pages.stamp_array[rows // PAGE] = self.version

    def _changed(self, page: int, more: int) -> None:
        """Rows of a page have other holders; `more` of its rows are held than before."""
        pages = self.pages
        pages.stamps[page] = self.version
        if more:
            pages.live[page] = live = pages.live[page] + more
            if not live:
                pages.release(page)


def _differ(rows: Sequence[int]) -> bool:
    """Are they all different, as they must be for numpy?"""
    return len(set(rows)) == len(rows)
