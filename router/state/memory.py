"""What was known of pods before this gateway was started: taken from the first of its sources that tells.

Feeds wait for it with all that comes meanwhile, `load_timeout_s` at most; then each pod's blocks are entered while its
feeds go on waiting, and what they have kept follows. So a gateway that joins needs no more of the pods' own histories
than what was sent while it looked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from indexer.filling import Filling, waits
from indexer.snapshot import Remembered, Snapshot, SpeedKnown
from router.core.decision import Core
from router.core.fleet import Pod, Rank, RankId
from router.server.long_answers import in_turns
from router.state.snapshots import identity

log = logging.getLogger("warmroute.state")

LOADS = ("taken", "nothing", "timeout")
"""What comes of asking a source."""

_SUBSCRIBED_S = (
    1.5  # for feeds to be connected before somebody is asked who knows more; pods that are away do not count
)
_QUIET_S = 0.15  # and so long no further pod has come
_LOOK_S = 0.02


class StateSource(Protocol):
    """Somebody who may know."""

    name: str
    live: bool
    """It tells how things are now: who asks should listen already."""

    async def load(self) -> Snapshot | None:
        """What it knows, checked; None: nothing, and why was said. Fails in no other way."""


class Memory:
    """See the module. `entered`: blocks that were taken over; `source`: who told, once somebody has."""

    def __init__(
        self,
        core: Core,
        sources: Sequence[StateSource],
        adopted: Callable[[], None],
        load_timeout_s: float,
        keep_s: float,
    ) -> None:
        """`sources`: those that are asked first, first. `adopted` is called where all block keys are others from then
        on. `keep_s`: how long pods that join later are remembered."""
        self.entered = 0
        self.source: str | None = None
        self.results: Counter[tuple[str, str]] = Counter()
        self.load_s = 0.0
        """From the start until all pods that had come by then had what was known of them."""
        self._core = core
        self._sources = sources
        self._adopted = adopted
        self._load_timeout_s = load_timeout_s
        self._keep_s = keep_s
        self._snapshot: Snapshot | None = None
        self._speeds: dict[object, SpeedKnown] = {}
        self._loaded = asyncio.Event()
        self._waits = bool(sources)
        self._connected: dict[str, Callable[[], bool]] = {}
        self._came_at = self._began_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    @property
    def waits(self) -> bool:
        """Something may be remembered of who joins now."""
        return self._waits

    @property
    def loading(self) -> bool:
        """Nobody has told yet, and somebody still may."""
        return self._waits and not self._loaded.is_set()

    @property
    def knows(self) -> bool:
        """Some feed has something to tell."""
        return any(
            rank.feed is not None and rank.feed.heard and not waits(rank.feed) for rank in self._core.fleet.ranks
        )

    def start(self) -> None:
        """Begin to ask."""
        if self._waits:
            self._began_at = time.monotonic()
            self._task = asyncio.get_running_loop().create_task(self._load())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def recall(self, pod: Pod, connected: Callable[[], bool]) -> Mapping[RankId, Remembered]:
        """See `discovery.pods.Remembers`."""
        self._connected[pod.name], self._came_at = connected, time.monotonic()
        await self._loaded.wait()
        found = self._snapshot
        remembered: dict[RankId, Remembered] = {}
        for rank in pod.ranks if found is not None else ():
            self._relearn(rank)
            feed, known = rank.feed, found.feeds.get(identity(rank)) if found is not None else None
            if feed is None or known is None or found is None:
                continue
            filling = Filling(self._core.index, found)
            if waits(feed) and await in_turns(filling.steps(feed, known)):
                remembered[rank.id] = known
                self.entered += filling.entered
        self.load_s = time.monotonic() - self._began_at
        return remembered

    def _relearn(self, rank: Rank) -> None:
        rate = rank.load.rate
        for who, learned in ((None, rate.fleet), (identity(rank), rate)):
            speed = self._speeds.get(who)
            if speed is not None:
                learned.relearn(speed.values)

    async def _load(self) -> None:
        loop, until = asyncio.get_running_loop(), self._began_at + self._load_timeout_s
        tasks = [loop.create_task(self._asked(source)) for source in self._sources]
        try:
            for source, task in zip(self._sources, tasks, strict=True):
                await asyncio.wait([task], timeout=max(0.0, until - time.monotonic()))
                if not task.done():
                    log.warning("%s has not told what it knows within state.load_timeout", source.name)
                    self.results[(source.name, "timeout")] += 1
                    continue
                found = None if task.exception() is not None else task.result()
                taken = found is not None and self._take(found, source.name)
                self.results[(source.name, "taken" if taken else "nothing")] += 1
                if taken:
                    break
        finally:
            for task in tasks:
                task.cancel()
            self._loaded.set()
        if self._snapshot is not None:
            await asyncio.sleep(self._keep_s)
        self._waits, self._snapshot = False, None
        self._speeds.clear()
        self._connected.clear()

    async def _asked(self, source: StateSource) -> Snapshot | None:
        if source.live:
            await self._subscribed()
        return await source.load()

    async def _subscribed(self) -> None:
        """Return when all pods that have come are listened to, or have had the time for it."""
        until = time.monotonic() + min(_SUBSCRIBED_S, self._load_timeout_s / 2)
        while time.monotonic() < until:
            await asyncio.sleep(_LOOK_S)
            quiet = time.monotonic() - self._came_at > _QUIET_S
            if quiet and self._connected and all(connected() for connected in self._connected.values()):
                return

    def _take(self, found: Snapshot, name: str) -> bool:
        """Believe that this is what was known, if its keys can be ours."""
        assert found.head is not None, "it was checked"
        space, feeds = self._core.space, [rank.feed for rank in self._core.fleet.ranks if rank.feed is not None]
        if found.head.seed != space.seed:
            if self._core.index.blocks or not all(waits(feed) for feed in feeds):
                log.warning("%s tells of blocks by other keys than those in use: it is not used", name)
                return False
            space.reseed(found.head.seed)
            self._adopted()
        self._snapshot, self.source = found, name
        self._speeds = {speed.who: speed for speed in found.speeds}
        log.info("%s tells of %d feeds with %d blocks", name, len(found.feeds), found.blocks)
        return True
