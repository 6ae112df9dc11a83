"""Serving: uvicorn on uvloop with our own protocol, one or two ports, and leaving without dropping anybody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine
from types import FrameType

import uvicorn
import uvloop

from router import native
from router.config.gateway import GatewayConfig
from router.config.settings import Config
from router.endpoints.access import guarded
from router.endpoints.app import create_app, create_ops_app
from router.errors import ConfigError
from router.garbage import Collector, keep_little_memory
from router.metrics.metrics import Departures
from router.server.asgi import App
from router.server.listening import must_be_free, shared_sockets
from router.server.operator_access import OperatorAccess
from router.server.port import Port, ServingLimits
from router.service import Service
from router.workers.kept_counters import Counts
from router.workers.peers import Gathering
from router.workers.worker import Worker

log = logging.getLogger("warmroute")

_NO_PODS = "there are no pods, and nothing that finds them: --pod name=pod-0,address=http://…, or discovery in --config"
_BACKLOG = 2048
_FILES = 200  # open files of a process beside what is counted
_FILES_A_RANK = 6  # three ZMQ sockets and a connection for its feed, one for probes, one that waits for requests


class Server(uvicorn.Server):
    """A uvicorn server that, told to stop, is unready for `drain_delay` before it refuses connections."""

    def __init__(
        self, settings: uvicorn.Config, service: Service, front: Port, started: Callable[[], None] | None = None
    ) -> None:
        """`started` is called once connections are taken."""
        super().__init__(settings)
        self._service = service
        self._front = front
        self._started = started

    def told_early(self, sig: int, frame: FrameType | None) -> None:
        """Told to stop before uvicorn listens to signals; or by uvicorn, when all is served: exit code 0."""
        self._service.draining = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._started is not None:
            self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        delay_s = self._service.config.gateway.drain_delay
        if sig == signal.SIGINT or self._service.draining or not delay_s:
            self._service.draining = True
            super().handle_exit(sig, frame)
            return
        self._service.draining = self._front.leaving = True
        log.info("draining: unready for %g s, then no new connections", delay_s)
        asyncio.get_running_loop().call_later(delay_s, super().handle_exit, sig, frame)


def run(config: Config, worker: Worker | None = None, started: Callable[[], None] | None = None) -> None:
    """Serve until told to stop; raises `ConfigError` before anything listens.

    `worker`: of this process among several; `started` is called once connections are taken.
    """
    _check_tls(config.gateway)
    if worker is None:  # else the supervisor keeps the ports
        _check_ports(config.gateway)
    service = Service(config, worker)
    native.tell()
    if config.discovery.is_empty and (worker is None or worker.number == 0):
        log.warning("%s", _NO_PODS)
    _allow_open_files(config)
    keep_little_memory()
    collector = Collector()
    collector.start()
    serving = _serve(service, started) if worker is None else _serve_beside(service, worker, started)
    uvloop.run(_collecting(collector, service, serving))


async def _collecting(collector: Collector, service: Service, serving: Coroutine[None, None, None]) -> None:
    """Serve, with the garbage collector held back."""
    beside = asyncio.get_running_loop().create_task(collector.run(lambda: service.in_flight))
    try:
        await serving
    finally:
        beside.cancel()


def _check_ports(gateway: GatewayConfig) -> None:
    """uvicorn would find out when all else runs, and end with a log of that."""
    for port in (gateway.port, gateway.ops_port):
        if port is not None:
            must_be_free(gateway.host, port)


def _check_tls(gateway: GatewayConfig) -> None:
    """uvicorn reads the files later, and would end with a traceback."""
    tls = gateway.tls
    if tls.cert_file is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file)
        if tls.client_ca_file is not None:
            context.load_verify_locations(tls.client_ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"gateway.tls: the certificate and key can't be used: {error.strerror}") from error


def _allow_open_files(config: Config) -> None:
    """As many open files as may be: the usual soft limit is 1,024. Says so where that may not be enough."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems say "no limit" and do not take it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    may, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files_wanted(config)
    if may != resource.RLIM_INFINITY and may < wanted:
        log.warning("%d open files may be wanted, and the limit is %d: raise it (ulimit -n, LimitNOFILE)", wanted, may)


