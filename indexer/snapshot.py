"""What is in a snapshot: the blocks of feeds, each as of one batch of its own, and what was learned of their pods.

Kinds of frames, in this order: HEAD; then for each rank SPEED, or FEED and what belongs to it; END. A BLOCKS frame
names blocks by places, `record * PAGE + offset`: records are the pages in the frames before, numbered as they come. A
page that has changed meanwhile comes again, as another record.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from indexer.blocks import size_of
from indexer.errors import SnapshotError
from indexer.events import TIERS, Tier
from indexer.frames import END
from indexer.learned import GroupsKnown, Learned
from indexer.pages import PAGE

HEAD, PAGES, FEED, BLOCKS, COPIES, KEPT, SPEED = range(1, 8)
_T = TypeVar("_T")


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]


class Identity(msgspec.Struct, frozen=True):
    """Which rank of which pod: `uid` tells it from others that had, or will have, its address."""

    uid: str
    address: str
    rank: int


class Head(msgspec.Struct, frozen=True):
    """`seed`: of all keys in it. `made_at`: by the wall clock, seconds."""

    seed: int
    made_at: float


class SnapshotEnd(msgspec.Struct, frozen=True):
    """How much there was."""

    feeds: _Count
    blocks: _Count


class FeedKnown(msgspec.Struct, frozen=True):
    """One feed, as of batch `number`, which its pod had sent at `clock`."""

    who: Identity
    number: _Count
    clock: float
    truncated: bool
    grain: _Size | None = None
    global_rank: _Count | None = None
    reasons: list[str] = []
    tiers: list[Tier] = []  # in the order in which it came to have them
    special: bool = False
    orphans_lost: _Count = 0
    refused_lost: _Count = 0
    chunks: dict[Tier, _Size] = {}
    lately: list[tuple[int, int]] = []
    groups: GroupsKnown | None = None
    trust: Learned | None = None


class SpeedKnown(msgspec.Struct, frozen=True):
    """What was learned of a rank's speed; of the fleet's where there is no `who`."""

    who: Identity | None
    values: list[float]


class Blocks(NamedTuple):
    """Of one tier: engine hashes and the places of their blocks, each shape (n,)."""

    tier: Tier
    hashes: NDArray[np.uint64]
    places: NDArray[np.uint32]


class CopyCounts(NamedTuple):
    """Hashes and how many copies of each there are: beyond the first, of a tier; or of a further KV-cache group."""

    place: int
    hashes: NDArray[np.uint64]
    counts: NDArray[np.uint32]


class Laid(NamedTuple):
    """Pages: keys, shape (n, PAGE), 0 where there is none; and the key before each, shape (n,)."""

    keys: NDArray[np.uint64]
    befores: NDArray[np.uint64]


# --- values to bytes ---


def encoded(value: msgspec.Struct) -> bytes:
    """Of the small ones."""
    return msgspec.msgpack.encode(value)


def laid_bytes(laid: Laid) -> bytes:
    """Keys look like chance, and no method makes them smaller: they stay as they are."""
    return laid.keys.tobytes() + laid.befores.tobytes()


def blocks_bytes(blocks: Blocks) -> bytes:
    """Hashes as they are; places mostly go up by one, and their differences become next to nothing."""
    steps = np.diff(blocks.places, prepend=np.uint32(0))
    return b"".join(
        (bytes([TIERS.index(blocks.tier)]), len(blocks.hashes).to_bytes(4, "little"), blocks.hashes.tobytes(),
         zlib.compress(steps.tobytes(), 1))
    )  # fmt: skip


def counted_bytes(counted: CopyCounts) -> bytes:
    """As `blocks_bytes`."""
    head = counted.place.to_bytes(4, "little") + len(counted.hashes).to_bytes(4, "little")
    return head + counted.hashes.tobytes() + zlib.compress(counted.counts.tobytes(), 1)


# --- bytes to values; each raises `SnapshotError` ---


def decoded(payload: bytes, kind: type[_T]) -> _T:
    """See `encoded`."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SnapshotError(f"it says what can't be: {error}") from None


def laid_from(payload: bytes) -> Laid:
    """See `laid_bytes`."""
    count, over = divmod(len(payload), 8 * (PAGE + 1))
    if over:
        raise SnapshotError("its pages are not whole")
    values = np.frombuffer(payload, np.uint64)
    return Laid(values[: count * PAGE].reshape(count, PAGE), values[count * PAGE :])


def blocks_from(payload: bytes) -> Blocks:
    """See `blocks_bytes`."""
    tier = payload[0] if payload else len(TIERS)
    if tier >= len(TIERS):
        raise SnapshotError("it has blocks of an unknown tier")
    hashes, steps = _columns(payload, 1)
    return Blocks(TIERS[tier], hashes, np.cumsum(steps, dtype=np.uint32))


