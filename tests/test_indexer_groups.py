"""Hybrid models: which group is indexed, what the others keep, and how far a hit may reach because of them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np

from indexer.blocks import KeySpace
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored
from indexer.groups import Groups, places_of
from indexer.index import PrefixIndex
from indexer.match import MISS, Hit

SPACE = KeySpace(0x5EED)


def _stretches(held: list[bool]) -> list[tuple[int, int]]:
    borders = [n for n in range(len(held) + 1) if (n < len(held) and held[n]) != (n > 0 and held[n - 1])]
    return list(zip(borders[::2], borders[1::2], strict=True))


def test_a_hit_ends_where_every_group_can_go_on() -> None:
    """Against the rules spelt out, over many windows and states with holes."""
    rng = random.Random(1)
    for _ in range(3000):
        run, needed = rng.randrange(20), rng.randrange(1, 6)
        windows, states = ([rng.random() < share for _ in range(run)] for share in (0.7, 0.4))
        by_window = {n for n in range(1, run + 1) if all(windows[max(0, n - needed) : n])}
        by_state = {n for n in range(1, run + 1) if states[n - 1]}
        for given, expected in (
            ((_stretches(windows), needed, None), by_window),
            ((None, 0, _stretches(states)), by_state),
            ((_stretches(windows), needed, _stretches(states)), by_window & by_state),
        ):
            places = places_of(run, *given)
            assert [n for first, last in places for n in range(first, last + 1)] == sorted(expected)
            hit = Hit(max(expected, default=0), 0, run=run, ends=tuple(places))
            for limit in range(run + 2):
                assert hit.usable(limit) == max((n for n in expected if n <= limit), default=0)


def stored(group: int, hashes: list[int], kind: str | None, tokens: int, size: int = 1, **more: Any) -> BlockStored:
    """A store of the tokens 1, 2, …"""
    return BlockStored(hashes, None, np.arange(1, tokens + 1, dtype=np.uint32), size, group=group, kind=kind, **more)


def test_all_groups_must_keep_a_block() -> None:
    """Copies are counted by group; what a group that comes late does not keep, not all do."""
    groups = Groups()
    for group, window in ((0, 4), (2, 6)):
        assert not groups.is_content(stored(group, [], "sliding_window", 0, window=window))
    assert groups.store(0, [1, 2, 2]) == [] and groups.store(2, [2]) == [1]
    assert groups.needed == 5 and groups.holds("window", 2) and not groups.holds("window", 1)
    assert groups.remove(0, [2]) == [] and groups.remove(0, [2, 2, 7]) == [2]
    assert not groups.holds("window", 2) and groups.remove(9, [1]) == []


def windows(group: int, parent: int | None, *hashes: int, first: int = 1) -> BlockStored:
    """A store of the tokens `first`, … by a group whose window is 4 blocks of one token."""
    tokens = np.arange(first, first + len(hashes), dtype=np.uint32)
    return BlockStored(list(hashes), parent, tokens, 1, group=group, kind="sliding_window", window=4)


def test_windows_alone() -> None:
    """No group keeps every block: a hit is what any window can go on from, whatever is gone before it."""
    index, keys = PrefixIndex(SPACE, 1024), SPACE.chain(np.arange(1, 9, dtype=np.uint32), 1)
    index.apply("pod", windows(0, None, 1, 2, 3, 4))
    assert not index.match(keys).hits, "a group that keeps all may tell of it yet"
    index.apply("pod", windows(0, 4, 5, 6, 7, 8, first=5))
    assert index.match(keys).hits["pod"] == Hit(8, 8, run=8, ends=((1, 8),))
    index.apply("pod", BlockRemoved([1, 2], group=0))
    index.apply("pod", BlockRemoved([5], group=0))
    match = index.match(keys)
    assert match.hits["pod"] == Hit(8, 8, run=8, ends=((8, 8),)) and index.unchanged(match)
    assert match.hits["pod"].usable(7) == 0
    index.apply("pod", BlockRemoved([7], group=0))
    assert not index.unchanged(match) and not index.match(keys).hits
    assert not index.match(keys[:0]).hits
    index.apply("pod", windows(0, 4, 5, 6, 7, first=5))
    assert index.match(keys).hits["pod"].blocks == 8
    index.apply("pod", AllBlocksCleared())
    assert not index.match(keys).hits and index.holding("pod").gpu == 0
    index.apply("pod", windows(0, None, 1, 2))
    assert index.match(keys).hits["pod"].ends == ((1, 2),), "it is known from now on"
    index.drop("pod")
    assert not index.match(keys).hits


def test_what_windows_tell_before_they_are_known_to_be_alone() -> None:
    """It may be gone again; a group that keeps all may come late; and what can't be placed is not believed."""
    gone = PrefixIndex(SPACE, 1024)
    gone.apply("pod", windows(0, None, 1))
    gone.apply("pod", BlockRemoved([1], group=0))
    gone.apply("pod", windows(0, None, 1))
    assert gone.holding("pod").gpu == 0

    late, several = Groups(), Groups()
    assert not late.is_content(windows(0, None, 1)) and late.is_content(windows(0, 1, 2, first=2)) and late.windowed
    assert not late.is_content(stored(1, [1], "full_attention", 1))
    assert (late.windowed, late.indexed, late.mistaken) == (False, 1, True)

    parts = stored(0, [2], "sliding_window", 2, window=4)
    assert not several.is_content(parts) and not several.is_content(windows(1, None, 1, 2))
    assert not several.is_content(parts) and several.indexed == 1 and [each.group for each in several.found] == [1]
    assert not several.is_content(stored(1, [4], "sliding_window", 2, window=4)) and several.unsure


