"""A gateway of several workers as real processes, and a connection to each of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, gateway, pods

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
