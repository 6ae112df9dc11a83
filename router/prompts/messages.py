"""A request's messages and tools, as a version of vLLM hands them to the chat template. Pure.

Sources: vLLM's released packages 0.10 to 0.33 and recordings of running servers; `Rules` says what changed when.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from router.core.cards import Version

ChatMessage = dict[str, Any]
Format = Literal["string", "openai"]


BILLING_HEADER = "x-anthropic-billing-header"
"""What a system text of Claude Code starts with; it changes with every request, so vLLM drops that line."""

_TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_PART_KEYS = frozenset(
    "audio_embeds audio_url closed data file image_embeds image_pil image_url input_audio name prompt_cache_breakpoint"
    " refusal text thinking type uuid video_embeds video_url".split()
)
"""What vLLM's types of parts know; of a text part, all else is passed on."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rendering of a version does; each field names a change, `rules_of` the version it came with."""

    reasoning: bool
    reasoning_content_read: bool
    request_template_needs_trust: bool
    arguments_may_be_empty: bool
    empty_tool_calls_dropped: bool
    developer_tools: bool
    body_beats_template_kwargs: bool
    reasoning_effort: bool
    bare_texts_wrapped: bool
    tool_texts_joined: bool
    task: bool
    reasoning_content_renamed: bool
    effort_sets_thinking: bool
    content_loop_by_name: bool
    developer_to_system: bool
    null_arguments_emptied: bool
    part_extras_kept: bool
    tool_extras_dropped: bool
    arguments_always_object: bool
    content_loop_by_macro: bool
    messages_thinking: bool
    billing_header_dropped: bool
    content_loop_by_namespace: bool


def rules_of(version: Version | None) -> Rules:
    """The rules of a version of vLLM; None: the newest that we know."""
    since = (1_000, 0) if version is None else version
    return Rules(
        reasoning=since >= (0, 11),
        reasoning_content_read=(0, 11) <= since < (0, 16),
        request_template_needs_trust=since >= (0, 11),
        arguments_may_be_empty=since >= (0, 11),
        empty_tool_calls_dropped=since >= (0, 13),
        developer_tools=since >= (0, 13),
        body_beats_template_kwargs=since >= (0, 16),
        reasoning_effort=since >= (0, 16),
        bare_texts_wrapped=since >= (0, 18),
        tool_texts_joined=since >= (0, 20),
        task=since >= (0, 20),
        reasoning_content_renamed=since >= (0, 22),
        effort_sets_thinking=since >= (0, 22),
        content_loop_by_name=since >= (0, 22),
        developer_to_system=since >= (0, 23),
        null_arguments_emptied=since >= (0, 23),
        part_extras_kept=since >= (0, 26),
        tool_extras_dropped=since >= (0, 27),
        arguments_always_object=since >= (0, 29),
        content_loop_by_macro=since >= (0, 30),
        messages_thinking=since >= (0, 31),
        billing_header_dropped=since >= (0, 32),
        content_loop_by_namespace=since >= (0, 33),
    )


def text_of_part(part: object) -> str | None:
    """The text of a content part; None for anything but text (images, audio, unknown kinds)."""
    if type(part) is str:
        return part
    if type(part) is not dict:
        return None
    kind = part.get("type")
    text = part.get(_TEXT_KEYS.get(kind, "")) if type(kind) is str else None
    return text if type(text) is str else None


def is_skipped(part: object) -> bool:
    """Has this part nothing to say? vLLM leaves such ones out."""
    return type(part) is dict and part.get("type") in ("text", "refusal") and part.get(part["type"]) is None


def conversation(messages: list[ChatMessage], content_format: Format, rules: Rules) -> list[ChatMessage]:
    """The template's `messages`. Those that need no change are passed on, not copied. Raises ValueError.

    All contents are text (`prompt.parse` has seen to it).
    """
    if content_format == "openai":
        return [_converted(message, True, rules) for message in messages]
    converted = []
    for message in messages:
        content = message.get("content")
        # Only role and content, and the content a string: as the template shall have it.
        if type(content) is not str or len(message) != 2 or content.startswith(BILLING_HEADER):
            message = _converted(message, False, rules)
        converted.append(message)
    return converted


def _converted(message: ChatMessage, wrapped: bool, rules: Rules) -> ChatMessage:
    role = message["role"]
    result: ChatMessage = {"role": role, "content": _content(role, message.get("content"), wrapped, rules)}
    if len(message) == 2 and "content" in message:
        return result
    if role == "assistant":
        _add_assistant(result, message, rules)
    elif role == "tool" and "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    if type(message.get("name")) is str:
        result["name"] = message["name"]
    if rules.task and type(message.get("task")) is str:
        result["task"] = message["task"]
    if role == "developer" and rules.developer_tools:
        result["tools"] = message.get("tools")
    return result


