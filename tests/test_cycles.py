"""What is over leaves nothing for the collector of cycles: that would hold the request's body until it looks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from uvicorn import Config as UvicornConfig
from uvicorn.server import ServerState

from router.proxy.proxy import Proxy
from router.server.port import Port
from router.upstream.pool import Upstream
from tests.fakes.cycles import garbage
from tests.fakes.houses import (
    MODEL,
    PATIENCE_S,
    STREAM,
    TOKENIZED,
    Behaviour,
    Client,
    House,
    dies,
    hangs,
    house,
    says,
    streams,
    streams_for_ever,
)
from tests.fakes.limits import serving_limits, upstream_limits
from tests.fakes.peers import Call, until

ON_BOTH_LOOPS = True

REQUESTS = 12
AT_ONCE = 4
QUEUE_FILLERS = 4  # connections that nobody accepts

Ask = Callable[[int], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def served(here: House, **limits: Any) -> AsyncIterator[int]:
    """The gateway behind our own server; its port."""
    config = UvicornConfig(here.app)
    config.load()
    front, state, loop = Port(serving_limits(**limits)), ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: front(config, state, {}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await until(lambda: not state.tasks)
        server.close()
        await server.wait_closed()


def request(body: bytes, path: bytes = b"/v1/completions", more: bytes = b"") -> bytes:
    """One request, on a connection of its own."""
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%bcontent-length: %d\r\n\r\n"
    return head % (path, more, len(body)) + body


def completion(number: int, **fields: Any) -> bytes:
    """A body that nobody has sent before."""
    return json.dumps({"model": MODEL, "prompt": f"{number} " + "words of a prompt " * 99, **fields}).encode()


async def exchanged(port: int, data: bytes, leave_after: int | None = None) -> bytes:
    """Send, and take all that comes (or leave after so many bytes)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                return await (reader.read() if leave_after is None else reader.read(leave_after))
            return b""
    finally:
        writer.transport.abort()


async def cuts(call: Call) -> None:
    """A pod that dies in the middle of its answer."""
    await call.send(STREAM + b"9\r\ndata: 1\n\n\r\n")
    await asyncio.sleep(0.01)
    call.reset()


async def closes(call: Call) -> None:
    """A pod that ends its answer before its end."""
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nabc")
    call.close()


async def babbles(call: Call) -> None:
    """A pod that does not speak HTTP."""
    await call.send(b"what do you want\r\n\r\n")
    call.close()


async def starts_and_hangs(call: Call) -> None:
    """A pod that is silent in the middle of its answer."""
    await call.send(STREAM + b"9\r\ndata: 1\n\n\r\n")
    await call.gone()


async def fails_in_a_stream(call: Call) -> None:
    """A pod that tells an error below a head that is fine."""
    error = b'data: {"error":{"message":"no","code":500}}\n\n'
    await call.send(STREAM + b"%x\r\n%b\r\n0\r\n\r\n" % (len(error), error))


QUICK = {"first_byte_timeout": 0.1, "idle_timeout": 0.1}
PATIENT = {"retry_floor": 1000}
NO_BREAKER = {"failures_in_row": 1000, "failure_share": 1}

CROWDED = {"gateway": {"requests_max": 1}, "upstream": QUICK}
ONE_AT_A_TIME = {"upstream": {"connections_max": 1, **QUICK}}

CASES: dict[str, tuple[list[Behaviour], dict[str, Any], bytes]] = {
    "served": ([says(200)], {}, b" 200 "),
    "streamed": ([streams], {}, b" 200 "),
    "refused by the pod": ([says(503)], {}, b" 503 "),
    "refused, then served": ([says(503), says(200)], {}, b" 200 "),
    "an error of the pod's": ([says(500)], {}, b" 500 "),
    "the client's fault": ([says(400)], {}, b" 400 "),
    "disputed, then served": ([says(401), says(200)], {}, b" 200 "),
    "disputed by all": ([says(404), says(404)], {}, b" 404 "),
    "doubted, then served": ([says(400), says(200)], {}, b" "),  # once the pod has said it some times
    "doubted, and right": ([says(400), says(400)], {}, b" 400 "),
    "a failure in a stream": ([fails_in_a_stream], {}, b" 200 "),
    "died before the first byte": ([dies], {}, b" 502 "),
    "retried": ([dies, says(200)], {}, b" "),  # as far as retries of breaks go
    "all died": ([dies, dies, dies], {}, b" 502 "),
    "no retry left": ([dies, dies], {"upstream": {"retry_floor": 0, "retry_share": 0}}, b" 502 "),
    "died after the first byte": ([cuts], {}, b" 200 "),
    "ended early": ([closes], {}, b" 200 "),
    "no HTTP": ([babbles], {}, b" 502 "),
    "timed out": ([hangs], {"upstream": QUICK}, b" 504 "),
    "timed out, then served": ([hangs, says(200)], {"upstream": QUICK}, b" "),
    "silent in the middle": ([starts_and_hangs], {"upstream": QUICK}, b" 200 "),
    "not tokenized by the deadline": ([says(200)], {"tokens": {"deadline": 1e-6, "inline_max": 0}}, b" 200 "),
    "large": ([says(200)], {"tokens": {"body_inline_max": 1024}}, b" 200 "),
    "body too large": ([says(200)], {"gateway": {"body_max": 1024}}, b" 413 "),
    "waited for room": ([streams], {"gateway": {"requests_max": 1}}, b" 200 "),
    "queue full": ([hangs], {**CROWDED, "admission": {"queue_max": 1}}, b" "),
    "waited too long": ([hangs], {**CROWDED, "admission": {"wait_max": 0.01}}, b" "),
    "no connection is free": ([hangs], ONE_AT_A_TIME, b" 50"),
}


