"""A request's body -> `Prompt`: what it asks for, and what the pod will make its prompt from. Pure.

Two kinds of "no": `BadRequest` is raised only where every pod would refuse the request as well (the status is
vLLM's own, 400); what a pod might accept but we can't tokenize gets a `reason` instead, and is routed by load.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from indexer.blocks import Tokens
from router.errors import BadRequest
from router.prompts.anthropic import NotSure, chat_of
from router.prompts.decoding import Fields, fields_of
from router.prompts.messages import is_skipped, text_of_part
from router.prompts.multipart import is_form, model_of_form
from router.prompts.skim import opens, skim
from scorer.sessions import NAME_CHARS_MAX

Kind = Literal["chat", "text", "tokens", "none"]
Side = Literal["left", "right"]

_COMPLETION_TOKENS = 16  # `max_tokens` of a completion that gives none
_BYTES_A_TOKEN = 4  # of text
_BYTES_A_FRAME = 640  # of sound at 16 kHz and 16 bits: for these 20 ms Whisper computes as for a token
QUOTED_CHARS_MAX = 40  # of a client's text inside a reason or an error: both end in logs


@dataclass(frozen=True, slots=True)
class Prompt:
    """What routing needs of one request; `fields`: what is used of its body, never to be changed."""

    kind: Kind
    """chat: `fields["messages"]` are to be rendered; text, tokens: see `prompts`; none: see `reason`."""
    model: str | None
    fields: Fields
    prompts: tuple[str, ...] | tuple[Tokens, ...] = ()
    """Of kind text: str; of kind tokens: uint32 ids, already truncated. One for each prompt of the request."""
    reason: str | None = None
    """Why this prompt can't be tokenized here; None exactly when `kind` is not none."""
    stream: bool = False
    include_usage: bool = False
    """The client itself asked for the usage chunk at a stream's end."""
    n: int = 1
    max_tokens: int | None = None
    """Of the answer, as vLLM takes it: a completion that gives none gets 16."""
    cache_salt: str | None = None
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """Keep the last so many tokens of a text, special tokens counted (BOS + last N-1); None: all.

    -1, "as many as the model takes", is None here.
    """
    cut_to_fit: bool = False
    """By `truncate_prompt_tokens` of -1: the pod cuts what is too long."""
    thinking_off: bool = False
    """The Messages API's `thinking` is disabled: `fields` says so by an effort of `none`; the pod may take another."""
    tells_cached: bool = True
    """The response's usage has cached tokens, if the pod tells them at all."""
    is_alone: bool = True
    """The usage of the response will be about one prompt that was looked up once.

    Not so with several prompts or answers (they hit each other), nor where every position must be computed.
    """
    asks_full_report: bool = False
    """The pod's events will tell again of the blocks that this request reuses."""
    priority: int | None = None
    session: str | None = None
    """Whose it is, as the body says: `prompt_cache_key`, else `user`."""
    pods: frozenset[str] | None = None
    """Of /score: only these."""
    large: int = 0
    """Bytes of a body of which all that is done with the whole takes long enough to be done in a thread; else 0."""
    reads_cache: bool = True
    """vLLM looks for the prompt's blocks; if not, all is computed, and stored as always."""

    @property
    def answer_tokens(self) -> int | None:
        """What vLLM adds to a prompt when it looks whether its context takes both; None: it cuts the prompt."""
        return None if self.cut_to_fit else max(1, self.max_tokens or 1)

    @property
    def tells_prefill(self) -> bool:
        """The first byte of the answer will come with the first token."""
        return self.stream or self.max_tokens == 1

    def guessed_tokens(self, size: int) -> int:
        """About as many tokens' work it is, where they are not known, for a body of `size` bytes."""
        return size // (_BYTES_A_FRAME if self.kind == "none" and not self.fields else _BYTES_A_TOKEN)


