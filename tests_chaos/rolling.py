"""Pods and gateways replaced on purpose, as a rolling update does it, and the Service that stands before gateways."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.fakes.processes import PLAIN, GatewayProcess, PodProcess, eventually

LOOK_S = 0.1  # between two looks at who is ready
DRAIN: dict[str, Any] = {"drain_delay": 3, "drain_timeout": 20}  # longer than a client leaves a connection idle
"""Of a gateway: the delay covers the time until the Service knows, and an answer on each connection that is kept."""
EXIT_S = 30.0


class Service:
    """As a Kubernetes Service: new connections go to gateways whose /readyz is 200, in turn; what is open stays."""

    def __init__(self) -> None:
        self.gateways: list[GatewayProcess] = []
        self.url = ""
        self._ready: list[GatewayProcess] = []
        self._turn = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It listens inside."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            server.close()
            for task in (looking, *self._tasks):
                task.cancel()
            await asyncio.gather(looking, *self._tasks, return_exceptions=True)

    async def ready(self, served: GatewayProcess) -> None:
        """Wait until connections go there."""
        while served not in self._ready:
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        async with httpx.AsyncClient(**PLAIN) as http:
            while True:
                ready = []
                for served in self.gateways:
                    with contextlib.suppress(httpx.TransportError):
                        if (await http.get(f"{served.url}/readyz", headers={"connection": "close"})).is_success:
                            ready.append(served)
                self._ready = ready
                await asyncio.sleep(LOOK_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._ready:
                where = urlsplit(self._ready[next(self._turn) % len(self._ready)].url)
                theirs, ours = await asyncio.open_connection(where.hostname, where.port)
                await asyncio.gather(_copy(reader, ours), _copy(theirs, writer))
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()
            self._tasks.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until it ends; then the other side hears of it."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def roll_pods(fleet: Sequence[PodProcess], gateways: Sequence[GatewayProcess]) -> None:
    """One after the other: drained in all gateways, stopped when it has nothing to do, started, undrained."""
    async with httpx.AsyncClient(**PLAIN) as http:
        for pod in fleet:
            for served in gateways:
                (await http.post(f"{served.ops_url}/pods/{pod.name}/drain")).raise_for_status()
            await eventually(lambda pod=pod: not busy(pod, gateways), EXIT_S)
            await asyncio.to_thread(pod.kill)
            pod.start()
            await asyncio.to_thread(pod.wait)
            for served in gateways:
                (await http.post(f"{served.ops_url}/pods/{pod.name}/undrain")).raise_for_status()
            for served in gateways:
                await eventually(lambda served=served, pod=pod: _fit(served, pod), EXIT_S)


def busy(pod: PodProcess, gateways: Sequence[GatewayProcess]) -> int:
    """Requests that gateways have at a pod."""
    return sum(served.ranks()[pod.name][0]["load"]["requests"] for served in gateways)


def _fit(served: GatewayProcess, pod: PodProcess) -> bool:
    return any(known["fit"] for known in served.get("/pods").json()["pods"] if known["pod"] == pod.name)


async def replace(
    service: Service, old: GatewayProcess, start: Callable[[], AbstractContextManager[GatewayProcess]],
    stack: contextlib.ExitStack,
) -> GatewayProcess:  # fmt: skip
    """A new gateway beside the old one; when it is ready the old one is told to stop, and must end well."""
    new = await asyncio.to_thread(stack.enter_context, start())
    service.gateways.append(new)
    await service.ready(new)
    old.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(old.process.wait, EXIT_S) == 0, old.logged()[-2000:]
    service.gateways.remove(old)
    assert "Traceback" not in old.logged()
    return new
