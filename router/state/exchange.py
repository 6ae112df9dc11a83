"""Gateways tell each other what they have in flight: datagrams out in short intervals, and in as they come.

Every worker tells of its own row of the board. What others tell is heard by the first worker of a gateway, which writes
it into rows that all of its workers see. Nothing hangs on a datagram: one that is lost is made good by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter

from router.config.index import PeersConfig
from router.errors import ConfigError
from router.state.datagrams import BYTES_MAX, Teller, heard
from router.state.gateways import Gateways
from scorer.guests import Guests, OwnRow

log = logging.getLogger("warmroute.state")

_REFRESH_S = 0.1  # while something is in flight, all of it is told as often, changed or not
_ORDERS_MAX = 4096  # workers of which the newest datagram is remembered


class LoadExchange(asyncio.DatagramProtocol):
    """See the module. `counts`: datagrams by what became of them."""

    def __init__(
        self,
        given: PeersConfig,
        gateways: Gateways,
        key: bytes,
        teller: Teller,
        row: OwnRow,
        guests: tuple[Guests, str, int] | None,
    ) -> None:
        """`guests`: where others are heard, and the host and port to listen at; None: another worker hears them.

        Raises `ConfigError`: it can't be listened there.
        """
        self.counts: Counter[str] = Counter(sent=0, heard=0, strange=0, late=0, full=0)
        self._given = given
        self._gateways = gateways
        self._key = key
        self._teller = teller
        self._row = row
        self._guests = None if guests is None else guests[0]
        self._bound = None if guests is None else _bound(*guests[1:])
        self._orders: dict[tuple[int, int], tuple[int, int]] = {}  # the newest of each worker
        self._sockets: dict[int, socket.socket] = {}  # to send from, by address family
        self._transport: asyncio.DatagramTransport | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def heard_from(self) -> int:
        """Other gateways' workers that are heard now."""
        return 0 if self._guests is None else len(self._guests)

    @property
    def port(self) -> int | None:
        """The port that is listened at by this worker, if it does."""
        return None if self._bound is None else int(self._bound.getsockname()[1])

    async def start(self) -> None:
        """Listen, if this worker does, and tell."""
        loop = asyncio.get_running_loop()
        if self._bound is not None:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=self._bound)
        self._task = loop.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()
        for sock in self._sockets.values():
            sock.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Somebody says something: it counts if it is a gateway that we know, and says something new."""
        said = heard(self._key, data) if len(data) <= BYTES_MAX else None
        if said is None or said.gateway not in {peer.name for peer in self._gateways.there.values()}:
            self.counts["strange"] += 1
            return
        assert self._guests is not None, "it listens"
        who = (said.gateway, said.worker)
        if said.order <= self._orders.get(who, (0, 0)):
            self.counts["late"] += 1
            return
        self._orders.pop(who, None)
        self._orders[who] = said.order
        while len(self._orders) > _ORDERS_MAX:
            del self._orders[next(iter(self._orders))]
        self.counts["heard" if self._guests.hear(who, said.news, time.monotonic()) else "full"] += 1

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there, say: it will be tried again."""

    async def _run(self) -> None:
        sent_at = float("-inf")
        while True:
            await asyncio.sleep(self._given.share_interval)
            now = time.monotonic()
            try:
                if self._guests is not None:
                    for guest in self._guests.silent(now, self._given.silence):
                        self._guests.wipe(guest)
                if self._row.changed or now - sent_at >= min(_REFRESH_S, self._given.silence / 4):
                    self._tell(now)
                    sent_at = now
            except Exception:  # a fault of ours: the next time may be better
                log.exception("what is in flight could not be told")

    def _tell(self, now: float) -> None:
        places = [peer.place for peer in self._gateways.there.values() if peer.place is not None]
        for datagram in self._teller.datagrams(self._row, now) if places else ():
            for place in places:
                with contextlib.suppress(OSError):  # it is lost, as others are
                    self._socket(place[0]).sendto(datagram, place)
                    self.counts["sent"] += 1

    def _socket(self, host: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self._sockets.get(family)
        if sock is None:
            sock = self._sockets[family] = socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
        return sock


def _bound(host: str, port: int) -> socket.socket:
    """A socket there; raises `ConfigError`."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"peers.listen: {host}:{port} can't be bound: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock
