"""`warmroute check`: a doctor. Asks each pod what the gateway will rely on, and says plainly what is wrong.

It sends no request for tokens: a pod that is idle stays idle, and then its replay is the proof that its feed is right.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson
import zmq

from indexer.blocks import KeySpace
from indexer.feed import Feed
from indexer.index import PrefixIndex
from router.config.fleet import ASK_THE_PODS, ModelConfig, StaticPod, middle_of
from router.config.settings import Config
from router.core.fleet import RankId
from router.discovery.pods import bound_endpoint
from router.discovery.sources import told_now
from router.discovery.vllm_metrics import parse_metrics
from router.errors import ConfigError
from router.events.bound_endpoint import BoundEndpoint
from router.events.reader import FeedReader
from router.events.sockets import FeedLimits, port_plus
from router.prompts.own_encodings import OwnEncoding, by_folder, by_names, is_tokenized
from router.prompts.prompt import parse
from router.prompts.rendering import RenderError, config_of
from router.prompts.renderings import Renderings, renderings_of
from router.tokens.tokenizer import Tokenizer
from router.upstream.certificates import Certificates
from router.upstream.failures import UpstreamError
from router.upstream.pod_client import PodAnswer, PodClient
from router.upstream.pod_keys import Keyring
from router.upstream.pool import Tls

_DISCOVERY_S = 10.0  # for what a source of pods tells at first
_PODS_AT_ONCE = 16
_JOIN_GRACE_S = 1.0  # beside the replay's own timeout, for connecting
_AROUND = 3  # token ids shown on either side of the first that differs
_CACHING_OFF = 'enable_prefix_caching="False"'
_MISSING = "is served by none of the pods"

_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n\treturn {'a': [1, 2.5e-3]}  # naïve café, 中文字符，日本語、한국어 👩‍👧\r\n\n\n   \t12345678",
    "<|im_start|>system\nspecial tokens in a text<|im_end|> <s> </s> <|endoftext|>",
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather of a place: "now" & <soon>.',
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_CHAT = {
    "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "text", "text": "How is the weather in Zürich?"}]},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "And tomorrow?"},
    ],
    "tools": [_TOOL],
}
_ASKED: Sequence[tuple[str, dict[str, Any]]] = (
    *((f"text {number}", {"prompt": text}) for number, text in enumerate(_TEXTS, 1)),
    ("a chat with tools", _CHAT),
)


class Local(NamedTuple):
    """A model whose prompts are tokenized here."""

    config: ModelConfig
    renderings: Renderings
    tokenizer: Tokenizer

    def ids(self, body: dict[str, Any], version: str | None) -> list[int]:
        """The token ids of a body of /tokenize, as a pod of this version makes them; raises RenderError."""
        rendering = self.renderings.of(version).render(parse("/tokenize", orjson.dumps(body)))
        return list(map(int, self.tokenizer.encode(rendering.text, rendering.add_special_tokens)))


class Findings:
    """What was found out about one pod, or the configuration: lines, in order."""

    def __init__(self, about: str) -> None:
        self._about = about
        self.lines: list[str] = []
        self.wrong_count = 0
        self.served: set[str] = set()  # names of models
        self.roots: list[str] = []  # where they were loaded from

    def fine(self, sentence: str) -> None:
        self.lines.append(f"✓ {self._about}: {sentence}")

    def wrong(self, sentence: str) -> None:
        self.lines.append(f"✗ {self._about}: {sentence}")
        self.wrong_count += 1


def check_fleet(config: Config, wait_s: float) -> int:
    """Print a line for all that was looked at; returns how many things are wrong.

    `wait_s`: seconds that each pod has for an event to come.
    """
    config, troubles = _with_pods(config)
    found = _load(config, troubles)
    for line in found.findings.lines:
        click.echo(line)
    pods = asyncio.run(_check_pods(config, found, wait_s))
    wrong = found.findings.wrong_count + sum(findings.wrong_count for findings in pods)
    served = set[str]().union(*(findings.served for findings in pods))
    if len({frozenset(findings.served) for findings in pods if findings.served}) > 1 and not config.models:
        click.echo(
            f"  fleet: its pods serve different models: {', '.join(sorted(served))}; each gets requests for its own."
        )
    for model in config.models:
        if served and not served & {model.name, *model.aliases}:
            click.echo(f"✗ {model.name}: {_MISSING}.")
            wrong += 1
    click.echo("Nothing is wrong." if not wrong else f"Wrong: {wrong}.")
    return wrong


class _Loaded(NamedTuple):
    local: list[Local]
    tls: dict[str, Tls | None]  # by pod; those whose files can't be used are left out
    findings: Findings


def _with_pods(config: Config) -> tuple[Config, list[str]]:
    """The configuration as if all pods that its sources know now had been given by hand; and what is wrong with these.

    Raises `ConfigError`.
    """
    told = asyncio.run(told_now(config.discovery, _DISCOVERY_S))
    discovery = config.discovery.model_copy(update={"static": tuple(told.pods)})
    return config.model_copy(update={"discovery": discovery}), told.troubles


def _load(config: Config, troubles: Sequence[str]) -> _Loaded:
    """The files that are named: what start-up would refuse is said in the same words. `troubles`: of sources."""
    findings, local, tls, trusts = Findings("configuration"), [], {}, Certificates(config.upstream)
    for trouble in troubles:
        findings.wrong(f"{trouble}.")
    if not config.discovery.static:
        findings.wrong("there are no pods: neither in it nor where it says that there are some.")
    for model in config.models:
        if model.tokenizer == ASK_THE_PODS:
            continue
        try:
            local.append(Local(model, renderings_of(model), Tokenizer(Path(model.tokenizer))))
        except ConfigError as error:
            findings.wrong(error.message)
    for pod in config.discovery.static:
        try:
            tls[pod.name] = trusts.of(pod)
        except ConfigError as error:
            findings.wrong(error.message)
    return _Loaded(local, tls, findings)


async def _check_pods(config: Config, found: _Loaded, wait_s: float) -> list[Findings]:
    """All pods, some at a time; each one's lines are printed as soon as those before it are."""
    room = asyncio.Semaphore(_PODS_AT_ONCE)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    bound: BoundEndpoint | str | None
    try:
        bound = bound_endpoint(context, config, time.monotonic)
    except ConfigError as error:
        bound = error.message

    async def one(pod: StaticPod) -> Findings:
        async with room:
            return await _Examination(config, pod, found, context, bound, wait_s).run()

    try:
        if isinstance(bound, BoundEndpoint):
            bound.start()
        tasks = [asyncio.create_task(one(pod)) for pod in config.discovery.static if pod.name in found.tls]
        done = []
        for task in tasks:
            findings = await task
            done.append(findings)
            for line in findings.lines:
                click.echo(line)
        return done
    finally:
        if isinstance(bound, BoundEndpoint):
            bound.stop()
        context.destroy(linger=0)


