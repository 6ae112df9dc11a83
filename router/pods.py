"""Finding out about pods: where they are (static list), whether they answer, what they serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import orjson
import zmq

from indexer.feed import Feed
from router.bound import BoundEndpoint, BoundLimits
from router.config import Config
from router.config_events import Events
from router.config_fleet import StaticPod
from router.core import Core
from router.failures import UpstreamError
from router.feeds import FeedReader
from router.figures import parse_metrics
from router.fleet import Evidence, Pod, Rank, RankId
from router.pod_client import PodClient
from router.sockets import FeedLimits, port_plus
from router.trust import Trusts
from scorer.cost import FleetRate, PrefillRate

log = logging.getLogger("warmroute.pods")

_JITTER = 0.1  # share of the interval by which probes are spread
_LOAD_S = 10.0  # a feed that has not loaded its first state by then is not waited for: its pod is routed blind
_DETAILS_EVERY = 5  # probes between two looks at models, version and metrics of a pod that is known
_NULL_BLOCKS = 1  # of num_gpu_blocks, vLLM keeps one for itself
_UNVERIFIED = "%s: ITS CERTIFICATE IS NOT CHECKED (tls.verify is off): whoever answers at %s gets prompts and keys"
_WELCOME = (b"/version", b"/metrics")  # of what is asked, not needed
_MEND_S = 0.5  # between two looks at whether a feed wants its pod's history again


class Prober:
    """Probes one pod for as long as it is known."""

    def __init__(self, core: Core, pod: Pod, client: PodClient, config: Config) -> None:
        self._core = core
        self._pod = pod
        self._client = client
        self._probe = config.probe
        self.probed = asyncio.Event()  # at least one answer, or one failure

    async def run(self) -> None:
        count = 0
        while True:
            fine = await self._ask_health()
            if fine and (count % _DETAILS_EVERY == 0 or self._pod.models is None or self._pod.block_size is None):
                fine = await self._ask_details()
            elif fine and self._needs_counters:
                await self._ask_metrics()
            self._note(fine)
            self.probed.set()
            count = count + 1 if fine else 0
            await asyncio.sleep(self._probe.interval * random.uniform(1 - _JITTER, 1 + _JITTER))

    def _note(self, fine: bool) -> None:
        pod = self._pod
        was = pod.healthy
        if fine:
            pod.failures, pod.suspect_until, pod.healthy = 0, 0.0, True
        else:
            pod.failures += 1
            if pod.failures >= self._probe.failures_max:
                pod.healthy = False
                self._core.fleet.cold.add(pod)
        if was != pod.healthy:
            log.info("%s is %s", pod.name, "fit" if pod.healthy else "unfit: it does not answer probes")

    async def _ask_health(self) -> bool:
        return await self._asked(b"/health") is not None

    async def _ask_details(self) -> bool:
        """Models are needed; the version and the metrics are welcome."""
        models = await self._asked(b"/v1/models")
        if models is None:
            return False
        try:
            known = [m for m in orjson.loads(models)["data"] if isinstance(m.get("id"), str)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: /v1/models can't be read: %s", self._pod.name, error or type(error).__name__)
            return False
        self._core.fleet.learned_models(self._pod, known)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            self._pod.version = orjson.loads(await self._asked(b"/version") or b"null")["version"]
        await self._ask_metrics()
        return True

    async def _ask_metrics(self) -> None:
        text = await self._asked(b"/metrics")
        if text is not None:
            self._learn(parse_metrics(text.decode(errors="replace")))

    async def _asked(self, target: bytes) -> bytes | None:
        """The pod's answer, if it is a good one; what is wrong is said once in a row of failures."""
        try:
            answer = await self._client.get(target)
        except UpstreamError as error:
            if self._pod.failures == 0:
                log.info("%s: %s can't be asked: %s", self._pod.name, target.decode(), error)
            return None
        if answer.fine:
            return answer.body
        if self._pod.failures == 0 and target not in _WELCOME:
            log.info("%s says %d to %s", self._pod.name, answer.status, target.decode())
        return None

    @property
    def _needs_counters(self) -> bool:
        """The pod's counters are all that its feed can be checked by."""
        return not self._pod.evidence.usage and any(rank.feed is not None for rank in self._pod.ranks)

    def _learn(self, figures: dict[str, float]) -> None:
        pod, before = self._pod, self._pod.engine.get("started")
        if before is not None and before != figures.get("started", before):
            log.info("%s has been started anew", pod.name)
            pod.evidence = Evidence()
            self._core.fleet.cold.add(pod)
            for rank in pod.ranks:
                if rank.feed is not None:
                    rank.feed.suspect()
        pod.engine = figures
        feed = pod.ranks[0].feed if len(pod.ranks) == 1 else None  # the counters of several tell of no one
        proof = pod.evidence.looked(figures.get("cache_queries"), figures.get("cache_hits"))
        if proof is not None and feed is not None:
            feed.reported(*proof)
        size = figures.get("block_size")
        if size is not None and size >= 1:
            self._pod.block_size = int(size)
        blocks = figures.get("blocks")
        if blocks is not None and blocks > _NULL_BLOCKS:
            self._pod.blocks = int(blocks) - _NULL_BLOCKS


