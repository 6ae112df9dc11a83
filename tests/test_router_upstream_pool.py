"""Conversations with bad pods on real sockets: what our HTTP client holds to, whatever they do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router.upstream.failures import (
    BrokenResponse,
    ConnectFailed,
    ConnectTimeout,
    PoolFull,
    ResponseTimeout,
    UnsendableRequest,
    UpstreamError,
)
from router.upstream.pool import Address, Tls, Upstream, UpstreamLimits
from tests.fakes.cycles import garbage
from tests.fakes.limits import upstream_limits
from tests.fakes.peers import OK, Call, Peer, answer, peer, settled, until

BODY_MAX = 1 << 20  # more than any answer here

ON_BOTH_LOOPS = True  # their transports differ at the edges

QUICK = upstream_limits(sweep_interval_s=0.01)
JSON = [(b"content-type", b"application/json")]


@asynccontextmanager
async def client(target: Peer, limits: UpstreamLimits = QUICK, tls: Tls | None = None) -> AsyncIterator[Upstream]:
    """An upstream that must leave nothing behind: no connection, no task, no error that only the loop saw."""
    tasks, mishaps = asyncio.all_tasks(), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mishaps.append(context))
    upstream = Upstream(target.address, limits, tls)
    try:
        yield upstream
    finally:
        await upstream.aclose()
        assert (upstream.connections, upstream.idle) == (0, 0)
        ours = [task for task in asyncio.all_tasks() - tasks if "router/" in repr(task)]
        assert not ours and not mishaps


async def post(upstream: Upstream, body: bytes = b"{}") -> bytes:
    """One whole exchange; the response's body."""
    response = await upstream.request("POST", b"/v1/x", JSON, body)
    try:
        return await response.read(BODY_MAX)
    finally:
        await response.aclose()


async def test_bytewise_with_interim_and_trailers() -> None:
    """A reply that comes byte by byte, after a 1xx and with trailers, is the reply."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send_bytewise(
            b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n"
        )

    async with peer(pod) as seen, client(seen) as upstream:
        response = await upstream.request("POST", b"/", [], b"")
        assert (response.status, await response.read(BODY_MAX)) == (201, b"abcde")
        assert response.trailers == [(b"x-sum", b"5")]
        assert upstream.idle == 1


async def test_a_clean_end_frees_the_connection() -> None:
    """Exchanges one after the other share one connection, and each body arrives as it was sent."""
    async with peer(answer) as seen, client(seen) as upstream:
        for number in range(5):
            assert await post(upstream, b"%d" % number) == b"ok"
        assert seen.connections == 1
        assert [call.body for call in seen.calls] == [b"0", b"1", b"2", b"3", b"4"]


async def test_concurrent_exchanges_do_not_mix() -> None:
    """Every exchange gets the answer to its own request, and every connection comes back, last used first."""

    async def echo(call: Call) -> None:
        body = await call.read_body()
        await asyncio.sleep(0.001 * (len(body) % 5))
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with peer(echo) as seen, client(seen) as upstream:
        for _ in range(3):
            bodies = [b"%d" % number * (number + 1) for number in range(40)]
            assert await asyncio.gather(*(post(upstream, body) for body in bodies)) == bodies
            assert upstream.idle == upstream.connections == 40
        await post(upstream)
        newest = seen.calls[-1].writer
        await post(upstream)
        assert seen.calls[-1].writer is newest and seen.connections == 40


async def test_close_delimited_body() -> None:
    """A body without a length ends with its connection, which is not used again."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        call.close()

    async with peer(pod) as seen, client(seen) as upstream:
        assert [await post(upstream), await post(upstream)] == [b"abc", b"abc"]
        assert seen.connections == 2


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("framing", [b"content-length: 100000", b"transfer-encoding: chunked"])
async def test_a_cut_body_is_broken(framing: bytes, reset: bool) -> None:
    """A body that ends too early fails after the bytes that came; it is never a clean end, nor tried again."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n5\r\nhello\r\n" % framing)
        await call.reader.read(1)  # the client has the first bytes
        call.reset() if reset else call.close()

    async with peer(pod) as seen, client(seen) as upstream:
        response = await upstream.request("POST", b"/", [], b"")
        first = await anext(response)
        assert first in (b"hello", b"5\r\nhello\r\n")
        seen.calls[0].reader.feed_data(b"!")
        with pytest.raises(BrokenResponse) as caught:
            await anext(response)
        assert not caught.value.before_first_byte
        assert seen.connections == 1


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 100 Continue\r\n\r\n", b"garbage\r\n\r\n"])
async def test_no_head_on_a_fresh_connection(data: bytes) -> None:
    """A pod that ends a fresh connection without a head has failed; we do not ask it twice."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(data)
        call.close()

    async with peer(pod) as seen, client(seen) as upstream:
        with pytest.raises(BrokenResponse) as caught:
            await post(upstream)
        assert caught.value.before_first_byte
        assert (len(seen.calls), upstream.stale_retries) == (1, 0)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_stale_connection_is_tried_once_on_a_fresh_one(reset: bool) -> None:
    """A reused connection that dies before the first byte costs nothing: the request goes out again, whole."""

    async def pod(call: Call) -> None:
        await call.read_body()
        if call.number == 1:
            call.reset() if reset else call.close()
        else:
            await call.send(OK)

    async with peer(pod) as seen, client(seen) as upstream:
        assert [await post(upstream, b"first"), await post(upstream, b"second")] == [b"ok", b"ok"]
        assert [call.body for call in seen.calls] == [b"first", b"second", b"second"]
        assert (seen.connections, upstream.stale_retries) == (2, 1)