def files_wanted(config: Config) -> int:
    """Open files of this process when all that is configured is there, and all are busy."""
    ranks = sum(pod.data_parallel_size for pod in config.discovery.static)
    return _FILES + _FILES_A_RANK * ranks + 2 * (config.events.replays_max + config.gateway.requests_max)


async def _serve_beside(service: Service, worker: Worker, started: Callable[[], None] | None) -> None:
    """As `_serve`, for one of several workers: the others ask it on its private socket."""
    departures = Departures(service.core.fleet, service.config.metrics.departed_kept)
    counts = Counts(worker, service.metrics.steps, departures)
    app = create_ops_app(service, counts)
    private = uvicorn.Server(
        uvicorn.Config(app, uds=str(worker.socket(worker.number)), loop="none", ws="none", lifespan="off",
                       log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )  # fmt: skip
    beside = asyncio.get_running_loop().create_task(_without_signals(private))
    try:
        await _serve(service, started)
    finally:
        private.should_exit = True
        await beside


async def _serve(service: Service, started: Callable[[], None] | None) -> None:
    gateway = service.config.gateway
    front = _front(service)
    data: App = create_app(service)
    access = OperatorAccess(gateway, own_port=gateway.ops_port is not None)
    _say_who_may(gateway, access)
    app = guarded(_gathered(data, service, access) if gateway.ops_port is None else data, service)
    main = Server(_settings(service, app, gateway.port, front), service, front, started)
    signal.signal(signal.SIGTERM, main.told_early)
    if gateway.ops_port is None:
        await main.serve(_sockets(service, gateway.port))
        return
    ops = _gathered(create_ops_app(service), service, access)
    operators = uvicorn.Server(_settings(service, ops, gateway.ops_port, _front(service)))
    beside = asyncio.get_running_loop().create_task(_without_signals(operators, _sockets(service, gateway.ops_port)))
    try:
        await main.serve(_sockets(service, gateway.port))
    finally:
        operators.should_exit = True
        await beside


def _gathered(app: App, service: Service, access: OperatorAccess) -> App:
    """`app`, answering operators for all workers, if there are several."""
    return app if service.peers is None else Gathering(app, service.peers, access, service.config)


def _say_who_may(gateway: GatewayConfig, access: OperatorAccess) -> None:
    """What is open to whom, so that nobody is surprised."""
    keys = "an API key is needed" if gateway.asks_for_keys else "open to all (gateway.api_keys closes it)"
    log.info("requests to models, port %d: %s", gateway.port, keys)
    log.info("operators' endpoints, port %d: %s", gateway.ops_port or gateway.port, access.rule)


def _sockets(service: Service, port: int) -> list[socket.socket] | None:
    """What to listen on beside other workers; None: uvicorn finds it itself."""
    return None if service.peers is None else shared_sockets(service.config.gateway.host, port)


async def _without_signals(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
    """Serve, leaving signals to the main server."""
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets)
    if not server.should_exit:
        await server.main_loop()
    await server.shutdown(sockets)


def _front(service: Service) -> Port:
    """One port's connections; what is refused for their limits is counted."""
    limits = ServingLimits.of(service.config.gateway)
    return Port(limits, lambda status: service.metrics.count(None, "", status))


def _settings(service: Service, app: object, port: int, front: Port) -> uvicorn.Config:
    gateway = service.config.gateway
    tls = gateway.tls
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=gateway.host,
        port=port,
        loop="none",
        http=front,  # type: ignore[arg-type]  # it is called as a class would be
        ws="none",
        lifespan="on",
        access_log=False,
        log_level=gateway.log_level,
        log_config=None,
        proxy_headers=False,  # nothing here asks who the client is
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        ssl_certfile=tls.cert_file,
        ssl_keyfile=tls.key_file,
        ssl_ca_certs=tls.client_ca_file,
        ssl_cert_reqs=ssl.CERT_NONE if tls.client_ca_file is None else ssl.CERT_REQUIRED,
        timeout_graceful_shutdown=max(1, round(gateway.drain_timeout)),
    )
