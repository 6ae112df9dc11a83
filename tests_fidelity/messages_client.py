"""A conversation by the `anthropic` package: `messages_client.py URL MODEL` prints what it got as JSON.

It runs in the venv that has the package, and imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic

SYSTEM = "You are brief, and you know the weather of all towns. " * 12
ASKED = [
    {"role": "user", "content": "How is the weather in Zürich?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Sunny."}]},
    {"role": "user", "content": [{"type": "text", "text": "And tomorrow? 🌦"}]},
]
TOOL = {
    "name": "weather",
    "description": "The weather of a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
RESULT = [
    {"role": "user", "content": "How is it in Basel?"},
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Basel"}}],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}]},
]


def main() -> None:
    url, model = sys.argv[1:]
    told: dict[str, Any] = {}
    with anthropic.Anthropic(base_url=url, api_key="sk-none", max_retries=0) as client:
        given: Any = {"model": model, "max_tokens": 24, "system": SYSTEM, "messages": ASKED}
        whole = client.messages.create(**given)
        told["whole"] = [whole.content[0].text, whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens]
        with client.messages.stream(**given) as stream:
            pieces = list(stream.text_stream)
            last = stream.get_final_message()
        told["pieces"] = len(pieces)
        told["streamed"] = ["".join(pieces), last.stop_reason, last.usage.input_tokens, last.usage.output_tokens]
        events = client.messages.create(**given, stream=True)
        told["events"] = [event.type for event in events]
        forced: Any = {**given, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
        called = client.messages.create(**forced)
        told["tool"] = [called.content[0].name, called.content[0].input, called.stop_reason]
        with client.messages.stream(**forced) as stream:
            told["tool streamed"] = [stream.get_final_message().content[0].input]
        told["after a tool"] = client.messages.create(**{**given, "messages": RESULT, "tools": [TOOL]}).stop_reason
        raw = client.messages.with_raw_response.create(**given)
        told["headers"] = {name: raw.headers.get(name) for name in ("x-warmroute-pod", "x-request-id")}
        for name, wrong in (("unknown model", {"model": "unheard"}), ("no room", {"max_tokens": 0})):
            try:
                client.messages.create(**{**given, **wrong})
            except anthropic.APIStatusError as error:
                told[name] = [type(error).__name__, error.status_code]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
