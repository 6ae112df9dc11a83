"""A request's body -> what is asked of the engine, with vLLM's refusals."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from simulator.events import Origin
from simulator.model import Model
from simulator.own_tokens import Kind, served_tokens
from simulator.template import TemplateError

COMPLETION_TOKENS_DEFAULT = 16
"""`max_tokens` of /v1/completions where the client gives none."""
CHOICES_MAX = 128
"""Prompts x n of one request."""
Body = dict[str, Any]


class Refused(Exception):
    """An answer that is an error body."""

    def __init__(self, status: int, message: str, param: str | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        names = {400: "BadRequestError", 404: "NotFoundError"}
        error = {
            "message": message,
            "type": kind or names.get(status, "InternalServerError"),
            "param": param,
            "code": status,
        }
        self.body = {"error": error}


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence to generate: choice `index` of the answer."""

    prompt: list[int]
    output: list[int]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for tokens, ready for the engine."""

    chat: bool
    id: str
    model: str
    origin: Origin
    choices: list[Choice]
    prompts: list[list[int]]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    echo: list[str] | None
    """Texts to put before the choices of each prompt."""
    tool: str | None
    """The tool that is called; the output is its arguments."""
    reads_cache: bool
    full_report: bool


def parse_json(raw: bytes) -> Body:
    """The body's JSON object; Refused (400) for anything else."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        message = (
            f"1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{error.pos}', 'msg': 'JSON decode error'}}"
        )
        raise Refused(400, message, f"body.{error.pos}", "Bad Request") from error
    if not isinstance(body, dict):
        raise Refused(400, "1 validation error:\n  the body must be a JSON object", "body", "Bad Request")
    return body


def parse(body: Body, chat: bool, model: Model, headers: Mapping[str, str], tokens: Kind | None = None) -> Ask:
    """Everything that must hold before the engine sees a request; raises Refused. `tokens`: of a pod with its own."""
    name, origin = _served(body, model, headers.get("x-session-id"))
    prompts, echo = ([chat_tokens(body, model)], None) if chat else _completion_prompts(body, model)
    prompts = [served_tokens(tokens, body, prompt) for prompt in prompts]
    count = _integer(body, "n", 1)
    if count < 1 or count * len(prompts) > CHOICES_MAX:
        raise Refused(400, f"n must be between 1 and {CHOICES_MAX} over all prompts, got {count}.", "n")
    limits = [_output_limit(body, chat, len(prompt), model) for prompt in prompts]
    tool = _called_tool(body) if chat else None
    choices = []
    for prompt, limit in zip(prompts, limits, strict=True):
        for sibling in range(count):
            output, reason = _tool_output(tool, limit, model) if tool else model.output(prompt, sibling, limit)
            choices.append(Choice(prompt, output, reason))
    options = _object(body, "stream_options")
    return Ask(
        chat=chat,
        id=("chatcmpl-" if chat else "cmpl-") + (headers.get("x-request-id") or secrets.token_hex(8)),
        model=name,
        origin=origin,
        choices=choices,
        prompts=prompts,
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        return_token_ids=bool(body.get("return_token_ids")) and model.version >= (0, 10, 2),
        echo=echo if body.get("echo") else None,
        tool=tool["name"] if tool else None,
        reads_cache=_reads_cache(body, chat),
        full_report=model.version >= (0, 26) and _object(body, "vllm_xargs").get("kv_cache_report_mode") == "full",
    )


def _reads_cache(body: Body, chat: bool) -> bool:
    """Not where every position of the prompt is asked for: a hit would leave some of them uncomputed."""
    logprobs = body.get("prompt_logprobs")
    if logprobs is None and body.get("echo"):
        logprobs = body.get("top_logprobs", 0) if chat else body.get("logprobs")
    return logprobs is None


