"""A chat through warmroute with the official client: the gateway is an OpenAI endpoint like any other.

pip install openai; python examples/basic_chat.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080)
"""

from __future__ import annotations

import os

from openai import OpenAI

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("WARMROUTE_KEY", "none"))
model = client.models.list().data[0].id

raw = client.chat.completions.with_raw_response.create(
    model=model,
    messages=[
        {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."},
        {"role": "user", "content": "What is a KV cache?"},
    ],
    max_tokens=32,
)
answer = raw.parse()
print(answer.choices[0].message.content)
print(f"\nserved by {raw.headers['x-warmroute-pod']}, request {raw.headers['x-request-id']}")
if answer.usage is not None and answer.usage.prompt_tokens_details is not None:
    cached = answer.usage.prompt_tokens_details.cached_tokens
    print(f"{cached} of {answer.usage.prompt_tokens} prompt tokens were cached")
