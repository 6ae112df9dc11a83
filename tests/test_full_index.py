"""An index that is full: it says so, shares its room, and is made good when there is room again."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from indexer.blocks import KeySpace
from indexer.engine import EngineMap
from indexer.events import BlockRemoved, BlockStored
from indexer.feed import FULL, REPLAYING, Feed
from indexer.index import PrefixIndex

SPACE = KeySpace(3)


def _store(first: int, blocks: int, parent: int | None = None) -> BlockStored:
    """Blocks of one token, which is their hash."""
    tokens = np.arange(first, first + blocks, dtype=np.uint32)
    return BlockStored(tokens.tolist(), parent, tokens, 1)


def _remove(first: int, blocks: int) -> BlockRemoved:
    return BlockRemoved(list(range(first, first + blocks)))


def _blocks(index: PrefixIndex, pod: str, first: int, blocks: int) -> int:
    keys = SPACE.chain(np.arange(first, first + blocks, dtype=np.uint32), 1)
    hit = index.match(keys).hits.get(pod)
    return 0 if hit is None else hit.blocks


def _refill(index: PrefixIndex) -> None:
    for _ in range(100):
        if not index.refill() and not index.sweep():
            return


def test_what_was_refused_is_entered_when_there_is_room() -> None:
    """With what hangs on it, and without what was removed meanwhile."""
    index = PrefixIndex(SPACE, 64, pods_max=2)
    index.apply("a", _store(100, 40))
    assert index.apply("a", _store(200, 40)).refused == 16 and index.refusals == 16
    index.apply("a", _store(240, 8, parent=239))  # a child of what was refused
    index.apply("a", _store(300, 4))
    index.apply("a", _remove(247, 1))
    index.apply("a", _remove(303, 1))
    assert index.lacks("a") and _blocks(index, "a", 200, 48) == 24 and not index.refill()
    index.apply("a", _remove(100, 40))
    _refill(index)
    assert not index.lacks("a") and _blocks(index, "a", 200, 48) == 47 and _blocks(index, "a", 300, 4) == 3
    index.apply("a", _remove(200, 47))
    index.apply("a", _remove(300, 3))
    assert index.blocks == 0 and index.holding("a").gpu == 0


def test_a_pod_that_has_less_than_its_share_gets_it() -> None:
    """One pod fills the index before others come: it gives up what it has more than its share, and that is counted."""
    index = PrefixIndex(SPACE, 1024, pods_max=4)
    index.apply("greedy", _store(1, 2000))
    assert index.holding("greedy").gpu == 1024 and index.lacks("greedy")
    for number, pod in enumerate(("b", "c")):
        for chain in range(10):
            index.apply(pod, _store(100_000 * (number + 1) + 100 * chain, 30))
    _refill(index)
    for number, pod in enumerate(("b", "c")):
        assert not index.lacks(pod)
        for chain in range(10):
            assert _blocks(index, pod, 100_000 * (number + 1) + 100 * chain, 30) == 30
    assert index.lacks("greedy") and 341 <= index.holding("greedy").gpu <= 1024 - 600
    assert index.evictions >= 600 and _blocks(index, "greedy", 1, 2000) >= 300
    index.apply("greedy", _store(500_000, 10))
    assert index.lacks("greedy") and index.holding("b").gpu == 300


def test_who_has_its_share_takes_nothing_from_who_has_more() -> None:
    """It may lack something; what has no room is not worth what others hold."""
    index = PrefixIndex(SPACE, 1024, pods_max=4)
    index.apply("most", _store(1, 600))
    index.apply("few", _store(5_000, 1))
    for chain in range(20):
        index.apply("more", _store(10_000 + 100 * chain, 20))
    assert index.lacks("more") and 341 <= index.holding("more").gpu < 400
    _refill(index)
    assert index.evictions == 0 and index.holding("most").gpu == 600 and index.lacks("more")


def test_room_is_made_good_in_steps() -> None:
    """In each, about as many blocks are entered as are asked for, of all pods together."""
    index = PrefixIndex(SPACE, 1024, pods_max=4)
    for number, (pod, blocks) in enumerate((("c", 300), ("a", 341), ("b", 341))):
        index.apply(pod, _store(10_000 * number, blocks))
    index.apply("a", _store(100_000, 10))
    for chain in range(5):
        index.apply("b", _store(200_000 + 100 * chain, 5, parent=20_000 + chain))
    assert [index.holding(pod).gpu for pod in ("a", "b")] == [341, 341]
    index.apply("c", _remove(0, 300))
    for held in ([351, 346], [351, 361], [351, 366]):
        index.refill(15)
        assert [index.holding(pod).gpu for pod in ("a", "b")] == held


def test_what_was_refused_keeps_its_adapter() -> None:
    """Also where the event gave only its number, and somebody else knew the name."""
    index = PrefixIndex(SPACE, 64, pods_max=2)
    index.apply("a", _store(100, 60))
    assert index.apply("a", _store(200, 40), lora="tuned").refused > 30
    index.apply("a", _remove(100, 60))
    _refill(index)
    tokens = np.arange(200, 240, dtype=np.uint32)
    assert (
        index.match(SPACE.chain(tokens, 1, lora="tuned")).hits["a"].blocks == 40 and _blocks(index, "a", 200, 40) == 0
    )


def test_who_has_most_has_it_in_a_lower_tier() -> None:
    """It gives up nothing of that for others' sake, who get what room there is."""
    index = PrefixIndex(SPACE, 64, pods_max=2)
    tokens = np.arange(1, 61, dtype=np.uint32)
    index.apply("a", BlockStored(tokens.tolist(), None, tokens, 1, "cpu"))
    index.apply("b", _store(500, 30))
    _refill(index)
    assert index.evictions == 0 and index.lacks("b") and index.holding("a").cpu + index.holding("b").gpu <= 64


