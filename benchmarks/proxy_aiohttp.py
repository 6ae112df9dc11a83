"""The plain way with a cheaper client, for comparison: a FastAPI endpoint that forwards with aiohttp, round-robin."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from benchmarks.proxy_plain import NOT_FORWARDED, serve


def create_app(pods: list[str]) -> FastAPI:
    """One endpoint; it streams the answer back."""
    turn = itertools.cycle(pods)
    sessions: list[aiohttp.ClientSession] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=1024, keepalive_timeout=4.0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            sessions.append(session)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.body()
        json.loads(body)
        headers = [(name, value) for name, value in request.headers.items() if name not in NOT_FORWARDED]
        response = await sessions[0].post(f"{next(turn)}/v1/chat/completions", headers=headers, data=body)

        async def stream() -> AsyncIterator[bytes]:
            try:
                async for chunk in response.content.iter_any():
                    yield chunk
            finally:
                response.release()

        kept = {name: value for name, value in response.headers.items() if name.lower() not in NOT_FORWARDED}
        return StreamingResponse(stream(), status_code=response.status, headers=kept)

    return app


if __name__ == "__main__":
    serve(create_app, __doc__)
