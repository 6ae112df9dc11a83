"""The proxy between real clients, a real uvicorn and hand-written pods: what each side may rely on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from router.errors import NoFitPod, Saturated
from router.proxy.proxy import Outcome, Proxy
from router.proxy.usage import Usage
from router.server.asgi import Headers, Message, Receive, Scope, Send
from router.server.port import Port
from router.upstream.pool import Upstream, UpstreamLimits
from tests.fakes.limits import serving_limits, upstream_limits
from tests.fakes.peers import OK, Call, answer, peer, settled, until

ON_BOTH_LOOPS = True  # their transports differ at the edges
served_by: Callable[..., asyncio.Protocol] = HttpToolsProtocol


@pytest.fixture(autouse=True, params=["uvicorn", "ours"])
def _server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any ASGI server will do; ours also takes pieces of a body without a task's turn."""
    protocol = HttpToolsProtocol if request.param == "uvicorn" else Port(serving_limits())
    monkeypatch.setattr(f"{__name__}.served_by", protocol)


EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
QUICK = upstream_limits(sweep_interval_s=0.01)


def framed(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Taken:
    """An assignment that writes down what it is told."""

    def __init__(self, pod: str, upstream: Upstream) -> None:
        self.pod = pod
        self.upstream = upstream
        self.request_headers: Headers = [(b"x-request-id", b"id-1")]
        self.response_headers: Headers = [(b"x-warmroute-pod", pod.encode()), (b"x-request-id", b"id-1")]
        self.first_bytes = 0
        self.ends: list[str | Outcome] = []

    computes = False
    preparation = None

    def is_disputed(self, status: int) -> bool:
        return False

    def first_byte(self, now: float) -> None:
        assert not self.ends
        self.first_bytes += 1

    def failed(self, reason: str, now: float) -> None:
        self.ends.append(reason)

    def finished(self, outcome: Outcome, now: float) -> None:
        self.ends.append(outcome)

    @property
    def outcome(self) -> Outcome:
        """The one end that it must have had, which must be an outcome."""
        (end,) = self.ends
        assert isinstance(end, Outcome)
        return end


class InOrder:
    """Routes to the pods in their order; all that was taken is kept."""

    broken = 0

    def __init__(self, addresses: Sequence[str], limits: UpstreamLimits = QUICK) -> None:
        self.upstreams = {f"pod-{number}": Upstream(address, limits) for number, address in enumerate(addresses)}
        self.taken: list[Taken] = []
        self.excluded: list[frozenset[str]] = []

    def route(self, exclude: frozenset[str]) -> Taken:
        self.excluded.append(exclude)
        for pod, upstream in self.upstreams.items():
            if pod not in exclude:
                self.taken.append(Taken(pod, upstream))
                return self.taken[-1]
        raise NoFitPod("no pod is left")

    async def aclose(self) -> None:
        for upstream in self.upstreams.values():
            await upstream.aclose()


class Gateway:
    """A served proxy; `socket` speaks to it, `post` does so politely."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.app_tasks: set[asyncio.Task[Any]] = set()

    async def connect(self, **options: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, **options)

    async def send(self, body: bytes = b"{}", method: bytes = b"POST", **options: int) -> tuple[Any, Any]:
        """Send a request and leave the reading to the caller."""
        reader, writer = await self.connect(**options)
        head = (
            b"%b /v1/chat/completions?x=%%20y HTTP/1.1\r\nHost: client\r\nX-Request-Id: mine\r\nX-Keep: 1\r\n" % method
        )
        writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        return reader, writer

    async def post(self, body: bytes = b"{}", method: bytes = b"POST") -> tuple[bytes, bytes]:
        """The head and body bytes of the answer, up to the end of its framing. Raises if it is cut."""
        reader, writer = await self.send(body, method)
        try:
            async with asyncio.timeout(10):
                return await read_answer(reader, has_body=method != b"HEAD")
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader, *, has_body: bool = True) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if not has_body:
        return lower, b""
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return lower, body
    (length,) = [int(line.split()[1]) for line in lower.split(b"\r\n") if line.startswith(b"content-length")]
    return lower, await reader.readexactly(length)


@contextlib.asynccontextmanager
async def gateway(routes: InOrder, **options: Any) -> AsyncIterator[Gateway]:
    """A real uvicorn protocol on a real socket around `Proxy.forward`, that leaves nothing behind."""
    proxy = Proxy(**({"watch_after_s": 0.01} | options))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        here.app_tasks.add(task)
        try:
            message = await receive()
            body = message["body"]
            while message["more_body"]:
                message = await receive()
                body += message["body"]
            await proxy.forward(scope, receive, send, body, routes)
        finally:
            here.app_tasks.discard(task)

    config = Config(app, http="httptools", lifespan="off", log_config=None, access_log=False, server_header=False)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    server = await loop.create_server(lambda: served_by(config, state, {}), "127.0.0.1", 0)
    here = Gateway(server.sockets[0].getsockname()[1])
    try:
        yield here
        await until(lambda: not here.app_tasks)
        for taken in routes.taken:
            assert len(taken.ends) == 1, "each assignment ends exactly once"
        assert not proxy.watch.unwatched
        await until(lambda: not [task for task in asyncio.all_tasks() - before if "until_gone" in repr(task)])
    finally:
        server.close()
        for connection in tuple(state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        for task in tuple(here.app_tasks):
            task.cancel()
        await routes.aclose()
        await until(lambda: not state.connections)


async def test_bytes_are_what_they_were() -> None:
    """The pod gets the client's bytes, the client the pod's status, headers and body, and our three headers."""
    answer_body = b'{ "choices": [], "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}}\n'

    async def pod(call: Call) -> None:
        await call.read_body()
        head = (
            b"HTTP/1.1 418 Odd\r\nX-Pod: a\r\nx-request-id: pods\r\nConnection: x-hop\r\nx-hop: 1\r\nSet-Cookie: a\r\n"
        )
        await call.send(head + b"Set-Cookie: b\r\ncontent-length: %d\r\n\r\n%b" % (len(answer_body), answer_body))

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes) as here:
            head, body = await here.post(b'{ "model":\t"m" }')
    assert seen.calls[0].body == b'{ "model":\t"m" }'
    first, *fields = seen.calls[0].head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert first == b"POST /v1/chat/completions?x=%20y HTTP/1.1"
    assert sorted(fields) == sorted(
        [
            b"host: " + seen.address.removeprefix("http://").encode(),
            b"x-keep: 1",
            b"x-request-id: id-1",
            b"content-length: 16",
        ]
    )
    status, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert status.startswith(b"http/1.1 418")
    assert [field for field in fields if not field.startswith(b"date:")] == [
        b"x-pod: a",
        b"set-cookie: a",
        b"set-cookie: b",
        b"content-length: %d" % len(answer_body),
        b"x-warmroute-pod: pod-0",
        b"x-request-id: id-1",
    ]
    assert body == answer_body
    assert routes.taken[0].outcome == Outcome(418, len(answer_body), Usage(9, 4))
    assert routes.taken[0].first_bytes == 0  # of an error


async def test_events_pass_one_by_one() -> None:
    """A stream is not buffered: the pod sends the next event only when the client has the one before."""
    got = asyncio.Semaphore(0)

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(EVENT_STREAM)
        for number in range(20):
            await call.send(framed(b"data: %d\n\n" % number))
            await got.acquire()
        await call.send(framed(b'data: {"usage":{"prompt_tokens":5}}\n\n') + b"0\r\n\r\n")

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes) as here:
            reader, writer = await here.send()
            async with asyncio.timeout(10):
                await reader.readuntil(b"\r\n\r\n")
                for number in range(20):
                    assert await reader.readuntil(b"\n\n\r\n") == framed(b"data: %d\n\n" % number)
                    got.release()
                await reader.readuntil(b"0\r\n\r\n")
            writer.close()
    assert routes.taken[0].outcome.usage == Usage(5, None)


async def test_a_bytewise_stream() -> None:
    """A stream in pieces of one byte is the same stream, and its usage is still found."""
    stream = b'data: {"a":1}\n\ndata: {"usage":{"prompt_tokens":7}}\n\ndata: [DONE]\n\n'

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send_bytewise(EVENT_STREAM + framed(stream) + b"0\r\nx-trailer: 1\r\n\r\n")

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes) as here:
            head, body = await here.post()
    assert (body, routes.taken[0].outcome) == (stream, Outcome(200, len(stream), Usage(7, None)))
    assert b"content-length" not in head


async def drop(call: Call) -> None:
    """A pod that hangs up on a request."""
    await call.read_body()
    call.close()


async def reset(call: Call) -> None:
    """A pod that resets the connection in the middle of its head."""
    await call.read_body()
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-le")
    call.reset()


async def gibber(call: Call) -> None:
    """A pod that is none."""
    await call.read_body()
    await call.send(b"SSH-2.0-OpenSSH\r\n\r\n")


@pytest.mark.parametrize("bad", [drop, reset, gibber])
async def test_a_failure_before_the_first_byte_goes_to_the_next_pod(bad: Callable[[Call], Any]) -> None:
    """The next pod gets the same bytes, the client notices nothing, and each pod is asked once, within `breaks_max`."""
    async with peer(bad) as first, peer(bad) as second, peer(answer) as third:
        routes = InOrder([first.address, second.address, third.address])
        async with gateway(routes, breaks_max=2) as here:
            head, body = await here.post(b"same")
    assert (head[:12], body) == (b"http/1.1 200", b"ok")
    assert [[call.body for call in seen.calls] for seen in (first, second, third)] == [[b"same"]] * 3
    assert [taken.ends for taken in routes.taken[:2]] == [["broken_response"], ["broken_response"]]
    assert routes.taken[2].outcome.status == 200
    assert routes.excluded == [frozenset(), {"pod-0"}, {"pod-0", "pod-1"}]


async def test_attempts_are_bounded() -> None:
    """After `attempts_max` pods the client gets 502 as an OpenAI error, though others are left."""
    async with peer(drop) as first, peer(drop) as second, peer(answer) as third:
        routes = InOrder([first.address, second.address, third.address])
        async with gateway(routes, attempts_max=2, breaks_max=9) as here:
            head, body = await here.post()
    assert head.startswith(b"http/1.1 502") and b'"type":"bad_gateway"' in body
    assert b"x-request-id: id-1\r\n" in head
    assert not third.calls


async def test_no_pod_is_left() -> None:
    """Where every pod has failed, the client learns of the failure and not of an empty choice."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    routes = InOrder([address])
    async with gateway(routes) as here:
        head, body = await here.post()
    assert head.startswith(b"http/1.1 502") and b"pod-0" in body
    assert routes.taken[0].ends == ["connect_failed"]


async def test_a_pod_that_is_silent() -> None:
    """A pod that does not answer in time is 504."""

    async def silent(call: Call) -> None:
        await call.gone()

    async with peer(silent) as seen:
        routes = InOrder([seen.address], upstream_limits(first_byte_timeout_s=0.05, sweep_interval_s=0.01))
        async with gateway(routes) as here:
            head, body = await here.post()
    assert head.startswith(b"http/1.1 504") and b'"type":"gateway_timeout"' in body
    assert routes.taken[0].ends == ["response_timeout"]


@pytest.mark.parametrize(("error", "status"), [(NoFitPod("none"), 503), (Saturated("full"), 429)])
async def test_nothing_to_route_to(error: Exception, status: int) -> None:
    """A refusal of the first choice is told with its own status and Retry-After."""

    class Refusing(InOrder):
        def route(self, exclude: frozenset[str]) -> Taken:
            raise error

    async with gateway(Refusing([])) as here:
        head, body = await here.post()
    assert head.startswith(b"http/1.1 %d" % status) and b"retry-after: 1\r\n" in head and b'{"error":' in body


@pytest.mark.parametrize("end", [Call.close, Call.reset])
@pytest.mark.parametrize("framing", [b"transfer-encoding: chunked", b"content-length: 100000"])
async def test_a_failure_after_the_first_byte_is_seen_as_one(framing: bytes, end: Callable[[Call], None]) -> None:
    """The client gets what came and then a broken response, not a clean end; no other pod is asked."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing + framed(b"x" * 10))
        await may_end.wait()
        end(call)

    may_end = asyncio.Event()
    async with peer(pod) as first, peer(answer) as second:
        routes = InOrder([first.address, second.address])
        async with gateway(routes) as here:
            reader, writer = await here.send()
            await reader.readuntil(b"x" * 10)
            may_end.set()
            rest = await asyncio.wait_for(reader.read(), 10)
            writer.close()
    assert rest in (b"", b"\r\n")
    assert not second.calls
    outcome = routes.taken[0].outcome
    assert (outcome.status, outcome.error, outcome.client_gone) == (200, "broken_response", False)


async def test_a_cut_small_body_is_an_error() -> None:
    """A small JSON body that is cut has not reached the client: 502, and still no other pod is asked."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(OK[:-1])
        call.close()

    async with peer(pod) as first, peer(answer) as second:
        routes = InOrder([first.address, second.address])
        async with gateway(routes) as here:
            head, _ = await here.post()
    assert head.startswith(b"http/1.1 502")
    assert not second.calls
    assert routes.taken[0].outcome.error == "broken_response"


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", EVENT_STREAM, EVENT_STREAM + framed(b"data: 1\n\n")]
)
async def test_a_client_that_leaves_frees_the_pod(sent: bytes) -> None:
    """Whenever the client leaves, before or after the first byte, the pod's connection closes at once."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(sent)
        arrived.set()
        await call.gone()
        closed.set()

    arrived, closed = asyncio.Event(), asyncio.Event()
    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes) as here:
            _, writer = await here.send()
            await arrived.wait()
            writer.close()
            await asyncio.wait_for(closed.wait(), 10)
            await until(lambda: bool(routes.taken[0].ends))
    outcome = routes.taken[0].outcome
    assert outcome.client_gone and outcome.status in (None, 200)
    assert routes.taken[0].first_bytes == (1 if b"data:" in sent else 0)


async def test_a_client_that_leaves_while_it_is_slow() -> None:
    """A client that reads nothing stalls the pod, in bounded memory; when it leaves, the pod is freed."""
    sent, closed = 0, asyncio.Event()

    async def pod(call: Call) -> None:
        nonlocal sent
        await call.read_body()
        await call.send(EVENT_STREAM)
        try:
            while True:
                await call.send(framed(b"z" * 65536))
                sent += 65536
        except ConnectionError:
            closed.set()

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes) as here:
            _, writer = await here.send(limit=4096)
            stalled = await settled(lambda: sent)
            assert stalled < 64 * 1024 * 1024
            writer.transport.abort()
            await asyncio.wait_for(closed.wait(), 10)
            await until(lambda: bool(routes.taken[0].ends))
    assert routes.taken[0].outcome.client_gone


async def test_a_slow_client_gets_every_byte() -> None:
    """Back-pressure loses nothing."""
    total = 24 * 1024 * 1024

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        for number in range(total // 65536):
            await call.send(bytes([number % 256]) * 65536)

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes) as here:
            reader, writer = await here.send(limit=65536)
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.1)
            async with asyncio.timeout(20):
                for number in range(total // 65536):
                    assert await reader.readexactly(65536) == bytes([number % 256]) * 65536
            writer.close()
    assert routes.taken[0].outcome == Outcome(200, total, None)


@pytest.mark.parametrize("sent", [b"", EVENT_STREAM + framed(b"data: 1\n\n")])
async def test_cancelled_from_outside(sent: bytes) -> None:
    """A cancelled request settles its assignment, frees the pod and stays cancelled."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(sent)
        arrived.set()
        await call.gone()
        closed.set()

    arrived, closed = asyncio.Event(), asyncio.Event()
    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        task = asyncio.create_task(direct(routes))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(closed.wait(), 10)
        await routes.aclose()
    outcome = routes.taken[0].outcome
    assert (outcome.error, outcome.client_gone) == ("cancelled", False)