def test_a_share_is_kept_free_for_who_comes() -> None:
    """Beyond three quarters of the room, a pod gets its share and no more."""
    index = PrefixIndex(SPACE, 1024, pods_max=4)
    index.apply("b", _store(1, 1))
    for chain in range(40):
        index.apply("a", _store(1000 * (chain + 1), 30))
    assert 700 <= index.holding("a").gpu <= 768 and index.evictions == 0
    index.apply("b", _store(500_000, 200))
    assert not index.lacks("b") and index.evictions == 0


def test_names_are_bounded() -> None:
    """One block under ever new names takes no more of them than the index has rows."""
    index = PrefixIndex(SPACE, 64, pods_max=2, orphans_max=100)
    tokens = np.zeros(1, np.uint32)
    for name in range(1, 2000):
        index.apply("a", BlockStored([name], None, tokens, 1))
    assert index.holding("a").gpu == 64 and index.lacks("a")
    for name in range(1, 2000):
        index.apply("a", BlockRemoved([name]))
        index.refill()
    assert index.holding("a").gpu == 0 and index.blocks == 0


@pytest.mark.parametrize("shift", [0, 8, 20, 32, 40, 48])
def test_hashes_that_agree_in_many_bits_fall_into_many_buckets(shift: int) -> None:
    """Whatever a pod names its blocks: it does not know the salt."""
    count = 10_000
    names = EngineMap(SPACE.salt)
    hashes = [(number << shift) + 5 for number in range(count)]
    names.name(hashes, range(1, count + 1))
    assert np.count_nonzero(names.head_array) > count / 3
    assert [names.find(engine_hash) for engine_hash in hashes] == list(range(1, count + 1))
    assert names.forget(hashes) == (list(range(1, count + 1)), []) and not len(names)


def _batch(number: int, event: list[object]) -> bytes:
    return msgspec.msgpack.encode([float(number + 1), [event], 0])


def _stored(first: int, blocks: int) -> list[object]:
    tokens = list(range(first, first + blocks))
    return ["BlockStored", tokens, None, tokens, 1, None, "GPU"]


def test_a_feed_says_that_it_is_not_whole_and_reads_its_history_when_there_is_room() -> None:
    """More was refused than can wait: once there is room for it, all of the pod's history is wanted."""
    index = PrefixIndex(SPACE, 64, pods_max=2, orphans_max=8)
    feed = Feed(index, "a", 100)
    history = [_batch(0, _stored(100, 60)), _batch(1, _stored(200, 40)), _batch(2, _stored(300, 20))]
    for number, payload in enumerate(history):
        feed.frame(number, payload, 0.0)
    assert feed.reasons == [FULL] and feed.mend(1.0) is None
    assert feed.counts.refused == 120 - feed.counts.stored > 0
    history.append(_batch(3, ["BlockRemoved", [*range(100, 160), *range(200, 236)], "GPU"]))
    feed.frame(3, history[3], 1.0)
    while index.refill() or index.sweep():
        pass
    assert feed.reasons == [FULL] and feed.mend(100.0) == 0
    assert REPLAYING in feed.reasons
    feed.mend(100.0)
    for number, payload in enumerate(history):
        feed.replayed(number, payload, 100.0)
    feed.replay_ended(True, 100.0)
    assert _blocks(index, "a", 300, 20) == 0 and feed.mend(101.0) is None
    assert feed.counts.resyncs == 1


def test_what_somebody_wants_forgotten_is_read_anew() -> None:
    """Until the replay has come, the feed is not exact; then it is, with all of its blocks."""
    index = PrefixIndex(SPACE, 64, pods_max=2)
    feed = Feed(index, "a", 100)
    payload = _batch(0, _stored(100, 10))
    feed.frame(0, payload, 0.0)
    assert feed.state == "exact"
    feed.unlearn()
    assert feed.state == "degraded" and _blocks(index, "a", 100, 10) == 0
    assert feed.mend(1.0) == 0 and feed.state == "degraded"
    feed.replayed(0, payload, 1.0)
    feed.replay_ended(True, 1.0)
    assert feed.state == "exact" and _blocks(index, "a", 100, 10) == 10
