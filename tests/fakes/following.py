"""A source of pods that is followed: what it has told so far."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

from router.config.fleet import KubernetesConfig
from router.discovery.found import Change, FoundPod, Gone
from router.discovery.kubernetes import KubernetesSource
from router.discovery.kubernetes_api import api_of


class Follower:
    """What a source has told so far, as a set of pods."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.pods: dict[str, FoundPod] = {}
        self.batches = 0
        self.slept: list[float] = []

    async def run(self) -> None:
        async with contextlib.aclosing(self.source.changes()) as changes:
            async for batch in changes:
                self.take(batch)

    def take(self, batch: list[Change]) -> None:
        self.batches += 1
        for change in batch:
            if isinstance(change, Gone):
                del self.pods[change.uid]
            else:
                self.pods[change.uid] = change

    async def names(self, *expected: str) -> None:
        """Wait until just these pods are known."""
        async with asyncio.timeout(30):
            while sorted(each.pod.name for each in self.pods.values()) != sorted(expected):
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(follower: Follower) -> AsyncIterator[None]:
    """It follows its source, until it is told to end and for no other reason."""
    task = asyncio.create_task(follower.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled(), task


@contextlib.asynccontextmanager
async def following(api: str, rng: random.Random | None = None, **given: Any) -> AsyncIterator[Follower]:
    """A source of the API server at this URL that is followed. Its pauses are short, and told."""
    chosen = {} if {"service", "inference_pool"} & set(given) else {"selector": "app=vllm"}
    section = KubernetesConfig.model_validate({"api": api, "namespace": "inference", **chosen, **given})

    async def sleep(seconds: float) -> None:
        follower.slept.append(seconds)
        await asyncio.sleep(0.01)

    follower = Follower(KubernetesSource(section, api_of(section), sleep, rng))
    async with running(follower):
        yield follower
