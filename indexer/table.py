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
        numbers, live, stamps = self.pages.sets, self.pages.live, self.pages.stamps
        sets, version = self.sets, self.version
        masks, counts, held = sets.masks, sets.counts, []
        last, new = -1, 0
        for row in rows:
            old: int = numbers[row]
            if old == last:  # neighbours mostly have the same holders
                counts[new] += 1
                if old:
                    sets.left(old)
            else:
                before = masks[old]
                if before & mask:
                    held.append(row)
                    if not before & instead_of:
                        continue
                    last = -1  # each of these is told
                else:
                    last = old
                new = sets.moved(old, before & ~instead_of | mask)
            if not old:
                live[row // PAGE] += 1
            numbers[row] = new
            stamps[row // PAGE] = version
        return held

    def unhold(self, rows: Iterable[int], mask: int) -> None:
        """Clear the bits `mask` of rows; a page of which no row is held is given back."""
        pages, sets, version = self.pages, self.sets, self.version
        numbers, live, stamps, masks, counts = pages.sets, pages.live, pages.stamps, sets.masks, sets.counts
        last, new = -1, 0
        for row in rows:
            old: int = numbers[row]
            if old == last:
                counts[new] += 1
                sets.left(old)
            else:
                before = masks[old]
                if not before & mask:
                    continue
                new = sets.moved(old, before & ~mask)
                last = old
            page = row // PAGE
            numbers[row] = new
            stamps[page] = version
            if not new:
                live[page] -= 1
                if not live[page]:
                    pages.free(page)