def chat_tokens(body: Body, model: Model) -> list[int]:
    """Token ids of a chat request (also of `/tokenize`'s); raises Refused."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        message = "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required'}"
        raise Refused(400, message, "body.messages", "Bad Request")
    if not messages:
        raise Refused(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")
    if not all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages):
        raise Refused(400, "1 validation error:\n  a message needs a role", "body.messages", "Bad Request")
    if body.get("continue_final_message") and body.get("add_generation_prompt"):
        raise Refused(400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    try:
        template = model.template.but(body["chat_template"]) if body.get("chat_template") else model.template
        text = template.render(body)
    except (TemplateError, KeyError, TypeError, AttributeError) as error:
        raise Refused(400, str(error)) from error
    return _encode(text, bool(body.get("add_special_tokens", False)), body, model)


def text_tokens(prompt: object, body: Body, model: Model) -> list[int]:
    """Token ids of one prompt of text or ids; raises Refused."""
    if isinstance(prompt, str) and prompt:
        return _encode(prompt, bool(body.get("add_special_tokens", True)), body, model)
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        for token in prompt:
            if not 0 <= token < model.vocabulary.size:
                raise Refused(400, f"Token id {token} is out of vocabulary")
        keep = _integer(body, "truncate_prompt_tokens", 0)
        return prompt[-keep:] if keep > 0 else prompt
    raise Refused(400, "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "prompt")


def _encode(text: str, special: bool, body: Body, model: Model) -> list[int]:
    keep = _integer(body, "truncate_prompt_tokens", 0)
    if keep > 0:
        return model.vocabulary.encode_last(text, special, keep)
    return model.vocabulary.encode(text, special)


def _served(body: Body, model: Model, session: str | None) -> tuple[str, Origin]:
    name = body.get("model") or model.name
    lora = model.loras.get(name) if isinstance(name, str) else None
    if name != model.name and lora is None:
        raise Refused(404, f"The model `{name}` does not exist.", "model")
    salt = body.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        message = "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)"
        raise Refused(400, message, "cache_salt")
    return name, Origin(lora, salt, session)


def _completion_prompts(body: Body, model: Model) -> tuple[list[list[int]], list[str]]:
    given = body.get("prompt")
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    prompts = [text_tokens(prompt, body, model) for prompt in several]
    return prompts, [model.vocabulary.decode(prompt) for prompt in prompts] if body.get("echo") else []


def _integer(body: Body, name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int:
        raise Refused(400, f"1 validation error:\n  {name} must be an integer", f"body.{name}", "Bad Request")
    return value


def _object(body: Body, name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(400, f"1 validation error:\n  {name} must be an object", f"body.{name}", "Bad Request")
    return value


def _output_limit(body: Body, chat: bool, prompt_tokens: int, model: Model) -> int | None:
    """The most tokens to answer; None: as many as the model likes."""
    most = model.context_tokens_max
    asked = body.get("max_completion_tokens") if chat else None
    name = "max_tokens" if asked is None else "max_completion_tokens"
    if body.get(name) is None and chat:
        limit = None
    else:
        limit = _integer(body, name, COMPLETION_TOKENS_DEFAULT)
        if limit < 1:
            raise Refused(400, f"{name} must be at least 1, got {limit}. (parameter={name}, value={limit})", name)
    if prompt_tokens >= most or prompt_tokens + (limit or 1) > most:
        message = (
            f"This model's maximum context length is {most} tokens. However, you requested {limit or 1} output tokens "
            f"and your prompt contains {prompt_tokens} input tokens, for a total of {prompt_tokens + (limit or 1)} "
            f"tokens. Please reduce the length of the input prompt or the number of requested output tokens. "
            f"(parameter=input_tokens, value={prompt_tokens})"
        )
        raise Refused(400, message, "input_tokens")
    return limit


def _called_tool(body: Body) -> Mapping[str, Any] | None:
    """The function that the choice of tools forces; None: plain text."""
    functions = [tool.get("function") or {} for tool in body.get("tools") or () if isinstance(tool, dict)]
    choice = body.get("tool_choice")
    if choice == "required" and functions:
        function: Mapping[str, Any] = functions[0]
    elif isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        found = [function for function in functions if function.get("name") == name]
        if not found:
            raise Refused(400, f"The tool {name!r} of tool_choice is not in tools.", "tool_choice")
        function = found[0]
    else:
        return None
    if not isinstance(function.get("name"), str):
        raise Refused(400, "1 validation error:\n  a tool needs a function with a name", "body.tools", "Bad Request")
    return function


def _tool_output(function: Mapping[str, Any], limit: int | None, model: Model) -> tuple[list[int], str]:
    """Arguments of the right shape as tokens."""
    arguments = json.dumps(_example(function.get("parameters") or {"type": "object"}))
    output = model.vocabulary.encode(arguments, False)
    if limit is not None and len(output) > limit:
        return output[:limit], "length"
    return output, "tool_calls"


def _example(schema: Mapping[str, Any]) -> Any:
    """The smallest value of a JSON schema's type."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties") or {}
        wanted = schema.get("required") or list(properties)
        return {name: _example(properties.get(name) or {}) for name in wanted}
    plain: dict[Any, Any] = {"integer": 1, "number": 1.0, "boolean": True, "array": [], "null": None}
    return plain.get(kind, "value") if isinstance(kind, str) else "value"