async def test_the_second_try_is_the_last() -> None:
    """When the fresh connection dies too, the pod has failed: two tries, not three."""

    async def pod(call: Call) -> None:
        await call.read_body()
        if len(seen.calls) == 1:
            await call.send(OK)
        else:
            call.close()

    async with peer(pod) as seen, client(seen) as upstream:
        await post(upstream)
        with pytest.raises(BrokenResponse):
            await post(upstream)
        assert len(seen.calls) == 3


async def test_what_is_sent_once_goes_out_on_a_fresh_connection() -> None:
    """No kept connection is taken for it, which leaves open why it dies; one makes room where there must be."""
    async with peer(answer) as seen, client(seen, upstream_limits(connections_max=1)) as upstream:
        assert await post(upstream) == b"ok"
        response = await upstream.request("POST", b"/", [], fresh=True)
        assert await response.read(BODY_MAX) == b"ok"
        assert [call.number for call in seen.calls] == [0, 0]
        assert (upstream.connections, upstream.idle) == (1, 1)
        upload = await upstream.begin("POST", b"/", [], b"x", 1)
        upload.write(b"", last=True)
        await upload.ready()
        assert await upload.read(BODY_MAX) == b"ok"
        assert [call.number for call in seen.calls] == [0, 0, 0]


async def test_half_a_head_is_not_stale() -> None:
    """One byte of an answer on a reused connection means that the pod has the request: no second try."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(OK if call.number == 0 else b"H")
        if call.number:
            call.close()

    async with peer(pod) as seen, client(seen) as upstream:
        await post(upstream)
        with pytest.raises(BrokenResponse):
            await post(upstream)
        assert len(seen.calls) == 2


async def test_a_dead_idle_connection_is_not_chosen() -> None:
    """A connection that the pod closed while it was idle is forgotten at once."""

    async def pod(call: Call) -> None:
        await answer(call)
        call.close()

    async with peer(pod) as seen, client(seen) as upstream:
        await post(upstream)
        await until(lambda: upstream.connections == 0)
        await post(upstream)
        assert (seen.connections, upstream.stale_retries) == (2, 0)


async def test_an_answer_before_the_request_is_sent() -> None:
    """A pod may refuse a big body before it has read it: the answer counts, the connection does not come back."""

    async def pod(call: Call) -> None:
        await call.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await asyncio.sleep(10)

    async with peer(pod) as seen, client(seen) as upstream:
        response = await upstream.request("POST", b"/", [], b"x" * 30_000_000)
        assert (response.status, await response.read(BODY_MAX)) == (413, b"no")
        assert upstream.idle == 0
        await until(lambda: upstream.connections == 0)


async def test_a_big_body_to_a_slow_pod() -> None:
    """A request body far over all buffers arrives byte for byte."""
    body = bytes(range(256)) * 40_000

    async def pod(call: Call) -> None:
        await asyncio.sleep(0.05)
        await answer(call)

    async with peer(pod, limit=4096) as seen, client(seen) as upstream:
        assert await post(upstream, body) == b"ok"
        assert seen.calls[0].body == body
        assert upstream.idle == 1


@pytest.mark.parametrize("endless", [b"x: " + b"y" * 9000, b"x: y\r\n"])
async def test_an_endless_head_is_cut(endless: bytes) -> None:
    """Memory for a head is bounded; the connection of a pod that goes on is closed."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await call.send(endless)

    async with peer(pod) as seen, client(seen) as upstream:
        with pytest.raises(BrokenResponse, match="of head"):
            await post(upstream)
        await until(lambda: upstream.connections == 0)


