"""What pods are asked about a prompt's tokens: one body for equal prompts, or why there is none. Pure.

`/render` makes a request's tokens as serving it does; many pods do not have it (404, or 403 unless it is allowed).
`/tokenize` knows few of the fields that change a prompt: what it can't express is not asked of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import orjson

from router.config.fleet import ModelConfig
from router.core.token_states import Source
from router.prompts.decoding import Fields
from router.prompts.prompt import Prompt

NotToldReason = Literal[
    "documents are unknown to the pods' /tokenize",
    "reasoning_effort is unknown to the pods' /tokenize",
    "truncation is unknown to the pods' /tokenize",
    "tool_choice is unknown to the pods' /tokenize",
    "response_format is unknown to the pods' /tokenize",
    "the pods' /tokenize is not what their chats are encoded by",
    "the pods do not render",
    "its tokens are multimodal",
    "too long for any context",
    "too long to ask a pod",
    "nested too deeply to ask a pod",
    "no pod is fit to be asked",
    "the pods' /tokenize is too slow",
    "the pods' /tokenize fails",
    "the pods' /tokenize refuses it",
    "the request names no model",
    "it is not tokenized here",
    "too many versions of vLLM are in use",
]

_CHAT_FIELDS = ("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs", "tools")
"""What changes a chat's prompt, and `/tokenize` takes (beside messages and add_special_tokens)."""
_UNKNOWN_FIELDS: Mapping[str, NotToldReason] = {
    "documents": "documents are unknown to the pods' /tokenize",
    "reasoning_effort": "reasoning_effort is unknown to the pods' /tokenize",
}
"""What changes a chat's prompt, and `/tokenize` ignores."""
_UNEXPRESSED: Mapping[str, NotToldReason] = {
    "tool_choice": "tool_choice is unknown to the pods' /tokenize",
    "response_format": "response_format is unknown to the pods' /tokenize",
}

_ORDINARY: Mapping[str, tuple[object, ...]] = {
    "tool_choice": (None, "auto", "none"),
    "response_format": (None, {"type": "text"}),
}
"""Fields that `/tokenize` ignores, with the values that never change a prompt."""
_NOT_THE_PROMPTS = frozenset((
    "stream", "stream_options", "pods", "n", "best_of", "max_tokens", "max_completion_tokens", "min_tokens",
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "user", "metadata", "store",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs",
    "prompt_logprobs", "ignore_eos", "priority", "request_id", "cache_salt", "return_token_ids", "echo",
    "vllm_xargs", "kv_transfer_params", "service_tier", "prompt_cache_key", "safety_identifier",
))  # fmt: skip
"""Fields that change what is done with a prompt: without them equal prompts are equal questions to `/render`."""

NO_RENDER: NotToldReason = "the pods do not render"
RENDER_CHAT = b"/v1/chat/completions/render"
_RENDER_TEXT = b"/v1/completions/render"
_TARGET = b"/tokenize"
_NULL = re.compile(rb"null(?<=[:,\[]null)[,}\]]").search  # as a value; or, seldom, in a text that has the same


class NotTold(Exception):
    """The pods can't tell this prompt's tokens (in time): it is routed by load alone."""

    def __init__(self, reason: NotToldReason, broken: int = 0) -> None:
        """`broken`: so many pods broke off when they were asked, maybe because of it."""
        super().__init__(reason)
        self.reason = reason
        self.broken = broken


class Question(NamedTuple):
    """One body to be asked. `keep`: of the answer, the last so many ids (None: all)."""

    model: str
    body: bytes
    keep: int | None = None
    special: bool = False
    """Special tokens are added, which truncation would keep: what they are is not told."""
    target: bytes = _TARGET
    version: str | None = None
    """Of vLLM, as its pods say: another one may make other tokens of it."""

    @property
    def renders(self) -> bool:
        return self.target != _TARGET


class AsServed(NamedTuple):
    """How the pods of a model were started, as far as `/tokenize` does not follow it by itself."""

    template_kwargs: Mapping[str, Any]
    exclude_tools_when_tool_choice_none: bool

    @classmethod
    def by(cls, model: ModelConfig) -> AsServed:
        """As the configuration says of a model."""
        return cls(model.chat_template_kwargs, model.exclude_tools_when_tool_choice_none)


AS_BY_DEFAULT = AsServed({}, False)


def question_by(prompt: Prompt, as_served: AsServed, bytes_max: int, source: Source) -> Question:
    """What to ask by one of the pods' own sources; raises NotTold."""
    if source == "render":
        return render_question_of(prompt, bytes_max)
    return question_of(prompt, as_served, bytes_max)


def question_of(prompt: Prompt, served: AsServed, bytes_max: int) -> Question:
    """What to ask for this prompt (of several: the first); raises NotTold. Equal prompts give equal questions."""
    if prompt.model is None:
        raise NotTold("the request names no model")
    body: Fields = {"model": prompt.model, "add_special_tokens": prompt.add_special_tokens}
    if prompt.kind == "chat":
        body.update(_chat(prompt.fields, served, bytes_max))
    else:
        text = str(prompt.prompts[0])
        if len(text) > bytes_max:
            raise NotTold("too long to ask a pod")
        body["prompt"] = text
    data = _json(body)
    if len(data) > bytes_max:
        raise NotTold("too long to ask a pod")
    return Question(prompt.model, data, prompt.truncate_prompt_tokens, prompt.add_special_tokens)


def render_question_of(prompt: Prompt, bytes_max: int) -> Question:
    """As `question_of`, to the pods' `/render`, which expresses all."""
    if prompt.model is None:
        raise NotTold("the request names no model")
    body = {name: value for name, value in prompt.fields.items() if name not in _NOT_THE_PROMPTS}
    if prompt.kind == "chat":
        chars = sum(map(_chars, prompt.fields["messages"]))
    else:
        body["prompt"] = prompt.prompts[0]
        chars = len(body["prompt"])
    if chars > bytes_max:
        raise NotTold("too long to ask a pod")
    data = _json({**body, "model": prompt.model})
    if len(data) > bytes_max:
        raise NotTold("too long to ask a pod")
    return Question(prompt.model, data, target=RENDER_CHAT if prompt.kind == "chat" else _RENDER_TEXT)


def _json(body: Fields) -> bytes:
    """As pods read it. orjson is fifteen times faster, but makes null of NaN, and does not know 2**64; pods do."""
    try:
        data = orjson.dumps(body)
        if not _NULL(data):
            return data
    except TypeError:  # also where it is nested deeply
        pass
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError:
        raise NotTold("nested too deeply to ask a pod") from None


def _chat(fields: Fields, served: AsServed, chars_max: int) -> Fields:
    for name, reason in _UNKNOWN_FIELDS.items():
        if fields.get(name) is not None:
            raise NotTold(reason)
    for name, ordinary in _ORDINARY.items():
        if fields.get(name) not in ordinary:
            raise NotTold(_UNEXPRESSED[name])
    messages = fields["messages"]
    if sum(map(_chars, messages)) > chars_max:  # looked at first, so that no time goes into writing it down
        raise NotTold("too long to ask a pod")
    body: Fields = {"messages": messages}
    body.update((name, fields[name]) for name in _CHAT_FIELDS if fields.get(name) is not None)
    if served.exclude_tools_when_tool_choice_none and fields.get("tool_choice") == "none":
        body.pop("tools", None)
    if served.template_kwargs:
        body["chat_template_kwargs"] = {**served.template_kwargs, **body.get("chat_template_kwargs", {})}
    return body


def _chars(message: Fields) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    return sum(len(part["text"]) for part in content or () if type(part) is dict and type(part.get("text")) is str)
