"""Hybrid models: which blocks sliding-window groups keep, and how far a hit may reach because of them."""

from __future__ import annotations

import random

import numpy as np

from indexer.blocks import KeySpace
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored
from indexer.index import PrefixIndex
from indexer.match import MISS, Hit
from indexer.windows import Windows, longest_hit

SPACE = KeySpace(0x5EED)


def _slow(held: list[bool], needed: int, limit: int) -> int:
    """The rule, word by word."""
    return next(n for n in range(limit, -1, -1) if all(held[max(0, n - needed) : n]))


def test_longest_hit_is_the_rule() -> None:
    """Against the rule spelt out, over many windows with holes."""
    rng = random.Random(1)
    for _ in range(3000):
        held = [rng.random() < 0.7 for _ in range(rng.randrange(1, 20))]
        needed, limit = rng.randrange(0, 6), rng.randrange(len(held) + 1)
        borders = [n for n in range(len(held) + 1) if (n < len(held) and held[n]) != (n > 0 and held[n - 1])]
        stretches = list(zip(borders[::2], borders[1::2], strict=True))
        assert longest_hit(stretches, needed, limit) == _slow(held, needed, limit)


def test_all_groups_must_keep_a_block() -> None:
    """Copies are counted by group."""
    windows = Windows()
    windows.store(0, 3, [1, 2, 2])
    windows.store(2, 5, [2])
    assert windows.needed == 5 and windows.holds(2) and not windows.holds(1)
    assert windows.remove(0, [2]) == [] and windows.remove(0, [2, 2, 7]) == [2]
    assert not windows.holds(2) and windows.remove(9, [1]) == []


class _Hybrid:
    """An index with one pod: group 0 slides over 3 blocks (of one token), group 1 keeps all."""

    def __init__(self) -> None:
        self.index = PrefixIndex(SPACE, 1024, pods_max=2)

    def full(self, *tokens: int) -> None:
        ids = np.array(tokens, np.uint32)
        event = BlockStored(list(tokens), None, ids, 1, group=1, kind="full_attention")
        self.index.apply("pod", event)

    def kept(self, *hashes: int) -> None:
        ids = np.array([], np.uint32)
        event = BlockStored(list(hashes), None, ids, 1, group=0, kind="sliding_window", window=4)
        self.index.apply("pod", event)

    def dropped(self, *hashes: int, group: int = 0) -> None:
        self.index.apply("pod", BlockRemoved(list(hashes), group=group))

    def hit(self, *tokens: int) -> Hit:
        match = self.index.match(SPACE.chain(np.array(tokens, np.uint32), 1))
        assert self.index.unchanged(match)
        return match.hits.get("pod", MISS)


def test_a_hit_ends_where_the_window_is_held() -> None:
    """Both orders of the groups' events; without the window's blocks the whole prefix is worth nothing."""
    for window_first in (True, False):
        pod = _Hybrid()
        if window_first:
            pod.kept(4, 5, 6)
        pod.full(1, 2, 3, 4, 5, 6, 7, 8)
        if not window_first:
            assert pod.hit(1, 2, 3).blocks == 3, "as long as no window was heard of, it is a plain pod"
            pod.kept(4, 5, 6)
        assert pod.hit(1, 2, 3, 4, 5, 6, 7, 8) == Hit(6, 6, shorter=6)
        assert pod.hit(1, 2, 3, 4, 5, 6).usable(6) == 6
        assert pod.hit(1, 2, 3, 4, 5, 6).usable(5) == 0, "the window before block 5 is not whole"
        pod.dropped(5)
        assert pod.hit(1, 2, 3, 4, 5, 6, 7, 8).blocks == 0
        pod.kept(1)
        assert pod.hit(1, 2, 3, 4, 5, 6, 7, 8).blocks == 1, "fewer blocks than the window, but all"


def test_matches_change_with_the_window() -> None:
    """What was answered before the window's blocks came or went does not hold any more."""
    pod = _Hybrid()
    pod.full(1, 2, 3, 4)
    keys = SPACE.chain(np.array([1, 2, 3, 4], np.uint32), 1)
    for change in (lambda: pod.kept(2, 3, 4), lambda: pod.dropped(3), lambda: pod.kept(3)):
        match = pod.index.match(keys)
        change()
        assert not pod.index.unchanged(match)
    assert pod.hit(1, 2, 3, 4).blocks == 4


def test_predicted_blocks_count_as_held_by_the_window() -> None:
    """What a pod is about to compute will be in its window, too."""
    pod = _Hybrid()
    pod.full(1, 2, 3, 4)
    pod.kept(2, 3, 4)
    keys = SPACE.chain(np.array([1, 2, 3, 4, 5, 6], np.uint32), 1)
    pod.index.predict("pod", keys, 4, expires=9.0)
    assert pod.hit(1, 2, 3, 4, 5, 6) == Hit(6, 4, 2, shorter=5)
    pod.index.expire(10.0)
    assert pod.hit(1, 2, 3, 4, 5, 6).blocks == 4


def test_nothing_is_left_behind() -> None:
    """Removal from the full group, a reset, and the sweep free every row, windows included."""
    pod = _Hybrid()
    for _ in range(2):
        pod.full(1, 2, 3, 4)
        pod.kept(1, 2, 3, 4)
        pod.dropped(4, group=1)
        assert pod.hit(1, 2, 3, 4).blocks == 3
        pod.index.apply("pod", AllBlocksCleared())
        assert pod.hit(1, 2, 3, 4) == MISS
        while pod.index.sweep():
            pass
        assert pod.index.blocks == 0
