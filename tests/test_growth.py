"""A year of autoscaling, adapters, salts, flows and clients, in simulated time: nothing is kept of who is gone."""

from __future__ import annotations

import asyncio
import gc
import time
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import uvicorn
from uvicorn.server import ServerState

from indexer.events import BlockStored
from indexer.feed import Feed
from router.config.gateway import GatewayConfig
from router.config.settings import Config
from router.core.decision import Core
from router.core.demand import End
from router.core.fleet import Pod, Rank, RankId
from router.server.limits import ServingLimits
from router.server.long_answers import at_once
from router.server.port import Port
from router.service import Service
from scorer.cost import PrefillRate
from tests.fakes.cores import NOBODY, counted, route
from tests.fakes.processes import MODEL, TOKENIZER

DAY_S = 86_400.0
PODS = 6
A_DAY = 8  # requests, each of a new client, flow and salt
CONFIG = {
    "index": {"blocks_max": 2000, "text_blocks_max": 2000},
    "prefix_store_config": {"bytes_max": "1MiB"},
    "tokens": {"recall_max": "64KiB"},
    "decisions": {"kept": 20, "errors_kept": 20, "remembered_blocks": 1024, "remembered_prompts": 50},
    "models": [{"name": MODEL, "tokenizer": str(TOKENIZER)}],
}
_LEFT_ALONE = (type, types.ModuleType, types.FunctionType, types.CodeType, types.FrameType, asyncio.AbstractEventLoop)


def sizes(root: object) -> Counter[str]:
    """All that can be reached from an object: how many there are of each type, items of containers, bytes of arrays."""
    seen: set[int] = set()
    found: Counter[str] = Counter()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, _LEFT_ALONE):
            continue
        seen.add(id(one))
        name = type(one).__qualname__
        found[name] += 1
        if isinstance(one, dict | list | set | frozenset | tuple | bytes | str):
            found[f"items of {name}"] += len(one)
        elif isinstance(one, np.ndarray):
            found["bytes of arrays"] += one.nbytes
        waiting += gc.get_referents(one)
    return found


class Year:
    """One gateway, and what comes and goes."""

    def __init__(self) -> None:
        self.service = Service(Config.model_validate(CONFIG))
        self.core: Core = self.service.core
        self.front = Port(ServingLimits.of(GatewayConfig(connections_max=100, connections_per_client_max=5)))
        self.uvicorn = uvicorn.Config("")
        self.uvicorn.loaded_app = None
        self.now = 0.0
        self._numbers = iter(range(10**6, 10**7))

    def join(self, day: int) -> None:
        """A pod that was never there; with the adapters of the day, and the base model of the month beside ours."""
        core, number = self.core, next(self._numbers)
        pod = Pod(f"pod-{number}", f"http://10.0.0.{number}", healthy=True, block_size=16, version=f"0.{day}.0")
        name = RankId(pod.name, 0)
        feed = Feed(core.index, name, 100)
        pod.ranks.append(Rank(name, pod, core.load_of(name, PrefillRate(1000)), feed))
        core.fleet.join(pod)
        adapters = [{"id": f"adapter-{day}-{k}", "parent": MODEL} for k in range(3)]
        core.fleet.learned_models(pod, [{"id": MODEL}, {"id": f"base-{day // 30}"}, *adapters])
        feed.replay_ended(True, self.now)
        tokens = np.arange(number * 160, (number + 1) * 160, dtype=np.uint32)
        core.index.apply(name, BlockStored(list(range(number * 10 + 1, number * 10 + 11)), None, tokens, 16))

    def scale(self, day: int) -> None:
        """Half of the pods leave, others come."""
        for pod in list(self.core.fleet.pods.values())[: PODS // 2]:
            self.core.leave(pod)
        while len(self.core.fleet.pods) < PODS:
            self.join(day)

    def bodies(self, day: int) -> Iterator[dict[str, Any]]:
        for place in range(A_DAY):
            number = next(self._numbers)
            model = (MODEL, f"adapter-{day}-{place % 3}", f"base-{day // 30}", MODEL)[place % 4]
            content = f"client {number} " + "asks " * 100
            chat = {"messages": [{"role": "user", "content": content}], "cache_salt": f"salt {number}"}
            yield {"model": model, **chat}

    async def ask(self, body: dict[str, Any], fails: bool) -> None:
        """One request of a client that nobody has seen before."""
        service, core, number = self.service, self.core, next(self._numbers)
        path, raw = "/v1/chat/completions", orjson.dumps(body)
        connection = self.front(self.uvicorn, ServerState(), {}, asyncio.get_running_loop())
        self.front.admit(connection, f"2001:db8::{number:x}")
        core.queue.put(object(), f"flow {number}".encode(), number % 3, 10, body["model"])
        core.queue.serve(lambda entry: True)
        prompt = await service.encoder.parsed(path, raw)
        meaning = await service.encoder.understood(path, raw, prompt)
        service.metrics.understood(meaning.timing_us)
        placed = route(core, meaning.demand, NOBODY, self.now)
        if fails:
            core.finish(placed, End("failed"), self.now + 0.2)
        else:
            core.first_byte(placed, True, self.now + 0.1)
            core.finish(placed, counted(meaning.demand.tokens, 0), self.now + 0.2)
        service.metrics.count(body["model"], placed.decision.rank.id.pod, 502 if fails else 200)
        self.front.lost(connection, f"2001:db8::{number:x}")

    def night(self) -> None:
        """What the service's housekeeping does, until nothing is left to do."""
        core, store = self.core, self.core.store
        self.now += DAY_S
        core.fleet.notice_grains()
        self.service.encoder.judge(self.now)
        at_once(self.service.journal.go_on(time.monotonic(), all_of_them=True))
        for index in (core.index, core.texts):
            index.expire(self.now)
            while index.sweep() or index.refill():
                pass
        while not store.cleanup_expired(self.now + 10 * DAY_S, 200).done:
            pass
        for _ in range(2):
            at_once(self.service.metrics.end_departed(self.now))
        self.service.metrics.text()


async def test_a_year() -> None:
    """In the second month all that fills up is full; ten months later there is no more of anything."""
    year = Year()
    try:
        await live(year)
    finally:
        await year.service.pods.stop()
        year.service.encoder.close()


async def live(year: Year) -> None:
    """All days; compares what there is after two months and at the end."""
    after: dict[int, Counter[str]] = {}
    for day in range(100, 460):
        year.scale(day)
        for place, body in enumerate(year.bodies(day)):
            await year.ask(body, fails=place == 7)
        year.night()
        if day in (160, 459):
            gc.collect()
            after[day] = sizes([year.service, year.front])
    grown = {name: (after[160][name], n) for name, n in after[459].items() if n > 1.15 * after[160][name] + 20}
    assert not grown, "\n".join(f"{name}: {was} -> {now}" for name, (was, now) in grown.items())
