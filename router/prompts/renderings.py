"""A model's prompts as each version of vLLM in use writes them: one text where they all write the same. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cachetools import LRUCache

from router.prompts.messages import Rules, rules_of, version_of
from router.prompts.prompt import Prompt
from router.prompts.rendering import Renderer, RenderError, Rendering, RenderOptions

_SETS_MAX = 32  # of versions that were in use together; and of rules, which each version could have of its own
_NONE: Mapping[str | None, Rendering | RenderError] = {}


class Written(NamedTuple):
    """A prompt's text, and by version those that are another one; an error where pods of that version refuse it."""

    rendering: Rendering
    others: Mapping[str | None, Rendering | RenderError] = _NONE


class _Group(NamedTuple):
    renderer: Renderer
    versions: tuple[str | None, ...]


class Renderings:
    """One model's renderers, one for each set of rules: versions that have the same ones share it."""

    def __init__(self, folder: Path, options: RenderOptions, clock: Callable[[], datetime] = datetime.now) -> None:
        """As `Renderer`; a version in `options` is the one that counts, whatever pods say. Raises ConfigError."""
        self.renderer = Renderer(folder, options, clock)
        self._configured = options.vllm_version is not None
        self._renderers: LRUCache[Rules, Renderer] = LRUCache(_SETS_MAX)
        self._groups: dict[tuple[str | None, ...], Sequence[_Group]] = {}

    def of(self, version: str | None) -> Renderer:
        """The renderer of a pod that says so of its version."""
        if self._configured:
            return self.renderer
        numbers = version_of(version)
        rules = rules_of(numbers)
        if rules == self.renderer.rules:
            return self.renderer
        renderer = self._renderers.get(rules)
        if renderer is None:
            renderer = self._renderers[rules] = self.renderer.under(numbers)
        return renderer

    def render(self, prompt: Prompt, versions: tuple[str | None, ...]) -> Written:
        """The text of a prompt for pods of these versions, of which there is at least one; raises RenderError."""
        groups = self._groups.get(versions)
        if groups is None:
            if len(self._groups) >= _SETS_MAX:
                self._groups.clear()
            groups = self._groups[versions] = self._grouped(versions)
        if len(groups) == 1:
            return Written(groups[0].renderer.render(prompt))
        made = [(_render(group.renderer, prompt), group.versions) for group in groups]
        first = next((one for one, _ in made if isinstance(one, Rendering)), None)
        if first is None:
            raise RenderError(str(made[0][0]))
        return Written(first, {version: one for one, of in made if one != first for version in of})

    def _grouped(self, versions: tuple[str | None, ...]) -> Sequence[_Group]:
        renderers = {version: self.of(version) for version in versions}
        return [
            _Group(renderer, tuple(version for version in versions if renderers[version] is renderer))
            for renderer in dict.fromkeys(renderers.values())
        ]


def _render(renderer: Renderer, prompt: Prompt) -> Rendering | RenderError:
    try:
        return renderer.render(prompt)
    except RenderError as error:
        return error.with_traceback(None)
