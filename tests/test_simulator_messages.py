"""The Messages API of a pod: a chat in other words, with the same blocks behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from simulator.ask import Refused
from simulator.messages import as_chat
from tests.fakes.processes import MODEL, PLAIN, PodProcess, pods

TOOL = {"name": "f", "description": "d", "input_schema": {"properties": {"x": {"type": "integer"}}}}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A client of one pod."""
    with pods(PodProcess("pod-0")) as fleet, httpx.Client(base_url=fleet[0].address, **PLAIN) as http:
        yield http


def asked(**more: Any) -> dict[str, Any]:
    """A small request."""
    return {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "hello there"}], **more}


def events(text: str) -> list[dict[str, Any]]:
    """Of a stream; each says twice what it is."""
    found = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        found.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_it_is_the_same_chat(http: httpx.Client) -> None:
    """Text and counts are those of the chat that means the same; the second time its blocks are cached."""
    system = "be kind, and be brief; " * 20
    message = http.post("/v1/messages", json=asked(system=system)).raise_for_status().json()
    messages = [{"role": "system", "content": system}, *asked()["messages"]]
    chat = http.post("/v1/chat/completions", json=asked(messages=messages)).raise_for_status().json()
    assert message["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
    usage = chat["usage"]
    assert message["usage"] == {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
    assert (message["type"], message["role"], message["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert usage["prompt_tokens_details"]["cached_tokens"] >= usage["prompt_tokens"] - 16


def test_a_stream(http: httpx.Client) -> None:
    """Its events in their order, and together the whole message."""
    whole = http.post("/v1/messages", json=asked()).json()
    answer = http.post("/v1/messages", json=asked(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, begin, *deltas, end, reason, last = events(answer.text)
    assert (first["type"], first["message"]["content"]) == ("message_start", [])
    assert (begin["content_block"], end["index"]) == ({"type": "text", "text": ""}, 0)
    assert "".join(delta["delta"]["text"] for delta in deltas) == whole["content"][0]["text"]
    assert reason["delta"]["stop_reason"] == "max_tokens" and reason["usage"] == whole["usage"]
    assert last == {"type": "message_stop"}


def test_a_tool(http: httpx.Client) -> None:
    """A tool that must be called is: its input whole, and in pieces."""
    forced = asked(max_tokens=50, tools=[TOOL], tool_choice={"type": "any"})
    (block,) = http.post("/v1/messages", json=forced).json()["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "f", {"x": 1})
    pieces = events(http.post("/v1/messages", json={**forced, "stream": True}).text)
    written = "".join(piece["delta"]["partial_json"] for piece in pieces if piece["type"] == "content_block_delta")
    assert orjson.loads(written) == {"x": 1}


def test_refusals(http: httpx.Client) -> None:
    """Errors have this API's form."""
    for wrong, status in ((asked(model="unheard"), 404), (asked(max_tokens=0), 400), ({}, 400)):
        answer = http.post("/v1/messages", json=wrong)
        assert answer.status_code == status and answer.json()["type"] == "error" and answer.json()["error"]["message"]
    image = {"role": "user", "content": [{"type": "image", "source": {}}]}
    for bad in (
        {"messages": "x"}, {"messages": [image]}, {"messages": [{"role": "system", "content": "x"}]}, {"system": 3},
        {"messages": [{"role": "user", "content": 3}]}, {"tools": [{}]}, {"tools": [], "tool_choice": {"type": "x"}},
    ):  # fmt: skip
        with pytest.raises(Refused):
            as_chat(asked(**bad))


def test_blocks_become_messages() -> None:
    """Texts, calls and results of tools, as a chat has them."""
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": texts}
    messages = [
        {"role": "assistant", "content": [texts[0], call]},
        {"role": "user", "content": [result, *texts]},
        {"role": "user", "content": [{**result, "content": "c"}]},
    ]
    chat = as_chat(asked(messages=messages, system=texts))
    function = {"name": "f", "arguments": '{"x":1}'}
    assert chat["messages"] == [
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": "a", "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "a\nb"},
        {"role": "user", "content": texts},
        {"role": "tool", "tool_call_id": "1", "content": "c"},
    ]
