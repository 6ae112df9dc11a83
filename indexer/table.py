"""Rows and who holds them: pages and holder sets, changed together.

`version` counts changes; every page is stamped with that of its last one, so that a match knows whether it still holds.
"""

from __future__ import annotations

from collections.abc import Iterable

from indexer.holders import HolderSets
from indexer.pages import PAGE, Pages


class Table:
    """Every row's holder set is changed here, and only here. Whoever changes something counts `version` up before."""

    def __init__(self, pages: Pages, sets: HolderSets) -> None:
        self.pages = pages
        self.sets = sets
        self.version = 0

    def hold(self, rows: Iterable[int], mask: int, instead_of: int = 0) -> list[int]:
        """Set the bits `mask` of rows, and clear those of `instead_of`; returns the rows that had them set before."""
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

    def unhold(self, rows: Iterable[int], mask: int) -> None:
        """Clear the bits `mask` of rows; a page of which no row is held is given back."""
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

    def _changed(self, page: int, more: int) -> None:
        """Rows of a page have other holders; `more` of its rows are held than before."""
        pages = self.pages
        pages.stamps[page] = self.version
        if more:
            pages.live[page] = live = pages.live[page] + more
            if not live:
                pages.free(page)
