"""Are the token ids that we make of a prompt those of the pod? `warmroute check` compares some of each model.

It also says by whose tokens a model's chats will be routed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from router.commands.findings import Findings, json_of
from router.config.fleet import ASK_THE_PODS, ModelConfig
from router.config.settings import Config
from router.prompts.own_encodings import OwnEncoding, by_folder, by_names, is_tokenized
from router.prompts.prompt import parse
from router.prompts.rendering import RenderError, config_of
from router.prompts.renderings import Renderings
from router.tokens.tokenizer import Tokenizer
from router.upstream.failures import UpstreamError
from router.upstream.pod_client import PodClient

_AROUND = 3  # token ids shown on either side of the first that differs

_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n\treturn {'a': [1, 2.5e-3]}  # naïve café, 中文字符，日本語、한국어 👩‍👧\r\n\n\n   \t12345678",
    "<|im_start|>system\nspecial tokens in a text<|im_end|> <s> </s> <|endoftext|>",
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather of a place: "now" & <soon>.',
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_CHAT = {
    "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [{"type": "text", "text": "How is the weather in Zürich?"}]},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "And tomorrow?"},
    ],
    "tools": [_TOOL],
}
_ASKED: Sequence[tuple[str, dict[str, Any]]] = (
    *((f"text {number}", {"prompt": text}) for number, text in enumerate(_TEXTS, 1)),
    ("a chat with tools", _CHAT),
)


class Local(NamedTuple):
    """A model whose prompts are tokenized here."""

    config: ModelConfig
    renderings: Renderings
    tokenizer: Tokenizer

    def ids(self, body: dict[str, Any], version: str | None) -> list[int]:
        """The token ids of a body of /tokenize, as a pod of this version makes them; raises RenderError."""
        rendering = self.renderings.of(version).render(parse("/tokenize", orjson.dumps(body)))
        return list(map(int, self.tokenizer.encode(rendering.text, rendering.add_special_tokens)))


class TokenExamination:
    """Of one pod, for all models that it serves."""

    def __init__(self, config: Config, local: Sequence[Local], findings: Findings) -> None:
        self._config = config
        self._local = local
        self._findings = findings

    async def run(self, client: PodClient) -> None:
        """Ask the pod; what is wrong is among the findings, and no error."""
        for model in self._config.models:
            if model.tokenizer == ASK_THE_PODS and self._findings.serves(model):
                ids = await self._ask(client, model, _ASKED[0][1])
                if isinstance(ids, list):
                    self._findings.fine(f"{model.name}: /tokenize answers.")
                else:
                    self._findings.wrong(f"{model.name}: {ids}: its prompts can't be tokenized.")
                await self._source(client, model, None)
        for local in self._local:
            if self._findings.serves(local.config):
                own = self._own_encoding(local)
                await self._compare(client, local, own)
                await self._source(client, local.config, local)

    def _own_encoding(self, local: Local | None) -> OwnEncoding | None:
        """How vLLM encodes the model's chats, where that is not by its template."""
        own, typed = None, False
        if local is not None:
            folder = Path(local.config.tokenizer)
            described = config_of(folder)
            own, typed = by_folder(folder, described), "model_type" in described
        return own if typed or own else by_names([*self._findings.served, *self._findings.roots])

    async def _source(self, client: PodClient, model: ModelConfig, local: Local | None) -> None:
        """Whose tokens the model's chats will be routed by, and why."""
        own = self._own_encoding(local)
        if local is not None and own is None:
            self._findings.fine(f"{model.name}: tokens are made here (local), by {model.tokenizer}.")
            return
        why = "it has no tokenizer here" if own is None else f"vLLM encodes its chats by code of its own ({own})"
        rendered = await self._renders(client, model)
        if rendered is None:
            self._findings.fine(f"{model.name}: {why}: chats' tokens are those of the pod's /render (render).")
            return
        version = await json_of(client.get(b"/version"))
        if is_tokenized(own, [version.get("version") if isinstance(version, dict) else None]):
            self._findings.fine(
                f"{model.name}: {why}, and {rendered}: chats' tokens are those of the pod's /tokenize (tokenize)."
            )
        else:
            self._findings.wrong(
                f"{model.name}: {why}, {rendered}, and its /tokenize is not what they are encoded by: chats are routed "
                "by their text (vLLM's --enable-scale-out has it render)."
            )

    async def _renders(self, client: PodClient, model: ModelConfig) -> str | None:
        """None, or why the pod does not render."""
        name = self._findings.name_of(model)
        try:
            answer = await client.post(b"/v1/chat/completions/render", orjson.dumps({**_CHAT, "model": name}))
        except UpstreamError as error:
            return f"its /render can't be asked ({error})"
        return None if answer.fine else f"its /render says {answer.status}"

    async def _compare(self, client: PodClient, local: Local, own: OwnEncoding | None) -> None:
        """Are the token ids that we make the pod's own? Not of chats that are not made here: `own`."""
        model, compared = local.config.name, 0
        told = await json_of(client.get(b"/version"))
        version = told.get("version") if isinstance(told, dict) else None
        asked = _ASKED if own is None else _ASKED[: len(_TEXTS)]
        for what, body in asked:
            theirs = await self._ask(client, local.config, body)
            try:
                ours: list[int] | str = local.ids({**body, "model": model}, version)
            except RenderError as error:
                ours = error.reason
            if isinstance(theirs, str) and isinstance(ours, str):
                continue  # a model without a chat template: nobody can
            if isinstance(theirs, str):
                self._findings.wrong(f"{model}: {theirs}: token ids of {what} can't be compared.")
                return
            if isinstance(ours, str):
                self._findings.wrong(f"{model}: {what} can't be rendered here ({ours}), the pod can.")
            elif ours != theirs:
                self._findings.wrong(
                    f"{model}: token ids of {what} differ from the pod's: {_difference(ours, theirs)}."
                )
            else:
                compared += 1
        if compared:
            self._findings.fine(f"{model}: token ids equal the pod's own, for {compared} of {len(asked)} prompts.")

    async def _ask(self, client: PodClient, model: ModelConfig, body: dict[str, Any]) -> list[int] | str:
        """The pod's token ids, or why it gives none."""
        name = self._findings.name_of(model)
        try:
            answer = await client.post(b"/tokenize", orjson.dumps({**body, "model": name}))
            if not answer.fine:
                return f"/tokenize says {answer.status}"
            return [int(number) for number in orjson.loads(answer.body)["tokens"]]
        except UpstreamError as error:
            return f"/tokenize can't be asked ({error})"
        except (ValueError, KeyError, TypeError):
            return "/tokenize gives no list of token ids"


def _difference(ours: list[int], theirs: list[int]) -> str:
    """Both lists around their first difference."""
    pairs = zip(ours, theirs, strict=False)
    at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    start, end = max(0, at - _AROUND), at + _AROUND + 1
    return f"at place {at}, ours {ours[start:end]} ({len(ours)} in all), the pod's {theirs[start:end]} ({len(theirs)})"