async def test_both_leave_at_once() -> None:
    """A cancellation from outside is not swallowed because the client has left too."""
    leaving = asyncio.Event()

    async def silent(call: Call) -> None:
        await call.gone()

    async def receive() -> Message:
        await leaving.wait()
        return {"type": "http.disconnect"}

    async with peer(silent) as seen:
        routes = InOrder([seen.address])
        task = asyncio.create_task(direct(routes, receive=receive))
        await until(lambda: bool(seen.calls))
        leaving.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await routes.aclose()
    assert len(routes.taken[0].ends) == 1


async def direct(
    routes: InOrder,
    receive: Receive | None = None,
    send: Send | None = None,
    **scope: Any,
) -> list[Message]:
    """`forward` without a server, for what no server here does."""
    sent: list[Message] = []

    async def wait_for_ever() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def keep(message: Message) -> None:
        sent.append(message)

    whole: Scope = {"type": "http", "method": "POST", "path": "/é", "query_string": b"", "headers": []} | scope
    await Proxy(watch_after_s=0.0).forward(whole, receive or wait_for_ever, send or keep, b"{}", routes)
    await until(lambda: not any("until_gone" in repr(task) for task in asyncio.all_tasks()))
    return sent


@pytest.mark.parametrize("supported", [True, False])
async def test_trailers(supported: bool) -> None:
    """Trailers reach the client where the server can send them, after the whole body."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n")
        await call.send(framed(b"abc") + b"0\r\nX-Sum: 3\r\n\r\n")

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        messages = await direct(routes, extensions={"http.response.trailers": {}} if supported else {})
        await routes.aclose()
    start, *bodies = messages
    assert start.get("trailers", False) is supported
    if supported:
        assert bodies.pop() == {"type": "http.response.trailers", "headers": [(b"x-sum", b"3")], "more_trailers": False}
    assert b"".join(message["body"] for message in bodies) == b"abc"
    assert [message["more_body"] for message in bodies][-1] is False
    assert seen.calls[0].head.startswith(b"POST /%C3%A9 HTTP/1.1\r\n")


async def test_head_and_body_go_together() -> None:
    """A small answer with a length is two messages, back to back, even if the pod sends it in pieces."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send_bytewise(OK)

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        messages = await direct(routes)
        await routes.aclose()
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    assert messages[1] == {"type": "http.response.body", "body": b"ok", "more_body": False}


