"""Many prompts with one long beginning: after the first few, everybody's beginning is cached somewhere.

python examples/batch.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080)
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import httpx

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
BEGINNING = "Classify the sentence as praise or complaint. Here are the rules, which are many. " * 25
AT_ONCE = 8


async def main() -> None:
    pods: Counter[str] = Counter()
    cached = asked = 0
    turn = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=URL, timeout=15) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]

        async def one(number: int) -> None:
            nonlocal cached, asked
            body = {"model": model, "prompt": f"{BEGINNING}\n\nSentence {number}: fine, really.", "max_tokens": 2}
            async with turn:  # a batch yields to people who wait
                response = await client.post("/v1/completions", json=body, headers={"x-warmroute-priority": "batch"})
            usage = response.raise_for_status().json()["usage"]
            pods[response.headers["x-warmroute-pod"]] += 1
            asked += usage["prompt_tokens"]
            cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)

        await asyncio.gather(*(one(number) for number in range(40)))
    print(f"40 prompts, {cached / asked:.0%} of their tokens cached; by pod: {dict(pods)}")


asyncio.run(main())
