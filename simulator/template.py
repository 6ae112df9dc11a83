"""Chat messages to prompt text, by the model's own template and vLLM's rules for what goes into it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') "
    "+ '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""For a model folder without a template."""

Message = dict[str, Any]
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TemplateError(ValueError):
    """The template refused the messages, or is broken."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote; for the text it means nothing."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2's own form

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The marked part as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled template with the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], developer_as_system: bool = True) -> None:
        """`developer_as_system`: a template without that role reads developers' messages as system ones (>= 0.23)."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
            self._format: Literal["openai", "string"] = _content_format(environment.parse(source))
        except jinja2.TemplateError as error:
            raise TemplateError(f"bad chat template: {error}") from error
        self._developer_as_system = developer_as_system
        self._merges_developer = developer_as_system and "developer" not in source
        self._special_tokens = dict(special_tokens)

    def but(self, source: str) -> ChatTemplate:
        """Another template with the same special tokens."""
        return ChatTemplate(source, self._special_tokens, self._developer_as_system)

    def render(self, body: Mapping[str, Any]) -> str:
        """The prompt text of a chat request's body. Raises TemplateError."""
        messages = [self._message(message) for message in body["messages"]]
        if self._merges_developer:
            messages = _developer_as_system(messages)
        resume = bool(body.get("continue_final_message"))
        variables: dict[str, Any] = {
            **self._special_tokens,
            "messages": messages,
            "tools": [_tool(tool) for tool in body.get("tools") or ()] or None,
            "documents": body.get("documents"),
            "add_generation_prompt": body.get("add_generation_prompt", True),
            **(body.get("chat_template_kwargs") or {}),
        }
        if effort := body.get("reasoning_effort"):
            variables.setdefault("reasoning_effort", effort)
        try:
            text = self._template.render(variables)
        except Exception as error:  # a template is a program: it may raise anything
            raise TemplateError(str(error)) from error
        return _cut_after(text, messages[-1]) if resume else text

    def _message(self, message: Mapping[str, Any]) -> Message:
        role = message["role"]
        as_string = self._format == "string" or role == "tool"
        shaped: Message = {"role": role, "content": _content(message.get("content"), as_string)}
        for key in ("name", "tool_call_id"):
            if message.get(key) is not None:
                shaped[key] = message[key]
        if calls := message.get("tool_calls"):
            shaped["tool_calls"] = [_tool_call(call) for call in calls]
        if reasoning := message.get("reasoning_content") or message.get("reasoning"):
            shaped["reasoning"] = shaped["reasoning_content"] = reasoning
        return shaped


def load_template(folder: Path, developer_as_system: bool = True) -> ChatTemplate:
    """The template of a model folder: chat_template.jinja, else tokenizer_config.json's, else plain ChatML."""
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text("utf-8")) if config_path.exists() else {}
    tokens = {name: _token_text(config[name]) for name in _TOKEN_NAMES if config.get(name)}
    own = folder / "chat_template.jinja"
    if own.exists():
        return ChatTemplate(own.read_text("utf-8"), tokens, developer_as_system)
    source = config.get("chat_template") or CHATML
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default") or source[0]["template"]
    return ChatTemplate(source, tokens, developer_as_system)


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _content(content: Any, as_string: bool) -> Any:
    """Message content in the form that the template reads: a string, or a list of parts."""
    if as_string:
        if isinstance(content, str):
            return content
        return "\n".join(part["text"] for part in content or () if "text" in part)
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "text", "text": part["text"]} for part in content or () if "text" in part]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """As vLLM's model dumps it: keys in its order, missing ones null."""
    function = tool["function"]
    shaped = {key: function.get(key) for key in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        shaped["strict"] = function["strict"]
    return {"type": tool.get("type", "function"), "function": shaped}


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments are given as JSON text and templates want them as a mapping."""
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments) if arguments else {}
        except json.JSONDecodeError:
            function["arguments"] = {}
    return {**call, "function": function}


def _developer_as_system(messages: list[Message]) -> list[Message]:
    if all(message["role"] != "developer" for message in messages):
        return messages
    heads = [m for m in messages if m["role"] in ("system", "developer")]
    rest = [m for m in messages if m["role"] not in ("system", "developer")]
    if isinstance(heads[0]["content"], str):
        content: Any = "\n\n".join(head["content"] for head in heads)
    else:
        content = [part for head in heads for part in head["content"]]
    return [{"role": "system", "content": content}, *rest]


def _cut_after(text: str, message: Message) -> str:
    """The text up to the end of the last message's content: the model goes on from there."""
    content = message["content"]
    final = content if isinstance(content, str) else content[-1]["text"]
    at = text.rfind(final.strip())
    if at < 0:
        raise TemplateError("continue_final_message is set but the final message is not in the rendered text")
    return text[: at + len(final.strip())]


def _content_format(tree: nodes.Template) -> Literal["openai", "string"]:
    """`openai` for a template that loops over a message's content."""
    aliases = {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _names_content(node.node, ())
    }
    loops = (_names_content(loop.iter, aliases) for loop in tree.find_all(nodes.For))
    return "openai" if any(loops) else "string"


def _names_content(node: nodes.Node, aliases: Iterable[str]) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _names_content(node.node, aliases)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in aliases
