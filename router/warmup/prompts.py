"""Prompts of a file: texts with a delimiter, a system prompt with chunks, or one request on each line. Pure.

Each becomes a request's body; the model is left out where the file does not name it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import orjson

from router.errors import ConfigError

WarmPath: TypeAlias = Literal["/v1/chat/completions", "/v1/completions"]
CHAT: WarmPath = "/v1/chat/completions"
TEXT: WarmPath = "/v1/completions"


class WarmPrompt(NamedTuple):
    """A prompt, as the request that would ask for it. `name`: of the file, and of the place in it."""

    name: str
    path: WarmPath
    fields: Mapping[str, Any]

    def body(self, model: str | None = None) -> bytes:
        """`model`: where the prompt names none."""
        own = self.fields if model is None or "model" in self.fields else {"model": model, **self.fields}
        return orjson.dumps(own)


def prompts_of(name: str, content: bytes, delimiter: str | None) -> list[WarmPrompt]:
    """All prompts of a file; its name's ending says what it is. Raises `ConfigError` for what is none.

    `.json`: `{"system_prompt", "chunks": [{"name", "content"}]}`; `.jsonl`: a request on each line, with `messages` or
    `prompt`; else a text, or several with `delimiter` between them.
    """
    if name.endswith(".jsonl"):
        return list(_of_lines(name, content))
    if name.endswith(".json"):
        return list(_of_chunks(name, _read(name, content)))
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: is not text in UTF-8") from None
    parts = [text] if delimiter is None else text.split(delimiter)
    found = [(number, part.strip("\r\n")) for number, part in enumerate(parts, 1)]
    return [WarmPrompt(f"{name}:{number}", TEXT, {"prompt": part}) for number, part in found if part]


def _of_lines(name: str, content: bytes) -> Iterator[WarmPrompt]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        fields = _read(f"{name}:{number}", line)
        chat = isinstance(fields.get("messages"), list)
        if not chat and "prompt" not in fields:
            raise ConfigError(f"{name}:{number}: has neither messages nor prompt")
        yield WarmPrompt(f"{name}:{number}", CHAT if chat else TEXT, fields)


def _of_chunks(name: str, fields: Mapping[str, Any]) -> Iterator[WarmPrompt]:
    system, chunks = fields.get("system_prompt"), fields.get("chunks")
    if not isinstance(chunks, list) or not (system is None or isinstance(system, str)):
        raise ConfigError(f'{name}: should be {{"system_prompt": TEXT, "chunks": [{{"name": TEXT, "content": TEXT}}]}}')
    before = [] if not system else [{"role": "system", "content": system}]
    model = {"model": fields["model"]} if "model" in fields else {}
    for number, chunk in enumerate(chunks, 1):
        if not isinstance(chunk, dict) or not isinstance(chunk.get("content"), str):
            raise ConfigError(f"{name}: chunks: number {number} has no content")
        messages = [*before, {"role": "user", "content": chunk["content"]}]
        yield WarmPrompt(f"{name}:{chunk.get('name', number)}", CHAT, {**model, "messages": messages})


def _read(name: str, content: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{name}: is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{name}: is no JSON object")
    return fields
