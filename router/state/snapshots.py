"""A snapshot of this gateway as bytes, made piece by piece while it serves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable

import numpy as np
from numpy.typing import NDArray

from indexer import snapshot
from indexer.capture import Capture, chosen_pages
from indexer.frames import END, FrameWriter
from indexer.snapshot import Identity, SpeedKnown
from router.core.decision import Core
from router.core.fleet import Pod, Rank
from router.errors import Saturated
from router.server.long_answers import in_turns

_SPARE = 0.95  # of the bytes that may be: how many it will be is an estimate


class Snapshots:
    """See the module. One at a time: each holds 12 bytes for every page of the index."""

    def __init__(self, core: Core, key: bytes, bytes_max: int, go_on: Callable[[str], None]) -> None:
        """`key`: what they are sealed by; empty for none. `go_on`: has a pod's feeds believe what they have kept."""
        self._core = core
        self._key = key
        self._bytes_max = bytes_max
        self._go_on = go_on
        self._busy = False
        self.blocks = 0
        """Of the last whole one; so are `feeds` and `nbytes`."""
        self.feeds = 0
        self.nbytes = 0

    @property
    def busy(self) -> bool:
        """One is being made."""
        return self._busy

    async def pieces(self, now: float) -> AsyncGenerator[bytes]:
        """All of it, feed by feed; `now`: by the wall clock. Raises `Saturated` while another one is made."""
        if self._busy:
            raise Saturated("A snapshot is being made: ask again.")
        self._busy = True
        try:
            async with contextlib.aclosing(self._pieces(now)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._busy = False

    async def _pieces(self, now: float) -> AsyncGenerator[bytes]:
        core, writer = self._core, FrameWriter(self._key)
        most = int(self._bytes_max * _SPARE)
        capture = Capture(core.index, await self._chosen(most))
        yield writer.begin() + writer.frame(snapshot.HEAD, snapshot.encoded(snapshot.Head(core.space.seed, now)))
        feeds = blocks = 0
        fleet = None
        for rank in list(core.fleet.ranks):
            frames = await self._captured(capture, rank)
            size = sum(len(payload) for _, payload in frames)
            if writer.nbytes + size > self._bytes_max - (self._bytes_max - most) // 2:
                break  # they are more than was thought
            feeds, blocks = capture.feeds, capture.blocks
            if fleet is None:
                fleet = SpeedKnown(None, rank.load.rate.fleet.learned)
                frames.append((snapshot.SPEED, snapshot.encoded(fleet)))
            frames.append((snapshot.SPEED, snapshot.encoded(SpeedKnown(identity(rank), rank.load.rate.learned))))
            for kind, payload in frames:
                yield writer.frame(kind, payload)
        yield writer.frame(END, snapshot.encoded(snapshot.SnapshotEnd(feeds, blocks)))
        self.feeds, self.blocks, self.nbytes = feeds, blocks, writer.nbytes

    async def _captured(self, capture: Capture, rank: Rank) -> list[tuple[int, bytes]]:
        """The frames of a rank, as of one moment: nobody is waited for meanwhile."""
        feed = rank.feed
        if feed is not None:
            try:
                with contextlib.closing(capture.steps(feed, identity(rank))) as steps:
                    await in_turns(steps)
            finally:
                self._go_on(rank.id.pod)
        frames, capture.frames = capture.frames, []
        return frames

    async def _chosen(self, bytes_max: int) -> NDArray[np.bool_] | None:
        """The pages to take, where it can't be all."""
        core = self._core
        return await in_turns(chosen_pages(core.index, core.store.keys_by_use(), bytes_max))


def identity(rank: Rank) -> Identity:
    """Which rank it is, also for who comes after this gateway."""
    return identity_of(rank.pod, rank.id.rank)


def identity_of(pod: Pod, rank: int) -> Identity:
    """The same, of a pod's rank of this number."""
    return Identity(pod.uid, pod.address, rank)
