"""What `warmroute check` finds out, as sentences."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, NamedTuple

import orjson

from router.config.fleet import ModelConfig
from router.upstream.failures import UpstreamError
from router.upstream.pod_client import PodAnswer


class Finding(NamedTuple):
    """One thing that was looked at. `fine`: None where that is neither right nor wrong."""

    about: str
    fine: bool | None
    text: str

    @property
    def line(self) -> str:
        return f"{_MARKS[self.fine]} {self.about}: {self.text}"


_MARKS = {True: "✓", False: "✗", None: " "}


class Findings:
    """What was found out about one pod, or the configuration, in order."""

    def __init__(self, about: str) -> None:
        self._about = about
        self.all: list[Finding] = []
        self.served: set[str] = set()  # names of models
        self.roots: list[str] = []  # where they were loaded from

    def fine(self, sentence: str) -> None:
        self.all.append(Finding(self._about, True, sentence))

    def note(self, sentence: str) -> None:
        """Neither right nor wrong."""
        self.all.append(Finding(self._about, None, sentence))

    def wrong(self, sentence: str) -> None:
        self.all.append(Finding(self._about, False, sentence))

    def serves(self, model: ModelConfig) -> bool:
        """Whether the pod has this model, by any of its names."""
        return bool(self.served & {model.name, *model.aliases})

    def name_of(self, model: ModelConfig) -> str:
        """By which the pod serves this model; it does."""
        return next(name for name in (model.name, *model.aliases) if name in self.served)


async def json_of(asked: Awaitable[PodAnswer]) -> Any:
    """What a good answer says; None where there is none."""
    try:
        answer = await asked
        return orjson.loads(answer.body) if answer.fine else None
    except (UpstreamError, ValueError):
        return None
