"""A gateway of several workers as real processes, and a connection to each of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.processes import MODEL, PLAIN, START_S, GatewayProcess, PodProcess, gateway, pods

WORKERS = 2
LOOK_S = 0.05  # within it, each worker looks at what the others have in flight


@contextlib.contextmanager
def workers(folder: Path, *fleet: PodProcess, **sections: Any) -> Iterator[GatewayProcess]:
    """A gateway of two, which both answer, in front of these pods."""
    own = {"workers": WORKERS, **sections.pop("gateway", {})}
    with pods(*fleet), gateway(folder, [pod.configured for pod in fleet], gateway=own, **sections) as served:
        while served.logged().count(" serves\n") < WORKERS:
            assert served.process.poll() is None, "the gateway has ended"
            time.sleep(0.1)
        yield served


def completion(text: str, **more: Any) -> dict[str, Any]:
    """A request's body."""
    return {"model": MODEL, "prompt": text, "max_tokens": 1, **more}


def pid_of(answer: httpx.Response) -> int:
    """The worker that answered: a request's own id names its process."""
    return int(answer.headers["x-request-id"].split("-")[1], 16)


async def in_flight(client: httpx.AsyncClient) -> dict[str, int]:
    """Requests at each pod, as the next decision of this worker counts them."""
    answer = (await client.post("/score", json={"model": MODEL, "prompt": "any"})).json()
    return {pod["pod"]: pod["load"]["requests"] for pod in answer["pods"]}


async def until_in_flight(client: httpx.AsyncClient, count: int) -> dict[str, int]:
    """Wait until this worker has seen so many at all pods, and return them: it looks every `LOOK_S`, if it can."""
    async with asyncio.timeout(START_S):
        while sum((seen := await in_flight(client)).values()) != count:
            await asyncio.sleep(LOOK_S)
        return seen


@contextlib.asynccontextmanager
async def each(served: GatewayProcess) -> AsyncIterator[dict[int, httpx.AsyncClient]]:
    """A client with a connection to each worker, by process id."""
    async with contextlib.AsyncExitStack() as stack:
        found: dict[int, httpx.AsyncClient] = {}
        for _ in range(200):
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=served.url, **PLAIN))
            found.setdefault(pid_of(await client.post("/v1/completions", json=completion("who are you?"))), client)
            if len(found) == WORKERS:
                yield found
                return
        raise AssertionError(f"{found} are all that were found")
