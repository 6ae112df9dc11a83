"""All parts of one gateway process, put together once; nothing here decides anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from indexer.blocks import KeySpace
from indexer.prefixes import VARIANTS_MAX, PrefixLimits
from router import native
from router.alerts.alerts import Alerts
from router.causes.journal import Journal
from router.config.settings import Config, ScoringConfig
from router.core.breaker import BreakerLimits
from router.core.decision import Core
from router.core.settings import Bounds, CoreSettings, IndexSettings
from router.discovery.kubernetes_api import api_of
from router.discovery.pods import Pods
from router.errors import ConfigError
from router.handover.deletion_cost import DeletionCosts
from router.handover.handover import Handover
from router.handover.idle_pods import IdlePods
from router.metrics.metrics import Metrics
from router.metrics.process import Process
from router.proxy.proxy import Proxy
from router.recording.recorder import Recorder
from router.server.long_answers import in_turns
from router.state.gateways import peer_key
from router.state.keeping import Keeping
from router.tokens.encoder import Encoder
from router.upstream.upstreams import Upstreams
from router.warmup.warmup import Warmup
from router.workers.peers import Peers
from router.workers.worker import Worker, rows_of
from scorer.hold import HoldLimits, PodBounds
from scorer.policies import PolicyName, Settings, Weights
from scorer.sessions import SessionLimits

if TYPE_CHECKING:
    from router.shared_index.sharing import Sharing

GATEWAY_VERSION = "0.1.0"
_HOUSEKEEPING_S = 0.05  # between two looks at what has expired
NO_PODS = "no pods yet: set discovery, or wait for its pods to start"
_UNLOADED = "the first state of its feed is not loaded"
_CLEANUP_SLICE = 200  # mappings looked at in one go: well under 1 ms


class Service:
    """The composition root of one process; `running` is its life."""

    def __init__(self, config: Config, worker: Worker | None = None) -> None:
        """`worker`: where this process is one of several workers."""
        key = peer_key(config.peers.key_file)
        given_seed = secrets.randbits(64) if worker is None else worker.seed
        space = KeySpace(given_seed if key is None else key.seed)
        self.config = config
        rows = rows_of(config, worker)
        self.core = Core(core_settings(config), space, None if rows is None else rows.board)
        self.upstreams = Upstreams(config)
        for pod in config.discovery.static:
            self.upstreams.add(pod)
        self.encoder = Encoder(config, self.core, space, self.upstreams)
        self.metrics = Metrics(
            self.core, self.encoder.stats, questions=self.encoder.remote.counts, given=config.metrics
        )
        idle = IdlePods(self.core, self.upstreams, config.handover)
        self.journal = Journal(self.core, self.metrics, config)
        self.handover = Handover(self.core, idle, config.handover)
        self.warmup = Warmup(self.core, self.encoder, idle, config.warmup)
        self._first = worker is None or worker.number == 0  # pods need not compute for each of several workers
        process = Process(GATEWAY_VERSION, bool(native.twins(native.root())))
        self.metrics.join(process)
        self.alerts = Alerts(self.metrics, config.alerts, lambda: process.memory)
        self.metrics.join(self.alerts)
        self.metrics.join(self.handover)
        self.recorder = None
        if config.record.path is not None:
            self.recorder = Recorder(config.record, self.core, config.scoring.policy)
            self.metrics.join(self.recorder)
        self.keeping = Keeping(
            config, self.core, key, (worker, rows), self._forget_keys, lambda name: self.pods.go_on(name)
        )
        self.metrics.join(self.keeping)
        self.pods = Pods(
            self.core, config, self.upstreams, heirs=self.handover, memory=self.keeping.memory,
            timed=self.metrics.stores.observe,
        )  # fmt: skip
        self.metrics.join(self.pods)
        if self.pods.bound is not None:
            self.metrics.join(self.pods.bound)
        given = config.upstream
        self.proxy = Proxy(given.attempts_max, given.breaks_max, config.withheld)
        self.sharing = self._sharing()
        self.peers = None if worker is None else Peers(worker, config.gateway.workers_timeout)
        self.is_replacement = worker is not None and worker.life > 0  # others serve at the same port meanwhile
        self.draining = False
        self.started = False
        self._beginning: asyncio.Task[None] | None = None
        self._loaded = (
            False  # all feeds that answer once had their first state: who comes later finds a fleet that serves
        )
        self.in_flight = 0
        self._ids = f"{secrets.token_hex(6)}-{os.getpid():x}".encode()
        self._requests = 0

    @contextlib.asynccontextmanager
    async def running(self, at_once: bool = False) -> AsyncIterator[None]:
        """Everything runs inside. `at_once`: from before the pods are met on; `begun` waits for that."""
        if self.sharing is not None:
            await self.sharing.start()
        await self.keeping.start()
        if self.recorder is not None:
            await self.recorder.start()
        await self.pods.start()
        self._beginning = asyncio.get_running_loop().create_task(self._begin())
        if not at_once:
            await self._beginning
        loop = asyncio.get_running_loop()
        works = (
            self._housekeeping(),
            self.encoder.parity.run(),
            self.encoder.remote.run(),
            self.warmup.run(self._first),
            self.alerts.run(),
            *self._deletion_costs(),
        )
        tasks = [self._beginning, *(loop.create_task(work) for work in works)]
        try:
            yield
        finally:
            self.started = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await in_turns(self.journal.go_on(time.monotonic(), all_of_them=True))
            if self.journal.tracing is not None:
                await asyncio.to_thread(self.journal.tracing.close)
            self.encoder.close()
            if self.sharing is not None:
                await self.sharing.stop()
            if self.recorder is not None:
                await self.recorder.stop()
            await self.handover.aclose()
            await self.keeping.stop()
            await self.pods.stop()
            if self.peers is not None:
                await self.peers.aclose()
            await self.upstreams.aclose()

    async def begun(self) -> None:
        """Wait until the pods are met, where that is under way: who asks before finds nobody who serves."""
        if self._beginning is not None:
            await asyncio.wait([self._beginning])

    async def _begin(self) -> None:
        await self.pods.met()
        if self.peers is not None:
            await self._drain_as(self.peers)
        self.started = True

    def _deletion_costs(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What keeps them up to date, where that is asked for."""
        given = self.config.discovery.kubernetes
        if given is not None and given.deletion_cost > 0:
            pods, recent = self.pods, self.handover.recent
            yield DeletionCosts(self.core, recent, api_of(given), lambda: pods.objects, given.deletion_cost).run()

    def request_id(self) -> bytes:
        """A new request id: unique among all gateways' by chance, in this one by counting."""
        self._requests += 1
        return b"%b-%x" % (self._ids, self._requests)

    def unready(self) -> list[str]:
        """Why requests should go elsewhere now; empty when ready."""
        if self.draining:
            return ["draining"]
        if not self.started:
            return ["starting"]
        now, unloaded = time.monotonic(), self.pods.unloaded
        fit = [pod.name for pod in self.core.fleet.pods.values() if pod.fit(now)]
        waited = [name for name in fit if name in unloaded]
        self._loaded = self._loaded or bool(fit and not waited)
        if len(waited) < len(fit) and self._loaded:
            return []
        nobody = ["no pod is fit"] if self.core.fleet.pods else [NO_PODS, *self.pods.troubles]
        return [f"{name}: {_UNLOADED}" for name in waited] or nobody

    def readiness(self) -> dict[str, Any]:
        """The same for a probe that wants to know, with each pod, and why it is not fit."""
        reasons, now, unloaded = self.unready(), time.monotonic(), self.pods.unloaded
        pods = {}
        for name, pod in self.core.fleet.pods.items():
            fit = pod.fit(now)
            pods[name] = {"fit": fit, "reasons": pod.unfit(now) + ([_UNLOADED] if fit and name in unloaded else [])}
        return {"ready": not reasons, "reasons": reasons, "pods": pods}

    async def _drain_as(self, peers: Peers) -> None:
        """Whoever takes the place of a worker that died drains what that one did."""
        for name in await peers.drained(self.config.gateway):
            pod = self.core.fleet.pods.get(name)
            if pod is not None:
                pod.drain(True)

    def _sharing(self) -> Sharing | None:
        """The shared index, if there is one; what it needs is imported only then. Raises `ConfigError`."""
        given = self.config.index.redis
        if given.url is None:
            return None
        try:
            from router.shared_index.sharing import Sharing
        except ImportError as error:
            raise ConfigError(f"index.redis needs more: pip install 'warmroute[redis]' ({error})") from error
        sharing = Sharing(given, self.core, secrets.token_hex(8), self._reseeded, time.monotonic)
        self.metrics.join(sharing)
        return sharing

    def _reseeded(self) -> None:
        """All block keys have changed: forget the old ones, and read all pods' histories again."""
        for rank in self.core.fleet.ranks:
            if rank.feed is not None:
                rank.feed.reread()
            self.core.index.clear(rank.id)
        self._forget_keys()
        if self.started:  # what is being tokenized now may still come with old ones
            asyncio.get_running_loop().call_later(2 * self.config.tokens.deadline, self._forget_keys)

    def _forget_keys(self) -> None:
        self.core.store.clear()
        self.core.fleet.changed()

    async def _housekeeping(self) -> None:
        """What expires, in slices."""
        indexes, store = (self.core.index, self.core.texts), self.core.store
        cleanup_at = time.monotonic() + self.config.cache_cleanup_interval
        while True:
            due = time.monotonic() + _HOUSEKEEPING_S
            await asyncio.sleep(_HOUSEKEEPING_S)
            now = time.monotonic()
            self.metrics.loop_lags.observe(max(0.0, now - due))
            if self.core.others is not None:  # for who looks, where nothing is decided
                self.core.others.listen(now)
            self.core.look(now)
            self.core.fleet.notice_grains()
            self.encoder.judge(now)  # before what was predicted expires
            await in_turns(self.journal.go_on(now))
            for index in indexes:
                index.expire(now)
                while index.sweep() or index.refill():
                    await asyncio.sleep(0)
            if now >= cleanup_at:
                cleanup_at = now + self.config.cache_cleanup_interval
                while not store.cleanup_expired(now, _CLEANUP_SLICE).done:
                    await asyncio.sleep(0)
                await in_turns(self.metrics.end_departed(now))


