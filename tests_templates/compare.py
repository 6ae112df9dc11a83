"""Every conversation through every template, here and by real vLLM: where do the texts differ?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from router.errors import ConfigError
from router.prompts.prompt import BadRequest, Prompt, parse
from router.prompts.rendering import Renderer, RenderError, RenderOptions
from tests_templates.known import KNOWN
from tests_vllm.install import VLLM, python_of, vllm_venv

NOW = datetime(2026, 7, 26, 12, 0)  # as in theirs.py
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
VERSION = tuple(map(int, VLLM.split(".")[:2]))
TIMEOUT_S = 3600
_AROUND = 40  # characters shown on either side of the first that differs


class Difference(NamedTuple):
    """One pair of a template and a conversation; a text is None where the prompt is refused."""

    template: str
    conversation: str
    ours: str | None
    theirs: str | None

    @property
    def reason(self) -> str | None:
        """Why it is known, and left."""
        return next((known.reason for known in KNOWN if known.covers(*self)), None)

    def __str__(self) -> str:
        what = f"{self.template} / {self.conversation}:"
        if self.ours is None or self.theirs is None:
            who, other = ("we", "vLLM") if self.ours is None else ("vLLM", "we")
            return f"{what} {who} refuse what {other} render"
        pairs = zip(self.ours, self.theirs, strict=False)
        at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self.ours), len(self.theirs)))
        around = slice(max(0, at - _AROUND), at + _AROUND)
        return f"{what} at {at}: ours {self.ours[around]!r}, vLLM's {self.theirs[around]!r}"


def differences(
    templates: Mapping[str, str], conversations: Mapping[str, dict[str, Any]], folder: Path
) -> Iterator[Difference]:
    """All of them, in order. `folder`: for files that are passed between the two."""
    theirs = iter(_by_vllm(templates, conversations, folder))
    prompts = {name: _prompt(body) for name, body in conversations.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL_TOKENS))
    for template, source in templates.items():
        renderer = _renderer(folder, source)
        for (name, prompt), text in zip(prompts.items(), next(theirs), strict=True):
            ours = _text(renderer, prompt)
            if ours != text:
                yield Difference(template, name, ours, text)


def _by_vllm(
    templates: Mapping[str, str], conversations: Mapping[str, dict[str, Any]], folder: Path
) -> Iterator[list[str | None]]:
    questions, answers = folder / "questions.json", folder / "answers.jsonl"
    asked = {"templates": [*templates.values()], "bodies": [*conversations.values()], "special_tokens": SPECIAL_TOKENS}
    questions.write_text(json.dumps(asked))
    command = [str(python_of(vllm_venv())), str(Path(__file__).with_name("theirs.py")), str(questions), str(answers)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=folder, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    with answers.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def _prompt(body: dict[str, Any]) -> Prompt | None:
    try:
        return parse("/v1/chat/completions", orjson.dumps(body))
    except BadRequest:
        return None


def _renderer(folder: Path, source: str) -> Renderer | None:
    try:
        return Renderer(folder, RenderOptions(vllm_version=VERSION, chat_template=source), clock=lambda: NOW)
    except ConfigError:
        return None


def _text(renderer: Renderer | None, prompt: Prompt | None) -> str | None:
    if renderer is None or prompt is None:
        return None
    try:
        return renderer.render(prompt).text
    except RenderError:
        return None