async def test_a_slow_reader_slows_the_pod() -> None:
    """Reading stops when nobody takes the body, the pod's writes stall, and then every byte still comes."""
    total, sent = 64 * 1024 * 1024, 0

    async def pod(call: Call) -> None:
        nonlocal sent
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            await call.send(b"z" * 65536)
            sent += 65536

    limits = upstream_limits(buffer_bytes_max=128 * 1024, idle_timeout_s=0.15, sweep_interval_s=0.01)
    async with peer(pod) as seen, client(seen, limits) as upstream:
        response = await upstream.request("POST", b"/", [], b"")
        assert await settled(lambda: sent) < total
        assert response.buffered <= limits.buffer_bytes_max + 256 * 1024  # and one read
        received = 0
        async for chunk in response:
            received += len(chunk)
        assert received == total
        assert upstream.idle == 1


async def test_refused() -> None:
    """No listener: a named failure, at once, and nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    upstream = Upstream(address, QUICK)
    with pytest.raises(ConnectFailed) as caught:
        await post(upstream)
    assert (caught.value.reason, caught.value.before_first_byte) == ("connect_failed", True)
    await upstream.aclose()


async def test_connect_timeout() -> None:
    """A peer that accepts and then does not finish the TLS handshake is a connect timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        limits = upstream_limits(connect_timeout_s=0.05)
        upstream = Upstream(f"https://127.0.0.1:{silent.getsockname()[1]}", limits, Tls(ssl.create_default_context))
        with pytest.raises(ConnectTimeout):
            await post(upstream)
        await upstream.aclose()
        assert upstream.connections == 0


@pytest.mark.parametrize(
    ("limits", "data", "before"),
    [
        (upstream_limits(first_byte_timeout_s=0.05, sweep_interval_s=0.01), b"", True),
        (upstream_limits(first_byte_timeout_s=0.05, sweep_interval_s=0.01), b"HTTP/1.1 200 OK\r\n", True),
        (upstream_limits(idle_timeout_s=0.05, sweep_interval_s=0.01), OK[:-1], False),
        (upstream_limits(total_timeout_s=0.05, sweep_interval_s=0.01), OK[:-1], False),
        (upstream_limits(total_timeout_s=0.05, sweep_interval_s=0.01), b"", True),
    ],
    ids=["silent", "half a head", "half a body", "total, in the body", "total, before it"],
)
@pytest.mark.parametrize("reused", [False, True])
async def test_silence_is_a_timeout(limits: UpstreamLimits, data: bytes, before: bool, reused: bool) -> None:
    """Each limit on silence fails the exchange by name, closes the connection, and is not tried again."""

    async def pod(call: Call) -> None:
        await call.read_body()
        if reused and call.number == 0:
            await call.send(OK)
        else:
            await call.send(data)
            await call.gone()
            closed.set()

    closed = asyncio.Event()
    async with peer(pod) as seen, client(seen, limits) as upstream:
        if reused:
            await post(upstream)
        with pytest.raises(ResponseTimeout) as caught:
            await post(upstream)
        assert caught.value.before_first_byte is before
        assert seen.connections == 1
        await asyncio.wait_for(closed.wait(), 10)


