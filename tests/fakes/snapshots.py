"""Snapshots made and read as a whole."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from indexer import snapshot
from indexer.capture import Capture
from indexer.feed import Feed
from indexer.filling import Filling, resumed, wait
from indexer.frames import END, FrameReader, FrameWriter
from indexer.index import PrefixIndex
from indexer.snapshot import Identity, Snapshot

KEY = b"key"


def who(pod: object) -> Identity:
    """The first rank of a pod that is always the same."""
    return Identity("uid", str(pod), 0)


def exact_feed(index: PrefixIndex, pod: object, number: int = 0) -> Feed:
    """A feed whose publisher has sent `number` batches of nothing after its first."""
    feed = Feed(index, pod, 100)
    feed.connected(0.0)
    feed.replay_ended(True, 0.0)
    for each in range(number + 1):
        feed.frame(each, batch(float(each)), 0.0)
    return feed


def batch(clock: float, *events: object) -> bytes:
    """As vLLM sends it."""
    return msgspec.msgpack.encode([clock, list(events), 0])


def bytes_of(
    index: PrefixIndex, feeds: Mapping[object, Feed], seed: int = 1, key: bytes = KEY, made_at: float = 0.0
) -> bytes:
    """A snapshot of all that can be told."""
    capture = Capture(index)
    for pod, feed in feeds.items():
        for _ in capture.steps(feed, who(pod)):
            pass
    end = snapshot.SnapshotEnd(capture.feeds, capture.blocks)
    return whole(capture.frames, end, snapshot.Head(seed, made_at), key)


def whole(
    frames: list[tuple[int, bytes]],
    end: snapshot.SnapshotEnd,
    head: snapshot.Head | None = None,
    key: bytes = KEY,
) -> bytes:
    """These frames between head and end, sealed."""
    writer, head = FrameWriter(key), head or snapshot.Head(1, 0.0)
    all_of_them = ((snapshot.HEAD, snapshot.encoded(head)), *frames, (END, snapshot.encoded(end)))
    return writer.begin() + b"".join(writer.frame(kind, payload) for kind, payload in all_of_them)


def read(data: bytes, key: bytes = KEY, piece: int = 1 << 20) -> Snapshot:
    """What is in it; raises `SnapshotError`."""
    reader, found = FrameReader(key), Snapshot()
    for at in range(0, len(data), piece):
        for kind, payload in reader.take(data[at : at + piece]):
            found.take(kind, payload)
    reader.close()
    found.check()
    return found


def filled(index: PrefixIndex, found: Snapshot, pod: object) -> Feed:
    """A feed of a pod in another index, which waits and has been given what is remembered of it."""
    feed = Feed(index, pod, 100)
    wait(feed)
    give(index, found, feed)
    return feed


def give(index: PrefixIndex, found: Snapshot, feed: Feed, connected: bool = True) -> int | None:
    """Give a feed that waits what is remembered of it: from where it asks for a replay."""
    remembered = found.feeds.get(who(feed.pod))
    if remembered is not None:
        for _ in Filling(index, found).steps(feed, remembered):
            pass
    return resumed(feed, remembered, connected, 0.0)
