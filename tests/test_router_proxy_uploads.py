"""Forms and sounds that go on to a pod while they come: real sockets on both sides, nothing kept, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import Config as UvicornConfig
from uvicorn.server import ServerState

from router.config.settings import Config
from router.endpoints.app import create_app
from router.prompts.multipart import ModelOfForm, model_of_form
from router.server.port import Port
from router.service import Service
from router.upstream.pool import Upstream
from tests.fakes.cycles import garbage
from tests.fakes.houses import BadPod, House, reply
from tests.fakes.limits import serving_limits, upstream_limits
from tests.fakes.peers import Call, peer, settled, until
from tests.fakes.processes import gateway

ON_BOTH_LOOPS = True  # their transports differ at the edges

KIB, MIB = 2**10, 2**20
PATH = b"/v1/audio/transcriptions"
KEPT_MAX = 64 * KIB
PATIENCE_S = 10.0
SOUND = bytes(range(256)) * (3 * MIB // 256)
LARGE = SOUND * 8

Behaviour = Callable[[Call], Awaitable[None]]


def form(sound: bytes, model: str, model_last: bool = False) -> bytes:
    """A form as clients of the OpenAI API send it; curl has its fields in the order of its options."""
    fields = [
        b'--B\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % model.encode(),
        b'--B\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n' % sound,
    ]
    return b"".join(reversed(fields) if model_last else fields) + b"--B--\r\n"


def head(body: bytes | None, *headers: bytes, path: bytes = PATH) -> bytes:
    """Of a request; `body` None: it will come in chunks."""
    framing = b"transfer-encoding: chunked" if body is None else b"content-length: %d" % len(body)
    return b"\r\n".join((b"POST %b HTTP/1.1" % path, b"host: a", framing, *headers)) + b"\r\n\r\n"


async def body_of(call: Call) -> bytes:
    """All of a request's body, in either framing."""
    if b"\r\ntransfer-encoding: chunked\r\n" not in call.head:
        return await call.read_body()
    while size := int(await call.reader.readuntil(b"\r\n"), 16):
        call.body += await call.reader.readexactly(size)
        await call.reader.readexactly(2)
    await call.reader.readexactly(2)
    return call.body


async def hears(call: Call) -> None:
    """A pod that takes all of it."""
    await body_of(call)
    await call.send(reply(200, b"heard"))


class Pod(BadPod):
    """Fine when probed; an upload's body is its behaviour's to read."""

    def __init__(self, behaviour: Behaviour, model: str) -> None:
        super().__init__(behaviour)
        self.models = [{"id": model}]
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> None:
        if not call.head.startswith(b"POST"):
            await super().__call__(call)
            return
        self.calls.append(call)
        self.posts += 1
        self.busy += 1
        try:
            await self.behaviour(call)
        finally:
            self.busy -= 1


class Client:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def leave(self) -> None:
        self._writer.transport.abort()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
            assert length is not None
            return int(head.split()[1]), await self._reader.readexactly(int(length[1]))

    async def ask(self, body: bytes, **options: Any) -> tuple[int, bytes]:
        """Answered, maybe before all of it was sent."""
        sending = asyncio.ensure_future(self.send(head(body, **options) + body))
        try:
            answer = await self.answer()
            async with asyncio.timeout(PATIENCE_S):
                await sending
            return answer
        finally:
            sending.cancel()


