"""The table of rows: every key is found by every way of asking, wherever it was put."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.pages import PAGE, Pages


def _put(pages: Pages, keys: NDArray[np.uint64]) -> list[int]:
    """A chain, each key behind the one before; every row is held, as the index does it."""
    row, rows = 0, []
    for key in keys.tolist():
        following = row + 1 if row and pages.keys[row + 1] == key else pages.find(key) or pages.place(key, row)
        if not following:
            break
        if not pages.sets[following]:
            pages.sets[following] = 1
            pages.live[following // PAGE] += 1
        row = following
        rows.append(row)
    return rows


def _drop(pages: Pages, row: int) -> None:
    pages.sets[row] = 0
    pages.live[row // PAGE] -= 1
    if not pages.live[row // PAGE]:
        pages.release(row // PAGE)


def _keys(rng: random.Random, count: int, collide: bool) -> NDArray[np.uint64]:
    """Distinct keys; colliding ones all fall into one bucket."""
    drawn = rng.sample(range(1, 2**40), count)
    return np.array([key << 20 | 5 if collide else key * 0x9E3779B97F4A7C15 % 2**64 for key in drawn], np.uint64)


@pytest.mark.parametrize("collide", [False, True])
def test_every_way_of_asking_agrees(collide: bool) -> None:
    """`find`, `find_all` and `find_chain` name the row that a dict remembers, through branches, frees and re-use."""
    for seed in range(3 if collide else 12):
        rng = random.Random(seed)
        pages = Pages(4096)
        rows: dict[int, int] = {}
        keys = _keys(rng, 600, collide)
        chains = [keys[:400], np.concatenate([keys[: rng.randrange(1, 300)], keys[400:]])]
        for chain in chains:
            rows.update(zip(chain.tolist(), _put(pages, chain), strict=True))
        gone = set(rng.sample(list(rows), rng.choice((0, 5, 300))))
        for key in gone:
            _drop(pages, rows[key])
        found = {key: pages.find(key) for key in rows}
        for key, row in rows.items():
            kept = pages.live[row // PAGE] > 0
            assert found[key] == (row if kept else 0), "a key stays as long as its page does"
        for chain in chains:
            alone = [found[key] for key in chain.tolist()]
            assert pages.find_all(chain).tolist() == alone
            first = alone.index(0) if 0 in alone else len(alone)
            chained = pages.find_chain(chain).tolist()
            assert chained[:first] == alone[:first]
            assert all(row in (0, expected) for row, expected in zip(chained, alone, strict=True))


def test_a_chain_lies_in_whole_pages() -> None:
    """Depth and place in the page agree, so a long look-up probes one key in eight."""
    pages = Pages(1024)
    rows = _put(pages, _keys(random.Random(1), 100, False))
    assert [row % PAGE for row in rows] == [depth % PAGE for depth in range(100)]
    assert pages.used == 13


@pytest.mark.parametrize("collide", [False, True])
def test_a_long_chain_is_followed_as_block_by_block(collide: bool) -> None:
    """At once or one by one: the same keys get rows, known ones keep theirs, and rows lie one behind the other."""
    for seed in range(4):
        rng = random.Random(seed)
        pages, rows = Pages(4096), dict[int, int]()
        keys = _keys(rng, 1500, collide)
        begun = rng.randrange(1, 9)
        rows.update(zip(keys[:begun].tolist(), pages.follow(keys[:begun].tolist(), 0), strict=True))
        branch = rng.randrange(begun, 400)
        chains = [keys[:700], np.concatenate([keys[:branch], keys[700:]]), keys[: branch + 3], keys[:700]]
        for chain in chains:
            followed = pages.follow(chain.tolist(), 0)
            assert followed == [pages.find(key) for key in chain.tolist()]
            assert len(set(followed)) == len(chain)
            assert [row % PAGE for row in followed] == [depth % PAGE for depth in range(len(chain))]
            assert all(rows.setdefault(key, row) == row for key, row in zip(chain.tolist(), followed, strict=True))


def test_a_long_chain_ends_where_the_room_ends() -> None:
    """Fewer rows than keys, none of them taken twice."""
    pages = Pages(160)
    keys = _keys(random.Random(1), 400, collide=False).tolist()
    rows = pages.follow(keys[:3], 0) + pages.follow(keys[3:], 10)
    assert len(rows) == len(set(rows)) == 160
    assert pages.follow(keys, 0) == rows


def test_a_branch_starts_a_page_at_its_depth() -> None:
    """Siblings sit at the same place of different pages."""
    pages, keys = Pages(1024), _keys(random.Random(2), 20, False)
    trunk = _put(pages, keys[:10])
    branch = _put(pages, np.concatenate([keys[:4], keys[10:]]))
    assert branch[:4] == trunk[:4] and branch[4] // PAGE != trunk[4] // PAGE
    assert [row % PAGE for row in branch] == [depth % PAGE for depth in range(14)]


def test_full_and_freed() -> None:
    """No row beyond the limit; a freed page is used again, and its old keys are not found."""
    pages, keys = Pages(16), _keys(random.Random(3), 40, True)
    assert len(_put(pages, keys[:30])) == 16 and pages.used == 2
    for row in range(PAGE, 2 * PAGE):
        _drop(pages, row)
    assert pages.used == 1 and not pages.find_all(keys[:8]).any() and pages.find_all(keys[8:16]).all()
    assert len(_put(pages, keys[30:])) == 8 and pages.find(int(keys[30])) and not pages.find(int(keys[38]))


@pytest.mark.parametrize("blocks_max", [1, 7, 8, 9, 1000])
def test_the_limit_is_in_whole_pages(blocks_max: int) -> None:
    """At least what was asked for, less than a page more."""
    pages = Pages(blocks_max)
    placed = len(_put(pages, _keys(random.Random(4), 1100, False)))
    assert blocks_max <= placed < blocks_max + PAGE
