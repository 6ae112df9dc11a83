"""The memory of one gateway: saved from time to time, restored at the start, told to others who ask."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from math import nan
from typing import Any

from indexer.snapshot import Snapshot
from router.config.keys import read_keys
from router.config.settings import Config
from router.core.decision import Core
from router.errors import RouterError, Saturated
from router.metrics.families import Steps, counters, gauge
from router.state.datagrams import Teller
from router.state.exchange import LoadExchange
from router.state.gateways import SHOWN, Gateways, InTurn, KnowingPeer, PeerKey
from router.state.memory import LOADS, Memory, StateSource
from router.state.snapshots import Snapshots
from router.state.state_file import StateFile
from router.workers.worker import Rows, Worker
from scorer.guests import Guests, OwnRow

log = logging.getLogger("warmroute.state")

_LAST_S = 5.0  # at the end a saving may take so long
_AGAIN_S = 0.05  # between two looks at whether another snapshot is made


class NothingKept(RouterError):
    """409: there is no file to save to, or it can't be written."""

    status = 409
    type = "invalid_request_error"
    code = "nothing_kept"


class OnDisk:
    """A file that is asked for what was known."""

    live = False

    def __init__(self, file: StateFile, given: bool) -> None:
        self.name = str(file.path)
        self._file = file
        self._given = given

    async def load(self) -> Snapshot | None:
        """See `StateSource`."""
        return await asyncio.to_thread(self._file.read, self._given)