def parse(path: str, body: bytes) -> Prompt:
    """The prompt of a POST of `body` to `path` (no query string); raises BadRequest."""
    known = _PARSERS.get(path)
    if known is None:
        return _unknown(path, body)
    return known(fields_of(body))


def is_large(body: bytes, bytes_max: int) -> bool:
    """Whether a body is better read by `parse_large`: for its size, or because it is made of very many things."""
    return len(body) > bytes_max or (len(body) > bytes_max // 4 and body.count(b",") > bytes_max // 32)


def parse_large(path: str, body: bytes, weight_max: int) -> Prompt:
    """As `parse`, for a thread: others have their turn meanwhile, and decoded fields weigh up to `weight_max` bytes."""
    known = path in _PARSERS
    if not known and not opens(body):
        return _unknown(path, body)
    if b"\0" in body[:4]:
        return Prompt("none", None, {}, reason="a large body that is not UTF-8 is not read here", large=len(body))
    try:
        skimmed = skim(body, weight_max)
    except BadRequest:
        if known:
            raise
        return _unknown(path, b"")
    if skimmed.left_out and known:
        reason = f"too much JSON to be read here: {', '.join(sorted(skimmed.left_out))}"
        return replace(_prompt("none", fields_of(skimmed.body), (), None, False, reason), large=len(body))
    return replace(parse(path, skimmed.body), large=len(body))


def parse_query(query: Mapping[str, str]) -> Prompt:
    """The prompt of `GET /score?model=…&prompt=…`; `pods` may be a comma-separated list. Raises BadRequest."""
    fields: Fields = {name: query[name] for name in ("model", "prompt", "cache_salt") if name in query}
    if "pods" in query:
        fields["pods"] = [name for name in query["pods"].split(",") if name]
    return _score(fields)


def _chat(fields: Fields) -> Prompt:
    messages = fields.get("messages")
    if type(messages) is not list:
        raise BadRequest("messages: a list is required")
    if not messages:
        raise BadRequest("messages: at least one is required")
    reason = None
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise BadRequest(f"messages[{index}]: not an object")
        if type(message.get("role")) is not str or len(message) != 2 or type(message.get("content")) is not str:
            reason = reason or _message_reason(index, message)
    reason = reason or _tools_reason(fields)
    if fields.get("continue_final_message") and fields.get("add_generation_prompt"):
        raise BadRequest("continue_final_message and add_generation_prompt can't both be true")
    for name, wanted in _CHAT_TYPES:
        if type(fields.get(name)) not in wanted:
            raise BadRequest(f"{name}: wrong type")
    max_tokens = _integer(fields, "max_completion_tokens")
    if max_tokens is None:
        max_tokens = _integer(fields, "max_tokens")
    for name in ("add_generation_prompt", "continue_final_message"):
        if name in fields:
            flag(fields, name, False)
    special = flag(fields, "add_special_tokens", False)
    return _prompt("chat", fields, (), max_tokens, special, reason)


_CHAT_TYPES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("chat_template", (str, type(None))),
    ("chat_template_kwargs", (dict, type(None))),
    ("documents", (list, type(None))),
)


def _message_reason(index: int, message: Fields) -> str | None:
    """Why this message can't be rendered; None when it can. Raises BadRequest."""
    if type(message.get("role")) is not str:
        if "author" in message:
            return f"messages[{index}] is in the Harmony format"
        raise BadRequest(f"messages[{index}].role: a string is required")
    content = message.get("content")
    if type(content) is list:
        for part in content:
            if text_of_part(part) is None and not is_skipped(part):
                kind = part.get("type") if type(part) is dict else type(part).__name__
                return f"messages[{index}] has a part of type {_quoted(kind)}, which is not text"
    elif content is not None and type(content) is not str:
        raise BadRequest(f"messages[{index}].content: neither a string nor a list of parts")
    calls = message.get("tool_calls")
    if calls is None:
        return None
    if type(calls) is not list:
        raise BadRequest(f"messages[{index}].tool_calls: not a list")
    for call in calls:
        if type(call) is not dict or type(call.get("function")) is not dict:
            return f"messages[{index}] has a tool call that is not a function's"
    return None