def _content(role: str, given: object, wrapped: bool, rules: Rules) -> str | list[Any]:
    """A string, or a list of parts where the template wants one."""
    joined = not wrapped or (role == "tool" and rules.tool_texts_joined)
    if type(given) is str:
        if not given.startswith(BILLING_HEADER):
            return given if joined else [{"type": "text", "text": given}]
        given = [{"type": "text", "text": given}]
    parts: list[Any] = given if type(given) is list else []
    if role == "system" and rules.billing_header_dropped:
        parts = _without_billing_header(parts)
    if not joined:
        return [_part(part, rules) for part in parts if text_of_part(part) is not None]
    # What is to be joined loses its empty texts, unless it had become a list of parts before.
    return "\n".join(text for part in parts if (text := text_of_part(part)) or (wrapped and text is not None))


def _part(part: Any, rules: Rules) -> Any:
    """A text part as the template sees it."""
    if type(part) is str and not rules.bare_texts_wrapped:
        return part
    result = {"type": "text", "text": text_of_part(part)}
    if type(part) is dict and rules.part_extras_kept:
        result.update((key, value) for key, value in part.items() if key not in _PART_KEYS)
    return result


def _without_billing_header(parts: list[Any]) -> list[Any]:
    kept = []
    for part in parts:
        text = part if type(part) is str else part.get("text") if part.get("type") == "text" else None
        if type(text) is str and text.startswith(BILLING_HEADER):
            text = text.partition("\n")[2]
            if not text:
                continue
            part = text if type(part) is str else {**part, "text": text}
        kept.append(part)
    return kept


def _add_assistant(result: ChatMessage, message: ChatMessage, rules: Rules) -> None:
    calls = message.get("tool_calls")
    if calls or (calls is not None and not rules.empty_tool_calls_dropped):
        result["tool_calls"] = [_tool_call(call, rules) for call in calls]
    if not rules.reasoning:
        return
    reasoning = message.get("reasoning")
    if (reasoning is None and rules.reasoning_content_renamed) or (not reasoning and rules.reasoning_content_read):
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        result["reasoning"] = result["reasoning_content"] = reasoning


def _tool_call(call: ChatMessage, rules: Rules) -> ChatMessage:
    """In the order of OpenAI's types; what they don't know comes last, as given."""
    function = call["function"]
    kept: ChatMessage = {"arguments": _arguments(function.get("arguments"), rules)}
    if "name" in function:
        kept["name"] = function["name"]
    kept.update((key, value) for key, value in function.items() if key not in kept)
    result: ChatMessage = {"id": call["id"]} if "id" in call else {}
    result["function"] = kept
    result["type"] = call.get("type", "function")
    result.update((key, value) for key, value in call.items() if key not in result)
    return result


def _arguments(given: object, rules: Rules) -> object:
    """The arguments of a tool call, JSON text in the request, as the object that templates want."""
    if not given and rules.arguments_may_be_empty:
        return {}
    value = given
    if type(given) is str:
        try:
            value = _json(given)
        except ValueError:
            if not rules.arguments_always_object:
                raise ValueError("the arguments of a tool call are not JSON") from None
            return {}
    if (rules.arguments_always_object and type(value) is not dict) or (rules.null_arguments_emptied and value is None):
        return {}
    return value


def _json(text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)  # it takes NaN and the like, and vLLM uses it


def tool_dicts(tools: list[ChatMessage], rules: Rules) -> list[ChatMessage]:
    """The template's `tools`: fields in the models' order, missing ones null."""
    return [_tool(tool, rules) for tool in tools]


def _tool(tool: ChatMessage, rules: Rules) -> ChatMessage:
    given = tool["function"]
    function: ChatMessage = {
        "name": given["name"],
        "description": given.get("description"),
        "parameters": given.get("parameters"),
    }
    result: ChatMessage = {"type": "function", "function": function}
    if not rules.tool_extras_dropped:
        function.update((key, value) for key, value in given.items() if key not in function)
        result.update((key, value) for key, value in tool.items() if key not in result)
        return result
    deferred = tool.get("defer_loading")
    inner = given.get("defer_loading")
    if given.get("strict") is not None:
        function["strict"] = given["strict"]
    if (inner if inner is not None else deferred) is not None:
        function["defer_loading"] = inner if inner is not None else deferred
    if deferred is not None:
        result["defer_loading"] = deferred
    return result


def developer_as_system(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Developer messages become system messages; if one then is not the first, all merge into one at the start."""
    renamed = [
        {key: value for key, value in message.items() if key != "tools"} | {"role": "system"}
        if message["role"] == "developer"
        else message
        for message in messages
    ]
    texts: list[str] = []
    merge = False
    for index, message in enumerate(renamed):
        if message["role"] == "system":
            merge = merge or index > 0
            content = message["content"]
            text = content if type(content) is str else "\n".join(part["text"] for part in content)
            if text:
                texts.append(text)
    if not merge:
        return renamed
    others = [message for message in renamed if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others]