def test_the_indexed_group_is_found() -> None:
    """By its kind; without kinds, by what stores leave out; of several that keep all, that of the largest blocks."""
    by_kind = Groups()
    assert not by_kind.is_content(stored(0, [3], "mamba", 3))
    assert by_kind.unsure, "so far no group keeps all blocks"
    assert by_kind.is_content(stored(3, [1, 2, 3], "full_attention", 3))
    assert by_kind.indexed == 3 and not by_kind.unsure and by_kind.states

    kindless = Groups()
    assert not kindless.is_content(stored(0, [2, 3], None, 3))
    assert kindless.is_content(stored(1, [1, 2, 3], None, 3))
    assert (kindless.indexed, kindless.needed, kindless.unsure, kindless.mistaken) == (1, 2, False, False)

    late = Groups()
    assert late.is_content(stored(0, [1], None, 1)) and not late.unsure
    assert not late.is_content(stored(1, [1], None, 1)) and late.unsure, "which of the two, time will tell"
    assert not late.is_content(stored(0, [2, 3], None, 3)) and late.mistaken
    late = late.emptied()
    assert not late.is_content(stored(0, [1], None, 1)) and late.is_content(stored(1, [1], None, 1))
    assert (late.indexed, late.needed, late.unsure, late.states) == (1, 2, False, False)

    right = Groups()
    assert right.is_content(stored(0, [1], None, 1)) and not right.is_content(stored(1, [1], None, 1))
    assert right.is_content(stored(0, [1, 2, 3], None, 3)) and not right.is_content(stored(1, [2, 3], None, 3))
    assert not right.mistaken and not right.unsure and right.role(1) == "window"

    several = Groups()
    assert several.is_content(stored(0, [1, 2, 3, 4], "mla_attention", 4, 1))
    assert not several.is_content(stored(1, [4], "mla_attention", 4, 4)) and several.mistaken
    assert several.is_content(stored(1, [4], "mla_attention", 4, 4)) and several.unsure
    assert several.block_size == 4


def test_the_block_size_is_that_of_whole_blocks_on_the_gpu() -> None:
    """Not that of an offloaded chunk, of another group, or of a prompt's tail."""
    groups = Groups()
    assert groups.is_content(stored(0, [1, 2], "full_attention", 8, 4))
    for other in (
        stored(1, [8], "mamba", 8, 8),
        BlockStored([9], None, np.zeros(16, np.uint32), 16, "cpu"),
        BlockStored([9], None, np.zeros(16, np.uint32), 16, "cpu", group=0, kind="full_attention"),
    ):
        groups.is_content(other)
        assert groups.block_size == 4 and not groups.unsure
    assert not groups.is_content(stored(0, [7], "full_attention", 2, 2))
    assert groups.block_size == 4 and groups.unsure


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
        assert pod.hit(1, 2, 3, 4, 5, 6, 7, 8) == Hit(6, 6, run=8, ends=((6, 6),))
        assert pod.hit(1, 2, 3, 4, 5, 6).usable(6) == 6
        assert pod.hit(1, 2, 3, 4, 5, 6).usable(5) == 0, "the window before block 5 is not whole"
        pod.dropped(5)
        assert pod.hit(1, 2, 3, 4, 5, 6, 7, 8).blocks == 0
        pod.kept(1)
        assert pod.hit(1, 2, 3, 4, 5, 6, 7, 8).blocks == 1, "fewer blocks than the window, but all"