def _tools_reason(fields: Fields) -> str | None:
    tools = fields.get("tools")
    if tools is None:
        return None
    if type(tools) is not list:
        raise BadRequest("tools: not a list")
    for index, tool in enumerate(tools):
        function = tool.get("function") if type(tool) is dict else None
        if type(function) is not dict or type(function.get("name")) is not str:
            return f"tools[{index}] is not a function with a name"
    return None


def _messages(fields: Fields) -> Prompt:
    """A chat in other words; its response does not tell cached tokens."""
    try:
        prompt = _chat(chat_of(fields))
    except NotSure as unsure:
        return _prompt("none", fields, (), None, False, str(unsure))
    thinking = fields.get("thinking")
    off = type(thinking) is dict and thinking.get("type") == "disabled"
    return replace(prompt, tells_cached=False, thinking_off=off)


def _completion(fields: Fields, max_tokens: int | None = None) -> Prompt:
    """`max_tokens`: where the body gives none."""
    given = _integer(fields, "max_tokens")
    max_tokens = max_tokens if given is None else given
    special = flag(fields, "add_special_tokens", True)
    if fields.get("prompt_embeds") is not None:
        return _prompt("text", fields, (), max_tokens, special, "the prompt is given as embeddings")
    prompt = fields.get("prompt")
    if not prompt:
        raise BadRequest("prompt: it is missing or empty")
    if type(prompt) is str:
        return _prompt("text", fields, (prompt,), max_tokens, special)
    if type(prompt) is not list:
        raise BadRequest("prompt: neither a string, nor a list of strings, nor a list of token ids")
    if type(prompt[0]) is str:
        if not all(type(text) is str for text in prompt):
            raise BadRequest("prompt: a list of both strings and other things")
        return _prompt("text", fields, tuple(prompt), max_tokens, special)
    lists = prompt if type(prompt[0]) is list else [prompt]
    return _tokens_prompt("prompt", fields, lists, max_tokens)


def _generate(fields: Fields) -> Prompt:
    """vLLM's own token-in token-out request."""
    sampling = fields.get("sampling_params")
    max_tokens = _integer(sampling, "max_tokens") if type(sampling) is dict else None
    if fields.get("features") is not None or fields.get("content_parts"):
        return _prompt("tokens", fields, (), max_tokens, False, "the prompt has multimodal features")
    prompt = _tokens_prompt("token_ids", fields, [fields.get("token_ids")], max_tokens)
    return prompt if _sampling_reads_cache(sampling) else replace(prompt, reads_cache=False, is_alone=False)


def _score(fields: Fields) -> Prompt:
    """`POST /score`: one prompt, in one of three forms. vLLM's own /score compares texts: not ours to tokenize."""
    if "text_1" in fields or "data_1" in fields or "queries" in fields:
        return _prompt("none", fields, (), None, False, "this is a request for vLLM's own /score")
    given = [name for name in ("prompt", "messages", "token_ids") if fields.get(name) is not None]
    if len(given) != 1:
        raise BadRequest("give exactly one of prompt, messages, token_ids")
    pods = fields.get("pods")
    if pods is not None:
        if type(pods) is not list or not pods or not all(type(pod) is str for pod in pods):
            raise BadRequest("pods is not a list of names")
        pods = frozenset(pods)
    if given[0] == "token_ids":
        return replace(_tokens_prompt("token_ids", fields, [fields["token_ids"]], None), pods=pods)
    prompt = _tokenize(fields)
    if len(prompt.prompts) > 1:
        raise BadRequest("prompt: give one, not a list of prompts")
    return prompt if pods is None else replace(prompt, pods=pods)


def _tokenize(fields: Fields) -> Prompt:
    return _chat(fields) if "messages" in fields else _completion(fields)


