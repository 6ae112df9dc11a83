"""What is remembered of a pod, believed again: the same as was known, as of one batch, if it is still the same pod."""

from __future__ import annotations

import random

import numpy as np
import pytest

from indexer.blocks import KeySpace
from indexer.capture import Capture
from indexer.errors import SnapshotError
from indexer.events import BlockStored
from indexer.feed import REPLAYING, TRUNCATED, Feed
from indexer.filling import wait, waits
from indexer.index import PrefixIndex
from indexer.rule import DROPPING
from indexer.snapshot import SnapshotEnd
from tests.fakes.index_walk import LONG, PODS, ROOM, SHORT, SPACE, Walk
from tests.fakes.snapshots import batch, bytes_of, exact_feed, filled, give, read, who, whole


def _tokens(count: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.arange(seed * 1000, seed * 1000 + count, dtype=np.uint32)


def _stored(first: int, count: int, parent: int | None = None) -> list[object]:
    """Blocks of one token, whose hashes are their tokens."""
    return ["BlockStored", list(range(first, first + count)), parent, list(range(first, first + count)), 1, None]


def _held(index: PrefixIndex, pod: str, first: int, count: int) -> int:
    """Leading blocks of such a chain."""
    hit = index.match(SPACE.chain(np.arange(first, first + count, dtype=np.uint32), 1)).hits.get(pod)
    return hit.blocks if hit is not None else 0


def _saved(*batches: bytes) -> bytes:
    """A snapshot of pod a after these batches, which follow its first one."""
    index = PrefixIndex(SPACE, 10_000)
    feed = exact_feed(index, "a")
    for number, payload in enumerate(batches, 1):
        feed.frame(number, payload, 0.0)
    return bytes_of(index, {"a": feed})


def _waiting(index: PrefixIndex) -> Feed:
    feed = Feed(index, "a", 100)
    wait(feed)
    return feed


@pytest.mark.parametrize("seed", range(6))
def test_a_walk_goes_on_in_another_index(seed: int) -> None:
    """Random events; in the middle all is told and believed elsewhere: nobody can tell the two apart from then on."""
    walk = Walk(seed, SHORT if seed % 2 else LONG)
    for _ in range(3):
        for _ in range(60):
            walk.step()
        feeds = {pod: exact_feed(walk.index, pod) for pod in walk.index.pods}
        found = read(bytes_of(walk.index, feeds))
        walk.index = PrefixIndex(SPACE, ROOM, pods_max=len(PODS), orphans_max=60)
        for pod in feeds:
            feed = filled(walk.index, found, pod)
            feed.replayed(0, batch(0.0), 0.0)
            feed.replay_ended(True, 0.0)
        walk.matches.clear()
        walk.do(walk.sweep)  # which forgets predictions of before
        for twin in walk.twin.pods.values():  # what waits and what is predicted is not told
            twin.waiting.clear()
            twin.removed.clear()
            twin.predicted.clear()
        walk.check()
    for _ in range(60):
        walk.step()
        walk.check()


def test_nothing_is_believed_before_the_publisher_is_the_same() -> None:
    """The last batch has to come again with its very clock; then what follows it is applied."""
    found = read(_saved(batch(1.0, _stored(1, 8)), batch(2.0, ["BlockRemoved", [8]])))
    index = PrefixIndex(SPACE, 10_000)
    feed = _waiting(index)
    assert give(index, found, feed) == 2 and _held(index, "a", 1, 8) == 0
    feed.replayed(2, batch(2.0, ["BlockRemoved", [8]]), 0.0)
    feed.replayed(3, batch(3.0, _stored(9, 1, 7)), 0.0)
    assert _held(index, "a", 1, 7) == 0, "what became of it since is not known before the end"
    feed.replay_ended(True, 0.0)
    assert _held(index, "a", 1, 8) == 7 and feed.state == "exact" and index.holding("a").gpu == 8


@pytest.mark.parametrize(
    "history", [[], [(0, 50.0)], [(2, 50.0)], [(5, 50.0)]], ids=["nothing", "lower", "the same number", "higher"]
)
def test_another_publisher_is_not_believed(history: list[tuple[int, float]]) -> None:
    """A pod that was started anew holds nothing of what the one before held."""
    found = read(_saved(batch(1.0, _stored(1, 8)), batch(2.0)))
    index = PrefixIndex(SPACE, 10_000)
    feed = _waiting(index)
    start = give(index, found, feed)
    while start is not None:
        brought, start = [each for each in history if each[0] >= start], None
        for number, clock in brought:
            start = feed.replayed(number, batch(clock, _stored(100, 2)), 0.0)
            if start is not None:
                break
        start = start if start is not None else feed.replay_ended(True, 0.0)
    assert _held(index, "a", 1, 8) == 0 and index.holding("a").gpu == (2 if history else 0)
    assert _held(index, "a", 100, 2) == (2 if history else 0)


def test_a_pod_that_can_not_be_asked_is_not_believed() -> None:
    """Without a replay nothing shows that it is the same."""
    found = read(_saved(batch(1.0, _stored(1, 8))))
    index = PrefixIndex(SPACE, 10_000)
    feed = _waiting(index)
    give(index, found, feed)
    feed.replay_ended(False, 0.0)
    assert _held(index, "a", 1, 8) == 0


def test_what_was_heard_meanwhile_needs_no_history() -> None:
    """The batch was held here, so it is exact at once, whatever the pod still has."""
    found = read(_saved(batch(1.0, _stored(1, 8)), batch(2.0)))
    index = PrefixIndex(SPACE, 10_000)
    feed = _waiting(index)
    for number in (1, 2, 3):
        assert feed.frame(number, batch(float(number), *([_stored(20, 1, 8)] if number == 3 else [])), 0.0) is None
    assert feed.connected(0.0) is None, "nothing is asked while it waits"
    assert give(index, found, feed) is None
    assert feed.state == "exact" and _held(index, "a", 1, 8) == 8 and index.holding("a").gpu == 9
    feed.frame(4, batch(4.0, ["BlockRemoved", [20]]), 0.0)
    assert index.holding("a").gpu == 8


def test_a_hole_in_what_was_heard_is_asked_for() -> None:
    """And if its history has it no more, all is forgotten."""
    found = read(_saved(batch(1.0, _stored(1, 8)), batch(2.0)))
    for there in (True, False):
        index = PrefixIndex(SPACE, 10_000)
        feed = _waiting(index)
        for number in (2, 4):
            feed.frame(number, batch(float(number)), 0.0)
        assert give(index, found, feed) == 2 and REPLAYING in feed.reasons
        if there:
            feed.replayed(3, batch(3.0), 0.0)
        feed.replay_ended(True, 0.0)
        assert _held(index, "a", 1, 8) == (8 if there else 0)


@pytest.mark.parametrize("clocks", [{2: 9.0}, {1: 9.0}, {3: 0.5}])
def test_what_was_heard_shows_another_publisher(clocks: dict[int, float]) -> None:
    """Its batches were sent at other times."""
    found = read(_saved(batch(1.0, _stored(1, 8)), batch(2.0)))
    index = PrefixIndex(SPACE, 10_000)
    feed = _waiting(index)
    for number, clock in clocks.items():
        feed.frame(number, batch(clock), 0.0)
    assert give(index, found, feed) == 0 and index.holding("a").gpu == 0


def test_a_restart_while_it_waits_ends_the_wait() -> None:
    """What the new publisher says counts, and nothing of before is entered."""
    found = read(_saved(batch(1.0, _stored(1, 8)), batch(2.0)))
    index = PrefixIndex(SPACE, 10_000)
    feed = _waiting(index)
    feed.frame(2, batch(2.0), 0.0)
    assert feed.frame(0, batch(9.0, _stored(50, 3)), 0.0) is None and not waits(feed)
    assert give(index, found, feed) is None
    assert _held(index, "a", 1, 8) == 0 and _held(index, "a", 50, 3) == 3 and feed.state == "exact"


def test_nothing_is_remembered() -> None:
    """A feed that waited in vain asks for its whole history, and has lost nothing of what came."""
    index = PrefixIndex(SPACE, 10_000)
    feed = _waiting(index)
    feed.frame(1, batch(1.0, _stored(5, 1)), 0.0)
    assert give(index, read(bytes_of(PrefixIndex(SPACE, 100), {})), feed) == 0
    feed.replayed(0, batch(0.0, _stored(1, 4)), 0.0)
    assert feed.replay_ended(True, 0.0) is None and index.holding("a").gpu == 5 and feed.state == "exact"


def test_a_feed_that_waits_is_captured_by_nobody() -> None:
    """It knows nothing that could be told."""
    index = PrefixIndex(SPACE, 10_000)
    assert not read(bytes_of(index, {"a": _waiting(index)})).feeds


def test_events_wait_while_a_feed_is_captured() -> None:
    """What is captured is as of its batch; what came meanwhile is believed right after."""
    index = PrefixIndex(SPACE, 100_000)
    feed = exact_feed(index, "a")
    index.apply("a", BlockStored(list(range(1, 20_001)), None, _tokens(20_000), 1))
    capture = Capture(index)
    steps = capture.steps(feed, who("a"))
    next(steps)
    feed.frame(1, batch(1.0, ["BlockRemoved", [20_000]]), 0.0)
    assert index.holding("a").gpu == 20_000 and not feed.unfinished and feed.state == "exact"
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    assert end.value.value and feed.unfinished
    while feed.go_on(0.0):
        pass
    assert index.holding("a").gpu == 19_999 and capture.blocks == 20_000


def test_a_feed_in_doubt_is_left_out() -> None:
    """If it is forgotten while it is captured, nothing of it is told."""
    index = PrefixIndex(SPACE, 100_000)
    feed = exact_feed(index, "a")
    index.apply("a", BlockStored(list(range(1, 20_001)), None, _tokens(20_000), 1))
    capture = Capture(index)
    steps = capture.steps(feed, who("a"))
    next(steps)
    feed.forget()
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    assert not end.value.value and capture.blocks == capture.feeds == 0


def test_what_does_not_fit_is_left_out() -> None:
    """A smaller index takes what it has room for, and says so."""
    index = PrefixIndex(SPACE, 100_000)
    feed = exact_feed(index, "a")
    index.apply("a", BlockStored(list(range(1, 20_001)), None, _tokens(20_000), 1))
    small = PrefixIndex(SPACE, 1024)
    other = filled(small, read(bytes_of(index, {"a": feed})), "a")
    other.replayed(0, batch(0.0), 0.0)
    other.replay_ended(True, 0.0)
    match = small.match(SPACE.chain(_tokens(20_000), 1))
    assert 0 < match.hits["a"].blocks <= 1024 and small.lacks("a") and other.state == "degraded"


def test_some_pages_only() -> None:
    """What is left out is history that is missing."""
    index = PrefixIndex(SPACE, 100_000)
    feed = exact_feed(index, "a")
    index.apply("a", BlockStored(list(range(1, 101)), None, _tokens(100), 1))
    chosen = np.zeros(100_000 // 8 + 1, bool)
    chosen[1:6] = True
    capture = Capture(index, chosen)
    for _ in capture.steps(feed, who("a")):
        pass
    assert capture.blocks == 40
    found = read(whole(capture.frames, SnapshotEnd(1, 40)))
    other = PrefixIndex(SPACE, 1000)
    again = filled(other, found, "a")
    again.replayed(0, batch(0.0), 0.0)
    again.replay_ended(True, 0.0)
    assert other.match(SPACE.chain(_tokens(100), 1)).hits["a"].blocks == 40 and TRUNCATED in again.reasons


def test_the_rule_is_remembered() -> None:
    """What reports have shown of a pod need not be shown again; of another publisher it is forgotten."""
    index = PrefixIndex(SPACE, 10_000)
    feed = exact_feed(index, "a")
    feed.told(drafter=True, caches=True)
    assert feed.trust.rule == DROPPING
    found = read(bytes_of(index, {"a": feed}))
    other = PrefixIndex(SPACE, 10_000)
    again = filled(other, found, "a")
    assert again.trust.rule == DROPPING


def test_what_lies_is_found_or_does_no_harm() -> None:
    """A maker who has the key may write what it likes: it is refused, or matches nobody's prompts."""
    index = PrefixIndex(SPACE, 10_000)
    feed = exact_feed(index, "a")
    index.apply("a", BlockStored(list(range(1, 101)), None, _tokens(100), 1))
    capture = Capture(index)
    for _ in capture.steps(feed, who("a")):
        pass
    rng, refused = random.Random(1), 0
    for _ in range(300):
        frames = list(capture.frames)
        at = rng.randrange(len(frames))
        kind, payload = frames[at]
        broken = bytearray(payload)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        frames[at] = (kind if rng.random() < 0.9 else rng.randrange(10), bytes(broken))
        try:
            found = read(whole(frames, SnapshotEnd(1, 100)))
        except SnapshotError:
            refused += 1
            continue
        other = PrefixIndex(SPACE, 1000)
        again = filled(other, found, "a")
        again.replay_ended(True, 0.0)
        assert other.holding("a").gpu == 0, "the batch did not come again"
        other.drop("a")
        while other.sweep():
            pass
        assert other.blocks == 0
    assert refused > 30


def test_another_seed_is_another_space() -> None:
    """Keys mean nothing under another seed: whoever reads a snapshot takes its seed, or leaves it."""
    found = read(bytes_of(PrefixIndex(KeySpace(77), 100), {}, seed=77))
    assert found.head is not None and found.head.seed == 77
