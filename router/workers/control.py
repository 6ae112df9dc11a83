"""One of several workers: what it is told by the process that keeps it, and how the two hear of each other's end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import shutil
import signal
import socket
from collections.abc import Callable

from router.config.settings import Config
from router.errors import ConfigError
from router.workers.worker import Worker

Serve = Callable[[Config, Worker, Callable[[], None]], None]
"""Serves one worker's part until it is told to stop, and calls the third once connections are taken."""

_LENGTH_BYTES = 8


class Control:
    """The worker's end of the socket: `config` and `worker` come over it, `started` goes back.

    When the other end is closed, nobody keeps this worker any more: it leaves as if it was told to.
    """

    def __init__(self, descriptor: int) -> None:
        """Raises `ConfigError` where nobody tells it anything."""
        self._alone = False
        try:
            self._socket = socket.socket(fileno=descriptor)
            with self._socket.makefile("rb") as told:
                length = int.from_bytes(told.read(_LENGTH_BYTES), "big")
                self.config: Config
                self.worker: Worker
                self.config, self.worker = pickle.loads(told.read(length))
        except (OSError, EOFError) as error:
            raise ConfigError(f"A worker is started by `warmroute serve --workers` only: {error}.") from error

    def serve(self, serve: Serve) -> None:
        """Serve by `serve` until told to stop; raises `ConfigError` before anything listens."""
        serve(self.worker.part(self.config), self.worker, self._started)
        if self._alone:
            shutil.rmtree(self.worker.folder, ignore_errors=True)

    def _started(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(b"1")
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._left_alone)

    def _left_alone(self) -> None:
        self._alone = True
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        os.kill(os.getpid(), signal.SIGTERM)


def told(config: Config, worker: Worker) -> bytes:
    """What a worker is told. It is private to both: the configuration has secrets."""
    text = pickle.dumps((config, worker))
    return len(text).to_bytes(_LENGTH_BYTES, "big") + text
