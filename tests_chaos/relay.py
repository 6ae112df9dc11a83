"""A TCP relay that can be cut: what a network does between a pod and the gateway. No test is in here."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

Cut = Literal["reset", "silent"]
"""reset: connections end, and no new ones are made; silent: they stay, and nothing comes or ever will."""


class Relay:
    """Relays connections to `port` of this host to `target`."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self._target = target
        self._server: asyncio.Server | None = None
        self._alive: set[asyncio.Task[None]] = set()
        self._dead: list[asyncio.StreamWriter] = []
        self._silent = False

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        await self.cut("reset")
        for writer in self._dead:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def cut(self, how: Cut) -> None:
        if how == "silent":
            self._silent = True
        elif self._server is not None:
            self._server.close()
            self._server = None
        alive, self._alive = list(self._alive), set()
        for task in alive:
            task.cancel()
        await asyncio.gather(*alive, return_exceptions=True)

    async def heal(self) -> None:
        """New connections are relayed again; of those that were cut silently, nobody ever hears."""
        self._silent = False
        if self._server is None:
            await self.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._silent:
            self._dead.append(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._alive.add(task)
        peer: asyncio.StreamWriter | None = None
        try:
            there, peer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(_pump(reader, peer), _pump(there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._alive.discard(task)
            ends = [writer] if peer is None else [writer, peer]
            if self._silent:
                self._dead += ends
            else:
                for end in ends:
                    end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
