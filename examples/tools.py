"""An agent's tool call and what came of it: tools belong to the prompt, so keep their order, and the prefix stays.

pip install openai; python examples/tools.py   (WARMROUTE_URL: the gateway, default http://127.0.0.1:8080)
"""

from __future__ import annotations

import os
from typing import Any

from openai import OpenAI

URL = os.environ.get("WARMROUTE_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("WARMROUTE_KEY", "none"))
model = client.models.list().data[0].id


def tool(name: str, what: str) -> Any:
    """A function of one text."""
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    return {"type": "function", "function": {"name": name, "description": what, "parameters": schema}}


tools = [tool("weather", "The weather in a city, in words."), tool("calendar", "What is planned on a day.")]
messages: list[Any] = [
    {"role": "system", "content": "You plan trips, and ask tools before you answer. " * 30},
    {"role": "user", "content": "Is it a good day for a walk in Oslo?"},
]
call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"text": "Oslo"}'}}
history = [
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 18 degrees."},
]

for step, extra in (("first", []), ("with the tool's answer", history)):
    messages += extra
    answer = client.chat.completions.create(model=model, messages=messages, tools=tools, max_tokens=16)
    assert answer.usage is not None
    details = answer.usage.prompt_tokens_details
    print(f"{step}: {details.cached_tokens if details else 0} of {answer.usage.prompt_tokens} prompt tokens cached")