class Pods:
    """The fleet's outside: makes pods of the configuration, keeps them probed and their feeds read."""

    def __init__(self, core: Core, config: Config, trusts: Trusts, clock: Callable[[], float] = time.monotonic) -> None:
        self._core = core
        self._config = config
        self._trusts = trusts
        self._clock = clock
        self._rate = FleetRate(config.scoring.prefill_tokens_per_second)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._limits = feed_limits(config.events)
        self.bound = bound_endpoint(self._context, config, clock)
        self._readers: dict[str, list[FeedReader]] = {}
        self._joined_at: dict[str, float] = {}
        self._probers: dict[str, Prober] = {}
        self._clients: dict[str, PodClient] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._mending: asyncio.Task[None] | None = None

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
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
        for name in list(self._tasks):
            await self.leave(name)
        if self.bound is not None:
            self.bound.stop()
        self._context.destroy(linger=0)

    def join(self, given: StaticPod) -> None:
        """A pod is there: route to it once it answers."""
        pod = Pod(given.name, given.address.rstrip("/"), block_size=self._block_size(given))
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
        client = self._clients[pod.name] = PodClient(pod.address, self._config.probe.timeout, tls)
        prober = self._probers[pod.name] = Prober(self._core, pod, client, self._config)
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

    @property
    def unloaded(self) -> set[str]:
        """Pods whose feeds have not loaded their first state, and still may."""
        since = self._clock() - _LOAD_S
        return {
            name
            for name, readers in self._readers.items()
            if self._joined_at[name] > since and any(not reader.joined.is_set() for reader in readers)
        }

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
        feed = Feed(self._core.index, name, events.queue_max, self._block_size(given))
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


def feed_limits(events: Events) -> FeedLimits:
    """As configured."""
    return FeedLimits(
        receive_hwm=events.receive_hwm,
        batch_bytes_max=events.batch_bytes_max,
        slice_s=events.slice_seconds,
        replay_timeout_s=events.replay_timeout,
        replay_retries=events.replay_retries,
        reconnect_s=events.reconnect_delay,
        reconnect_max_s=events.reconnect_delay_max,
        connect_timeout_s=events.connect_timeout,
        heartbeat_s=events.heartbeat_interval,
        heartbeat_timeout_s=events.heartbeat_timeout,
        keepalive_idle_s=events.keepalive_idle,
        keepalive_interval_s=events.keepalive_interval,
        keepalive_probes=events.keepalive_probes,
    )


def bound_endpoint(
    context: zmq.Context[zmq.Socket[bytes]], config: Config, clock: Callable[[], float]
) -> BoundEndpoint | None:
    """The endpoint that publishers connect to, if there is one; raises `ConfigError`."""
    events = config.events
    if events.bind is None:
        return None
    ranks = max((pod.data_parallel_size for pod in config.discovery.static if pod.events is None), default=1)
    limits = BoundLimits(events.topics_named_max, events.disputes_max, events.dispute_time)
    return BoundEndpoint(context, events.bind, ranks, feed_limits(events), limits, clock)


async def _within(waits: Iterable[Coroutine[Any, Any, object]], timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*waits)
