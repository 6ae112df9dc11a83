"""`warmroute warmup`: bring prompts to a gateway before anybody asks for them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import httpx

from router.commands.score import base_of, only_model, read_answer, unasked
from router.warmup.prompts import WarmPrompt
from router.warmup.sources import read_all

_TIMEOUT_S = 300.0  # the gateway waits for idle pods
_FILE_BYTES_MAX = 1 << 30


@dataclass(slots=True)
class Summary:
    """What became of all prompts."""

    prompts: int = 0
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, answer: dict[str, Any]) -> None:
        """One prompt more, as the gateway says."""
        self.tokens += answer["tokens"]
        self.computed += answer["computed"]
        if answer["reason"] is not None:
            self.problems.append(f"{name}: its tokens are not known: {answer['reason']}")
        for what in ("failed", "late"):
            if answer[what]:
                self.problems.append(f"{name}: {answer[what]} of its pods {_WORDS[what]}")


_WORDS = {"failed": "did not compute it", "late": "were not idle in time"}


def warm(
    url: str,
    key: str | None,
    model: str | None,
    prefill: int,
    parallel: int,
    files: Sequence[str],
    delimiter: str | None,
) -> Summary:
    """All prompts of the files to the gateway, `parallel` at a time. Raises click.ClickException or `ConfigError`."""
    prompts = read_all(files, delimiter, _FILE_BYTES_MAX, os.environ)
    if not prompts:
        raise click.ClickException("There are no prompts in these files.")
    summary, began = Summary(len(prompts)), time.monotonic()
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=base_of(url), headers=headers, timeout=_TIMEOUT_S) as client:
            named = model or (None if all("model" in prompt.fields for prompt in prompts) else only_model(client))
            _send(client, prompts, named, prefill, parallel, summary)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unasked(url, error) from error
    summary.seconds = time.monotonic() - began
    return summary


def _send(
    client: httpx.Client, prompts: list[WarmPrompt], model: str | None, prefill: int, parallel: int, summary: Summary
) -> None:
    def ask(prompt: WarmPrompt) -> tuple[str, dict[str, Any] | str]:
        asked = client.post("/warmup", params={"pods": prefill, "path": prompt.path}, content=prompt.body(model))
        try:
            return prompt.name, read_answer(asked)
        except click.ClickException as error:
            return prompt.name, error.message

    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar, ThreadPoolExecutor(parallel) as pool:
        task = bar.add_task("warming", total=len(prompts))
        for name, answer in pool.map(ask, prompts):
            if isinstance(answer, str):
                summary.problems.append(f"{name}: {answer}")
            else:
                summary.add(name, answer)
            bar.advance(task)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def print_summary(summary: Summary, as_json: bool) -> None:
    """As a sentence and a line for each problem, or as JSON."""
    if as_json:
        click.echo(json.dumps(asdict(summary) | {"seconds": round(summary.seconds, 3)}, ensure_ascii=False))
        return
    click.echo(
        f"{_count(summary.prompts, 'prompt')}, {_count(summary.tokens, 'token')}, "
        f"computed {_count(summary.computed, 'time')} by pods, "
        f"in {summary.seconds:.1f} s"
    )
    for problem in summary.problems:
        click.echo(problem, err=True)
