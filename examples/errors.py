"""Errors are OpenAI's, whoever makes them; 429 and 503 say when to come again, and a request id names each answer.

python examples/errors.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080)
"""

from __future__ import annotations

import os
import time

import httpx

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
client = httpx.Client(base_url=URL, timeout=10)
model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]


def ask(body: object, attempts: int = 3) -> httpx.Response:
    """Try again where the answer says that it is worth it, when it says so."""
    for _ in range(attempts):
        response = client.post("/v1/chat/completions", json=body)
        if response.status_code not in (429, 503):
            break
        time.sleep(min(5.0, float(response.headers.get("retry-after", 1))))
    return response


good = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
for what, body in (
    ("a good request", good),
    ("a model that nobody serves", good | {"model": "no-such-model"}),
    ("no messages", {"model": model, "messages": "hello"}),
):
    response = ask(body)
    answer = response.json()
    said = answer["error"]["message"] if "error" in answer else answer["choices"][0]["message"]["content"]
    print(f"{what}: {response.status_code} ({response.headers['x-request-id']}): {said}")
