"""A prompt's text, exactly as vLLM makes it: chat template, special tokens, template variables.

Sources: vLLM's released packages 0.10 to 0.33, transformers 4.57 and 5, and recordings of running servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from cachetools import LRUCache
from jinja2 import TemplateError

from router.core.cards import Version
from router.errors import ConfigError
from router.prompts.decoding import Fields
from router.prompts.messages import (
    ChatMessage,
    conversation,
    developer_as_system,
    rules_of,
    tool_dicts,
)
from router.prompts.prompt import Prompt, flag
from router.prompts.request_templates import RequestEnvironment
from router.prompts.templates import ChatEnvironment, ChatTemplate

OWN_ENCODINGS = frozenset(("gpt_oss", "deepseek_v32", "deepseek_v4", "kimi_k3"))
"""`model_type` of models whose chats vLLM encodes by code of its own, not by their template."""

_FORBIDDEN = ("chat_template", "tokenize", "messages", "conversation")
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class RenderError(Exception):
    """This prompt has no text here: the pod would refuse it too, or makes it in a way that we don't know."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How the pods of a model were started, as far as it changes prompts; and our bounds."""

    vllm_version: Version | None = None
    """None: the newest that we know."""
    chat_template: str | None = None
    """vLLM's `--chat-template`: a template, in place of the folder's own."""
    content_format: Literal["auto", "string", "openai"] = "auto"
    trust_request_chat_template: bool = False
    exclude_tools_when_tool_choice_none: bool = False
    default_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    reasoning_effort_map: Mapping[str, str] = field(default_factory=dict)
    """vLLM's `--reasoning-effort-map`: efforts of requests, and what they are to the template."""
    output_chars_max: int = 8 << 20
    """More than any model's context; a longer text is a RenderError."""
    steps_max: int = 200_000
    """Loop rounds and calls of one rendering."""
    request_template_chars_max: int = 65_536
    request_templates_max: int = 32
    """Compiled templates of requests that are kept; compiling one takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A prompt's text and how it becomes token ids."""

    text: str
    add_special_tokens: bool
    truncate_prompt_tokens: int | None = None
    """As `Prompt.truncate_prompt_tokens`."""


