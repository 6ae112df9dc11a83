"""The Messages API, as vLLM serves it: a chat in other words, and its answer in other words again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from simulator.answer import Answer, Json
from simulator.ask import Body, Refused

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def as_chat(body: Body) -> Body:
    """The body of /v1/chat/completions that means the same; raises Refused. Texts and tools only: no images."""
    if type(body.get("max_tokens")) is not int or body["max_tokens"] < 1:
        raise _invalid("max_tokens", "must be a positive integer")
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise _invalid("messages", "must be a list")
    chat: Body = {"model": body.get("model"), "max_tokens": body["max_tokens"]}
    system = _texts(body.get("system") or "", "system")
    chat["messages"] = [{"role": "system", "content": "".join(system)}] if any(system) else []
    for message in messages:
        chat["messages"] += _chat_messages(message)
    if body.get("stream"):
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    if body.get("tools") is not None:
        chat["tools"] = [_function(tool) for tool in body["tools"]]
        chat["tool_choice"] = _tool_choice(body.get("tool_choice") or {"type": "auto"})
    return chat


def error_body(refused: Refused) -> Json:
    """What is refused, as this API says it."""
    error = refused.body["error"]
    return {"type": "error", "error": {"type": error["type"], "message": error["message"]}}


class Message(Answer):
    """Shapes what goes back: one message with one block, of text or of a tool's input."""

    def whole(self, texts: Sequence[str], cached_tokens: int) -> Json:
        """The message; `texts` has one."""
        choice = self._ask.choices[0]
        body = self._message_head(_STOP_REASONS[choice.finish_reason], len(choice.output))
        block = self._block(texts[0], orjson.loads(texts[0]) if choice.finish_reason == "tool_calls" else {})
        return {**body, "content": [block]}

    def opening(self) -> list[bytes]:
        """The message without its content, and the begin of its only block."""
        start = {"index": 0, "content_block": self._block("", {})}
        return [_event("message_start", {"message": self._message_head(None, 0)}), _event("content_block_start", start)]

    def chunk(self, index: int, text: str, tokens: Sequence[int], first: bool, last: bool, generated: int) -> bytes:
        """A piece of it."""
        delta = {"type": "text_delta", "text": text}
        if self._ask.tool is not None:
            delta = {"type": "input_json_delta", "partial_json": text}
        return _event("content_block_delta", {"index": 0, "delta": delta})

    def closing(self, generated: int, cached_tokens: int) -> list[bytes]:
        """The end of the block, why it ended with the usage, and the end."""
        reason = {"stop_reason": _STOP_REASONS[self._ask.choices[0].finish_reason], "stop_sequence": None}
        return [
            _event("content_block_stop", {"index": 0}),
            _event("message_delta", {"delta": reason, "usage": self._tokens(generated)}),
            _event("message_stop", {}),
        ]

    def _message_head(self, stop_reason: str | None, generated: int) -> Json:
        return {
            "id": self._ask.id, "type": "message", "role": "assistant", "content": [], "model": self._ask.model,
            "stop_reason": stop_reason, "stop_sequence": None, "usage": self._tokens(generated),
        }  # fmt: skip

    def _block(self, text: str, given: Json) -> Json:
        if self._ask.tool is None:
            return {"type": "text", "text": text}
        return {"type": "tool_use", "id": self._call_id, "name": self._ask.tool, "input": given}

    def _tokens(self, generated: int) -> Json:
        """vLLM tells no cached tokens here."""
        return {"input_tokens": len(self._ask.prompts[0]), "output_tokens": generated}


def _chat_messages(message: object) -> Iterator[Json]:
    """One message here may be several there: each result of a tool is one of its own, before the rest."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise _invalid("messages", "a message needs a role: user or assistant")
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    if not isinstance(content, list):
        raise _invalid("messages", "content must be a string or a list of blocks")
    results = [block for block in content if isinstance(block, dict) and block.get("type") == "tool_result"]
    calls = [block for block in content if isinstance(block, dict) and block.get("type") == "tool_use"]
    texts = _texts([block for block in content if block not in results and block not in calls], "messages")
    for block in results:
        text = "\n".join(_texts(block.get("content") or "", "messages"))
        yield {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": text}
    if texts or calls:
        chat: Json = {"role": role}
        if calls:
            chat["tool_calls"] = [_call(block) for block in calls]
        if texts:
            chat["content"] = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
        yield chat


def _texts(content: Any, where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise _invalid(where, "must be a string or a list of blocks")
    for block in content:
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise _invalid(where, "this pod takes blocks of text only")
    return [block["text"] for block in content if block["text"]]


def _call(block: Json) -> Json:
    arguments = orjson.dumps(block.get("input") or {}).decode()
    function = {"name": block.get("name") or "", "arguments": arguments}
    return {"id": block.get("id") or "", "type": "function", "function": function}


def _function(tool: Any) -> Json:
    if not isinstance(tool, dict) or not isinstance(tool.get("input_schema"), dict):
        raise _invalid("tools", "a tool needs an input_schema")
    parameters = {"type": "object", **tool["input_schema"]}
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": parameters}
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind not in _TOOL_CHOICES:
        raise _invalid("tool_choice", "is not known")
    return _TOOL_CHOICES[kind]


def _event(kind: str, fields: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _invalid(name: str, what: str) -> Refused:
    return Refused(400, f"1 validation error:\n  {name} {what}", f"body.{name}", "Bad Request")
