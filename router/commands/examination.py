"""One pod, examined by `warmroute check`: what the gateway will rely on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

import zmq

from indexer.blocks import KeySpace
from indexer.feed import Feed
from indexer.index import PrefixIndex
from router.commands.findings import Findings, json_of
from router.commands.token_examination import Local, TokenExamination
from router.config.fleet import StaticPod, middle_of
from router.config.settings import Config
from router.core.fleet import RankId
from router.discovery.vllm_metrics import parse_metrics
from router.events.bound_endpoint import BoundEndpoint
from router.events.reader import FeedReader
from router.events.sockets import FeedLimits, port_plus
from router.upstream.failures import UpstreamError
from router.upstream.pod_client import PodClient
from router.upstream.pod_keys import Keyring
from router.upstream.pool import Tls

_JOIN_GRACE_S = 1.0  # beside the replay's own timeout, for connecting
_CACHING_OFF = 'enable_prefix_caching="False"'
_BY_CACHES = frozenset(("predicted-ttft", "affinity-until-saturated", "overlap"))  # policies that want events


class Examination:
    """Of one pod: does it answer, what does it serve, do its events arrive, are its tokens ours?"""

    def __init__(
        self,
        config: Config,
        pod: StaticPod,
        local: Sequence[Local],
        tls: Tls | None,
        context: zmq.Context[zmq.Socket[bytes]],
        bound: BoundEndpoint | str | None,
        wait_s: float,
    ) -> None:
        """`bound`: the endpoint that publishers connect to, or why there can't be one here."""
        self._config = config
        self._pod = pod
        self._findings = Findings(pod.name)
        self._tokens = TokenExamination(config, local, self._findings)
        self._tls = tls
        self._context = context
        self._bound = bound
        self._wait_s = wait_s

    async def run(self) -> Findings:
        """Ask it all; what is wrong is among the findings, and no error."""
        address = self._pod.address
        key = Keyring(self._config.pods).of(self._pod)
        async with PodClient(address, self._config.probe.timeout, self._tls, key) as client:
            try:
                healthy = await client.get(b"/health")
            except UpstreamError as error:
                self._findings.wrong(f"{address} can't be reached: {error}.")
                return self._findings
            if healthy.fine:
                self._findings.fine(f"{address} answers.")
            else:
                self._findings.wrong(f"{address} says {healthy.status} to /health.")
            if self._tls is not None and not self._tls.verified:
                self._findings.wrong("its certificate is not checked (tls.verify is off): anybody could be this pod.")
            await self._models(client)
            size = await self._metrics(client)
            if self._pod.events is None and self._bound is not None:
                await self._publisher(client)
            await self._feeds(size)
            await self._tokens.run(client)
        return self._findings

    async def _models(self, client: PodClient) -> None:
        models = await json_of(client.get(b"/v1/models"))
        try:
            served = {str(model["id"]) for model in models["data"]} if isinstance(models, dict) else set()
        except (KeyError, TypeError):
            served = set()
        if not served:
            self._findings.wrong("/v1/models does not tell what it serves.")
            return
        self._findings.served = served
        self._findings.roots = [str(model["root"]) for model in models["data"] if model.get("root")]
        names = ", ".join(sorted(served))
        wanted = {name for model in self._config.models for name in (model.name, *model.aliases)}
        if self._pod.model is not None and self._pod.model not in served:
            self._findings.wrong(f"it serves {names}, and not {self._pod.model}, which the configuration says.")
        elif wanted and not served & wanted:
            self._findings.wrong(f"it serves {names}, and none of the configured models: {', '.join(sorted(wanted))}.")
        else:
            self._findings.fine(f"it serves {names}.")

    async def _metrics(self, client: PodClient) -> int | None:
        """The block size of the pod's metrics."""
        try:
            answer = await client.get(b"/metrics")
        except UpstreamError:
            return None
        text = answer.body.decode(errors="replace")
        if _CACHING_OFF in text:
            self._findings.wrong("prefix caching is off (--enable-prefix-caching): nothing can be reused.")
        size = parse_metrics(text).get("block_size") if answer.fine else None
        return None if size is None else int(size)

    # --- feeds

    async def _feeds(self, metrics_size: int | None) -> None:
        pod = self._pod
        if pod.events is None and self._bound is None:
            by_caches = self._config.scoring.policy in _BY_CACHES
            say = self._findings.wrong if by_caches else self._findings.note
            say("no event feed is configured: it is routed by what was sent to it.")
            self._block_size(metrics_size, None)
            return
        readers = [self._reader(rank) for rank in range(pod.data_parallel_size)]
        bound = self._bound if pod.events is None else None
        if isinstance(bound, BoundEndpoint):
            bound.join(pod, readers)
        elif bound is not None:
            self._findings.wrong(f"{bound}: if the gateway runs here, its /pods tells of this pod's events.")
        await asyncio.gather(*(self._listen(reader) for reader in readers))
        for rank, reader in enumerate(readers):
            self._judge_feed(reader, rank)
        self._block_size(metrics_size, next((r.feed.block_size for r in readers if r.feed.block_size), None))

    async def _publisher(self, client: PodClient) -> None:
        """Does the publisher of a pod without `events` connect, under a topic that names it? vLLM tells since 0.31."""
        sources = await json_of(client.get(b"/kv_event_sources"))
        for source in sources.values() if isinstance(sources, dict) else ():
            endpoint, topic = str(source.get("endpoint")), str(source.get("topic"))
            if "*" in endpoint or "::" in endpoint or not endpoint.startswith("tcp://"):
                self._findings.wrong(f"its publisher does not connect, it listens at {endpoint}.")
            elif not {topic, middle_of(topic)}.intersection(self._pod.claims):
                self._findings.wrong(f"its publisher's topic {topic!r} does not name it.")
            else:
                self._findings.fine(f"its publisher connects to {endpoint}, under {topic!r}.")

    def _reader(self, rank: int) -> FeedReader:
        """Listens to one rank's feed and asks its replay, into an index of its own."""
        pod = self._pod
        events = port_plus(pod.events, rank) if pod.events else None
        replay = port_plus(pod.replay, rank) if pod.replay else None
        index = PrefixIndex(KeySpace(secrets.randbits(64)), self._config.index.blocks_max, pods_max=1)
        feed = Feed(index, RankId(pod.name, rank), self._config.events.queue_max)
        given = FeedLimits.of(self._config.events)
        limits = replace(given, replay_timeout_s=min(given.replay_timeout_s, self._wait_s), replay_retries=0)
        return FeedReader(self._context, feed, events, replay, limits)

    async def _listen(self, reader: FeedReader) -> None:
        reader.start()
        try:
            await _until(lambda: reader.feed.last_heard is not None and reader.joined.is_set(), self._wait_s)
            patience_s = min(self._config.events.replay_timeout, self._wait_s) + _JOIN_GRACE_S
            await _until(reader.joined.is_set, patience_s)
        finally:
            await reader.stop()

    def _judge_feed(self, reader: FeedReader, rank: int) -> None:
        pod, findings, feed, counts = self._pod, self._findings, reader.feed, reader.feed.counts
        name = f"rank {rank}: " if pod.data_parallel_size > 1 else ""
        place = pod.events or self._config.events.bind or ""
        events, joined = port_plus(place, rank), reader.joined.is_set()
        replay = port_plus(pod.replay, rank) if pod.replay else None
        if not joined and feed.last_heard is None:
            findings.wrong(f"{name}no publisher of events answers at {events}.")
            return
        replayed = counts.replay_complete > 0
        if feed.last_heard is not None:
            findings.fine(f"{name}events arrive from {events}.")
        elif replayed and counts.stored:
            findings.fine(f"{name}no event came within {self._wait_s:g} s, it is idle; its replay tells of its blocks.")
        elif replayed:
            findings.fine(f"{name}no event came within {self._wait_s:g} s: nothing was published since it started.")
        else:
            findings.wrong(f"{name}no event came from {events} within {self._wait_s:g} s, and no replay can prove it.")
        if replay is None:
            findings.wrong(f"{name}no replay is configured: a gap in its feed forgets its blocks.")
        elif replayed:
            findings.fine(f"{name}the replay at {replay} answers.")
        else:
            findings.wrong(f"{name}the replay at {replay} does not answer.")
        if counts.decode_errors:
            findings.wrong(f"{name}{counts.decode_errors} of its events could not be decoded.")

    def _block_size(self, metrics: int | None, events: int | None) -> None:
        findings, learned = self._findings, events or metrics
        if learned is None:
            findings.wrong("its block size is not known: neither its metrics nor its events tell.")
            return
        if events is not None and metrics is not None and events != metrics:
            findings.wrong(f"its events have blocks of {events} tokens, its metrics say {metrics}.")
        for model in self._config.models:
            wanted = model.block_size
            if wanted is not None and self._findings.serves(model) and wanted != learned:
                findings.wrong(f"its blocks have {learned} tokens, and not {wanted}, which {model.name} is to have.")
                return
        findings.fine(f"its blocks have {learned} tokens.")


async def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for something that may not come."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.02)
