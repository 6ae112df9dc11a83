"""What changed of a pod's blocks, copied elsewhere: the copy is always what the index says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from indexer.changes import TIER_BITS, Changes, Delta
from indexer.events import TIERS, AllBlocksCleared, BlockRemoved, BlockStored
from indexer.index import PrefixIndex
from tests.fakes.index_twin import TwinPod
from tests.fakes.index_walk import PODS, SHORT, SPACE, Walk

CPU, GPU = TIER_BITS["cpu"], TIER_BITS["gpu"]


def tiers_of(pod: TwinPod) -> dict[int, int]:
    """Node -> tiers that hold it, as bits."""
    tiers: dict[int, int] = {}
    for tier, named in pod.tiers.items():
        for node, _ in named.values():
            tiers[node] = tiers.get(node, 0) | TIER_BITS[tier]
    return tiers


def followed(copy: dict[int, int], delta: Delta) -> dict[int, int]:
    """The copy after a delta."""
    after = {} if delta.cleared else dict(copy)
    for key, code in delta.blocks.items():
        after[key] = after.get(key, 0) & ~(code >> 4) | code & 15
    return {key: tiers for key, tiers in after.items() if tiers}


def copied(index: PrefixIndex, pod: Any, slice_max: int) -> dict[int, int]:
    """The same, read from the index in slices."""
    copy: dict[int, int] = {}
    for tier in TIERS:
        start = 0
        while True:
            keys, start = index.confirmed(pod, tier, start, slice_max)
            for key in keys.tolist():
                copy[key] = copy.get(key, 0) | TIER_BITS[tier]
            if not start:
                break
    return copy


def watch(walk: Walk, pod: str, changes: Changes) -> None:
    """From now on the index knows the pod, and so does its twin."""
    walk.index.watch(pod, changes)
    walk.twin.pod(pod)


@pytest.mark.parametrize("seed", range(12))
def test_a_copy_that_follows_is_what_the_index_holds(seed: int) -> None:
    """After any operations, what the changes made of a copy is what the index holds, and as much as the twin does."""
    walk = Walk(seed, SHORT, block_size=(1, 16, 2)[seed % 3])
    watched = {pod: Changes(1 << 20) for pod in PODS}
    copies: dict[str, dict[int, int]] = {pod: {} for pod in PODS}
    for pod, changes in watched.items():
        watch(walk, pod, changes)
    for step in range(350):
        walk.step()
        if step in (100, 180):  # rare by themselves
            walk.do(walk.clear if step == 100 else walk.drop)
        for pod, changes in watched.items():
            copies[pod] = followed(copies[pod], changes.take())
            assert copies[pod] == copied(walk.index, pod, 7)
            expected = tiers_of(walk.twin.pods.get(pod, TwinPod()))
            assert sorted(copies[pod].values()) == sorted(expected.values())
            watch(walk, pod, changes)  # if it was dropped: a pod of that name that comes later is another one
    assert walk.seen["adopted"] and walk.seen["remove"] and walk.seen["offload"]


def store(*tokens: int, tier: Any = "gpu", hashes: list[int] | None = None) -> BlockStored:
    """A chain from the start, in blocks of one token; the engine hash is the token unless given."""
    return BlockStored(hashes or list(tokens), None, np.array(tokens, np.uint32), 1, tier)


def watched_index(blocks_max: int = 100) -> tuple[PrefixIndex, Changes, list[int]]:
    """An index with one watched pod, its changes, and the keys of the chain 1, 2, 3."""
    index, changes = PrefixIndex(SPACE, 4096), Changes(blocks_max)
    index.watch("a", changes)
    return index, changes, SPACE.chain(np.array([1, 2, 3], np.uint32), 1).tolist()


def test_only_the_last_word_counts() -> None:
    """What is stored and removed between two looks is told as it is in the end, tier by tier; and only once."""
    index, changes, (one, two, _) = watched_index()
    index.apply("a", store(1, 2))
    index.apply("a", store(1, tier="cpu"))
    index.apply("a", BlockRemoved([1]))
    assert changes.take() == Delta({one: CPU | GPU << 4, two: GPU})
    assert changes.take() == Delta({})


def test_a_copy_more_or_less_is_no_change_of_who_holds() -> None:
    """A block goes only with its last copy; predictions are nobody else's business."""
    index, changes, (one, *_) = watched_index()
    index.apply("a", store(1))
    index.apply("a", store(1, hashes=[7]))
    changes.take()
    index.apply("a", BlockRemoved([1]))
    index.predict("a", SPACE.chain(np.array([8, 9], np.uint32), 1), 0, 5.0)
    index.expire(6.0)
    assert not changes.take().blocks
    index.apply("a", BlockRemoved([7]))
    assert changes.take() == Delta({one: GPU << 4})


def test_a_clear_comes_before_what_follows_it() -> None:
    """A pod that is cleared goes on being watched; one that is dropped is told as cleared, and then no more."""
    index, changes, (one, *_) = watched_index()
    index.apply("a", store(1, 2, 3))
    index.apply("a", AllBlocksCleared())
    index.apply("a", store(1))
    assert changes.take() == Delta({one: GPU}, cleared=True)
    index.drop("a")
    index.apply("a", store(1, 2))
    assert changes.take() == Delta({}, cleared=True)


def test_too_much_is_said_to_be_lost() -> None:
    """What finds no room is dropped and counted; a clear after it makes nothing lost."""
    index, changes, _ = watched_index(blocks_max=2)
    index.apply("a", store(1, 2, 3))
    assert changes.dropped == 3 and changes.take() == Delta({}, lost=True)
    assert changes.take() == Delta({})
    index.apply("a", store(*range(10, 20)))
    index.apply("a", AllBlocksCleared())
    assert changes.take() == Delta({}, cleared=True)
