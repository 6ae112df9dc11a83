"""What is remembered of blocks that nobody holds: within bounds, and never of another block."""

from __future__ import annotations

import random

import numpy as np

from router.causes.ghosts import Ghosts


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def test_what_was_asked_for() -> None:
    """By whom it was computed, from then on; the first time counts, and only a leading run is told."""
    ghosts = Ghosts(64)
    assert ghosts.look(keys(1, 2), 9.0) == []
    ghosts.ask(keys(1, 2, 3), 5.0, 7)
    ghosts.ask(keys(1), 6.0, 8)
    assert ghosts.look(keys(1, 2, 3, 4), 5.0) == []
    (first, rest) = ghosts.look(keys(1, 2, 3, 4), 5.1)
    assert (first.blocks, first.asked, first.why, first.who) == (1, 5.0, None, 8)
    assert (rest.blocks, rest.asked, rest.who) == (2, 5.0, 7)


def test_what_was_lost() -> None:
    """Why, when and by whom; blocks that nobody had asked for, too. Who computes it again takes that back."""
    ghosts = Ghosts(64)
    ghosts.ask(keys(1, 2), 5.0, 7)
    ghosts.lose([2, 3], 6.0, "evicted", 9, 4)
    kept, gone = ghosts.look(keys(1, 2, 3), 8.0)
    assert (kept.blocks, kept.why) == (1, None)
    assert (gone.blocks, gone.why, gone.gone, gone.who, gone.note) == (2, "evicted", 6.0, 9, 4)
    ghosts.ask(keys(1, 2), 5.5, 7)  # it was decided before the loss
    assert [fate.why for fate in ghosts.look(keys(1, 2), 8.0)] == [None, "evicted"]
    ghosts.ask(keys(1, 2), 7.0, 7)
    assert [(fate.why, fate.blocks) for fate in ghosts.look(keys(1, 2), 8.0)] == [(None, 2)]


def test_what_was_forgotten_in_the_middle() -> None:
    """Blocks are chained: who had a later one had those before it, too. Not where too many are unknown."""
    ghosts = Ghosts(1024)
    ghosts.ask(keys(1, 2, 5), 5.0, 7)
    ghosts.lose([9], 6.0, "evicted", 8, 0)
    asked, lost = ghosts.look(keys(1, 2, 3, 4, 5, 6, 9, 10), 8.0)
    assert (asked.blocks, lost.blocks, lost.why) == (6, 1, "evicted")
    assert [fate.blocks for fate in ghosts.look(keys(1, *range(100, 150), 9), 8.0)] == [1]
    (only,) = ghosts.look(keys(3, 4, 5), 8.0)
    assert only.blocks == 3


def test_a_table_of_fixed_size() -> None:
    """Whatever comes, nothing is told of a key that was not the last in its place, and it does not grow."""
    rng, ghosts = random.Random(3), Ghosts(100)
    size, asked = ghosts.nbytes, dict[int, float]()
    for step in range(2000):
        key = rng.randrange(1, 1 << 63)
        ghosts.ask(keys(key), float(step), step)
        asked[key] = step
        other = rng.choice(list(asked))
        for fate in ghosts.look(keys(other), 1e9):
            assert (fate.asked, fate.who) == (asked[other], asked[other])
    assert ghosts.nbytes == size
    assert 0 < sum(bool(ghosts.look(keys(key), 1e9)) for key in asked) <= 64


def test_nothing_is_remembered() -> None:
    """0: every call is in vain."""
    ghosts = Ghosts(0)
    ghosts.ask(keys(1), 1.0, 1)
    ghosts.lose([1], 1.0, "left", 1, 1)
    assert ghosts.look(keys(1), 9.0) == [] and ghosts.nbytes == 0
