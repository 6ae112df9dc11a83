"""A streamed chat: chunks come as the pod makes them; the second turn finds the first one's blocks in a cache.

pip install openai; python examples/streaming.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080)
"""

from __future__ import annotations

import os
import time
from typing import Any

from openai import OpenAI

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("WARMROUTE_KEY", "none"))
model = client.models.list().data[0].id
messages: list[Any] = [{"role": "system", "content": "You tell stories. " * 60}]

for question in ("Tell me about a lighthouse.", "And who lived there?"):
    messages.append({"role": "user", "content": question})
    began, first_s, text, usage = time.monotonic(), None, "", None
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=32, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        first_s = time.monotonic() - began if first_s is None else first_s
        usage = chunk.usage or usage
        piece = chunk.choices[0].delta.content if chunk.choices else None
        text += piece or ""
        print(piece or "", end="", flush=True)
    messages.append({"role": "assistant", "content": text})
    assert first_s is not None and usage is not None
    details = usage.prompt_tokens_details
    print(f"\n  first chunk after {first_s * 1000:.0f} ms, {details and details.cached_tokens} of "
          f"{usage.prompt_tokens} prompt tokens cached\n")  # fmt: skip
