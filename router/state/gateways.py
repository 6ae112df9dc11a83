"""Other gateways in front of the same pods: found, asked what they know, and known by name.

Each tells at `/peers` who it is and where it takes datagrams. What they say is sealed by the key that all have, where
there is one; without, it is as safe as the way that it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import orjson

from indexer.errors import SnapshotError
from indexer.frames import FrameReader
from indexer.snapshot import Snapshot
from router.config.index import PeersConfig
from router.discovery.dns import DnsSource
from router.discovery.found import FoundPod, PodSource
from router.discovery.kubernetes import KubernetesSource
from router.discovery.kubernetes_api import api_of
from router.errors import ConfigError

log = logging.getLogger("warmroute.state")

SHOWN = "x-warmroute-peer"
"""Header in which a gateway shows that it has the key."""
SNAPSHOT = "/index/snapshot"
PEERS = "/peers"

_CONNECT_S = 1.0
_SILENT_S = 3.0  # between two pieces of a snapshot
_PIECE = 1 << 18
_KEY_BYTES_MIN = 16
_ANSWER_BYTES_MAX = 1 << 16


class PeerKey:
    """The key that all gateways have, and what is made of it: each use has its own."""

    def __init__(self, secret: bytes) -> None:
        self._secret = hashlib.blake2b(secret, digest_size=32).digest()
        self.seal = self._made(b"seal")
        """Of snapshots."""
        self.datagrams = self._made(b"datagrams")
        self.seed = int.from_bytes(self._made(b"seed")[:8], "little")
        """Of block keys: the same in all gateways, also after a restart."""
        self.token = self._made(b"token").hex()
        """What is shown to another gateway."""

    def _made(self, purpose: bytes) -> bytes:
        return hashlib.blake2b(purpose, key=self._secret, digest_size=32).digest()


def peer_key(path: str | None) -> PeerKey | None:
    """The key in a file; None without one. Raises `ConfigError`."""
    if path is None:
        return None
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"peers.key_file: {path}: can't be read: {error.strerror}") from None
    if len(secret) < _KEY_BYTES_MIN:
        raise ConfigError(f"peers.key_file: {path}: holds less than {_KEY_BYTES_MIN} bytes: it could be guessed")
    return PeerKey(secret)


class KnowingPeer:
    """One that is asked for what it knows, by its address or over a Unix socket."""

    live = True

    def __init__(self, name: str, url: str, headers: Mapping[str, str], key: bytes, bytes_max: int) -> None:
        """`url`: of its operators' endpoints, `unix:/…` for a socket; `key`: see `FrameReader`."""
        self.name = name
        self.url = url
        self._headers = headers
        self._key = key
        self._bytes_max = bytes_max

    async def load(self) -> Snapshot | None:
        """See `StateSource`."""
        try:
            async with client_of(self.url, self._headers, _SILENT_S) as client:
                return await self._fetched(client)
        except SnapshotError as error:
            log.warning("what %s knows is not used: %s", self.name, error)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, MemoryError) as error:
            log.info("%s was asked what it knows in vain: %s", self.name, str(error) or type(error).__name__)
        return None

    async def _fetched(self, client: httpx.AsyncClient) -> Snapshot | None:
        reader, found, size = FrameReader(self._key), Snapshot(), 0
        async with client.stream("GET", SNAPSHOT) as response:
            if response.status_code != 200:
                log.info("%s does not tell what it knows: status %d", self.name, response.status_code)
                return None
            async for piece in response.aiter_raw(_PIECE):
                size += len(piece)
                if size > self._bytes_max:
                    raise SnapshotError("it has more bytes than state.size_max")
                for kind, payload in reader.take(piece):
                    found.take(kind, payload)
        reader.close()
        await asyncio.to_thread(found.check)
        return found if found.feeds else None


class InTurn:
    """All gateways that are there, asked one after the other until one tells."""

    live = True

    def __init__(self, gateways: Gateways) -> None:
        self.name = "another gateway"
        self._gateways = gateways

    async def load(self) -> Snapshot | None:
        """See `StateSource`."""
        for url in await self._gateways.others():
            asked = self._gateways.asked(url)
            found = await asked.load()
            if found is not None:
                return found
        return None