async def test_a_steady_stream_is_not_silent() -> None:
    """A stream that outlives the limit on silence is no timeout while pieces come."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 60\r\n\r\n")
        for _ in range(60):
            await call.send(b"x")
            await asyncio.sleep(0.02)

    async with peer(pod) as seen, client(seen, upstream_limits(idle_timeout_s=1.0, sweep_interval_s=0.01)) as upstream:
        assert len(await post(upstream)) == 60


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"])
async def test_cancelling_closes_at_once(sent: bytes) -> None:
    """Who is cancelled while waiting leaves no connection behind, and the pod sees it closed."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(sent)
        arrived.set()
        await call.gone()
        closed.set()

    arrived, closed = asyncio.Event(), asyncio.Event()
    async with peer(pod) as seen, client(seen) as upstream:
        task = asyncio.create_task(post(upstream))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(closed.wait(), 10)
        assert upstream.idle == 0


async def test_who_leaves_while_it_connects_leaves_nothing() -> None:
    """Not even a cycle, in whatever step of the loop it is."""

    async def pod(call: Call) -> None:
        await call.gone()

    async with peer(pod) as there, client(there) as upstream:
        with garbage() as found:
            for steps in range(24):
                asking = asyncio.create_task(upstream.request("POST", b"/v1/x", JSON, b"{}"))
                for _ in range(steps // 2):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.wait([asking])
                del asking
            await until(lambda: not upstream.connections)
        assert not found


async def test_closing_a_finished_response_touches_nobody() -> None:
    """A response that has ended can't abort the connection that now serves another exchange."""
    release = asyncio.Event()

    async def pod(call: Call) -> None:
        await call.read_body()
        if call.number:
            await release.wait()
        await call.send(OK)

    async with peer(pod) as seen, client(seen) as upstream:
        first = await upstream.request("POST", b"/", [], b"")
        second = asyncio.create_task(post(upstream))
        await until(lambda: len(seen.calls) == 2)
        first.close()
        first.close()
        await first.aclose()
        release.set()
        assert await second == b"ok"
        assert await first.read(BODY_MAX) == b"ok"
        assert seen.connections == 1


async def test_an_unfinished_response_is_closed_once() -> None:
    """Closing early closes the connection; a reader that goes on is told, and does not hang."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await call.gone()
        closed.set()

    closed = asyncio.Event()
    async with peer(pod) as seen, client(seen) as upstream:
        response = await upstream.request("POST", b"/", [], b"")
        assert await anext(response) == b"x"
        reader = asyncio.create_task(response.read(BODY_MAX))
        await asyncio.sleep(0)
        response.close()
        response.close()
        with pytest.raises(UpstreamError):
            await reader
        await asyncio.wait_for(closed.wait(), 10)
        assert upstream.idle == 0


async def test_surplus_bytes_spoil_the_connection() -> None:
    """Bytes behind a reply, or on an idle connection, can't become the next reply."""

    async def pod(call: Call) -> None:
        await call.read_body()
        if len(seen.calls) == 1:
            await call.send(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        elif len(seen.calls) == 2:
            await call.send(OK)
            await may_write.wait()
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        else:
            await call.send(OK)

    may_write = asyncio.Event()
    async with peer(pod) as seen, client(seen) as upstream:
        assert await post(upstream) == b"ok"
        assert await post(upstream) == b"ok"
        assert upstream.idle == 1
        may_write.set()
        await until(lambda: upstream.idle == 0)
        assert await post(upstream) == b"ok"
        assert seen.connections == 3


async def test_connections_are_bounded() -> None:
    """Over `connections_max` a request is refused at once; when one is free again it is served."""
    release = asyncio.Event()

    async def pod(call: Call) -> None:
        await release.wait()
        await answer(call)

    async with peer(pod) as seen, client(seen, upstream_limits(connections_max=2)) as upstream:
        busy = [asyncio.create_task(post(upstream)) for _ in range(2)]
        await until(lambda: len(seen.calls) == 2)
        with pytest.raises(PoolFull):
            await post(upstream)
        release.set()
        assert await asyncio.gather(*busy) == [b"ok", b"ok"]
        assert await post(upstream) == b"ok"


async def test_idle_connections_are_bounded_in_number_and_time() -> None:
    """More than `idle_max` are not kept, and none for longer than `keep_idle_s`."""
    limits = upstream_limits(idle_max=3, keep_idle_s=0.2, sweep_interval_s=0.01)
    async with peer(answer) as seen, client(seen, limits) as upstream:
        await asyncio.gather(*(post(upstream) for _ in range(8)))
        assert upstream.idle <= 3
        await until(lambda: upstream.connections == 0)


async def test_an_old_idle_connection_is_not_used() -> None:
    """A connection older than `keep_idle_s` is not trusted, even before the sweeper has seen it."""
    limits = upstream_limits(keep_idle_s=0.0, sweep_interval_s=60)
    async with peer(answer) as seen, client(seen, limits) as upstream:
        await post(upstream)
        await post(upstream)
        assert seen.connections == 2


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 X\r\n\r\n", b"HTTP/1.1 304 X\r\ncontent-length: 9\r\n\r\n"])
async def test_replies_without_a_body(head: bytes) -> None:
    """204 and 304 are complete with their head."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(head)

    async with peer(pod) as seen, client(seen) as upstream:
        assert [await post(upstream), await post(upstream)] == [b"", b""]
        assert seen.connections == 1


async def test_head_requests() -> None:
    """HEAD has a length and no body, and its connection serves on."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(OK if call.head.startswith(b"POST") else OK[:-2])

    async with peer(pod) as seen, client(seen) as upstream:
        for _ in range(2):
            response = await upstream.request("HEAD", b"/", [])
            assert (await response.read(BODY_MAX), (b"content-length", b"2") in response.headers) == (b"", True)
            assert await post(upstream) == b"ok"
        assert seen.connections == 1


async def test_what_crosses_and_what_does_not() -> None:
    """Host is the address, the length is the body's, hop-by-hop fields stay on their side, both ways."""

    async def pod(call: Call) -> None:
        await call.read_body()
        await call.send(b"HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-End: 2\r\ncontent-length: 0\r\n\r\n")

    headers = [(b"host", b"evil"), (b"connection", b"x-mine"), (b"x-mine", b"1"), (b"x-yours", b"2")]
    async with peer(pod) as seen, client(seen) as upstream:
        response = await upstream.request("POST", b"/p?q=1", headers, b"abc")
        assert response.headers == [(b"x-end", b"2"), (b"content-length", b"0")]
        authority = seen.address.removeprefix("http://").encode()
        assert seen.calls[0].head == (
            b"POST /p?q=1 HTTP/1.1\r\nhost: %b\r\nx-yours: 2\r\ncontent-length: 3\r\n\r\n" % authority
        )


async def test_an_unsendable_request_is_not_sent() -> None:
    """What would not be one well-formed head is refused before any connection is made."""
    async with peer(answer) as seen, client(seen) as upstream:
        with pytest.raises(UnsendableRequest):
            await upstream.request("GET", b"/", [(b"x", b"1\r\nhost: evil")])
        assert seen.connections == 0


def no_delays(port: int) -> list[bool]:
    """Of each socket of this process that is connected to this port, whether TCP_NODELAY is on."""
    found = []
    for fd in map(int, os.listdir("/dev/fd")):
        with contextlib.suppress(OSError):  # the folder's own, which is closed by now; a socket that listens
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as sock:
                    name = sock.getpeername()
                    if isinstance(name, tuple) and name[1:2] == (port,):
                        found.append(bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
    return found


async def test_no_delay() -> None:
    """Small writes go out at once: TCP_NODELAY is on, on whichever loop."""
    async with peer(answer) as seen, client(seen) as upstream:
        await post(upstream)
        assert no_delays(int(seen.address.rpartition(":")[2])) == [True]


async def test_closing_the_upstream_ends_all_exchanges() -> None:
    """`aclose` fails what is in flight, waits until nothing is open, and is for good."""

    async def pod(call: Call) -> None:
        await call.gone()

    async with peer(pod) as seen, client(seen) as upstream:
        busy = asyncio.create_task(post(upstream))
        await until(lambda: len(seen.calls) == 1)
        await upstream.aclose()
        assert upstream.connections == 0
        with pytest.raises(BrokenResponse):
            await busy
        with pytest.raises(ConnectFailed):
            await post(upstream)


async def test_unix_socket(tmp_path: Path) -> None:
    """A pod behind a Unix socket is a pod; Host says localhost."""
    async with peer(answer, path=str(tmp_path / "pod.sock")) as seen, client(seen) as upstream:
        assert await post(upstream) == b"ok"
        assert b"\r\nhost: localhost\r\n" in seen.calls[0].head


async def test_ipv6() -> None:
    """IPv6 literals are connected to without and named with their brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    async with peer(answer, host="::1") as seen, client(seen) as upstream:
        assert await post(upstream) == b"ok"
        assert b"\r\nhost: [::1]:" in seen.calls[0].head


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here")
    folder = tmp_path_factory.mktemp("tls")
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*request.split(), *names, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


async def test_tls(certificate: Path) -> None:
    """Over TLS with a trusted certificate all is the same; an untrusted one is a failed connection."""
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    async with peer(answer, ssl=serving) as seen:
        seen.address = seen.address.replace("http:", "https:")
        async with client(seen, tls=Tls(lambda: trusting)) as upstream:
            assert [await post(upstream), await post(upstream)] == [b"ok", b"ok"]
            assert seen.connections == 1
        async with client(seen, tls=Tls(ssl.create_default_context)) as upstream:
            with pytest.raises(ConnectFailed, match="certificate"):
                await post(upstream)


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        ("http://pod-0:8000", b"pod-0:8000"),
        ("http://pod-0/", b"pod-0"),
        ("10.0.0.1:80", b"10.0.0.1"),
        ("https://pod", b"pod"),
        ("[::1]:8000", b"[::1]:8000"),
        ("unix:/run/pod.sock", b"localhost"),
        ("unix:///run/pod.sock", b"localhost"),
    ],
)
def test_addresses(text: str, authority: bytes) -> None:
    """All forms of an address say which Host they stand for."""
    assert Address.parse(text).authority == authority


@pytest.mark.parametrize(
    "text", ["", "ftp://x", "http://", "http://a/path", "http://u:p@a", "http://a?q", "unix:relative", "http://a:99999"]
)
def test_bad_addresses(text: str) -> None:
    """What is not a host and a port is refused when it is configured, not when it is used."""
    with pytest.raises(ValueError, match=r"address|path|[Pp]ort"):
        Address.parse(text)


def test_limits_that_contradict_each_other() -> None:
    """A body that must come whole has to fit the buffer, or it would wait for ever."""
    with pytest.raises(ValueError, match="whole_bytes_max"):
        upstream_limits(whole_bytes_max=10, buffer_bytes_max=9)
