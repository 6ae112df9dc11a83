"""Pods that die of a certain prompt, on whatever path it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from router.config.settings import Config
from router.endpoints.app import create_app
from router.endpoints.data_plane import Gateway
from router.service import Service
from tests.fakes.houses import MODEL, PATIENCE_S, Client, reply
from tests.fakes.peers import Call, Peer, peer, until

POISON = b"poison"
CARD = b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'


class MortalPod:
    """Tells tokens, renders if it `renders`, and serves; of whatever holds POISON it dies, some time later."""

    def __init__(self, renders: bool, agony_s: float) -> None:
        self.renders = renders
        self.agony_s = agony_s
        self.dead = False
        self.asked = 0  # for tokens
        self.seen = Peer()

    async def __call__(self, call: Call) -> None:
        await call.read_body()
        path = call.head.split(b" ")[1]
        if POISON in call.body:
            self.dead = True
            await asyncio.sleep(self.agony_s)
        if self.dead:
            call.reset()
        elif path == b"/v1/models":
            await call.send(reply(200, json.dumps({"data": [{"id": MODEL}]}).encode()))
        elif path == b"/metrics":
            await call.send(reply(200, CARD))
        elif path == b"/tokenize":
            self.asked += 1
            await call.send(reply(200, json.dumps({"tokens": [*range(100)]}).encode()))
        elif path.endswith(b"/render"):
            asks = call.head.startswith(b"POST")
            self.asked += asks and self.renders
            status = (200 if asks else 405) if self.renders else 404
            await call.send(reply(status, json.dumps({"token_ids": [*range(100)]}).encode()))
        else:
            await call.send(reply(200))


@contextlib.asynccontextmanager
async def mortals(
    tokenizer: str, renders: bool = False, agony_s: float = 0.0
) -> AsyncIterator[tuple[Service, Gateway, list[MortalPod]]]:
    """The gateway before four of them, when it knows of each what it needs to ask for tokens."""
    pods = [MortalPod(renders, agony_s) for _ in range(4)]
    async with contextlib.AsyncExitStack() as stack:
        for pod in pods:
            pod.seen = await stack.enter_async_context(peer(pod))
        given = {
            "discovery": {"static": [{"name": f"pod-{n}", "address": pod.seen.address} for n, pod in enumerate(pods)]},
            "scoring": {"policy": "round-robin"},
            "probe": {"interval": 0.03},
            "models": [{"name": MODEL, "tokenizer": tokenizer}],
            "tokens": {"hedge_delay": 0.05, "deadline": 5},
        }
        service = Service(Config.model_validate(given))
        async with service.running():
            await until(lambda: len(service.core.fleet.grains(MODEL)) == 1)
            await until(lambda: service.encoder.remote.renders(MODEL) is renders)
            yield service, create_app(service), pods


async def asked_for(app: Gateway, text: str) -> int:
    """The status of one chat's answer."""
    client = Client(app, {"messages": [{"role": "user", "content": text}]}, {}, "/v1/chat/completions")
    async with asyncio.timeout(PATIENCE_S):
        await client.run()
    return client.answer.status
