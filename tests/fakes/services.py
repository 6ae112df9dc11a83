"""The gateway's applications in this process, and clients of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from indexer.feed import Feed
from router.config.settings import Config
from router.core.fleet import Pod, Rank, RankId
from router.endpoints.app import create_app, create_ops_app
from router.service import Service
from scorer.cost import PrefillRate
from scorer.load import PodLoad
from tests.fakes.cores import MODEL, SIZE


@contextlib.asynccontextmanager
async def in_process(config: dict[str, Any]) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """The gateway's application in this process, and a client of it."""
    service = Service(Config.model_validate(config))
    transport = httpx.ASGITransport(create_app(service))
    async with service.running(), httpx.AsyncClient(transport=transport, base_url="http://g", timeout=30) as client:
        yield service, client


@contextlib.asynccontextmanager
async def operators(**gateway: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of the plane, over a service with two pods that are there."""
    service = Service(Config.model_validate({"gateway": gateway}))
    core = service.core
    for number in range(2):
        pod = Pod(f"pod-{number}", f"http://pod-{number}", healthy=True, block_size=SIZE)
        name = RankId(pod.name, 0)
        pod.ranks.append(Rank(name, pod, PodLoad(PrefillRate(1000)), Feed(core.index, name, 100)))
        core.fleet.join(pod)
        core.fleet.learned_models(pod, [{"id": MODEL}, {"id": f"only-{number}"}])
    app: Any = create_ops_app(service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ops") as client:
        try:
            yield client, service
        finally:
            await service.pods.stop()
            service.encoder.close()