def client_of(url: str, headers: Mapping[str, str], timeout_s: float) -> httpx.AsyncClient:
    """A client of one gateway."""
    timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
    if url.startswith("unix:"):
        transport = httpx.AsyncHTTPTransport(uds=url.removeprefix("unix:"), verify=False)
        return httpx.AsyncClient(
            transport=transport, base_url="http://worker", headers=dict(headers), timeout=timeout, trust_env=False
        )
    return httpx.AsyncClient(base_url=url, headers=dict(headers), timeout=timeout, trust_env=False)


class Peer(NamedTuple):
    """Another gateway, as it says: `name` is new with each start; `place`: where it takes datagrams, if it does."""

    url: str
    name: int
    knows: bool
    place: tuple[str, int] | None


class Gateways:
    """All that are found, and what each said last. `name`: our own."""

    def __init__(self, given: PeersConfig, name: int, headers: Mapping[str, str], key: bytes, bytes_max: int) -> None:
        """`headers`: what we show. Raises `ConfigError` where a source can't be used at all."""
        self.name = name
        self.there: dict[str, Peer] = {}
        """By URL, those that answered when they were looked at last."""
        self._given = given
        self._headers = headers
        self._key = key
        self._bytes_max = bytes_max
        self._sources: list[PodSource] = []
        if given.dns is not None:
            self._sources.append(DnsSource(given.dns.as_discovery))
        if given.kubernetes is not None:
            kubernetes = given.kubernetes.as_discovery
            self._sources.append(KubernetesSource(kubernetes, api_of(kubernetes)))
        self._urls: dict[tuple[str, str], str] = {("static", url): url for url in given.static}
        self._told = [asyncio.Event() for _ in self._sources]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def urls(self) -> list[str]:
        """Of all gateways, each once; ours may be among them."""
        return list(dict.fromkeys(self._urls.values()))

    def start(self) -> None:
        """Find them, and look at them again and again."""
        loop = asyncio.get_running_loop()
        for source, told in zip(self._sources, self._told, strict=True):
            self._tasks.append(loop.create_task(self._follow(source, told)))
        self._tasks.append(loop.create_task(self._look_again()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def others(self) -> list[str]:
        """Those that may know something, as they say now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                for told in self._told:
                    await told.wait()
        await self.look()
        return [peer.url for peer in self.there.values() if peer.knows]

    def asked(self, url: str) -> KnowingPeer:
        """One of them, to be asked for what it knows."""
        return KnowingPeer(f"the gateway at {url}", url, self._headers, self._key, self._bytes_max)

    async def look(self) -> None:
        """Ask all who they are."""
        found = await asyncio.gather(*(self._looked_at(url) for url in self.urls))
        self.there = {peer.url: peer for peer in found if peer is not None and peer.name != self.name}

    async def _look_again(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # a fault of ours: the next look may be better
                log.exception("other gateways could not be looked at")
            await asyncio.sleep(self._given.interval)

    async def _looked_at(self, url: str) -> Peer | None:
        try:
            async with client_of(url, self._headers, _CONNECT_S) as client, asyncio.timeout(2 * _CONNECT_S):
                response = await client.get(PEERS)
                if response.status_code != 200 or len(response.content) > _ANSWER_BYTES_MAX:
                    return None
                told = orjson.loads(response.content)
                port, place = told["port"], None
                if isinstance(port, int) and 0 < port < 65536:
                    place = await _place(url, port)
                return Peer(url, int(told["name"], 16), bool(told["knows"]), place)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            log.debug("%s: %r", url, error)
        return None

    async def _follow(self, source: PodSource, told: asyncio.Event) -> None:
        async for changes in source.changes():
            for change in changes:
                if isinstance(change, FoundPod) and not change.leaving:
                    self._urls[(source.name, change.uid)] = change.pod.address
                else:
                    self._urls.pop((source.name, change.uid), None)
            told.set()


async def _place(url: str, port: int) -> tuple[str, int]:
    """The address of a gateway's host with this port; raises OSError."""
    host = urlsplit(url).hostname or ""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return str(found[0][4][0]), port