def core_settings(config: Config) -> CoreSettings:
    """What the decision is set to by a configuration."""
    gateway, admission, breaker, index = config.gateway, config.admission, config.breaker, config.index
    weights, upstream, scoring, kept = index.tier_weights, config.upstream, config.scoring, config.prefix_store_config
    pods = PodBounds(admission.pod_requests_max or inf, admission.pod_prefill_tokens_max or inf)
    return CoreSettings(
        index=IndexSettings(
            blocks_max=index.blocks_max,
            pods_max=index.pods_max,
            orphans_max=index.orphans_max,
            text_blocks_max=index.text_blocks_max,
            predicted_ttl_s=index.predicted_ttl,
            predicted_grace_s=index.predicted_grace,
            blind_ttl_s=index.blind_ttl,
            prefixes=PrefixLimits(
                kept.bytes_max, kept.pod_mapping_ttl, kept.max_pod_sets_per_block, VARIANTS_MAX, kept.evictions
            ),
            maps=config.pod_mappings_enabled,
        ),
        tier_weights=(weights.gpu, weights.cpu, weights.disk),
        bounds=Bounds(
            requests=gateway.requests_max,
            prefill_tokens=admission.prefill_tokens_max,
            pods=pods,
        ),
        queue_max=admission.queue_max,
        flow_queue_max=admission.flow_queue_max,
        hold=HoldLimits(admission.look_ahead, admission.hold_max, admission.queue_max, pods),
        piece_tokens=scoring.pieces.tokens if scoring.pieces.enabled else 0,
        breaker=BreakerLimits(
            in_row_max=breaker.failures_in_row,
            share_max=breaker.failure_share,
            requests_min=breaker.requests_min,
            window_s=breaker.window,
            open_s=breaker.open_time,
            open_max_s=breaker.open_time_max,
        ),
        panic_share=config.probe.panic_share,
        suspect_s=config.probe.interval,
        retry_after_max_s=upstream.retry_after_max,
        retry_share=upstream.retry_share,
        retry_floor=upstream.retry_floor,
        scoring=_policy(scoring, scoring.policy),
        shadow=None if scoring.shadow is None else _policy(scoring, scoring.shadow),
        adapter_load_s=scoring.adapter_load,
        slow_start_s=scoring.slow_start,
        slow_start_factor=scoring.slow_start_factor,
        decisions_kept=config.decisions.kept,
        sessions=SessionLimits(config.sessions.kept_max, config.sessions.idle),
        losses_max=config.decisions.remembered_blocks,
        chain_keys_max=scoring.chain_keys_max,
    )


def _policy(scoring: ScoringConfig, name: PolicyName) -> Settings:
    weights = scoring.weights
    return Settings(
        policy=name,
        beta=scoring.beta,
        eviction=scoring.eviction,
        request_s=scoring.request_cost,
        saturated_s=scoring.saturated,
        weights=Weights(weights.prefix, weights.queue, weights.kv),
        hash_block_size=scoring.hash_block_size,
        max_prefix_blocks_to_match=scoring.max_prefix_blocks_to_match,
        lru_capacity_per_server=scoring.lru_capacity_per_server,
        cache_hit_bonus=scoring.cache_hit_bonus,
    )