def test_what_a_lower_tier_holds_is_in_no_window() -> None:
    """A window keeps blocks of the pod's own cache: what it gives up while only a lower tier has them is gone."""
    index, keys = PrefixIndex(SPACE, 1024), SPACE.chain(np.arange(1, 5, dtype=np.uint32), 1)
    hashes = [1, 2, 3, 4]
    whole = stored(0, hashes, "full_attention", 4)
    below = BlockStored(hashes, None, np.arange(1, 5, dtype=np.uint32), 1, "cpu")
    for event in (whole, windows(1, None, *hashes), below):
        index.apply("pod", event)
    assert index.match(keys).hits["pod"].blocks == 4
    for event in (BlockRemoved(hashes, group=0), BlockRemoved(hashes, "cpu"), below, BlockRemoved(hashes, group=1)):
        index.apply("pod", event)
    index.apply("pod", whole)
    assert index.match(keys).hits["pod"].blocks == 0, "no window goes on from there"


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
    assert pod.hit(1, 2, 3, 4, 5, 6) == Hit(6, 4, 2, run=6, ends=((4, 6),))
    pod.index.expire(10.0)
    assert pod.hit(1, 2, 3, 4, 5, 6).blocks == 4


def test_states_are_kept_at_some_blocks_only() -> None:
    """A hit ends at a block whose state all groups keep; of a group that comes late, what others kept is not enough."""
    pod = _Hybrid()
    pod.full(1, 2, 3, 4, 5, 6)
    state = {"parent": None, "tokens": np.array([], np.uint32), "block_size": 1, "kind": "mamba"}
    pod.index.apply("pod", BlockStored([3, 6], group=2, **state))
    assert pod.hit(1, 2, 3, 4, 5, 6) == Hit(6, 6, run=6, ends=((3, 3), (6, 6)))
    assert pod.hit(1, 2, 3, 4, 5).blocks == 3 and pod.hit(1, 2).blocks == 0
    pod.index.apply("pod", BlockStored([6], group=3, **state))
    assert pod.hit(1, 2, 3, 4, 5).blocks == 0 and pod.hit(1, 2, 3, 4, 5, 6).blocks == 6
    pod.dropped(6, group=2)
    assert pod.hit(1, 2, 3, 4, 5, 6).blocks == 0


def test_the_state_at_the_end_of_a_predicted_prompt_is_foretold() -> None:
    """Until the prediction ends: then only what is told counts."""
    pod = _Hybrid()
    state = {"parent": None, "tokens": np.array([], np.uint32), "block_size": 1, "kind": "mamba"}
    pod.full(1, 2, 3, 4)
    pod.index.apply("pod", BlockStored([2], group=2, **state))
    keys = SPACE.chain(np.array([1, 2, 3, 4, 5, 6], np.uint32), 1)
    pod.index.predict("pod", keys, 2, expires=9.0)
    assert pod.hit(1, 2, 3, 4, 5, 6).ends == ((2, 2), (6, 6))
    pod.index.apply("pod", BlockStored([5, 6], 4, np.array([5, 6], np.uint32), 1, group=1, kind="full_attention"))
    assert pod.hit(1, 2, 3, 4, 5, 6).ends == ((2, 2),), "its blocks have come, and no state"
    pod.index.apply("pod", BlockStored([6], group=2, **state))
    assert pod.hit(1, 2, 3, 4, 5, 6).ends == ((2, 2), (6, 6))
    pod.index.expire(10.0)
    assert pod.hit(1, 2, 3, 4, 5, 6).blocks == 6
    pod.index.predict("pod", SPACE.chain(np.array([1, 2, 9], np.uint32), 1), 2, expires=19.0)
    assert pod.hit(1, 2, 9).blocks == 3
    pod.index.expire(20.0)
    assert pod.hit(1, 2, 9).blocks == 2


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


def test_block_sizes_of_several_groups_are_sorted_out_once() -> None:
    """In whatever order they are told: after one look back the group of the largest blocks is indexed for good."""
    sizes = {0: 64, 1: 8, 2: 4, 3: 256}
    for order in itertools.permutations(sizes):
        groups, again = Groups(), 0
        for _ in range(4):
            content = {}
            for group in order:
                ends = range(sizes[group], 257, sizes[group])
                content[group] = groups.is_content(stored(group, list(ends), "mla_attention", 256, sizes[group]))
                if groups.mistaken:
                    break
            if not groups.mistaken:
                break
            again += 1
            groups = groups.emptied()
        assert again <= 3 and not groups.mistaken, order
        assert content == {group: group == 3 for group in sizes} and groups.unsure, order