def _untokenized(name: str) -> Callable[[Fields], Prompt]:
    reason = f"prompts of {name} are not rendered here"
    return lambda fields: _prompt("none", fields, (), None, False, reason)


_MAY_BE_JSON = re.compile(rb"\s*\{").match
_EVERY_TOKEN = ("token_embed", "token_classify", "plugin")  # pooling tasks for which vLLM reads no cache


def _invocations(fields: Fields) -> Prompt:
    """SageMaker's one path for all: vLLM takes the first kind of request that fits."""
    if "messages" in fields:
        return _chat(fields)
    if "prompt" in fields:
        return _completion(fields)
    return _untokenized("/invocations")(fields)


def takes_prompt(path: str) -> bool:
    """Whether the body of a POST to `path` is JSON with a prompt, and nothing else."""
    return path in _PARSERS


def unread(path: str, model: str | None) -> Prompt:
    """Of a body that nothing is known of but its model, if that."""
    return Prompt("none", model, {}, reason=f"the prompt of {_quoted(path)} is not known")


def _unknown(path: str, body: bytes) -> Prompt:
    """Anything else: JSON, a form, or what has no model."""
    if is_form(body):
        return unread(path, model_of_form(body))
    if not _MAY_BE_JSON(body):
        return unread(path, None)
    try:
        fields = fields_of(body)
    except BadRequest:
        return unread(path, None)
    model = fields.get("model")
    known = model if type(model) is str else None
    return replace(unread(path, known), fields=fields, reads_cache=fields.get("task") not in _EVERY_TOKEN)


_PARSERS: dict[str, Callable[[Fields], Prompt]] = {
    "/v1/chat/completions": _chat,
    "/v1/chat/completions/render": _chat,
    "/v1/completions": lambda fields: _completion(fields, _COMPLETION_TOKENS),
    "/v1/completions/render": _completion,
    "/inference/v1/generate": _generate,
    "/invocations": _invocations,
    "/score": _score,
    "/tokenize": _tokenize,
    "/v1/responses": _untokenized("the Responses API"),
    "/v1/messages": _messages,
    "/v1/embeddings": _untokenized("embeddings"),
}


def _prompt(
    kind: Kind,
    fields: Fields,
    prompts: tuple[str, ...] | tuple[Tokens, ...],
    max_tokens: int | None,
    add_special_tokens: bool,
    reason: str | None = None,
) -> Prompt:
    """The fields that all requests share. Raises BadRequest."""
    salt = fields.get("cache_salt")
    if salt is not None and (type(salt) is not str or not salt):
        raise BadRequest("cache_salt: not a string with characters in it")
    model = fields.get("model")
    if model is not None and type(model) is not str:
        raise BadRequest("model: not a string")
    options = fields.get("stream_options")
    truncate = None
    if "truncate_prompt_tokens" in fields:
        truncate, side = _truncation(fields)
        if truncate is not None and side is not None and kind != "tokens":
            reason = reason or "truncation_side is not followed for texts"
    n = _integer(fields, "n") if "n" in fields else 1
    several = (n or 1) > 1 or len(prompts) > 1 or (fields.get("best_of") or 1) != 1
    priority, reads_cache = fields.get("priority"), _reads_cache(fields)
    return Prompt(
        kind if reason is None else "none",
        model,
        fields,
        prompts,
        reason,
        flag(fields, "stream", False),
        type(options) is dict and flag(options, "include_usage", False),
        1 if n is None else n,
        max_tokens,
        salt,
        add_special_tokens,
        truncate,
        cut_to_fit=truncate is None and fields.get("truncate_prompt_tokens") is not None,
        is_alone=reads_cache and not several and not fields.get("use_beam_search"),
        asks_full_report=_asks_full_report(fields),
        priority=priority if isinstance(priority, int) else None,
        session=_session(fields),
        reads_cache=reads_cache,
    )


def _session(fields: Fields) -> str | None:
    """Names that are none are for the pods to refuse."""
    for name in ("prompt_cache_key", "user"):
        given = fields.get(name)
        if type(given) is str and given:
            return given[:NAME_CHARS_MAX]
    return None


