"""The plain way, for comparison: a FastAPI endpoint that forwards with httpx, round-robin."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from benchmarks.proxy_plain import NOT_FORWARDED, serve


def create_app(pods: list[str]) -> FastAPI:
    """One endpoint; it streams the answer back."""
    turn = itertools.cycle(pods)
    limits = httpx.Limits(max_connections=1024, max_keepalive_connections=256, keepalive_expiry=4.0)
    client = httpx.AsyncClient(timeout=600.0, limits=limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.body()
        orjson.loads(body)
        headers = [(name, value) for name, value in request.headers.items() if name not in NOT_FORWARDED]
        forwarded = client.build_request("POST", f"{next(turn)}/v1/chat/completions", headers=headers, content=body)
        response = await client.send(forwarded, stream=True)

        async def stream() -> AsyncIterator[bytes]:
            try:
                async for chunk in response.aiter_raw():
                    yield chunk
            finally:
                await response.aclose()

        kept = {name: value for name, value in response.headers.items() if name not in NOT_FORWARDED}
        return StreamingResponse(stream(), status_code=response.status_code, headers=kept)

    return app


if __name__ == "__main__":
    serve(create_app, __doc__)
