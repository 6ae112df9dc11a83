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
from router.workers.worker import Seat

Serve = Callable[[Config, Seat, Callable[[], None]], None]
"""Serves one worker's part until it is told to stop, and calls the third once connections are taken."""

_LENGTH_BYTES = 8


class Control:
    """The worker's end of the socket: `config` and `seat` come over it, `started` goes back.

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
                self.seat: Seat
                self.config, self.seat = pickle.loads(told.read(length))
        except (OSError, EOFError) as error:
            raise ConfigError(f"A worker is started by `warmroute serve --workers` only: {error}.") from error

    def serve(self, serve: Serve) -> None:
        """Serve by `serve` until told to stop; raises `ConfigError` before anything listens."""
        serve(self.seat.part(self.config), self.seat, self._started)
        if self._alone:
            shutil.rmtree(self.seat.folder, ignore_errors=True)

    def _started(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(b"1")
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._left_alone)

    def _left_alone(self) -> None:
        self._alone = True
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        os.kill(os.getpid(), signal.SIGTERM)


def told(config: Config, seat: Seat) -> bytes:
    """What a worker is told. It is private to both: the configuration has secrets."""
    text = pickle.dumps((config, seat))
    return len(text).to_bytes(_LENGTH_BYTES, "big") + text
