"""Large batches are believed in pieces: in the end as if at once, and until then nothing is called exact."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from indexer.backlog import LARGE, PIECE, WAITING_MAX
from indexer.blocks import KeySpace
from indexer.feed import LARGE_BATCH, Feed
from indexer.index import PrefixIndex
from indexer.match import MISS
from simulator.events import Cleared, Dialect, Event, Origin, Removed, Stored

SIZE = 4
SPACE = KeySpace(3)
BLOCKS = 5 * LARGE + 7


def _digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _stored(first: int, count: int, salt: str | None = None, again: int = 0) -> Stored:
    """Blocks `first` to `first + count` of one long prompt."""
    tokens = tuple(n % 5000 for n in range(first * SIZE, (first + count) * SIZE))
    digests = tuple(_digest(again + n) for n in range(first, first + count))
    return Stored(digests, _digest(again + first - 1) if first else None, tokens, first, Origin(salt=salt))


def _pod() -> tuple[PrefixIndex, Feed]:
    index = PrefixIndex(SPACE, 65_536, pods_max=2)
    return index, Feed(index, "pod", 100)


def _say(feed: Feed, number: int, *events: Event) -> None:
    feed.frame(number, Dialect.of((0, 32)).encode(number + 1.0, events, SIZE, 0), 0.0)


def _held(index: PrefixIndex, salt: str | None = None) -> int:
    tokens = np.array([n % 5000 for n in range(BLOCKS * SIZE)], np.uint32)
    return index.match(SPACE.chain(tokens, SIZE, salt=salt)).hits.get("pod", MISS).blocks


@pytest.mark.parametrize("salt", [None, "tenant"])
def test_one_large_store(salt: str | None) -> None:
    """Its blocks come in order, each piece behind the one before; it is exact when all of them are there."""
    index, feed = _pod()
    _say(feed, 0, _stored(0, BLOCKS, salt))
    assert feed.unfinished and feed.state == "degraded" and feed.reasons == [LARGE_BATCH]
    seen = [_held(index, salt)]
    while feed.go_on(0.0):
        seen.append(_held(index, salt))
    assert seen[:-1] == list(range(0, BLOCKS, PIECE)) and seen[-1] == BLOCKS
    assert not feed.unfinished and feed.state == "exact" and feed.counts.stored == BLOCKS
    assert _held(index, salt) == BLOCKS and not feed.go_on(0.0)


@pytest.mark.parametrize("seed", range(5))
def test_as_if_at_once(seed: int) -> None:
    """Stores, removals and clears, in batches of all sizes that come while others wait: the same in the end."""
    rng = random.Random(seed)
    (index, feed), (twin, direct) = _pod(), _pod()
    for number in range(12):
        events: list[Event] = [_stored(first := rng.choice((0, 100)), rng.choice((5, 3000, BLOCKS - first)))]
        events += [Removed(_digest(n)) for n in rng.sample(range(BLOCKS), rng.choice((0, 2500)))]
        if rng.random() < 0.2:
            events.insert(rng.randrange(len(events)), Cleared())
        rng.shuffle(events)
        for one in (feed, direct):
            _say(one, number, *events)
        for _ in range(rng.randrange(20)):
            feed.go_on(0.0)
        while direct.go_on(0.0):
            pass
    while feed.go_on(0.0):
        pass
    assert index.holding("pod") == twin.holding("pod") and _held(index) == _held(twin)
    assert feed.counts == direct.counts and feed.state == direct.state


def test_lookahead_tokens_are_cut_with_their_blocks() -> None:
    """Each piece has the tokens behind its own blocks."""
    index, feed = _pod()
    tokens = [n % 5000 for n in range(BLOCKS * SIZE + 1)]
    plain = _stored(0, BLOCKS)
    ahead = tuple((tokens[(n + 1) * SIZE],) for n in range(BLOCKS))
    told = Stored(plain.digests, None, plain.token_ids, 0, Origin(), ahead)
    feed.frame(0, Dialect.of((0, 33)).encode(1.0, [told], SIZE, 0), 0.0)
    while feed.go_on(0.0):
        pass
    assert feed.grain is not None
    keys = SPACE.chain(np.array(tokens, np.uint32), feed.grain)
    assert index.match(keys).hits["pod"].blocks == BLOCKS


def test_what_waits_is_forgotten_with_the_rest() -> None:
    """Another publisher: nothing of the old one's batch is believed any more."""
    index, feed = _pod()
    _say(feed, 0, _stored(0, BLOCKS))
    feed.go_on(0.0)
    feed.frame(0, Dialect.of((0, 32)).encode(99.0, [_stored(0, 5)], SIZE, 0), 0.0)
    assert not feed.unfinished and _held(index) == 5 and feed.state == "exact"


def test_a_batch_of_many_placeholders() -> None:
    """Blocks that are told of by hash alone are cut, too."""
    index, feed = _pod()
    _say(feed, 0, _stored(0, BLOCKS))
    hashes = [int.from_bytes(_digest(n)[-8:], "big") for n in range(BLOCKS)]
    below = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None, "token_ids": [], "block_size": 0,
             "lora_id": None, "medium": "CPU", "lora_name": None}  # fmt: skip
    gone = {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU"}
    feed.frame(1, msgspec.msgpack.encode([2.0, [below, gone], 0]), 0.0)
    while feed.go_on(0.0):
        pass
    assert index.holding("pod")[:3] == (0, 0, BLOCKS) and feed.state == "exact"


def test_what_waits_has_a_limit() -> None:
    """Who says more than that is not believed: nothing of it is held, and its history is wanted."""
    _, feed = _pod()
    removed = {"type": "BlockRemoved", "block_hashes": list(range(WAITING_MAX // 2 + 1)), "medium": "GPU"}
    for number in range(2):
        feed.frame(number, msgspec.msgpack.encode([number + 1.0, [removed], 0]), 0.0)
    assert not feed.unfinished and feed.state == "degraded" and feed.mend(0.0) == 0