async def nothing_found(here: House, ask: Ask) -> list[bytes]:
    """Ask some at once, again and again; the answers. Nothing of ours is left for the collector."""
    answers = [await ask(-1)]
    with garbage() as found:
        for first in range(0, REQUESTS, AT_ONCE):
            answers += await asyncio.gather(*[ask(first + number) for number in range(AT_ONCE)])
        await until(lambda: here.service.in_flight == 0)
        await here.at_rest()
    assert not found
    return answers


@pytest.mark.parametrize("case", CASES)
async def test_no_answer_leaves_cycles(case: str) -> None:
    """Whatever pods do with requests, and we with them."""
    behaviours, sections, expected = CASES[case]
    given = {**TOKENIZED, "breaker": NO_BREAKER, **sections}
    given["upstream"] = {**PATIENT, **sections.get("upstream", {})}
    async with house(*behaviours, **given) as here, served(here) as port:
        answers = await nothing_found(here, lambda number: exchanged(port, request(completion(number))))
        assert all(expected in answer for answer in answers), answers


@pytest.mark.parametrize("listens", [False, True], ids=["refused", "not accepted"])
async def test_no_pod_that_can_not_be_reached_leaves_cycles(listens: bool) -> None:
    """Nobody is at its address any more, or somebody who accepts no more connections."""
    async with house(says(200), **{**TOKENIZED, "breaker": NO_BREAKER}) as here, served(here) as port:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            if listens:
                listener.listen(0)
                for _ in range(QUEUE_FILLERS):
                    filler = stack.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(listener.getsockname())
            nobody = Upstream(f"http://127.0.0.1:{listener.getsockname()[1]}", upstream_limits(connect_timeout_s=0.05))
            there, here.service.upstreams["pod-0"] = here.service.upstreams["pod-0"], nobody
            answers = await nothing_found(here, lambda number: exchanged(port, request(completion(number))))
            assert all(b" 502 " in answer and b"no connection" in answer for answer in answers), answers
            here.service.upstreams["pod-0"] = there


REFUSED = {
    "not JSON": request(b'{"prompt": '),
    "not a prompt": request(b'{"prompt": {}}'),
    "an unknown model": request(b'{"model": "x", "prompt": "a"}'),
    "not a chat": request(b'{"messages": [1]}', b"/v1/chat/completions"),
    "nowhere": request(completion(0), b"/nowhere"),
    "not HTTP": b"POST\r\n\r\n",
    "large headers": request(completion(0), more=b"x: y\r\n" * 500),
    "no score": request(b'{"prompt": ', b"/score"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_no_refusal_leaves_cycles(case: str) -> None:
    """Nor what never comes to a pod."""
    async with house(says(200), **TOKENIZED) as here, served(here) as port:
        answers = await nothing_found(here, lambda _: exchanged(port, REFUSED[case]))
        assert all(b" 4" in answer[:20] for answer in answers), answers


@pytest.mark.parametrize("behaviour", [hangs, streams_for_ever, dies], ids=["no answer yet", "in a stream", "retried"])
@pytest.mark.parametrize("body_share", [1.0, 0.5], ids=["asked", "half asked"])
async def test_no_client_that_leaves_leaves_cycles(behaviour: Behaviour, body_share: float) -> None:
    """Before its answer, in the middle of it, or of its own request."""
    async with house(behaviour, hangs, **{**TOKENIZED, "breaker": NO_BREAKER}) as here, served(here) as port:
        here.service.proxy = Proxy(watch_after_s=0.0)

        async def leave(number: int) -> bytes:
            data = request(completion(number))
            sent = sum(pod.posts for pod in here.pods.values())
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data[: int(len(data) * body_share)])
            if body_share == 1.0:
                await until(lambda: sum(pod.posts for pod in here.pods.values()) > sent)
            await asyncio.sleep(0.01)
            writer.transport.abort()
            return b""

        await nothing_found(here, leave)


async def test_nobody_who_waits_and_leaves_leaves_cycles() -> None:
    """A client leaves the queue for room."""
    async with house(hangs, **{**TOKENIZED, "gateway": {"requests_max": 1}}) as here, served(here) as port:
        here.service.proxy = Proxy(watch_after_s=0.0)

        async def leave(number: int) -> bytes:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(completion(number)))
            await until(lambda: here.service.in_flight > 0)
            await asyncio.sleep(0.02)
            writer.transport.abort()
            return b""

        await nothing_found(here, leave)


async def test_no_request_that_is_cancelled_leaves_cycles() -> None:
    """As by a server that stops."""
    async with house(dies, hangs, **{**TOKENIZED, "breaker": NO_BREAKER}) as here:

        async def cancelled(number: int) -> bytes:
            client = Client(here.app, {"prompt": f"{number} words"}, {})
            task = asyncio.create_task(client.run())
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.wait([task])
            return b""

        await nothing_found(here, cancelled)