def _asks_full_report(fields: Fields) -> bool:
    """A body of tokens says so further in."""
    if "vllm_xargs" not in fields and "sampling_params" not in fields:
        return False
    sampling = fields.get("sampling_params")
    further = (sampling.get("vllm_xargs"), sampling.get("extra_args")) if isinstance(sampling, dict) else ()
    asked = (fields.get("vllm_xargs"), *further)
    return any(isinstance(each, dict) and each.get("kv_cache_report_mode") == "full" for each in asked)


def _reads_cache(fields: Fields) -> bool:
    """Whether vLLM looks for the blocks of a prompt: not where it answers for each of the prompt's positions.

    `echo` with `logprobs` is `prompt_logprobs` in other words; a chat's `top_logprobs` are 0 if they are not given.
    """
    told = fields.get("prompt_logprobs")
    if told is None and "echo" in fields and flag(fields, "echo", False):
        told = fields.get("top_logprobs", 0) if "messages" in fields else fields.get("logprobs")
    return told is None or bool(fields.get("use_beam_search"))  # which takes no notice of it


def _sampling_reads_cache(sampling: object) -> bool:
    """The same of vLLM's own sampling parameters, which can say it outright."""
    if type(sampling) is not dict:
        return True
    skips = sampling.get("skip_reading_prefix_cache")
    if skips is not None:
        return not skips
    return sampling.get("prompt_logprobs") is None and sampling.get("prompt_logprob_token_ids") is None


def _tokens_prompt(name: str, fields: Fields, lists: list[Any], max_tokens: int | None) -> Prompt:
    truncate, side = _truncation(fields)
    prompts = []
    for values in lists:
        ids = _token_ids(name, values)
        if truncate is not None and truncate < len(ids):
            ids = ids[:truncate] if side == "right" else ids[len(ids) - truncate :]
        prompts.append(ids)
    return _prompt("tokens", fields, tuple(prompts), max_tokens, False)


def _token_ids(name: str, values: object) -> Tokens:
    if type(values) is not list or not values:
        raise BadRequest(f"{name}: not a list of token ids with something in it")
    try:
        return np.frombuffer(array("I", values), dtype=np.uint32)
    except OverflowError:
        raise BadRequest(f"{name}: a token id is below 0 or too large") from None
    except TypeError:
        raise BadRequest(f"{name}: a token id is not an integer") from None


def _truncation(fields: Fields) -> tuple[int | None, Side | None]:
    truncate = _integer(fields, "truncate_prompt_tokens")
    side = fields.get("truncation_side")
    if side not in (None, "left", "right"):
        raise BadRequest("truncation_side: neither left nor right")
    if truncate is None or truncate == -1:
        return None, None
    if truncate < 1:
        raise BadRequest("truncate_prompt_tokens: below 1")
    return truncate, side


def _integer(fields: Fields, name: str) -> int | None:
    """An integer as lenient as vLLM's models read it: 3, 3.0, "3" and true are integers too."""
    value = fields.get(name)
    if value is None or type(value) is int:
        return value
    try:
        number = int(value)
        if isinstance(value, str | bool) or number == value:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadRequest(f"{name}: not an integer")


_TRUE = frozenset(("true", "1", "on", "t", "yes", "y"))
_FALSE = frozenset(("false", "0", "off", "f", "no", "n"))


def flag(fields: Fields, name: str, default: bool) -> bool:
    """A truth value as lenient as vLLM's models read it."""
    value = fields.get(name, default)
    if type(value) is bool:
        return value
    if value is None:
        return default
    word = str(value).lower() if isinstance(value, str | int) else ""
    if isinstance(value, float) and value in (0.0, 1.0):
        return bool(value)
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise BadRequest(f"{name}: not a truth value")


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else type(value).__name__
    return repr(text[:QUOTED_CHARS_MAX])