async def test_a_server_that_raises_when_the_client_is_gone() -> None:
    """ASGI 2.4's way to say that the client has left is understood: no error of ours, and the pod is freed."""

    async def gone(message: Message) -> None:
        raise ConnectionResetError

    async with peer(answer) as seen:
        routes = InOrder([seen.address])
        await direct(routes, send=gone)
        await routes.aclose()
    assert routes.taken[0].outcome.client_gone


async def test_a_request_that_can_not_be_sent() -> None:
    """Headers that would break the request's head are the client's fault: 400, and no pod is asked."""
    async with peer(answer) as seen:
        routes = InOrder([seen.address])
        start, body = await direct(routes, headers=[(b"x", b"1\r\nhost: evil")])
        await routes.aclose()
    assert (start["status"], seen.connections) == (400, 0)
    assert b"invalid_request_error" in body["body"]
    assert routes.taken[0].outcome.error == "unsendable_request"


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 500\r\n\r\n"),
    ],
)
async def test_answers_without_a_body(method: bytes, reply: bytes) -> None:
    """HEAD, 204 and 304 end with their head on both sides, and both connections serve on."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(reply)

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes) as here:
            reader, writer = await here.connect()
            for _ in range(2):
                writer.write(b"%b / HTTP/1.1\r\nhost: x\r\n\r\n" % method)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                assert head.startswith(reply[:12])
            writer.close()
    assert seen.connections == 1
    assert all(taken.outcome.error is None for taken in routes.taken)


async def test_watched_requests_on_one_connection() -> None:
    """The watch over one request ends with it: the next request of the same client is not disturbed."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await asyncio.sleep(0.03)
        await call.send(OK)

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes, watch_after_s=0.0) as here:
            reader, writer = await here.connect()
            for _ in range(5):
                writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
                assert (await asyncio.wait_for(read_answer(reader), 10))[1] == b"ok"
            writer.close()
    assert seen.connections == 1
    assert [taken.outcome for taken in routes.taken] == [Outcome(200, 2, None)] * 5


