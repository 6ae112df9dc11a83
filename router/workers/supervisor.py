"""`serve --workers N`: a process that serves nothing itself, and keeps N that do.

Each worker is a whole gateway: feeds, index, prefix store. They listen on the same port, and the kernel spreads
connections over them. What they have in flight they tell each other over memory that is made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

from router.config.settings import Config
from router.server.listening import reserved
from router.workers.control import told
from router.workers.own_python import command_of, environment_of_ours
from router.workers.worker import Worker, row_of_each

log = logging.getLogger("warmroute.workers")

_AGAIN_S, _AGAIN_MAX_S = 0.1, 10.0  # before a worker that died is started again; twice as long each time
_STEADY_S = 30.0  # whoever lived so long did not die of how it was started
_LAST_S = 15.0  # beyond its drain, for a worker to end
_INTERRUPTED = 130
_WELL = (0, -signal.SIGTERM, -signal.SIGINT, _INTERRUPTED)  # exit codes of who was told to leave


def supervise(config: Config) -> int:
    """Serve with several workers until told to stop; the exit code. Raises `ConfigError` before anything listens."""
    gateway = config.gateway
    ports = {"port": reserved(gateway.host, gateway.port)}
    if gateway.ops_port is not None:
        ports["ops_port"] = reserved(gateway.host, gateway.ops_port)
    # Kept, so that they stay ours while no worker listens.
    found = {name: sockets[0].getsockname()[1] for name, sockets in ports.items()}
    config = config.model_copy(update={"gateway": gateway.model_copy(update=found)})
    folder = Path(tempfile.mkdtemp(prefix="warmroute-"))  # for this user only
    try:
        return asyncio.run(Workers(config, folder).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for sockets in ports.values():
            for sock in sockets:
                sock.close()


class Workers:
    """All workers, from their start to their end."""

    def __init__(self, config: Config, folder: Path) -> None:
        gateway = config.gateway
        self._config = config
        self._folder = folder
        self._row = row_of_each(gateway).itemsize
        size = (gateway.workers + config.peers.guests) * self._row
        self._descriptor = _anonymous(size)
        self._memory = mmap.mmap(self._descriptor, size)
        self._seed = secrets.randbits(64)
        self._lives = [0] * gateway.workers
        self._alive: dict[int, asyncio.subprocess.Process] = {}
        self._told = asyncio.Event()  # to leave
        self._signal = signal.SIGTERM

    async def run(self) -> int:
        """The exit code: 0 when all have drained; that of the first worker if it can't start."""
        loop, gateway = asyncio.get_running_loop(), self._config.gateway
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._leave, sig)
        started: asyncio.Future[bool] = loop.create_future()
        kept = [loop.create_task(self._keep(0, started))]
        if not await started:  # one alone at first: so what is wrong is said once
            code = await kept[0]
            return self._left(False) if self._told.is_set() else code or 1
        log.info("%d workers listen on %s:%d", gateway.workers, gateway.host, gateway.port)
        kept += [loop.create_task(self._keep(number)) for number in range(1, gateway.workers)]
        await self._told.wait()
        await asyncio.wait(kept, timeout=gateway.drain_delay + gateway.drain_timeout + _LAST_S)
        for number, process in self._alive.items():
            log.error("worker %d does not end: it is killed", number)
            process.kill()
        return self._left(any([await task for task in kept]))

    def _left(self, failed: bool) -> int:
        """The exit code of who was told to leave."""
        if failed:
            return 1
        return _INTERRUPTED if self._signal == signal.SIGINT else 0

    def _leave(self, sig: signal.Signals) -> None:
        self._signal = sig
        self._told.set()
        for process in self._alive.values():
            process.send_signal(sig)

    async def _keep(self, number: int, started: asyncio.Future[bool] | None = None) -> int:
        """One worker after the other in this place, until told to leave: the exit code of the last one, if it is bad.

        `started`: how the very first one fares is told, and it gets no second try.
        """
        deaths = 0
        while not self._told.is_set():
            born = time.monotonic()
            try:
                code = await self._live(number, started)
            except OSError as error:  # no process or descriptor more is to be had
                log.error("worker %d: %s", number, error)
                code = 1
            self._memory[number * self._row : (number + 1) * self._row] = bytes(self._row)  # it has nothing in flight
            if started is not None and not started.done():
                started.set_result(False)
                return code
            if self._told.is_set():
                return code if code not in _WELL else 0
            deaths = 0 if time.monotonic() - born > _STEADY_S else deaths + 1
            again_s = min(_AGAIN_S * 2**deaths, _AGAIN_MAX_S)
            log.error("worker %d has ended with %d: started again in %g s", number, code, again_s)
            self._lives[number] += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), again_s)
        return 0

    async def _live(self, number: int, started: asyncio.Future[bool] | None) -> int:
        """One worker, from start to end: its exit code."""
        loop = asyncio.get_running_loop()
        gateway = self._config.gateway
        worker = Worker(number, gateway.workers, self._folder, self._descriptor, self._seed, self._lives[number])
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await self._spawn(theirs.fileno())
            self._alive[number] = process
            if self._told.is_set():  # a moment ago
                process.send_signal(self._signal)
            ours.setblocking(False)
            serves = False
            with contextlib.suppress(OSError):  # it has ended
                await loop.sock_sendall(ours, told(self._config, worker))
                serves = bool(await loop.sock_recv(ours, 1))
            if serves:
                log.info("worker %d serves", number)
                if started is not None and not started.done():
                    started.set_result(True)
            code = await process.wait()
        del self._alive[number]
        return code

    async def _spawn(self, control: int) -> asyncio.subprocess.Process:
        """A fresh process: of what this one has open, it has its end of the control socket and the memory."""
        return await asyncio.create_subprocess_exec(
            *command_of("router", "worker", str(control)),
            env=environment_of_ours(),
            pass_fds=(control, self._descriptor),
            start_new_session=True,  # Ctrl-C reaches it through us only
        )  # fmt: skip


def _anonymous(size: int) -> int:
    """A descriptor of memory, all zeros, that no other process can find."""
    descriptor = os.memfd_create("warmroute") if hasattr(os, "memfd_create") else _unlinked()
    os.ftruncate(descriptor, size)
    return descriptor


def _unlinked() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