class Uploads(House):
    """The gateway behind its own server."""

    def __init__(self, service: Service, pods: dict[str, Pod], **limits: Any) -> None:
        super().__init__(service, create_app(service), dict(pods))
        self.heard = pods
        self.front = Port(serving_limits(sweep_interval_s=0.02, **limits))
        self.port = 0

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        config, state, loop = UvicornConfig(self.app), ServerState(), asyncio.get_running_loop()
        config.load()
        server = await loop.create_server(lambda: self.front(config, state, {}), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
            server.close()
            await until(lambda: not state.tasks and not state.connections)
            await self.at_rest()
            assert self.front.bodies_bytes == 0
        finally:
            server.close()
            for connection in tuple(state.connections):
                connection.transport.abort()  # type: ignore[union-attr]

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def uploads(
    *behaviours: Behaviour, models: tuple[str, ...] = (), limits: dict[str, Any] | None = None, **sections: Any
) -> AsyncIterator[Uploads]:
    """The gateway in front of one pod for each behaviour; it must be at rest in the end."""
    named = models or ("speech",) * len(behaviours)
    pods = {f"pod-{n}": Pod(behaviour, named[n]) for n, behaviour in enumerate(behaviours)}
    async with contextlib.AsyncExitStack() as stack:
        for pod in pods.values():
            pod.seen = await stack.enter_async_context(peer(pod))
        static = [{"name": name, "address": pod.seen.address} for name, pod in pods.items()]
        given = {"scoring": {"policy": "round-robin"}, "probe": {"interval": 0.03}, **sections}
        given["gateway"] = {"upload_kept_max": KEPT_MAX, **given.get("gateway", {})}
        service = Service(Config.model_validate({"discovery": {"static": static}, **given}))
        async with service.running():
            here = Uploads(service, pods, **(limits or {}))
            async with here.served():
                yield here


# --- what arrives


@pytest.mark.parametrize("chunked", [False, True])
async def test_it_goes_on_while_it_comes(chunked: bool) -> None:
    """The pod has the beginning before the client has sent the end; then it has all of it, byte for byte."""
    body = form(SOUND, "speech")
    async with uploads(hears, hears, models=("chat", "speech")) as here, here.client() as client:
        pod = here.heard["pod-1"]
        half = len(body) // 2
        pieces = (body[:half], body[half:])
        if chunked:
            pieces = (b"%x\r\n%b\r\n" % (half, body[:half]), b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - half, body[half:]))
        await client.send(head(None if chunked else body) + pieces[0])
        await until(lambda: bool(pod.posts))
        await client.send(pieces[1])
        assert await client.answer() == (200, b"heard")
        (call,) = pod.calls
        assert call.body == body and here.pods["pod-0"].posts == 0
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
        assert framing in call.head.lower()


async def test_connections_are_used_again() -> None:
    """After an upload both connections are as good as new."""
    body = form(SOUND, "speech")
    async with uploads(hears) as here, here.client() as client:
        for sent in (body, form(b"small", "speech"), body, b"RIFF" + SOUND):
            assert await client.ask(sent) == (200, b"heard")
        posts = [call for call in here.pods["pod-0"].seen.calls if call.head.startswith(b"POST")]
        assert [call.body for call in posts] == [body, form(b"small", "speech"), body, b"RIFF" + SOUND]
        assert posts[1].writer is posts[0].writer


@pytest.mark.parametrize(
    "body", [form(SOUND, "speech", model_last=True), json.dumps({"model": "speech", "x": "y" * MIB}).encode()]
)
async def test_who_it_is_for_may_come_last(body: bytes) -> None:
    """What does not say so soon is read whole."""
    async with uploads(hears, hears, models=("chat", "speech")) as here, here.client() as client:
        assert await client.ask(body) == (200, b"heard")
        assert here.pods["pod-0"].posts == 0
        unknown = await client.ask(form(SOUND, "nobody"))
        assert unknown[0] == 404 and json.loads(unknown[1])["error"]["code"] == "model_not_found"
        assert await client.ask(form(SOUND, "chat")) == (200, b"heard")
        assert (await client.ask(b"RIFF" + SOUND))[0] == 400


async def test_what_clients_send(tmp_path: Path) -> None:
    """The official client's transcription, with a gateway as it is served."""
    async with contextlib.AsyncExitStack() as stack:
        here = [Pod(hears, model) for model in ("chat", "speech")]
        for pod in here:
            pod.seen = await stack.enter_async_context(peer(pod))

            async def transcribes(call: Call) -> None:
                await call.read_body()
                await call.send(reply(200, b'{"text": "hello"}', b"content-type: application/json"))

            pod.behaviour = transcribes
        static = [{"name": f"pod-{n}", "address": pod.seen.address} for n, pod in enumerate(here)]
        with contextlib.ExitStack() as outside:
            served = await asyncio.to_thread(outside.enter_context, gateway(tmp_path, static))
            official = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
            async with official as client:
                for _ in range(3):
                    made = await client.audio.transcriptions.create(model="speech", file=("a.wav", SOUND))
                    assert made.text == "hello"
            assert [pod.posts for pod in here] == [0, 3]
            assert all(SOUND in call.body for call in here[1].calls)


