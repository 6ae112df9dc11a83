"""Ask who would serve a prompt, and why, without sending it to any pod.

python examples/score.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080)
"""

from __future__ import annotations

import os

import httpx

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
client = httpx.Client(base_url=URL, timeout=10)
model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
chat = {
    "model": model,
    "messages": [{"role": "user", "content": "The history of the printing press. " * 40}],
}

before = client.post("/score", json=chat).raise_for_status().json()
client.post("/v1/chat/completions", json=chat | {"max_tokens": 4}).raise_for_status()
after = client.post("/score", json=chat).raise_for_status().json()

for moment, answer in (("before", before), ("after", after)):
    print(f"{moment}: {answer['tokens']} tokens, {answer['blocks']} blocks of {answer['block_size']}")
    for pod in answer["pods"]:
        print(f"  {pod['pod']:12} score {pod['score']:.2f}  {pod['matched_tokens']:5} tokens matched  {pod['state']}")
    print(f"  -> {answer['pick']}: {answer['reason']}")