class Renderer:
    """Renders the prompts of one model; made once from its folder. Raises ConfigError."""

    def __init__(
        self,
        folder: Path,
        options: RenderOptions | None = None,
        clock: Callable[[], datetime] = datetime.now,
        kin: Renderer | None = None,
    ) -> None:
        """`clock` is for templates that write the date; pods use their own local time.

        `kin`: a renderer of the same folder by other rules, of which everything else is taken.
        """
        self.options = options = options or RenderOptions()
        self.rules = rules_of(options.vllm_version)
        self._folder = folder
        self._request_templates: LRUCache[str, ChatTemplate] = LRUCache(options.request_templates_max)
        self._least_effort: str | None = None  # what stands for no thinking, once that was asked for
        self._environment: ChatEnvironment = ChatEnvironment(clock) if kin is None else kin._environment
        self._of_requests: RequestEnvironment = RequestEnvironment(clock) if kin is None else kin._of_requests
        self._special_tokens: dict[str, str]
        self._templates: dict[str, ChatTemplate]
        self._tells_time: bool
        self._own_encoding: str | None
        if kin is not None:
            self._special_tokens, self._tells_time = kin._special_tokens, kin._tells_time
            self._own_encoding = kin._own_encoding
            self._templates = {name: template.under(self.rules) for name, template in kin._templates.items()}
            return
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder")
        config = _json_file(folder / "tokenizer_config.json")
        self._special_tokens = _special_tokens({**_json_file(folder / "special_tokens_map.json"), **config})
        if options.chat_template is not None:
            sources = {"default": (options.chat_template, "the chat template of the configuration")}
        else:
            sources = _sources(folder, config)
        self._tells_time = any("strftime_now" in source for source, _ in sources.values())
        self._templates = {name: self._compiled(*source) for name, source in sources.items()}
        model_type = _json_file(folder / "config.json").get("model_type")
        self._own_encoding = model_type if model_type in OWN_ENCODINGS else None

    def under(self, version: Version | None) -> Renderer:
        """The same model's renderer as of another version of vLLM."""
        return Renderer(self._folder, replace(self.options, vllm_version=version), kin=self)

    @property
    def tells_time(self) -> bool:
        """Whether the same prompt may have another text at another time: a template asks for the date."""
        return self._tells_time or self.options.trust_request_chat_template

    @property
    def lacks_template(self) -> bool:
        """Neither the model's folder nor the configuration has a chat template: pods may have been given one."""
        return not self._templates and self._own_encoding is None

    def render(self, prompt: Prompt) -> Rendering:
        """The text of a chat, or of the first prompt of a completion; raises RenderError."""
        if prompt.kind == "chat":
            text = self._chat(self._without_thinking(prompt.fields) if prompt.thinking_off else prompt.fields)
        elif prompt.kind == "text":
            text = str(prompt.prompts[0])
        else:
            raise RenderError(prompt.reason or "the prompt is token ids already")
        return _rendering(prompt, text)

    def ready(self, prompt: Prompt) -> None:
        """Have at hand what a large prompt needs, so that `render` changes nothing. Raises RenderError."""
        if prompt.kind == "chat" and prompt.fields.get("chat_template"):
            raise RenderError("a large request that brings a chat template is not rendered here")
        if prompt.thinking_off:
            self._without_thinking({})

    def render_all(self, prompt: Prompt) -> tuple[Rendering, ...]:
        """As `render`, one for each prompt of a completion."""
        if prompt.kind == "text":
            return tuple(_rendering(prompt, str(text)) for text in prompt.prompts)
        return (self.render(prompt),)

    def _chat(self, fields: Fields) -> str:
        tools = fields.get("tools")
        excluded = self.options.exclude_tools_when_tool_choice_none and fields.get("tool_choice") == "none"
        dumped = None if tools is None or excluded else tool_dicts(tools, self.rules)
        variables = self._variables(fields, dumped)
        template = self._template(fields, with_tools=variables["tools"] is not None)
        wanted = self.options.content_format
        try:
            messages = conversation(
                fields["messages"], template.content_format if wanted == "auto" else wanted, self.rules
            )
        except (ValueError, RecursionError) as error:
            raise RenderError(str(error)) from None
        if (
            self.rules.developer_to_system
            and not template.knows_developer
            and any(message["role"] == "developer" for message in messages)
        ):
            messages = developer_as_system(messages)
        if variables.pop("continue_final_message", False):
            if variables["add_generation_prompt"]:
                raise RenderError("continue_final_message and add_generation_prompt are both true")
            return self._continued(template, variables, messages)
        return self._text(template, variables, messages)

    def _variables(self, fields: Fields, tools: list[ChatMessage] | None) -> dict[str, Any]:
        """What the template sees beside `messages`; which source wins changed with 0.16."""
        rules = self.rules
        given = fields.get("chat_template_kwargs") or {}
        for name in _FORBIDDEN:
            if name in given:
                raise RenderError(f"chat_template_kwargs can't set {name}")
        body: dict[str, Any] = {
            "add_generation_prompt": flag(fields, "add_generation_prompt", True),
            "continue_final_message": flag(fields, "continue_final_message", False),
        }
        defaults = self.options.default_template_kwargs
        base = {**self._special_tokens, "tools": tools, "documents": fields.get("documents")}
        if not rules.body_beats_template_kwargs:
            return {**base, **body, **defaults, **given} if given or defaults else {**base, **body}
        if fields.get("documents") is not None:
            body["documents"] = fields["documents"]
        effort = fields.get("reasoning_effort")
        if isinstance(effort, str):
            effort = self.options.reasoning_effort_map.get(effort, effort)
        if effort is not None and rules.reasoning_effort:
            body["reasoning_effort"] = effort
            if rules.effort_sets_thinking and "enable_thinking" not in given:
                body["enable_thinking"] = effort != "none"
        if not given and not defaults:
            return {**base, **body}
        set_by_request = {name: value for name, value in given.items() if value is not None and value != "auto"}
        set_tools = {} if tools is None else {"tools": tools}
        return {**base, **defaults, **set_tools, **set_by_request, **body}

    def _without_thinking(self, fields: Fields) -> Fields:
        """A chat of which thinking is disabled, as vLLM asks for that: by an effort."""
        if not self.rules.messages_thinking:
            return {**fields, "reasoning_effort": None}
        if self._least_effort is None:
            self._least_effort = self._probed_effort()
        return {**fields, "reasoning_effort": self._least_effort}

    def _probed_effort(self) -> str:
        """`none`, or `low` where the template refuses that, or makes of it what it makes of another effort."""
        texts = []
        for effort in ("none", *_EFFORTS):
            try:
                texts.append(self._chat({"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": effort}))
            except RenderError:
                texts.append("")
        return "none" if texts[0] and texts[0] not in texts[1:] else "low"

    def _template(self, fields: Fields, with_tools: bool) -> ChatTemplate:
        source = fields.get("chat_template")
        if self._own_encoding is not None:
            raise RenderError(f"vLLM encodes chats of {self._own_encoding} without a template")
        if source is not None:
            if self.rules.request_template_needs_trust and not self.options.trust_request_chat_template:
                raise RenderError("the request brings a chat template, which the pods don't trust")
            if source:
                return self._request_template(source)
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        template = self._templates.get("default")
        if template is None:
            raise RenderError("the model has no chat template")
        return template

    def _request_template(self, source: str) -> ChatTemplate:
        template = self._request_templates.get(source)
        if template is None:
            if len(source) > self.options.request_template_chars_max:
                raise RenderError("the request's chat template is too long")
            try:
                template = ChatTemplate(source, self._of_requests, self.rules)
            except (TemplateError, RecursionError) as error:
                raise RenderError(f"the request's chat template can't be compiled: {error}") from None
            self._request_templates[source] = template
        return template

    def _compiled(self, source: str, place: str) -> ChatTemplate:
        try:
            return ChatTemplate(source, self._environment, self.rules)
        except (TemplateError, RecursionError) as error:
            raise ConfigError(f"{place}: this chat template can't be compiled: {error}") from None

    def _text(self, template: ChatTemplate, variables: dict[str, Any], messages: list[ChatMessage]) -> str:
        variables["messages"] = messages
        options = self.options
        try:
            return template.render(variables, options.steps_max, options.output_chars_max)
        except Exception as error:  # a template is a program: it may raise anything
            raise RenderError(f"the chat template: {error or type(error).__name__}") from error

    def _continued(self, template: ChatTemplate, variables: dict[str, Any], messages: list[ChatMessage]) -> str:
        """The text cut off after the last message's content, found by a tag behind it, as transformers do it."""
        *before, last = messages
        content = last["content"]
        tagged: str | list[ChatMessage]
        if isinstance(content, str):
            final, tagged = content, content + _CONTINUE_TAG
        elif content and isinstance(content[-1], dict):
            final = content[-1]["text"]
            tagged = [*content[:-1], {**content[-1], "text": final + _CONTINUE_TAG}]
        else:
            raise RenderError("the final message has no text to continue")
        text = self._text(template, variables, [*before, {**last, "content": tagged}])
        tag = _CONTINUE_TAG.strip()
        if final.strip() not in text or tag not in text:
            raise RenderError("the chat template changes the final message, which can't be continued")
        place = text.rindex(tag)
        # A template that trims contents has trimmed the tag's own blank.
        return text[:place] if text.startswith(_CONTINUE_TAG, place) else text[:place].rstrip()


