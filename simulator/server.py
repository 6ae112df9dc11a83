"""Serving a pod: uvicorn on uvloop over one listening socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
import uvloop

from simulator.api import Api
from simulator.model import Model
from simulator.pod import Pod, Settings

BACKLOG = 2_048
SHUTDOWN_TIMEOUT_S = 1


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0: any. Raises OSError when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def serve(model: Model, settings: Settings, port: int, announce: Callable[[str], None]) -> None:
    """Run one pod until a signal ends it. `announce` gets one line of JSON when it can be reached."""
    with listen(settings.host, port) as sock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(model, settings, sock, announce))


async def _serve(model: Model, settings: Settings, sock: socket.socket, announce: Callable[[str], None]) -> None:
    async with running(model, settings) as pod:
        config = uvicorn.Config(
            Api(pod), loop="none", http="httptools", lifespan="off", access_log=False, log_level="warning",
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S, backlog=BACKLOG, ws="none",
        )  # fmt: skip
        announce(json.dumps(_addresses(pod, settings.host, sock.getsockname()[1])))
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        done, _ = await asyncio.wait([serving, *pod.tasks], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        for task in done:
            task.result()  # an engine ends by an error only: it must not be silent


@asynccontextmanager
async def running(model: Model, settings: Settings) -> AsyncIterator[Pod]:
    """A pod with its engines and feeds, without HTTP."""
    pod = Pod(model, settings)
    try:
        await pod.start()
        yield pod
    finally:
        await pod.stop()


def _addresses(pod: Pod, host: str, port: int) -> dict[str, Any]:
    shown = f"[{host}]" if ":" in host else host
    publishers = [engine.publisher for engine in pod.engines]
    return {
        "address": f"http://{shown}:{port}",
        "events": [publisher.endpoint for publisher in publishers],
        "replay": [publisher.replay_endpoint for publisher in publishers],
    }