# --- pace


async def test_a_slow_pod_holds_the_client_back() -> None:
    """Of what the pod does not take, little is in memory, and is counted as that; nobody is timed out for it."""
    go = asyncio.Event()

    async def dawdles(call: Call) -> None:
        await go.wait()
        await hears(call)

    body = form(LARGE, "speech")
    limits = {"bodies_bytes_max": 2 * MIB, "body_timeout_s": 1.0, "body_rate_min": MIB}
    async with uploads(dawdles, limits=limits) as here, here.client() as client:
        asking = asyncio.ensure_future(client.ask(body))
        await until(lambda: bool(here.pods["pod-0"].posts))
        assert 0 < await settled(lambda: here.front.bodies_bytes) < MIB
        await asyncio.sleep(1.5)
        go.set()
        assert await asking == (200, b"heard")
        assert here.heard["pod-0"].calls[0].body == body


async def test_a_slow_client_is_not_the_pods_fault() -> None:
    """The pod's time to answer begins when it has all; then it does."""
    body, silent = form(SOUND, "speech"), asyncio.Event()

    async def listens(call: Call) -> None:
        await call.read_body()
        if not silent.is_set():
            await call.send(reply(200, b"heard"))

    async with uploads(listens, upstream={"first_byte_timeout": 0.8, "total_timeout": 1.2}) as here:
        async with here.client() as client:
            await client.send(head(body) + body[:MIB])
            await asyncio.sleep(1.5)
            await client.send(body[MIB:])
            assert await client.answer() == (200, b"heard")
        silent.set()
        async with here.client() as client:
            status, said = await client.ask(body)
            assert status == 504 and "no response within" in json.loads(said)["error"]["message"]


async def test_a_pod_that_takes_nothing() -> None:
    """It is not waited for without end."""

    told = asyncio.Event()

    async def sleeps(call: Call) -> None:
        await told.wait()

    async with uploads(sleeps, hears, upstream={"idle_timeout": 0.6}) as here, here.client() as client:
        answers = dict([await client.ask(form(LARGE, "speech")) for _ in range(2)])
        assert set(answers) == {200, 504} and b"taken nothing of the request" in answers[504]
        told.set()


# --- failures


@pytest.mark.parametrize("hangs_up", [False, True])
@pytest.mark.parametrize("status", [400, 413, 503])
async def test_an_early_answer(status: int, hangs_up: bool) -> None:
    """What the pod says before it has all reaches a client that is still sending, also if the pod hangs up on it."""

    async def refuses(call: Call) -> None:
        await call.reader.readexactly(MIB)
        await call.send(reply(status, b"too much"))
        if hangs_up:
            call.reset()
        else:
            await call.gone()

    async with uploads(refuses, hears) as here, here.client() as client:
        answers = [await client.ask(form(LARGE, "speech")) for _ in range(2)]
        assert sorted(answers) == [(200, b"heard"), (status, b"too much")]


async def test_a_pod_that_dies_amid_it() -> None:
    """Nobody has the bytes any more: no other pod is asked, and the client is told."""

    async def dies(call: Call) -> None:
        await call.reader.readexactly(MIB)
        call.reset()

    async with uploads(dies, dies) as here, here.client() as client:
        status, said = await client.ask(form(LARGE, "speech"))
        assert status == 502 and json.loads(said)["error"]["type"] == "bad_gateway"
        assert sum(pod.posts for pod in here.pods.values()) == 1


async def test_a_pod_that_can_not_be_reached() -> None:
    """As long as the beginning is kept, another pod may have it."""
    body = form(LARGE, "speech")
    async with uploads(hears, hears, hears) as here:
        for name in ("pod-0", "pod-1"):
            here.service.upstreams[name] = Upstream("127.0.0.1:1", upstream_limits())
        for _ in range(3):
            async with here.client() as client:
                assert await client.ask(body) == (200, b"heard")
        assert all(call.body == body for call in here.heard["pod-2"].calls)


