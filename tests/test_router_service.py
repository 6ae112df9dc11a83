"""When the gateway is ready: not before what its pods hold is known, and not held up by who does not tell."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

from router.config.settings import Config
from router.service import Service
from tests.fakes.houses import MODEL, reply
from tests.fakes.peers import Call, peer, until
from tests.fakes.processes import free_ports
from tests.fakes.publishers import Publisher, publisher

UNLOADED = "the first state of its feed is not loaded"


async def healthy(call: Call) -> None:
    """A pod that is well."""
    models = json.dumps({"data": [{"id": MODEL}]}).encode()
    await call.send(reply(200, models if call.head.startswith(b"GET /v1/models ") else b""))


def silent(speaker: Publisher, silent_for: asyncio.Event) -> None:
    """Its replay is not answered until then; whoever asked meanwhile has to ask again."""

    def answers(start: int) -> Iterable[list[bytes]]:
        return speaker.whole(start) if silent_for.is_set() else []

    speaker.answers = answers


def held(service: Service) -> list[int]:
    """Blocks of each pod."""
    return [service.core.index.held(rank.id) for rank in service.core.fleet.ranks]


@contextlib.asynccontextmanager
async def fleet(*feeds: Publisher | None, **events: Any) -> AsyncIterator[Service]:
    """The gateway, starting, before a pod for each feed; None: nobody is at the place of its feed."""
    static = []
    async with contextlib.AsyncExitStack() as stack:
        for number, feed in enumerate(feeds):
            seen = await stack.enter_async_context(peer(healthy))
            port, replay = free_ports(2)
            pod = {"events": f"tcp://127.0.0.1:{port}", "replay": f"tcp://127.0.0.1:{replay}"}
            if feed is not None:
                pod = {"events": feed.events, "replay": feed.replay}
            static.append({"name": f"pod-{number}", "address": seen.address, **pod})
        given = {
            "discovery": {"static": static},
            "models": [{"name": MODEL, "block_size": 4, "tokenizer": "pod"}],
            "probe": {"interval": 0.05, "timeout": 0.2},
            "events": {"replay_timeout": 0.3, "replay_stall": 0.1, "reconnect_delay_max": 0.1, **events},
        }
        service = Service(Config.model_validate(given))
        async with service.running():
            yield service


async def test_it_waits_for_all_feeds_that_answer() -> None:
    """Two histories are long in coming: ready when both are there, and no later for a feed that nobody answers."""
    async with publisher() as first, publisher() as second:
        ends = asyncio.Event(), asyncio.Event()
        for speaker, end in zip((first, second), ends, strict=True):
            await speaker.publish(lost=True)
            silent(speaker, end)
        async with fleet(first, None, second, join_timeout=3600, replay_retries=100) as service:
            waits = [f"pod-{number}: {UNLOADED}" for number in (0, 2)]
            await until(lambda: service.unready() == waits)
            assert service.readiness()["pods"]["pod-1"] == {"fit": True, "reasons": []}
            ends[0].set()
            await until(lambda: service.unready() == waits[1:])
            assert held(service) == [1, 0, 0]
            ends[1].set()
            await until(lambda: not service.unready())
            assert held(service) == [1, 0, 1]


async def test_it_waits_so_long_and_no_longer() -> None:
    """A feed that answers and never tells its history does not keep the gateway from serving for ever."""
    async with publisher() as speaker:
        silent(speaker, asyncio.Event())
        async with fleet(speaker, join_timeout=1.5, replay_retries=100) as service:
            await until(lambda: service.unready() == [f"pod-0: {UNLOADED}"])
            await until(lambda: not service.unready())
            assert len(speaker.asked) > 1
            assert [rank.feed and rank.feed.state for rank in service.core.fleet.ranks] == ["blind"]