class Keeping:
    """See the module. `memory` is what pods that join are given."""

    def __init__(
        self,
        config: Config,
        core: Core,
        key: PeerKey | None,
        place: tuple[Worker | None, Rows | None],
        adopted: Callable[[], None],
        go_on: Callable[[str], None],
    ) -> None:
        """`key`: what all gateways have. `place`: which worker this is, and the board's memory. `adopted`: see
        `Memory`; `go_on`: see `Snapshots`. Raises `ConfigError`."""
        state, self._config, self._key = config.state, config, key
        worker, rows = place
        seal = b"" if key is None else key.seal
        headers = _shown(config, key)
        self.name = secrets.randbits(64) if worker is None else _name_of(worker)
        """Of this gateway, all of its workers: another one with each start."""
        self.port = 0
        """Where it takes datagrams; 0: nowhere."""
        self.saved: Counter[str] = Counter(done=0, failed=0)
        self.snapshots = Snapshots(core, seal, state.size_max, go_on)
        self.gateways = None
        if config.peers.are_there:
            self.gateways = Gateways(config.peers, self.name, headers, seal, state.size_max)
        self.exchange = None
        if self.gateways is not None and key is not None and rows is not None:
            host, port = _listens(config)
            hears = worker is None or worker.number == 0
            self.exchange = LoadExchange(
                config.peers,
                self.gateways,
                key.datagrams,
                Teller(key.datagrams, self.name, rows.own, time.time_ns()),
                OwnRow(rows.memory, rows.own, rows.row),
                (Guests(rows.memory, rows.workers, rows.row), host, port) if hears else None,
            )
            self.port = self.exchange.port or port
        self._file = None if state.path is None else StateFile(state.path, seal, state.size_max, state.age_max)
        self._keeps = worker is None or worker.number == 0
        sources: list[StateSource] = []
        if worker is not None:
            sources += [
                KnowingPeer(f"worker {other}", f"unix:{worker.socket(other)}", headers, seal, state.size_max)
                for other in range(worker.workers)
                if other != worker.number
            ]
        if state.restore is not None:
            sources.append(OnDisk(StateFile(state.restore, seal, state.size_max, state.age_max), given=True))
        if self.gateways is not None:
            sources.append(InTurn(self.gateways))
        if state.restore is None and self._file is not None:
            sources.append(OnDisk(self._file, given=False))
        self.memory = Memory(core, sources, adopted, state.load_timeout, config.events.join_timeout)
        self._saved_at: float | None = None
        self._began = time.monotonic()
        self._said: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Before pods join."""
        if self.exchange is not None:
            await self.exchange.start()
        if self.gateways is not None:
            self.gateways.start()
        self.memory.start()
        if self._file is not None and self._keeps:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Before pods leave."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with contextlib.suppress(NothingKept, TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await self.save()
        if self._file is not None:
            self._file.close()
        await self.memory.stop()
        if self.exchange is not None:
            await self.exchange.stop()
        if self.gateways is not None:
            await self.gateways.stop()

    def is_peer(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Does a request show that another gateway sends it?"""
        if self._key is None:
            return False
        shown, token = SHOWN.encode(), self._key.token.encode()
        return any(name == shown and hmac.compare_digest(value, token) for name, value in headers)

    def pieces(self) -> AsyncGenerator[bytes]:
        """A snapshot for somebody who asks. Raises `Saturated` at once."""
        if self.memory.loading:
            raise Saturated("What is known is being loaded: ask again.")
        if self.snapshots.busy:
            raise Saturated("A snapshot is being made: ask again.")
        return self.snapshots.pieces(time.time())

    async def save(self) -> dict[str, Any]:
        """Write what is known now; what was written. Raises `NothingKept`."""
        if self._file is None:
            raise NothingKept("state.path is not set: there is nowhere to save to.")
        if not self._keeps:
            return {"saved": False}
        began = time.monotonic()
        while self.snapshots.busy:
            await asyncio.sleep(_AGAIN_S)
        try:
            if not self._file.take():
                raise NothingKept(f"Another gateway keeps its state in {self._file.path}.")
            async with contextlib.aclosing(self.snapshots.pieces(time.time())) as pieces:
                await self._file.write(pieces)
        except OSError as error:
            self.saved["failed"] += 1
            raise NothingKept(f"{self._file.path} can't be written: {error.strerror or error}.") from error
        except NothingKept:
            self.saved["failed"] += 1
            raise
        self.saved["done"] += 1
        self._saved_at = time.monotonic()
        made = self.snapshots
        return {
            "saved": True,
            "path": str(self._file.path),
            "bytes": made.nbytes,
            "feeds": made.feeds,
            "blocks": made.blocks,
            "seconds": round(self._saved_at - began, 3),
        }

    def told(self) -> dict[str, Any]:
        """Who this gateway is, for others; and how it stands with them, for operators."""
        memory, there = self.memory, {} if self.gateways is None else self.gateways.there
        urls = [] if self.gateways is None else self.gateways.urls
        return {
            "name": f"{self.name:016x}",
            "port": self.port,
            "knows": not memory.loading and bool(memory.knows),
            "peers": [
                {"url": url, "up": url in there, "name": f"{there[url].name:016x}" if url in there else None}
                for url in urls
            ],
            "restored": {"from": memory.source, "blocks": memory.entered, "seconds": round(memory.load_s, 3)},
        }

    def collect(self) -> Steps:
        """Its families."""
        keeps = self._file is not None and self._keeps
        age_s = nan if not keeps else time.monotonic() - (self._began if self._saved_at is None else self._saved_at)
        text = "Since the snapshot on disk was written, or since the start; no number where none is kept."
        yield gauge("warmroute_snapshot_age_seconds", text, age_s)
        yield gauge("warmroute_snapshot_bytes", "Bytes of the newest snapshot on disk.", self.snapshots.nbytes)
        yield counters("warmroute_snapshot_saves_total", "Savings, by how they ended.", "result", self.saved)
        text = "Blocks taken over from another gateway or from disk, at the start."
        yield gauge("warmroute_restored_blocks", text, self.memory.entered)
        results = Counter(dict.fromkeys(LOADS, 0))
        for (_, result), count in self.memory.results.items():
            results[result] += count
        text = "What came of asking for what was known, at the start."
        yield counters("warmroute_state_loads_total", text, "result", results)
        if self.gateways is not None:
            yield gauge("warmroute_peers", "Other gateways that answer.", len(self.gateways.there))
        if self.exchange is not None:
            text = "Workers of other gateways whose load is heard."
            yield gauge("warmroute_peers_heard", text, self.exchange.heard_from)
            text = "Datagrams between gateways about what is in flight, by what became of them."
            yield counters("warmroute_peer_datagrams_total", text, "result", self.exchange.counts)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._config.state.interval)
            if self.memory.loading:
                continue
            try:
                await self.save()
                self._say(None)
            except NothingKept as error:
                self._say(error.message)
            except Exception:  # a fault of ours: the next one may be better
                log.exception("what is known could not be saved")

    def _say(self, trouble: str | None) -> None:
        """Once for each change."""
        if trouble != self._said:
            log.warning("nothing is saved: %s", trouble) if trouble else log.info("what is known is saved again")
        self._said = trouble


def _name_of(worker: Worker) -> int:
    """The same for all workers of one gateway."""
    text = f"{worker.folder} {worker.seed}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _listens(config: Config) -> tuple[str, int]:
    """Where datagrams are taken."""
    gateway, given = config.gateway, config.peers.listen
    if given is None:
        return gateway.host, gateway.port if gateway.ops_port is None else gateway.ops_port
    host, _, port = given.rpartition(":")
    return host.strip("[]"), int(port)


def _shown(config: Config, key: PeerKey | None) -> dict[str, str]:
    """What other gateways, which are configured alike, are shown."""
    shown = {} if key is None else {SHOWN: key.token}
    operator, path = config.gateway.operator_key, config.gateway.operator_key_file
    given = [] if operator is None else [operator.get_secret_value()]
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            given = read_keys(path)
    if given:
        shown["authorization"] = f"Bearer {given[0]}"
    return shown