class _Examination:
    """Of one pod."""

    def __init__(
        self,
        config: Config,
        pod: StaticPod,
        found: _Loaded,
        context: zmq.Context[zmq.Socket[bytes]],
        bound: BoundEndpoint | str | None,
        wait_s: float,
    ) -> None:
        """`bound`: the endpoint that publishers connect to, or why there can't be one here."""
        self._config = config
        self._pod = pod
        self._local = found.local
        self._tls = found.tls[pod.name]
        self._context = context
        self._bound = bound
        self._wait_s = wait_s
        self._findings = Findings(pod.name)

    async def run(self) -> Findings:
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
            await self._tokens(client)
        return self._findings

    async def _models(self, client: PodClient) -> None:
        models = await _json(client.get(b"/v1/models"))
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
            self._findings.wrong("no event feed is configured: it is routed by what was sent to it.")
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
        sources = await _json(client.get(b"/kv_event_sources"))
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
            if wanted is not None and self._serves(model) and wanted != learned:
                findings.wrong(f"its blocks have {learned} tokens, and not {wanted}, which {model.name} is to have.")
                return
        findings.fine(f"its blocks have {learned} tokens.")

    def _serves(self, model: ModelConfig) -> bool:
        return bool(self._findings.served & {model.name, *model.aliases})

    # --- token ids

    async def _tokens(self, client: PodClient) -> None:
        for model in self._config.models:
            if model.tokenizer == ASK_THE_PODS and self._serves(model):
                ids = await self._ask(client, model, _ASKED[0][1])
                if isinstance(ids, list):
                    self._findings.fine(f"{model.name}: /tokenize answers.")
                else:
                    self._findings.wrong(f"{model.name}: {ids}: its prompts can't be tokenized.")
                await self._source(client, model, None)
        for local in self._local:
            if self._serves(local.config):
                own = self._own_encoding(local)
                await self._compare(client, local, own)
                await self._source(client, local.config, local)

    def _own_encoding(self, local: Local | None) -> OwnEncoding | None:
        """How vLLM encodes the model's chats, where that is not by its template."""
        own, typed = None, False
        if local is not None:
            folder = Path(local.config.tokenizer)
            described = config_of(folder)
            own, typed = by_folder(folder, described), "model_type" in described
        return own if typed or own else by_names([*self._findings.served, *self._findings.roots])

    async def _source(self, client: PodClient, model: ModelConfig, local: Local | None) -> None:
        """Whose tokens the model's chats will be routed by, and why."""
        own = self._own_encoding(local)
        if local is not None and own is None:
            self._findings.fine(f"{model.name}: tokens are made here (local), by {model.tokenizer}.")
            return
        why = "it has no tokenizer here" if own is None else f"vLLM encodes its chats by code of its own ({own})"
        rendered = await self._renders(client, model)
        if rendered is None:
            self._findings.fine(f"{model.name}: {why}: chats' tokens are those of the pod's /render (render).")
            return
        version = await _json(client.get(b"/version"))
        if is_tokenized(own, [version.get("version") if isinstance(version, dict) else None]):
            self._findings.fine(
                f"{model.name}: {why}, and {rendered}: chats' tokens are those of the pod's /tokenize (tokenize)."
            )
        else:
            self._findings.wrong(
                f"{model.name}: {why}, {rendered}, and its /tokenize is not what they are encoded by: chats are routed "
                "by their text (vLLM's --enable-scale-out has it render)."
            )

    async def _renders(self, client: PodClient, model: ModelConfig) -> str | None:
        """None, or why the pod does not render."""
        name = next(name for name in (model.name, *model.aliases) if name in self._findings.served)
        try:
            answer = await client.post(b"/v1/chat/completions/render", orjson.dumps({**_CHAT, "model": name}))
        except UpstreamError as error:
            return f"its /render can't be asked ({error})"
        return None if answer.fine else f"its /render says {answer.status}"

    async def _compare(self, client: PodClient, local: Local, own: OwnEncoding | None) -> None:
        """Are the token ids that we make the pod's own? Not of chats that are not made here: `own`."""
        model, compared = local.config.name, 0
        told = await _json(client.get(b"/version"))
        version = told.get("version") if isinstance(told, dict) else None
        asked = _ASKED if own is None else _ASKED[: len(_TEXTS)]
        for what, body in asked:
            theirs = await self._ask(client, local.config, body)
            try:
                ours: list[int] | str = local.ids({**body, "model": model}, version)
            except RenderError as error:
                ours = error.reason
            if isinstance(theirs, str) and isinstance(ours, str):
                continue  # a model without a chat template: nobody can
            if isinstance(theirs, str):
                self._findings.wrong(f"{model}: {theirs}: token ids of {what} can't be compared.")
                return
            if isinstance(ours, str):
                self._findings.wrong(f"{model}: {what} can't be rendered here ({ours}), the pod can.")
            elif ours != theirs:
                self._findings.wrong(
                    f"{model}: token ids of {what} differ from the pod's: {_difference(ours, theirs)}."
                )
            else:
                compared += 1
        if compared:
            self._findings.fine(f"{model}: token ids equal the pod's own, for {compared} of {len(asked)} prompts.")

    async def _ask(self, client: PodClient, model: ModelConfig, body: dict[str, Any]) -> list[int] | str:
        """The pod's token ids, or why it gives none."""
        name = next(name for name in (model.name, *model.aliases) if name in self._findings.served)
        try:
            answer = await client.post(b"/tokenize", orjson.dumps({**body, "model": name}))
            if not answer.fine:
                return f"/tokenize says {answer.status}"
            return [int(number) for number in orjson.loads(answer.body)["tokens"]]
        except UpstreamError as error:
            return f"/tokenize can't be asked ({error})"
        except (ValueError, KeyError, TypeError):
            return "/tokenize gives no list of token ids"


def _difference(ours: list[int], theirs: list[int]) -> str:
    """Both lists around their first difference."""
    pairs = zip(ours, theirs, strict=False)
    at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    start, end = max(0, at - _AROUND), at + _AROUND + 1
    return f"at place {at}, ours {ours[start:end]} ({len(ours)} in all), the pod's {theirs[start:end]} ({len(theirs)})"


async def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for something that may not come."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.02)


async def _json(asked: Awaitable[PodAnswer]) -> Any:
    try:
        answer = await asked
        return orjson.loads(answer.body) if answer.fine else None
    except (UpstreamError, ValueError):
        return None
