"""Rows change hands in the same way, few at a time or many."""

from __future__ import annotations

import random

import pytest

from indexer.holders import HolderSets
from indexer.pages import PAGE, Pages
from indexer.table import Table

ROWS = 800


def _a_table() -> Table:
    table = Table(Pages(ROWS), HolderSets(8, 4))
    table.pages.follow(list(range(1, ROWS + 1)), 0)
    return table


def _seen(table: Table) -> list[tuple[int, int, int, int]]:
    """Of each row: its key, its holders, and its page's live rows and last change."""
    pages = table.pages
    return [
        (pages.keys[row], table.sets.masks[pages.sets[row]], pages.live[row // PAGE], pages.stamps[row // PAGE])
        for row in range(PAGE, ROWS + PAGE)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_many_at_once_as_few_at_a_time(seed: int) -> None:
    """Bits set and cleared, of any rows in any order, some twice: equal holders, counts, stamps and freed pages."""
    rng = random.Random(seed)
    few, many = _a_table(), _a_table()
    alive = list(range(PAGE, ROWS + PAGE))
    for version in range(1, 40):
        few.version = many.version = version
        start = rng.randrange(len(alive))
        rows = alive[start : start + rng.choice((5, 300, 700))]
        if rng.random() < 0.3:
            rng.shuffle(rows)
        rows += rows[: rng.choice((0, 0, 2))]
        mask, other = 1 << rng.randrange(12), 1 << rng.randrange(12)
        if rng.random() < 0.6:
            instead_of = rng.choice((0, other)) if other != mask else 0
            held = many.hold(rows, mask, instead_of)
            assert held == [row for row in rows for _ in few.hold([row], mask, instead_of)]
        else:
            many.unhold(rows, mask)
            for row in rows:
                few.unhold([row], mask)
        assert _seen(many) == _seen(few)
        assert many.pages.used == few.pages.used
        used = {row: many.pages.sets[row] for row in range(PAGE, ROWS + PAGE) if many.pages.sets[row]}
        assert all(many.sets.counts[number] == list(used.values()).count(number) for number in used.values())
        alive = [row for row in alive if many.pages.keys[row]]
        if not alive:
            return
