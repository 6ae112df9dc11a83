"""What comes beside steady chats: adapters, salts, uploads, what is wrong, and what operators ask; all is counted."""

from __future__ import annotations

import asyncio
import collections
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess
from tests_chaos.load import DEADLINE_S, DROPPED, HUNG, chat

PAUSE_S = 0.4  # between two requests of one kind
IMAGE_BYTES = 6 * 2**20  # of an upload, as base64
FORM_BYTES = 4 * 2**20
_PATHS = ("/metrics", "/pods", "/decisions?limit=200", "/cache/status", "/readyz", "/v1/models")


class Mixture:
    """One client for each kind of request, one after the other."""

    def __init__(self, served: GatewayProcess, seed: int) -> None:
        self._served = served
        self._seed = seed
        self._over = False
        self.ends: collections.Counter[tuple[str, str]] = collections.Counter()
        """By kind and end: an HTTP status, or `HUNG` or `DROPPED`."""

    async def during(self, work: Callable[[], Awaitable[None]]) -> None:
        """Ask for as long as `work` takes."""
        kinds = {
            "adapter": self._adapter, "salt": self._salt, "image": self._image, "form": self._form,
            "wrong": self._wrong, "look": self._look, "change": self._change, "score": self._score,
        }  # fmt: skip
        clients = [asyncio.create_task(self._client(kind, ask)) for kind, ask in kinds.items()]
        try:
            await work()
        finally:
            self._over = True
            await asyncio.gather(*clients)

    async def _client(self, kind: str, ask: Callable[..., Awaitable[int]]) -> None:
        draw = random.Random(f"{kind} {self._seed}")
        async with httpx.AsyncClient(base_url=self._served.url, **{**PLAIN, "timeout": None}) as http:
            while not self._over:
                try:
                    async with asyncio.timeout(DEADLINE_S):
                        end = str(await ask(http, draw))
                except TimeoutError:
                    end = HUNG
                except httpx.TransportError:
                    end = DROPPED
                self.ends[(kind, end)] += 1
                await asyncio.sleep(draw.uniform(0, PAUSE_S))

    async def _adapter(self, http: httpx.AsyncClient, draw: random.Random) -> int:
        """By one of the names that are served now: they are others each round."""
        told = (await http.get("/v1/models")).json()["data"]
        names = sorted(model["id"] for model in told) or [MODEL]
        return await _post(http, {**chat(draw, stream=False), "model": draw.choice(names)})

    async def _salt(self, http: httpx.AsyncClient, draw: random.Random) -> int:
        """Each salt is new; the flow, too."""
        headers = {"x-warmroute-flow": f"flow-{draw.random()}"}
        return await _post(http, {**chat(draw, stream=False), "cache_salt": f"{draw.random()}"}, headers)

    async def _image(self, http: httpx.AsyncClient, draw: random.Random) -> int:
        url = f"data:image/png;base64,{draw.randbytes(4).hex()}{'A' * IMAGE_BYTES}"
        parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
        return await _post(http, {"model": MODEL, "messages": [{"role": "user", "content": parts}], "max_tokens": 2})

    async def _form(self, http: httpx.AsyncClient, draw: random.Random) -> int:
        files = {"file": ("speech.wav", draw.randbytes(16) + bytes(FORM_BYTES))}
        return (await http.post("/v1/audio/transcriptions", data={"model": MODEL}, files=files)).status_code

    async def _wrong(self, http: httpx.AsyncClient, draw: random.Random) -> int:
        """Bodies that are none, unknown models, made-up paths."""
        bodies: list[Any] = [b"{", b"[]", b'{"model": 3}', b'{"model": "%d", "messages": []}' % draw.randrange(10**9)]
        path = draw.choice(["/v1/chat/completions", "/v1/completions", f"/v1/{draw.randrange(10**9)}"])
        return (await http.post(path, content=draw.choice(bodies))).status_code

    async def _look(self, http: httpx.AsyncClient, draw: random.Random) -> int:
        return (await http.get(draw.choice(_PATHS))).status_code

    async def _change(self, http: httpx.AsyncClient, draw: random.Random) -> int:
        """A pod is drained for a moment, what is expired is cleaned, and all that is known of a pod is forgotten."""
        await asyncio.sleep(draw.uniform(0, 10 * PAUSE_S))
        pod = f"pod-{draw.randrange(4)}"
        what = draw.choice(["drain", "cleanup", "invalidate"])
        if what == "cleanup":
            return (await http.post("/cache/cleanup")).status_code
        if what == "invalidate":
            return (await http.post("/cache/invalidate", json={"pod": pod})).status_code
        await http.post(f"/pods/{pod}/drain")
        await asyncio.sleep(PAUSE_S)
        return (await http.post(f"/pods/{pod}/undrain")).status_code

    async def _score(self, http: httpx.AsyncClient, draw: random.Random) -> int:
        return (await http.post("/score", json=chat(draw, stream=False))).status_code


async def _post(http: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str] | None = None) -> int:
    return (await http.post("/v1/chat/completions", json=body, headers=headers)).status_code