def counted_from(payload: bytes) -> CopyCounts:
    """See `counted_bytes`."""
    return CopyCounts(int.from_bytes(payload[:4], "little"), *_columns(payload, 4))


def _columns(payload: bytes, at: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    count, at = int.from_bytes(payload[at : at + 4], "little"), at + 4
    end = at + 8 * count
    try:
        unpacker = zlib.decompressobj()
        packed = unpacker.decompress(payload[end:], 4 * count + 1)
    except zlib.error:
        packed = b""
    if len(payload) < end or len(packed) != 4 * count:
        raise SnapshotError("its columns are not equally long")
    return np.frombuffer(payload[at:end], np.uint64), np.frombuffer(packed, np.uint32)


class Remembered(NamedTuple):
    """A feed as a snapshot has it, with all that belongs to it; `blocks`: once it is checked, all of each tier."""

    known: FeedKnown
    blocks: list[Blocks]
    copies: list[CopyCounts]
    kept: list[CopyCounts]


class Snapshot:
    """A snapshot that is being read, frame by frame (`take`), then checked as a whole (`check`).

    What is in it is true if who made it was: only that it fits together is looked at.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.feeds: dict[Identity, Remembered] = {}
        self.speeds: list[SpeedKnown] = []
        self._laid: list[Laid] = []
        self._last: Remembered | None = None
        self._end: SnapshotEnd | None = None
        self.keys: NDArray[np.uint64] = np.zeros((0, PAGE), np.uint64)  # of all records
        self.befores: NDArray[np.uint64] = np.zeros(0, np.uint64)

    @property
    def blocks(self) -> int:
        """Blocks of all feeds, in all tiers."""
        return sum(len(blocks.hashes) for feed in self.feeds.values() for blocks in feed.blocks)

    def take(self, kind: int, payload: bytes) -> None:
        """One frame."""
        if self.head is None:
            if kind != HEAD:
                raise SnapshotError("it begins with something else than its head")
            self.head = decoded(payload, Head)
        elif kind == PAGES:
            self._laid.append(laid_from(payload))
        elif kind == FEED:
            known = decoded(payload, FeedKnown)
            if known.who in self.feeds:
                raise SnapshotError("it has a feed twice")
            self._last = self.feeds[known.who] = Remembered(known, [], [], [])
        elif kind == SPEED:
            self.speeds.append(decoded(payload, SpeedKnown))
        elif kind == END:
            self._end = decoded(payload, SnapshotEnd)
        else:
            self._take_more(kind, payload)

    def check(self) -> None:
        """Does it fit together? To be called once, at its end; takes some 0.2 s for a million blocks."""
        if self._end is None or self._end != SnapshotEnd(len(self.feeds), self.blocks):
            raise SnapshotError("it has not what its end says")
        self.keys = _joined([laid.keys for laid in self._laid], self.keys)
        self.befores = _joined([laid.befores for laid in self._laid], self.befores)
        self._laid.clear()
        for feed in self.feeds.values():
            if len(set(feed.known.tiers)) < len(feed.known.tiers) or size_of(feed.known.grain or 1) < 1:
                raise SnapshotError("it says what can't be of a feed")
            feed.blocks[:] = [_of_tier(feed, tier) for tier in feed.known.tiers]
            for blocks in feed.blocks:
                if not _differ(blocks.hashes) or not self._are_there(blocks.places):
                    raise SnapshotError("its blocks contradict each other")
            for kept in feed.kept:
                if feed.known.groups is None or kept.place not in feed.known.groups.roles:
                    raise SnapshotError("it has blocks of an unknown group")

    def _take_more(self, kind: int, payload: bytes) -> None:
        if self._last is None or kind not in (BLOCKS, COPIES, KEPT):
            raise SnapshotError("it has a frame of an unknown kind")
        if kind == BLOCKS:
            self._last.blocks.append(blocks_from(payload))
        else:
            counted = counted_from(payload)
            if kind == COPIES and counted.place >= len(TIERS):
                raise SnapshotError("it has blocks of an unknown tier")
            (self._last.copies if kind == COPIES else self._last.kept).append(counted)

    def _are_there(self, places: NDArray[np.uint32]) -> bool:
        if not len(places):
            return True
        return int(places.max()) < self.keys.size and bool((self.keys.reshape(-1)[places] != 0).all())


def _of_tier(feed: Remembered, tier: Tier) -> Blocks:
    own = [blocks for blocks in feed.blocks if blocks.tier == tier]
    none: Any = np.zeros(0, np.uint64)
    hashes = _joined([blocks.hashes for blocks in own], none)
    return Blocks(tier, hashes, _joined([blocks.places for blocks in own], none.astype(np.uint32)))


def _joined(arrays: list[NDArray[Any]], none: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else none


def _differ(values: NDArray[np.uint64]) -> bool:
    ordered = np.sort(values)
    return not bool((ordered[1:] == ordered[:-1]).any())
