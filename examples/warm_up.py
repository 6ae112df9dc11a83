"""Bring documents before anybody asks about them: a pod computes them while it is idle, and the first question is warm.

python examples/warm_up.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080; WARMROUTE_OPERATOR_KEY: where
it asks for one. The same from a shell: warmroute warmup documents.json --prefill 1)
"""

from __future__ import annotations

import os

import httpx

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
key = os.environ.get("WARMROUTE_OPERATOR_KEY")
operator = {"authorization": f"Bearer {key}"} if key else {}
SYSTEM = {"role": "system", "content": "Answer from the document alone. " * 20}

client = httpx.Client(base_url=URL, timeout=15)
model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]

for name in ("handbook", "price list"):
    document = f"The {name}: " + f"all that the {name} says, in many words. " * 50
    chat = {"model": model, "messages": [SYSTEM, {"role": "user", "content": document}]}
    warmed = client.post("/warmup", params={"pods": 1}, json=chat, headers=operator).raise_for_status().json()
    question = {"role": "user", "content": f"{document}\n\nWhat does it say of returns?"}
    answer = client.post(
        "/v1/chat/completions", json={"model": model, "messages": [SYSTEM, question], "max_tokens": 8}
    ).raise_for_status()
    usage = answer.json()["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    print(f"{name}: {warmed['tokens']} tokens warmed on {', '.join(warmed['pods'])}; the first question goes to "
          f"{answer.headers['x-warmroute-pod']}, {cached} of {usage['prompt_tokens']} tokens cached")  # fmt: skip
