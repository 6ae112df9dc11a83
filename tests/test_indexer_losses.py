"""What pods gave up, until somebody takes it: in order, by pod and reason, within bounds; and who notes it."""

from __future__ import annotations

import numpy as np
import pytest

from indexer.blocks import KeySpace
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored
from indexer.index import PrefixIndex
from indexer.losses import Losses

SPACE, SIZE = KeySpace(5), 16


def told(losses: Losses) -> list[tuple[object, str, list[int]]]:
    return [(one.pod, one.why, [int(key) for key in one.keys]) for one in losses.take()]


def test_in_order() -> None:
    """What one pod gives up block by block is one entry; nothing is told twice, and a list is still its owner's."""
    losses, keys = Losses(100), [1]
    for pod, why, each in (
        ("a", "evicted", keys),
        ("a", "evicted", [2, 3]),
        ("b", "evicted", [4]),
        ("a", "evicted", [5]),
    ):
        losses.note(pod, why, each)
    losses.note("a", "left", np.array([6, 7], np.uint64))
    losses.note("a", "evicted", [8])
    keys.append(99)
    assert losses.blocks == 8
    assert told(losses) == [
        ("a", "evicted", [1, 2, 3]), ("b", "evicted", [4]), ("a", "evicted", [5]), ("a", "left", [6, 7]),
        ("a", "evicted", [8]),
    ]  # fmt: skip
    assert (told(losses), losses.blocks) == ([], 0)


def test_nobody_takes_them() -> None:
    """The oldest go, however they came."""
    losses = Losses(10)
    for key in range(1000):
        losses.note("a" if key % 30 else "b", "evicted", [key])
    kept = [key for _, _, keys in told(losses) for key in keys]
    assert kept[-1] == 999 and len(kept) <= 11


def stored() -> tuple[PrefixIndex, Losses, list[int]]:
    """A pod that holds ten blocks, and their keys."""
    losses = Losses(1000)
    index = PrefixIndex(SPACE, 1024, 2, 100, losses)
    tokens = np.arange(10 * SIZE, dtype=np.uint32)
    index.apply("pod", BlockStored(list(range(1, 11)), None, tokens, SIZE, "gpu"))
    return index, losses, SPACE.chain(tokens, SIZE).tolist()


@pytest.mark.parametrize("why", ["evicted", "cleared", "restarted", "left", "forgotten"])
def test_the_index_notes_why(why: str) -> None:
    """The pod removes some, clears all, is another process, leaves; or we forget what we knew."""
    index, losses, keys = stored()
    if why == "evicted":
        for number in (10, 9):
            index.apply("pod", BlockRemoved([number]))
        keys = [keys[9], keys[8]]
    elif why == "cleared":
        index.apply("pod", AllBlocksCleared())
    elif why == "left":
        index.drop("pod")
    else:
        index.clear("pod", anew=why == "restarted")
    ((pod, reason, gone),) = told(losses)
    assert (pod, reason) == ("pod", why) and sorted(gone) == sorted(keys)


def test_a_copy_that_is_left() -> None:
    """A block is lost with its last copy, and a pod's own cache loses it though a lower tier still has it."""
    index, losses, keys = stored()
    tokens = np.arange(SIZE, dtype=np.uint32)
    index.apply("pod", BlockStored([77], None, tokens, SIZE, "gpu"))
    index.apply("pod", BlockStored([1], None, tokens, SIZE, "cpu"))
    index.apply("pod", BlockRemoved([1]))
    assert told(losses) == []
    index.apply("pod", BlockRemoved([77]))
    assert told(losses) == [("pod", "evicted", keys[:1])]


def test_who_has_no_cache_of_its_own_loses_none() -> None:
    """A pod of which only a lower tier is known leaves, or is forgotten: nobody's blocks are lost by that."""
    index, losses, _ = stored()
    for end in ("forgotten", "left"):
        index.apply("other", BlockStored([1], None, np.arange(SIZE, dtype=np.uint32), SIZE, "cpu"))
        if end == "left":
            index.drop("other")
        else:
            index.clear("other")
        assert sum(len(gone) for _, _, gone in told(losses)) == 0
