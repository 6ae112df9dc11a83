"""The fleet's outside: pods that join and leave, as sources tell, are probed, and their feeds are read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

import zmq

from indexer.feed import Feed
from indexer.filling import wait
from indexer.snapshot import Remembered
from router.config.fleet import StaticPod
from router.config.settings import Config
from router.core.decision import Core
from router.core.fleet import Pod, Rank, RankId
from router.discovery.found import Joins, Leaves, PodSource, Roster, Step
from router.discovery.kubernetes import KubernetesSource
from router.discovery.prober import Prober
from router.discovery.sources import STATIC, by_hand, sources_of
from router.events.bound_endpoint import BoundEndpoint, BoundLimits
from router.events.reader import FeedReader
from router.events.sockets import FeedLimits, port_plus
from router.metrics.families import Steps, gauges
from router.upstream.pod_client import PodClient
from router.upstream.upstreams import Upstreams
from scorer.cost import FleetRate, PrefillRate

log = logging.getLogger("warmroute.pods")

_ANSWER_S = 5.0  # a feed that nobody answers is waited for so long: its pod is routed blind
_UNVERIFIED = "%s: ITS CERTIFICATE IS NOT CHECKED (tls.verify is off): whoever answers at %s gets prompts and keys"
_MEND_S = 0.5  # between two looks at whether a feed wants its pod's history again


class Heirs(Protocol):
    """Those who inherit what a pod alone holds."""

    def begin(self, name: str) -> None:
        """It was told to end."""

    def left(self, name: str) -> None:
        """It is gone; its name may come again."""


class Remembers(Protocol):
    """What was known of pods before this gateway was started."""

    @property
    def waits(self) -> bool:
        """Something may be remembered of who joins now."""

    async def recall(self, pod: Pod, connected: Callable[[], bool]) -> Mapping[RankId, Remembered]:
        """What is remembered of a pod's ranks; their blocks are in the index, hidden, as long as their feeds wait.

        `connected`: have all its publishers been reached?
        """


class Pods:
    """See the module. `upstreams`: where requests are sent to, by pod; kept as pods come and go."""

    def __init__(
        self,
        core: Core,
        config: Config,
        upstreams: Upstreams,
        clock: Callable[[], float] = time.monotonic,
        heirs: Heirs | None = None,
        memory: Remembers | None = None,
        timed: Callable[[float], None] | None = None,
    ) -> None:
        """`heirs`: told of who leaves; `memory`: what was known of pods before; `timed`: told how long (s) batches of
        events took, of some of them.

        Raises `ConfigError` where a source of pods can't be used at all.
        """
        self._core = core
        self._config = config
        self._clock = clock
        self._heirs = heirs
        self._timed = timed
        self._upstreams = upstreams
        self._sources = sources_of(config.discovery)
        self._roster = Roster()
        self._following: list[asyncio.Task[None]] = []
        self._told: list[asyncio.Event] = []  # of each source, whether it has told
        self._rate = FleetRate(config.scoring.prefill_tokens_per_second)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._limits = FeedLimits.of(config.events)
        self.bound = bound_endpoint(self._context, config, clock)
        self._readers: dict[str, list[FeedReader]] = {}
        self._joined_at: dict[str, float] = {}
        self._probers: dict[str, Prober] = {}
        self._clients: dict[str, PodClient] = {}
        self._memory = memory
        self._recalls: dict[str, asyncio.Task[None]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._mending: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None  # at what all pods serve
        self._look_at = float("-inf")  # not again before

    async def start(self) -> None:
        """Join all pods that are known, and follow those that tell of more."""
        self._mending = asyncio.get_running_loop().create_task(self._mend())
        if self.bound is not None:
            self.bound.start()
        await self._take(self._roster.apply(STATIC, by_hand(self._config.discovery)))
        loop = asyncio.get_running_loop()
        for source in self._sources:
            told = asyncio.Event()
            self._told.append(told)
            self._following.append(loop.create_task(self._follow(source, told)))

    async def met(self) -> None:
        """Wait until each pod was probed once and had time to load its first state: a few `probe.timeout` at most."""
        await _within([told.wait() for told in self._told], 2 * self._config.probe.timeout)
        waits = [prober.probed.wait() for prober in self._probers.values()]
        await _within(waits, 2 * self._config.probe.timeout)
        healthy = [name for name, pod in self._core.fleet.pods.items() if pod.healthy]
        joins = [reader.joined.wait() for name in healthy for reader in self._readers[name]]
        await _within(joins, self._config.probe.timeout)

    async def stop(self) -> None:
        for task in (self._mending, self._looking, *self._following):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for name in list(self._tasks):
            await self.leave(name)
        if self.bound is not None:
            self.bound.stop()
        self._context.destroy(linger=0)

    def join(self, given: StaticPod, uid: str = "") -> None:
        """A pod is there: route to it once it answers. `uid`: tells it from any other at its address."""
        address, size = given.address.rstrip("/"), self._block_size(given)
        pod = Pod(given.name, address, block_size=size, first_rank=given.first_rank, uid=uid)
        readers = []
        for number in range(given.data_parallel_size):
            rank, reader = self._rank(pod, given, number)
            pod.ranks.append(rank)
            if reader is not None:
                readers.append(reader)
        self._core.fleet.join(pod)
        if pod.name not in self._upstreams:
            self._upstreams.add(given)
        if not self._upstreams.is_verified(given):
            log.warning(_UNVERIFIED, pod.name, pod.address)
        client = self._clients[pod.name] = self._upstreams.client(given)
        prober = self._probers[pod.name] = Prober(self._core, pod, client, self._config.probe, given.model, self._clock)
        self._tasks[pod.name] = asyncio.get_running_loop().create_task(prober.run())
        self._readers[pod.name] = readers
        self._joined_at[pod.name] = self._clock()
        if self.bound is not None and given.events is None:
            self.bound.join(given, readers)
        recalls = self._memory is not None and self._memory.waits
        for reader in readers:
            if recalls:
                wait(reader.feed)
            reader.start()
        if recalls:
            self._recalls[pod.name] = asyncio.get_running_loop().create_task(self._recall(pod, readers))

    async def leave(self, name: str) -> None:
        """A pod is gone for good. It is in no decision from now on; what is on its way may end."""
        self._core.leave(self._core.fleet.pods[name])
        self._upstreams.retire(name)
        if self._heirs is not None:
            self._heirs.left(name)
        task, client, readers = self._tasks.pop(name), self._clients.pop(name), self._readers.pop(name)
        del self._probers[name], self._joined_at[name]
        if self.bound is not None:
            self.bound.leave(name)
        for each in (task, self._recalls.pop(name, None)):
            if each is not None:
                each.cancel()
                await asyncio.gather(each, return_exceptions=True)
        await client.aclose()
        for reader in readers:
            await reader.stop()

    def go_on(self, name: str) -> None:
        """Have believed what a pod's feeds have kept for a moment."""
        for reader in self._readers.get(name, ()):
            reader.go_on()

    async def _recall(self, pod: Pod, readers: Sequence[FeedReader]) -> None:
        """Give a pod's feeds what is remembered of them; whatever fails there, they go on without."""
        assert self._memory is not None
        remembered: Mapping[RankId, Remembered] = {}
        try:
            remembered = await self._memory.recall(pod, lambda: all(reader.answered for reader in readers))
        except Exception:  # a fault of ours
            log.exception("%s: what is remembered of it can't be used", pod.name)
            for reader in readers:
                self._core.index.clear(reader.feed.pod, anew=True)
        for rank, reader in zip((rank for rank in pod.ranks if rank.feed is not None), readers, strict=True):
            reader.resume(remembered.get(rank.id))

    async def _follow(self, source: PodSource, told: asyncio.Event) -> None:
        """Take what a source says, for as long as the gateway runs."""
        try:
            async for changes in source.changes():
                await self._take(self._roster.apply(source.name, changes))
                told.set()
        except Exception:  # a fault of ours: those that are known go on
            log.exception("%s: what it tells is not followed any more", source.name)
        finally:
            source.synced = False
            told.set()

    async def _take(self, steps: Iterable[Step]) -> None:
        """One step after the other: who comes back under a name must not meet what is left of who had it."""
        for step in steps:
            if isinstance(step, Leaves):
                log.info("%s has left", step.name)
                await self.leave(step.name)
                continue
            if isinstance(step, Joins):
                found, name = step.found, step.found.pod.name
                if name != step.called:
                    log.warning("two pods are called %s: the one at %s is %s", step.called, found.pod.address, name)
                self.join(found.pod, found.uid)
                ready, leaving = found.ready, found.leaving
            else:
                name, ready, leaving = step
            pod = self._core.fleet.pods[name]
            told_to_end = leaving and not pod.leaving
            pod.stands(ready, leaving)
            if told_to_end and self._heirs is not None:
                self._heirs.begin(name)

    async def look_again(self, proven: bool = False) -> None:
        """What pods serve and what requests ask for differ: have all pods that are well say it anew.

        Once in `probe.look_interval`, unless it is `proven` by a pod; returns when all have answered, or after
        `probe.timeout`.
        """
        now = self._clock()
        if proven or now >= self._look_at:
            self._look_at = now + self._config.probe.look_interval
            if self._looking is None or self._looking.done():
                self._looking = asyncio.get_running_loop().create_task(self._look_at_all())
        if self._looking is not None and not self._looking.done():
            await asyncio.wait([self._looking], timeout=self._config.probe.timeout)

    async def _look_at_all(self) -> None:
        pods = self._core.fleet.pods
        await asyncio.gather(*(prober.look() for name, prober in self._probers.items() if pods[name].healthy))

    async def look(self, name: str) -> bool:
        """Ask a pod at once what it serves. False: it does not tell."""
        return await self._probers[name].look()

    @property
    def unloaded(self) -> set[str]:
        """Pods whose feeds have not loaded their first state, and still may."""
        now, patience_s = self._clock(), self._config.events.join_timeout
        return {
            name
            for name, readers in self._readers.items()
            for reader in readers
            if not reader.joined.is_set()
            and now < self._joined_at[name] + (patience_s if reader.answered else min(_ANSWER_S, patience_s))
        }

    @property
    def troubles(self) -> list[str]:
        """Of sources that can't tell, or know of no pod: why, in words."""
        return [f"discovery.{source.name}: {source.trouble}" for source in self._sources if source.trouble is not None]

    @property
    def objects(self) -> dict[str, str]:
        """Of pods that Kubernetes knows, the names of their Pod objects."""
        return {
            name: source.objects[of]
            for source in self._sources
            if isinstance(source, KubernetesSource)
            for uid, name in self._roster.names(source.name).items()
            if (of := uid.partition("/")[0]) in source.objects
        }

    @property
    def known(self) -> dict[str, int]:
        """How many pods each source knows, those that are there twice in both."""
        return {STATIC: 0} | {source.name: 0 for source in self._sources} | self._roster.counts()

    def collect(self) -> Steps:
        """Its families."""
        yield gauges("warmroute_discovery_pods", "Pods that a source knows.", "source", self.known)
        synced = {STATIC: 1} | {each.name: int(each.synced) for each in self._sources}
        yield gauges("warmroute_discovery_sync", "1: a source tells how it is now.", "source", synced)

    def mend(self, name: str) -> None:
        """Have a pod's feeds ask for what they want again, now."""
        for reader in self._readers.get(name, ()):
            reader.mend()

    async def _mend(self) -> None:
        while True:
            await asyncio.sleep(_MEND_S)
            if self.bound is not None:
                self.bound.look()
            for readers in self._readers.values():
                for reader in readers:
                    reader.mend()

    def _rank(self, pod: Pod, given: StaticPod, number: int) -> tuple[Rank, FeedReader | None]:
        config, events = self._config, self._config.events
        name = RankId(pod.name, number)
        load = self._core.load_of(name, PrefillRate(config.scoring.prefill_tokens_per_second, self._rate))
        if given.events is None and self.bound is None:
            return Rank(name, pod, load, None), None
        feed = Feed(self._core.index, name, events.queue_max, self._block_size(given), events.queue_bytes_max)
        replay = port_plus(given.replay, number) if given.replay else None
        place = port_plus(given.events, number) if given.events else None
        reader = FeedReader(self._context, feed, place, replay, self._limits, self._clock)
        reader.timed = self._timed
        return Rank(name, pod, load, feed), reader

    def _block_size(self, given: StaticPod) -> int | None:
        """As configured, for the pod's model (of pods that do not name theirs: for the only model there is)."""
        models = self._config.models
        if given.model is not None or len(models) == 1:
            return next((model.block_size for model in models if given.model in (None, model.name)), None)
        return None


def bound_endpoint(
    context: zmq.Context[zmq.Socket[bytes]], config: Config, clock: Callable[[], float]
) -> BoundEndpoint | None:
    """The endpoint that publishers connect to, if there is one; raises `ConfigError`."""
    events = config.events
    if events.bind is None:
        return None
    ranks = max((pod.data_parallel_size for pod in config.discovery.static if pod.events is None), default=1)
    return BoundEndpoint(context, events.bind, ranks, FeedLimits.of(events), BoundLimits.of(events), clock)


async def _within(waits: Iterable[Coroutine[Any, Any, object]], timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*waits)