def _rendering(prompt: Prompt, text: str) -> Rendering:
    return Rendering(text, prompt.add_special_tokens, prompt.truncate_prompt_tokens)


def _json_file(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one when there is no file."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return value


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token … as template variables; an unset one is undefined in the template."""
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json says; empty where there is none. Raises ConfigError."""
    return _json_file(folder / "config.json")


def _sources(folder: Path, config: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The folder's templates by name, each with the place that it was found at."""
    place = folder / "tokenizer_config.json"
    templates = config.get("chat_template")
    sources: dict[str, tuple[str, str]] = {}
    if isinstance(templates, str):
        sources["default"] = (templates, str(place))
    elif isinstance(templates, list | dict):
        sources.update(_named(templates, place))
    elif templates is not None:
        raise ConfigError(f"{place}: chat_template is neither a text nor a list of named texts")
    legacy = folder / "chat_template.json"
    if isinstance(text := _json_file(legacy).get("chat_template"), str):
        sources["default"] = (text, str(legacy))
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for path in files:
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None
        sources["default" if path is files[0] else path.stem] = (text, str(path))
    return sources


def _named(templates: list[Any] | dict[str, Any], place: Path) -> dict[str, tuple[str, str]]:
    pairs: list[tuple[Any, Any]]
    if isinstance(templates, dict):
        pairs = list(templates.items())
    else:
        pairs = [(entry.get("name"), entry.get("template")) for entry in templates if isinstance(entry, dict)]
        if len(pairs) != len(templates):
            raise ConfigError(f"{place}: chat_template has an entry that is not an object")
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError(f"{place}: chat_template has an entry without name or template")
    return {name: (text, str(place)) for name, text in pairs}
