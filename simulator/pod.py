"""One simulated pod: its ranks, its faults, and their life."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from simulator.ask import Refused
from simulator.engine import Engine, Limits, Rest
from simulator.events import Dialect
from simulator.faults import Faults
from simulator.model import Model
from simulator.pace import Pace
from simulator.publisher import BUFFER_STEPS, SEND_HWM, Publisher


@dataclass(frozen=True, slots=True)
class Settings:
    """All of a pod that is not its model. Port 0: any; else rank r publishes at port + r.

    `events_endpoint`, if given, is vLLM's own setting of that name: bound if it has `*` or `::`, else connected to.
    """

    dialect: Dialect
    limits: Limits = field(default_factory=Limits)
    pace: Pace = field(default_factory=Pace)
    faults: Faults = field(default_factory=Faults)
    ranks: int = 1
    host: str = "127.0.0.1"
    events_port: int = 0
    events_endpoint: str = ""
    replay_port: int = 0
    topic: str = ""
    buffer_steps: int = BUFFER_STEPS
    hash_seed: str | None = None
    first_rank: int = 0
    """What its ranks count from: of a node in a fleet under hybrid load balancing, the ranks of the nodes before."""
    api_keys: frozenset[str] = frozenset()
    """Keys that /v1 asks for; none: it is open."""
    development: bool = False
    """VLLM_SERVER_DEV_MODE: the pod can be put to rest."""
    scale_out: bool = False
    """The endpoints that render are allowed (vLLM >= 0.30 refuses them otherwise)."""


class Pod:
    """Engines, one per data-parallel rank, behind one HTTP server."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model = model
        self.faults = settings.faults
        first = settings.first_rank
        self.engines = [self._engine(settings, first + place) for place in range(settings.ranks)]
        self.api_keys = settings.api_keys
        self.development = settings.development
        self.scale_out = settings.scale_out
        self._settings = settings
        self.tasks: list[asyncio.Task[None]] = []
        """The engines at work: none of them ends before `stop` but by an error."""

    @staticmethod
    def _engine(settings: Settings, rank: int) -> Engine:
        publisher = Publisher(settings.topic, settings.dialect.replay_topic, settings.buffer_steps)
        return Engine(settings.limits, settings.pace, settings.dialect, publisher, rank, settings.hash_seed)

    async def start(self) -> None:
        """Bind the feeds and start the engines. Raises zmq.ZMQError when an address is taken."""
        settings = self._settings
        given = settings.events_endpoint
        connects = bool(given) and "*" not in given and "::" not in given
        for place, engine in enumerate(self.engines):
            events = _of_rank(given or f"tcp://{settings.host}:{settings.events_port}", place)
            replay = _of_rank(f"tcp://{settings.host}:{settings.replay_port}", place)
            engine.publisher.open(events, replay, connects)
            engine.misbehave(self.faults)
            engine.publisher.start()
            self.tasks.append(asyncio.create_task(engine.run(time.monotonic)))

    async def stop(self) -> None:
        """Stop engines and feeds."""
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for engine in self.engines:
            await engine.publisher.stop()

    def engine_for(self, rank: str | None) -> Engine:
        """The rank that a request names, else the least loaded; Refused (400) out of range from 0.20 on."""
        first, count = self._settings.first_rank, len(self.engines)
        if rank is not None and rank.lstrip("-").isdigit():
            if first <= int(rank) < first + count:
                return self.engines[int(rank) - first]
            if self.model.version >= (0, 20):
                raise Refused(400, f"data_parallel_rank {rank} is out of range [{first}, {first + count}).")
        return min(self.engines, key=lambda engine: engine.load)

    def misbehave(self, faults: Faults) -> None:
        """Change what goes wrong, on every rank."""
        self.faults = faults
        for engine in self.engines:
            engine.misbehave(faults)

    def restart(self) -> None:
        """As a new process: see Engine.restart."""
        for engine in self.engines:
            engine.restart()

    def rest(self, why: Rest | None) -> None:
        """Compute nothing and hold nothing (None: go on); requests wait."""
        for engine in self.engines:
            engine.rest(why)

    def event_sources(self) -> dict[str, Any]:
        """The body of `/kv_event_sources`."""
        return {
            str(engine.rank): {
                "enable_kv_cache_events": True, "publisher": "zmq", "endpoint": engine.publisher.endpoint,
                "replay_endpoint": engine.publisher.replay_endpoint, "buffer_steps": self._settings.buffer_steps,
                "hwm": SEND_HWM, "max_queue_size": SEND_HWM, "topic": self._settings.topic,
            }
            for engine in self.engines
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """The truth, for tests: per rank the load, the pool, and the next sequence number."""
        return {
            "model": self.model.name,
            "version": self.model.version_text,
            "faults": msgspec.structs.asdict(self.faults),
            "ranks": [self._rank_state(engine) for engine in self.engines],
        }

    @staticmethod
    def _rank_state(engine: Engine) -> dict[str, Any]:
        scheduler, pool = engine.scheduler, engine.scheduler.pool
        counters: Sequence[tuple[str, int]] = [
            (name, getattr(scheduler.counters, name)) for name in scheduler.counters.__dataclass_fields__
        ]
        return {
            "rank": engine.rank, "seq": engine.publisher.seq, "events": engine.publisher.endpoint,
            "replay": engine.publisher.replay_endpoint, "running": len(scheduler.running),
            "waiting": len(scheduler.waiting), "block_size": pool.block_size, "blocks_used": pool.used,
            "blocks_free": pool.free, "blocks_cached": pool.cached, **dict(counters),
        }  # fmt: skip


def _of_rank(endpoint: str, rank: int) -> str:
    """As vLLM counts: the ranks have the ports from the given one on, to bind and to connect to. Port 0: any."""
    head, _, port = endpoint.rpartition(":")
    return f"{head}:{int(port) + rank}" if int(port) else f"{head}:*"