async def test_a_request_leaves_no_cycle() -> None:
    """Answered or left, watched or not: what a request made dies by itself, and the collector finds none of it."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await asyncio.sleep(0.03)
        await call.send(EVENT_STREAM + framed(b"data: 1\n\n"))
        await asyncio.sleep(0.03)
        await call.send(framed(b""))

    gc.collect()
    gc.disable()
    try:
        async with peer(pod) as seen:
            routes = InOrder([seen.address])
            async with gateway(routes, watch_after_s=0.0) as here:
                for patience_s in (1.0, 0.0, 0.04):
                    reader, writer = await here.send()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(read_answer(reader), patience_s)
                    writer.close()
                    await until(lambda: not here.app_tasks)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [cycle for cycle in gc.garbage if type(cycle).__module__ == "router.proxy.proxy"] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert [taken.outcome.client_gone for taken in routes.taken] == [False, True, True]


async def test_many_at_once() -> None:
    """A hundred clients, a third of whom leave early: every answer is its own, and nothing is left over."""

    async def pod(call: Call) -> None:
        body = await call.read_body()
        await call.send(EVENT_STREAM)
        for _ in range(5):
            await asyncio.sleep(0.005)
            await call.send(framed(body))
        await call.send(b"0\r\n\r\n")

    async with peer(pod) as seen:
        routes = InOrder([seen.address])
        async with gateway(routes) as here:

            async def stays(body: bytes) -> bool:
                return (await here.post(body))[1] == body * 5

            async def leaves(body: bytes) -> bool:
                _, writer = await here.send(body)
                await asyncio.sleep(0.012)
                writer.transport.abort()
                return True

            bodies = [b"body-%d." % number for number in range(100)]
            results = await asyncio.gather(*((leaves if n % 3 == 0 else stays)(body) for n, body in enumerate(bodies)))
            assert all(results)
            await until(lambda: not here.app_tasks)
            upstream = routes.upstreams["pod-0"]
            await until(lambda: upstream.connections == upstream.idle)
    assert sum(taken.outcome.error is None and not taken.outcome.client_gone for taken in routes.taken) >= 66
