"""Serving: uvicorn on uvloop and httptools, one or two ports, and leaving without dropping anybody."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from types import FrameType

import uvicorn
import uvloop

from router.app import create_app, create_ops_app
from router.config import Config
from router.service import Service

log = logging.getLogger("warmroute")

_BACKLOG = 2048
_GC_YOUNG = 20_000  # objects made before the young are looked at: about a thousand requests


class Server(uvicorn.Server):
    """A uvicorn server that, told to stop, is unready for `drain_delay` before it refuses connections."""

    def __init__(self, settings: uvicorn.Config, service: Service) -> None:
        super().__init__(settings)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        delay_s = self._service.config.gateway.drain_delay
        if sig == signal.SIGINT or self._service.draining or not delay_s:
            self._service.draining = True
            super().handle_exit(sig, frame)
            return
        self._service.draining = True
        log.info("draining: unready for %g s, then no new connections", delay_s)
        asyncio.get_running_loop().call_later(delay_s, super().handle_exit, sig, frame)


def serve(config: Config) -> None:
    """Serve until told to stop; raises `ConfigError` before anything listens."""
    service = Service(config)
    _spare_the_collector()
    uvloop.run(_serve(service))


def _spare_the_collector() -> None:
    """What lives as long as the process is not looked at by every collection; what a request makes dies by itself."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_YOUNG, 20, 100)


async def _serve(service: Service) -> None:
    gateway = service.config.gateway
    # Once all is served, uvicorn gives the signal to the handler that was there before: the default one would kill.
    signal.signal(signal.SIGTERM, _ended_well)
    main = Server(_settings(service, create_app(service), gateway.port), service)
    if gateway.ops_port is None:
        await main.serve()
        return
    operators = uvicorn.Server(_settings(service, create_ops_app(service), gateway.ops_port))
    beside = asyncio.get_running_loop().create_task(_without_signals(operators))
    try:
        await main.serve()
    finally:
        operators.should_exit = True
        await beside


def _ended_well(sig: int, frame: FrameType | None) -> None:
    """Told to stop, and stopped: exit code 0."""


async def _without_signals(server: uvicorn.Server) -> None:
    """Serve, leaving signals to the main server."""
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    if not server.should_exit:
        await server.main_loop()
    await server.shutdown()


def _settings(service: Service, app: object, port: int) -> uvicorn.Config:
    gateway = service.config.gateway
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=gateway.host,
        port=port,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level=gateway.log_level,
        log_config=None,
        proxy_headers=False,  # nothing here asks who the client is
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=max(1, round(gateway.keep_alive_timeout)),
        timeout_graceful_shutdown=max(1, round(gateway.drain_timeout)),
    )
