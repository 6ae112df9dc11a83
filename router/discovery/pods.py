"""Finding out about pods: where they are (static list), whether they answer, what they serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import zmq

from indexer.feed import Feed
from router.config.fleet import StaticPod
from router.config.settings import Config
from router.core.decision import Core
from router.core.fleet import Pod, Rank, RankId
from router.discovery.prober import Prober
from router.events.bound_endpoint import BoundEndpoint, BoundLimits
from router.events.reader import FeedReader
from router.events.sockets import FeedLimits, port_plus
from router.upstream.certificates import Trusts
from router.upstream.pod_client import PodClient
from router.upstream.pod_keys import Keyring
from scorer.cost import FleetRate, PrefillRate

log = logging.getLogger("warmroute.pods")

_ANSWER_S = 5.0  # a feed that nobody answers is waited for so long: its pod is routed blind
_UNVERIFIED = "%s: ITS CERTIFICATE IS NOT CHECKED (tls.verify is off): whoever answers at %s gets prompts and keys"
_MEND_S = 0.5  # between two looks at whether a feed wants its pod's history again


class Pods:
    """The fleet's outside: makes pods of the configuration, keeps them probed and their feeds read."""

    def __init__(
        self,
        core: Core,
        config: Config,
        trusts: Trusts,
        keyring: Keyring,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._config = config
        self._trusts = trusts
        self._keyring = keyring
        self._clock = clock
        self._rate = FleetRate(config.scoring.prefill_tokens_per_second)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._limits = FeedLimits.of(config.events)
        self.bound = bound_endpoint(self._context, config, clock)
        self._readers: dict[str, list[FeedReader]] = {}
        self._joined_at: dict[str, float] = {}
        self._probers: dict[str, Prober] = {}
        self._clients: dict[str, PodClient] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._mending: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None  # at what all pods serve
        self._look_at = float("-inf")  # not again before

    async def start(self) -> None:
        """Join all configured pods, and wait until each was probed once and had time to load its first state."""
        self._mending = asyncio.get_running_loop().create_task(self._mend())
        if self.bound is not None:
            self.bound.start()
        for given in self._config.discovery.static:
            self.join(given)
        waits = [prober.probed.wait() for prober in self._probers.values()]
        await _within(waits, 2 * self._config.probe.timeout)
        healthy = [name for name, pod in self._core.fleet.pods.items() if pod.healthy]
        joins = [reader.joined.wait() for name in healthy for reader in self._readers[name]]
        await _within(joins, self._config.probe.timeout)

    async def stop(self) -> None:
        for task in (self._mending, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for name in list(self._tasks):
            await self.leave(name)
        if self.bound is not None:
            self.bound.stop()
        self._context.destroy(linger=0)

    def join(self, given: StaticPod) -> None:
        """A pod is there: route to it once it answers."""
        address, size = given.address.rstrip("/"), self._block_size(given)
        pod = Pod(given.name, address, block_size=size, first_rank=given.first_rank)
        readers = []
        for number in range(given.data_parallel_size):
            rank, reader = self._rank(pod, given, number)
            pod.ranks.append(rank)
            if reader is not None:
                readers.append(reader)
        self._core.fleet.join(pod)
        tls = self._trusts.of(given)
        if tls is not None and not tls.verified:
            log.warning(_UNVERIFIED, pod.name, pod.address)
        client = self._clients[pod.name] = PodClient(
            pod.address, self._config.probe.timeout, tls, self._keyring.of(given)
        )
        prober = self._probers[pod.name] = Prober(self._core, pod, client, self._config.probe, given.model, self._clock)
        self._tasks[pod.name] = asyncio.get_running_loop().create_task(prober.run())
        self._readers[pod.name] = readers
        self._joined_at[pod.name] = self._clock()
        if self.bound is not None and given.events is None:
            self.bound.join(given, readers)
        for reader in readers:
            reader.start()

    async def leave(self, name: str) -> None:
        """A pod is gone for good."""
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._clients.pop(name).aclose()
        if self.bound is not None:
            self.bound.leave(name)
        for reader in self._readers.pop(name):
            await reader.stop()
        del self._probers[name], self._joined_at[name]
        self._core.leave(self._core.fleet.pods[name])

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
