"""A small nameserver over UDP and TCP: what a headless Service has, and what goes wrong between."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import cast

from dns import flags, message, rcode, rdataclass, rdatatype, rrset

_UDP_MAX = 512  # what a client without EDNS takes


class Nameserver:
    """Its records, by name and kind; what was asked, in order; and how it fails."""

    def __init__(self) -> None:
        self.address = ""
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl = 30
        self.asked: list[tuple[str, str, str]] = []
        self.fails = False
        self.silent = False

    def answer(self, question: bytes, by: str) -> bytes | None:
        """What it says."""
        asked = message.from_wire(question)
        (wanted,) = asked.question
        name, kind = str(wanted.name).rstrip("."), rdatatype.to_text(wanted.rdtype)
        self.asked.append((name, kind, by))
        if self.silent:
            return None
        made = message.make_response(asked)
        texts = self.records.get((name, kind), [])
        if self.fails:
            made.set_rcode(rcode.SERVFAIL)
        elif texts:
            made.answer.append(rrset.from_text(wanted.name, self.ttl, rdataclass.IN, wanted.rdtype, *texts))
        elif not any(known == name for known, _ in self.records):
            made.set_rcode(rcode.NXDOMAIN)
        wire = made.to_wire(max_size=65535)
        if by == "udp" and len(wire) > _UDP_MAX:
            made.answer.clear()
            made.flags |= flags.TC
            wire = made.to_wire()
        return wire

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Over TCP, where an answer is too long."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            said = self.answer(await reader.readexactly(length), "tcp")
            if said is not None:
                writer.write(struct.pack("!H", len(said)) + said)
                await writer.drain()
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Nameserver) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        said = self._server.answer(data, "udp")
        if said is not None:
            self._transport.sendto(said, addr)


@contextlib.asynccontextmanager
async def nameserver() -> AsyncIterator[Nameserver]:
    """One that listens."""
    server, loop = Nameserver(), asyncio.get_running_loop()
    streams = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = streams.sockets[0].getsockname()[1]
    datagrams, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(server), ("127.0.0.1", port))
    server.address = f"127.0.0.1:{port}"
    try:
        yield server
    finally:
        datagrams.close()
        streams.close()
