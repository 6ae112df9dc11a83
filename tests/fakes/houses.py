"""The gateway in front of bad pods on real sockets, and its clients without a server between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from router.config.settings import Config
from router.core.fleet import Pod
from router.endpoints.app import create_app
from router.endpoints.data_plane import Gateway
from router.proxy.proxy import Message
from router.service import Service
from tests.fakes.peers import Call, Peer, peer, until

MODEL = "tiny-qwen"
TOKENIZER = Path(__file__).parents[1] / "vectors" / "vllm-0.32.0" / "tokenizer"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: 1\n\n\r\n"
EVENTS = 3
PATIENCE_S = 10.0
Behaviour = Callable[[Call], Awaitable[None]]


def reply(status: int, body: bytes = b"{}", *headers: bytes) -> bytes:
    """A whole answer."""
    head = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %d Said\r\n%bcontent-length: %d\r\n\r\n%b" % (status, head, len(body), body)


def says(status: int, body: bytes = b"{}", *headers: bytes) -> Behaviour:
    """A pod that answers all requests so."""

    async def behave(call: Call) -> None:
        await call.send(reply(status, body, *headers))

    return behave


async def dies(call: Call) -> None:
    """A pod that hangs up."""
    call.reset()


async def hangs(call: Call) -> None:
    """A pod that never answers."""
    await call.gone()


async def streams(call: Call) -> None:
    """A pod that streams."""
    await call.send(STREAM)
    for _ in range(EVENTS):
        await asyncio.sleep(0.002)
        await call.send(EVENT)
    await call.send(b"0\r\n\r\n")


async def streams_for_ever(call: Call) -> None:
    """A pod that streams, and does not end."""
    await call.send(STREAM)
    for _ in range(EVENTS):
        await asyncio.sleep(0.002)
        await call.send(EVENT)
    await call.gone()


class BadPod:
    """Fine when probed; with requests it does what its behaviour says. `posts` are those that it got; `attempts` are
    their ids: a request whose kept connection was too old comes once more, and is one attempt."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.posts = 0
        self.attempts: set[bytes] = set()
        self.busy = 0
        self.order: list[str] = []
        self.models: list[dict[str, Any]] = [{"id": MODEL}]
        self.seen = Peer()

    async def __call__(self, call: Call) -> None:
        await call.read_body()
        if call.head.startswith(b"GET /health "):
            await call.send(reply(200))
        elif call.head.startswith(b"GET /v1/models "):
            await call.send(reply(200, json.dumps({"data": self.models}).encode()))
        elif not call.head.startswith((b"POST /v1/completions ", b"POST /v1/embeddings ")):
            await call.send(reply(404))
        else:
            self.posts += 1
            self.attempts.add(re.findall(rb"x-request-id: (.*)\r", call.head)[0])
            self.busy += 1
            self.order.append(json.loads(call.body).get("user", ""))
            try:
                await self.behaviour(call)
            finally:
                self.busy -= 1


class Answer(NamedTuple):
    """What a client got."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class House:
    """The gateway, and its pods by name."""

    def __init__(self, service: Service, app: Gateway, pods: dict[str, BadPod]) -> None:
        self.service = service
        self.app = app
        self.pods = pods

    def pod(self, name: str) -> Pod:
        return self.service.core.fleet.pods[name]

    async def ask(
        self, body: dict[str, Any] | bytes | None = None, path: str = "/v1/completions", **headers: str
    ) -> Answer:
        """One request of a client that stays."""
        client = Client(self.app, body or {}, headers, path)
        async with asyncio.timeout(PATIENCE_S):
            await client.run()
        return client.answer

    async def metric(self, series: str) -> float:
        """The value of one series, 0 if it is not there."""
        text = self.service.metrics.text().decode()
        return next((float(at.rpartition(" ")[2]) for at in text.splitlines() if at.rpartition(" ")[0] == series), 0.0)

    async def at_rest(self) -> None:
        """Nothing is on its way, nothing is held; waits for the pods to notice."""
        core = self.service.core
        loads = [(rank.load.requests, rank.load.prefill_tokens) for rank in core.fleet.ranks]
        assert loads == [(0, 0)] * len(loads)
        assert (core.in_flight, core.queue.waiting, core.queue.flows, self.service.in_flight) == (0, 0, 0, 0)
        await until(lambda: all(upstream.connections == upstream.idle for upstream in self.service.upstreams.values()))
        await until(lambda: not any(pod.busy for pod in self.pods.values()))


class Client:
    """One request, without a server between: what ASGI says is what this client sees. It may leave."""

    def __init__(
        self, app: Gateway, body: dict[str, Any] | bytes, headers: dict[str, str], path: str = "/v1/completions"
    ) -> None:
        """`body`: bytes go out as they are."""
        self._app = app
        self._body: bytes | None = (
            body if isinstance(body, bytes) else json.dumps({"model": MODEL, "prompt": "x", **body}).encode()
        )
        fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self._scope = {"type": "http", "method": "POST", "path": path, "headers": fields}
        self._left = asyncio.Event()
        self._sent: list[Message] = []
        self.events = asyncio.Semaphore(0)

    async def run(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    def leave(self) -> None:
        self._left.set()

    @property
    def asked_for_body(self) -> bool:
        return self._body is None

    @property
    def started(self) -> bool:
        return bool(self._sent)

    @property
    def answer(self) -> Answer:
        start, *rest = self._sent
        assert rest[-1]["more_body"] is False
        return Answer(start["status"], dict(start["headers"]), b"".join(message["body"] for message in rest))

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._left.is_set():
            raise OSError("the client has left")
        self._sent.append(message)
        if message.get("body"):
            self.events.release()


@contextlib.asynccontextmanager
async def house(*behaviours: Behaviour, **sections: Any) -> AsyncIterator[House]:
    """The gateway in front of one pod for each behaviour: pod-0, pod-1 … It must be at rest in the end."""
    pods = {f"pod-{number}": BadPod(behaviour) for number, behaviour in enumerate(behaviours)}
    async with contextlib.AsyncExitStack() as stack:
        for pod in pods.values():
            pod.seen = await stack.enter_async_context(peer(pod))
        static = [{"name": name, "address": pod.seen.address} for name, pod in pods.items()]
        given = {"scoring": {"policy": "round-robin"}, "probe": {"interval": 0.03}, **sections}
        service = Service(Config.model_validate({"discovery": {"static": static}, **given}))
        async with service.running():
            here = House(service, create_app(service), pods)
            yield here
            await here.at_rest()


TOKENIZED: dict[str, Any] = {
    "models": [{"name": MODEL, "tokenizer": str(TOKENIZER), "block_size": 16}],
    "upstream": {"retry_floor": 1000},
    "breaker": {"failures_in_row": 1000, "failure_share": 1},
}