async def test_a_refusal_before_more_has_come() -> None:
    """Likewise where a pod refuses what it has seen the beginning of."""
    body = form(SOUND, "speech")

    async def is_full(call: Call) -> None:
        await call.send(reply(503, b"full"))
        await call.gone()

    async with uploads(is_full, hears) as here:
        for _ in range(2):
            async with here.client() as client:
                await client.send(head(body) + body[:KEPT_MAX])
                await until(lambda: bool(here.pods["pod-1"].busy))
                await client.send(body[KEPT_MAX:])
                assert await client.answer() == (200, b"heard")
        assert here.pods["pod-0"].posts and [call.body for call in here.heard["pod-1"].calls] == [body] * 2


@pytest.mark.parametrize("reads", [False, True])
async def test_a_client_that_leaves(reads: bool) -> None:
    """The pod's connection is dropped at once, whatever it waits for."""
    gone = asyncio.Event()

    async def notices(call: Call) -> None:
        if reads:
            await call.gone()
            gone.set()
        else:
            await gone.wait()

    async with uploads(notices) as here:
        async with here.client() as client:
            await client.send(head(LARGE) + form(SOUND[:MIB], "speech"))
            await until(lambda: bool(here.pods["pod-0"].busy))
        await until(lambda: here.service.in_flight == 0)
        gone.set()


async def test_too_much_of_it() -> None:
    """A body of unknown length that turns out too large: 413, and the pod is let go."""
    body = form(SOUND, "speech")

    async def reads_on(call: Call) -> None:
        await call.gone()

    async with uploads(reads_on, limits={"body_bytes_max": MIB}) as here, here.client() as client:
        await client.send(head(None) + b"%x\r\n%b\r\n" % (MIB // 2, body[: MIB // 2]))
        await until(lambda: bool(here.pods["pod-0"].busy))
        await client.send(b"%x\r\n%b\r\n" % (MIB, body[MIB : 2 * MIB]))
        assert (await client.answer())[0] == 413


@pytest.mark.parametrize("drips", [False, True])
async def test_a_client_that_stalls(drips: bool) -> None:
    """An upload that a pod has begun to take, and that stops, or goes on a byte at a time: 408, the pod is let go, and
    it is not its fault."""
    body = form(SOUND, "speech")

    async def reads_on(call: Call) -> None:
        await call.gone()

    limits = {"body_timeout_s": 0.3, "body_rate_min": 10 * MIB}
    async with uploads(reads_on, limits=limits) as here, here.client() as client:
        await client.send(head(None) + b"%x\r\n%b\r\n" % (MIB, body[:MIB]))
        await until(lambda: bool(here.pods["pod-0"].busy))
        answer = asyncio.ensure_future(client.answer())
        while drips and not answer.done():
            await client.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.01)
        assert (await answer)[0] == 408
        await until(lambda: not here.pods["pod-0"].busy)
        assert not here.pod("pod-0").breaker.tripped and here.pod("pod-0").fit(0.0)


async def test_nothing_is_left() -> None:
    """No way out leaves a cycle that would hold what was sent."""

    async def dies(call: Call) -> None:
        await call.reader.readexactly(MIB)
        call.reset()

    async def refuses(call: Call) -> None:
        await call.send(reply(413, b"too much"))
        await call.gone()

    for behaviour in (hears, dies, refuses):
        async with uploads(behaviour, breaker={"failures_in_row": 100}) as here:
            with garbage() as found:
                for leaves in (False, True) * 3:
                    async with here.client() as client:
                        if leaves:
                            asked = here.pods["pod-0"].posts
                            await client.send(head(LARGE) + form(SOUND[:MIB], "speech"))
                            await until(lambda asked=asked: here.pods["pod-0"].posts > asked)  # type: ignore[misc]
                        else:
                            await client.ask(form(SOUND, "speech"))
                await until(lambda: here.service.in_flight == 0)
            assert not found


# --- whose is it?


FORM = form(b"x" * 300, "speech", model_last=True)


@given(st.lists(st.integers(1, len(FORM)), max_size=20))
def test_a_form_may_come_in_any_pieces(cuts: list[int]) -> None:
    """The model is known when its field is whole, not before, and then stays."""
    looked = ModelOfForm()
    for end in sorted(cuts):
        assert looked.look(FORM[:end]) == model_of_form(FORM[:end])
    assert looked.look(FORM) == "speech" and looked.settled
