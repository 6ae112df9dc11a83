"""What operators ask: how much is cached, how are the pods, why did the last requests go where they went?

python examples/observing.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080; WARMROUTE_OPS_URL: where
the operators' plane has a port of its own; WARMROUTE_OPERATOR_KEY: where it asks for a key)
"""

from __future__ import annotations

import os

import httpx

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
key = os.environ.get("WARMROUTE_OPERATOR_KEY")
headers = {"authorization": f"Bearer {key}"} if key else {}
ops = httpx.Client(base_url=os.environ.get("WARMROUTE_OPS_URL", URL), headers=headers, timeout=10)
client = httpx.Client(base_url=URL, timeout=10)
model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]

for number in range(3):
    prompt = "Once upon a time, in a land of long prompts, " * 30 + str(number)
    client.post("/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": 4}).raise_for_status()

for line in ops.get("/metrics").raise_for_status().text.splitlines():
    if line.startswith(("warmroute_cache_hit_ratio", "warmroute_global_index_size", "warmroute_prefix_store_bytes")):
        print(line)
for pod in ops.get("/pods").raise_for_status().json()["pods"]:
    print(
        f"{pod['pod']}: " + ", ".join(f"{name} {pod[name]}" for name in ("state", "models", "version") if name in pod)
    )
for decision in ops.get("/decisions", params={"limit": 3}).raise_for_status().json()["decisions"]:
    print(f"-> {decision['pick']}: {decision['reason']}")
ready = client.get("/readyz").json()
print("ready" if ready["ready"] else ready["reasons"])
