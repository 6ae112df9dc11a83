"""Pods that answer probes as they are told, and a prober over them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson

from indexer.blocks import KeySpace
from router.config.settings import Config
from router.core.decision import Core
from router.discovery.pods import Pods
from router.service import core_settings
from router.upstream.upstreams import Upstreams
from tests.fakes.peers import Call, Peer, peer

PROBE = {"interval": 0.02, "timeout": 2.0, "failures_max": 3}


class Told:
    """A pod that answers probes as it is told."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {
            "/health": (200, b""),
            "/v1/models": (200, orjson.dumps({"data": [{"id": "m"}]})),
            "/version": (200, b'{"version": "0.32.0"}'),
            "/metrics": (200, b'vllm:cache_config_info{block_size="32",num_gpu_blocks="96"} 1.0\n'),
        }

    async def __call__(self, call: Call) -> None:
        """One probe."""
        status, body = self.answers.get(call.head.split(b" ")[1].decode(), (404, b""))
        await call.send(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))


@contextlib.asynccontextmanager
async def probed(told: Told, **more: Any) -> AsyncIterator[tuple[Core, Pods, Peer]]:
    """One pod `a` under probes."""
    async with peer(told) as seen:
        static = [{"name": "a", "address": seen.address, **more}]
        config = Config.model_validate({"discovery": {"static": static}, "probe": PROBE})
        core = Core(core_settings(config), KeySpace(1))
        pods = Pods(core, config, Upstreams(config))
        await pods.start()
        await pods.met()
        try:
            yield core, pods, seen
        finally:
            await pods.stop()


class Anything:
    """A pod that serves these models, and answers every request but those to /tokenize."""

    def __init__(self, models: Iterable[str]) -> None:
        self.models = tuple(models)

    async def __call__(self, call: Call) -> None:
        """One request."""
        await call.read_body()
        path = call.head.split(b" ")[1].decode()
        if path == "/tokenize":
            await call.gone()
            return
        models = {"data": [{"id": name} for name in self.models]}
        answers = {"/v1/models": models, "/metrics": None, "/version": {"version": "0.32.0"}}
        body = orjson.dumps(answers.get(path, {"ok": True}))
        if path == "/metrics":
            body = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n'
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
