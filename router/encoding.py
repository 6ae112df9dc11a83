"""From a request's `Prompt` to what the decision asks about: token count, block keys, and matches that still hold.

One encoder a model with a tokenizer; what can't be tokenized gets a reason, and is routed by load. Never an error that
the pod would not give as well.
"""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from indexer.blocks import KeySpace
from indexer.prefixes import PrefixLimits, PrefixStats, PrefixStore
from router.config import Config
from router.config_fleet import ASK_THE_PODS, ModelConfig
from router.core import Asked, Core
from router.errors import ConfigError
from router.prompt import Prompt
from router.rendering import Renderer, RenderError, RenderOptions
from router.tokenizer import Tokenizer
from router.tokens import Encoded, Encoder, Source, TokensLimits, TokensUnavailable

_CHARS_A_TOKEN = 4  # of the further prompts of a request, which are not tokenized: only their load counts


class _Model(NamedTuple):
    renderer: Renderer
    encoder: Encoder


@dataclass(slots=True)
class _Question:
    """One prompt, ready for the tokenizer."""

    source: Source
    encoder: Encoder
    sizes: list[int]
    lora: str | None
    salt: str | None


class Encoding:
    """All models' ways from prompts to keys, over one prefix store."""

    def __init__(self, config: Config, core: Core, space: KeySpace) -> None:
        """Loads the tokenizers (0.1 to 1.5 s each); raises `ConfigError` naming a file that can't be used."""
        kept = config.prefix_store_config
        limits = PrefixLimits(kept.bytes_max, kept.pod_mapping_ttl, kept.max_pod_sets_per_block)
        self.store = PrefixStore(space, secrets.randbits(64), core.index.unchanged, limits, config.pod_mappings_enabled)
        self._core = core
        self._pool = ThreadPoolExecutor(config.tokens.threads, thread_name_prefix="tokenize")
        self._models: dict[str, _Model] = {}
        tokens = TokensLimits(deadline_s=config.tokens.deadline)
        for model in config.models:
            if model.tokenizer != ASK_THE_PODS:
                loaded = self._load(model, space, tokens)
                self._models.update(dict.fromkeys((model.name, *model.aliases), loaded))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> PrefixStats:
        return self.store.stats()

    def now(self, prompt: Prompt) -> Asked | None:
        """What is asked, or None where `later` must be awaited: too much text is new. Raises `UnknownModel`."""
        asked, question = self._question(prompt)
        if question is None:
            return asked
        try:
            for size in question.sizes:
                encoded = question.encoder.encode_now(question.source, size, question.lora, question.salt)
                if encoded is None:
                    return None
                self._add(asked, encoded, size)
        except TokensUnavailable as error:
            asked.reason = f"not tokenized: {error.reason}"
        return asked

    async def later(self, prompt: Prompt) -> Asked:
        """As `now`; long new text is tokenized in threads, by the deadline."""
        asked, question = self._question(prompt)
        if question is None:
            return asked
        try:
            for size in question.sizes:
                encoded = await question.encoder.encode(question.source, size, question.lora, question.salt)
                self._add(asked, encoded, size)
        except TokensUnavailable as error:
            asked.reason = f"not tokenized: {error.reason}"
        return asked

    def _question(self, prompt: Prompt) -> tuple[Asked, _Question | None]:
        """Render. Without a question, `Asked.reason` says why the prompt stays unknown."""
        asked = Asked(prompt.model)
        if prompt.kind == "none":
            asked.reason = prompt.reason
            return asked, None
        sizes = self._core.block_sizes(prompt.model)
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        model = self._models.get(served.base) if served is not None else None
        if served is None or model is None:
            asked.reason = "no tokenizer for this model"
            return asked, None
        if not sizes:
            asked.reason = "the block size is not known yet"
            return asked, None
        began = perf_counter()
        try:
            source: Source = prompt.prompts[0] if prompt.kind == "tokens" else model.renderer.render(prompt)  # type: ignore[assignment]
        except RenderError as error:
            asked.reason = f"not rendered: {error.reason}"
            return asked, None
        asked.timing_us["render"] = round((perf_counter() - began) * 1e6)
        asked.further = _further(prompt)
        return asked, _Question(source, model.encoder, sizes, served.lora, prompt.cache_salt)

    def _add(self, asked: Asked, encoded: Encoded, size: int) -> None:
        """Keys for one block size, and the match: the kept one if it still holds."""
        began = perf_counter()
        asked.tokens = encoded.count
        asked.keys[size] = encoded.keys
        match = self.store.find_mapping(encoded.ending, asked.pods, monotonic())
        if match is None:
            match = self._core.match(encoded.keys)
            self.store.cache_pod_mapping(encoded.ending, asked.pods, match, monotonic())
            asked.lookup = encoded.lookup
        else:
            asked.lookup = "hit"
        asked.matches[size] = match
        timing = asked.timing_us
        timing["tokenize"] = round(encoded.tokenize_us)
        timing["keys"] = round(encoded.keys_us)
        timing["lookup"] = round((perf_counter() - began) * 1e6)

    def _load(self, model: ModelConfig, space: KeySpace, tokens: TokensLimits) -> _Model:
        encoder = Encoder(model.name, Tokenizer(Path(model.tokenizer)), space, self.store, self._pool, tokens)
        return _Model(renderer_of(model), encoder)


def renderer_of(model: ModelConfig) -> Renderer:
    """The renderer of a model with a local tokenizer; raises `ConfigError` naming a file that can't be used."""
    options = RenderOptions(
        vllm_version=model.version,
        chat_template=_text_of(model.chat_template),
        content_format=model.content_format,
        trust_request_chat_template=model.trust_request_chat_template,
        exclude_tools_when_tool_choice_none=model.exclude_tools_when_tool_choice_none,
        default_template_kwargs=model.chat_template_kwargs,
    )
    return Renderer(Path(model.tokenizer), options)


def _text_of(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error


def _further(prompt: Prompt) -> int:
    """About how many tokens the prompts after the first have."""
    further: tuple[Any, ...] = prompt.prompts[1:]
    return sum(len(p) // _CHARS_A_TOKEN if isinstance(p, str) else len(p) for p in further)
