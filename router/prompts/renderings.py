"""A model's prompts as each version of vLLM in use writes them: one text where they all write the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cachetools import LRUCache

from router.config.fleet import ModelConfig
from router.core.cards import version_of
from router.errors import ConfigError
from router.prompts.messages import Rules, rules_of
from router.prompts.prompt import Prompt
from router.prompts.rendering import Renderer, RenderError, Rendering, RenderOptions

_SETS_MAX = 32  # of versions that were in use together; and of rules, which each version could have of its own
_NONE: Mapping[str | None, Rendering | RenderError] = {}


class Written(NamedTuple):
    """A prompt's text, and by version those that are another one; an error where pods of that version refuse it."""

    rendering: Rendering
    others: Mapping[str | None, Rendering | RenderError] = _NONE


class Group(NamedTuple):
    """Versions of vLLM whose prompts have one text."""

    renderer: Renderer
    versions: tuple[str | None, ...]


class Renderings:
    """One model's renderers, one for each set of rules: versions that have the same ones share it."""

    def __init__(self, folder: Path, options: RenderOptions, clock: Callable[[], datetime] = datetime.now) -> None:
        """As `Renderer`; a version in `options` is the one that counts, whatever pods say. Raises ConfigError."""
        self.renderer = Renderer(folder, options, clock)
        self._configured = options.vllm_version is not None
        self._renderers: LRUCache[Rules, Renderer] = LRUCache(_SETS_MAX)
        self._groups: dict[tuple[str | None, ...], Sequence[Group]] = {}

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
        return written(prompt, self.groups(versions))

    def ready(self, prompt: Prompt, versions: tuple[str | None, ...]) -> Sequence[Group]:
        """What `written` needs of a large prompt, so that it changes nothing in a thread; raises RenderError."""
        groups = self.groups(versions)
        for group in groups:
            group.renderer.ready(prompt)
        return groups

    def groups(self, versions: tuple[str | None, ...]) -> Sequence[Group]:
        """These versions, by what they write."""
        groups = self._groups.get(versions)
        if groups is None:
            if len(self._groups) >= _SETS_MAX:
                self._groups.clear()
            groups = self._groups[versions] = self._grouped(versions)
        return groups

    def _grouped(self, versions: tuple[str | None, ...]) -> Sequence[Group]:
        renderers = {version: self.of(version) for version in versions}
        return [
            Group(renderer, tuple(version for version in versions if renderers[version] is renderer))
            for renderer in dict.fromkeys(renderers.values())
        ]


def written(prompt: Prompt, groups: Sequence[Group]) -> Written:
    """The text of a prompt by each of the groups; raises RenderError."""
    if len(groups) == 1:
        return Written(groups[0].renderer.render(prompt))
    made = [(_render(group.renderer, prompt), group.versions) for group in groups]
    first = next((one for one, _ in made if isinstance(one, Rendering)), None)
    if first is None:
        raise RenderError(str(made[0][0]))
    return Written(first, {version: one for one, of in made if one != first for version in of})


def _render(renderer: Renderer, prompt: Prompt) -> Rendering | RenderError:
    try:
        return renderer.render(prompt)
    except RenderError as error:
        return error.with_traceback(None)


def renderings_of(model: ModelConfig) -> Renderings:
    """The renderers of a model with a local tokenizer; raises `ConfigError` naming a file that can't be used."""
    options = RenderOptions(
        vllm_version=model.version,
        chat_template=_text_of(model.chat_template),
        content_format=model.content_format,
        trust_request_chat_template=model.trust_request_chat_template,
        exclude_tools_when_tool_choice_none=model.exclude_tools_when_tool_choice_none,
        default_template_kwargs=model.chat_template_kwargs,
        reasoning_effort_map=model.reasoning_effort_map,
    )
    return Renderings(Path(model.tokenizer), options)


def _text_of(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
