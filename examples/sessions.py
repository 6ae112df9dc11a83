"""Three conversations at once: each stays where its context is cached, though nobody pins it there.

python examples/sessions.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080)
"""

from __future__ import annotations

import asyncio
import os

import httpx

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
TURNS = ("Tell me more.", "Why is that so?", "Give an example.", "Sum it up.")


async def conversation(client: httpx.AsyncClient, model: str, name: str) -> None:
    """Four turns; the header is a hint, the chain of blocks is what counts."""
    messages = [{"role": "system", "content": f"You know all about {name}. " * 40}]
    pods, cached, asked = [], 0, 0
    for turn in TURNS:
        messages.append({"role": "user", "content": turn})
        body = {"model": model, "messages": messages, "max_tokens": 16}
        response = await client.post("/v1/chat/completions", json=body, headers={"x-session-id": name})
        answer = response.raise_for_status().json()
        messages.append(answer["choices"][0]["message"])
        pods.append(response.headers["x-warmroute-pod"])
        asked += answer["usage"]["prompt_tokens"]
        cached += (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    print(f"{name:10} {' '.join(pods)}   {cached / asked:.0%} of prompt tokens cached")


async def main() -> None:
    async with httpx.AsyncClient(base_url=URL, timeout=15) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        await asyncio.gather(*(conversation(client, model, name) for name in ("whales", "bridges", "tea")))


asyncio.run(main())
