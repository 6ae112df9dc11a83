"""From a request's `Prompt` to what the decision asks about: token count, block keys, and matches that still hold.

One encoder a model with a tokenizer here; for all others, and where ours differs, the pods are asked. Token ids need
neither. What can't be tokenized gets a reason, and is routed by load and by its text. Never an error that the pod would
not give too.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Literal, NamedTuple, Protocol

from indexer.blocks import KeySpace, Tokens
from indexer.mappings import Ending
from indexer.prefixes import PrefixLimits, PrefixStats, PrefixStore
from router.cards import Served
from router.config import Config
from router.config_fleet import ASK_THE_PODS, ModelConfig
from router.core import Asked, Core
from router.errors import ConfigError
from router.fleet import TokenizerState
from router.parity import Parity, ParityLimits
from router.pod_tokens import AS_BY_DEFAULT, AsServed, NotTold, PodTokens, PodTokensLimits, question_of
from router.prompt import Prompt
from router.recall import Recall, Recalled
from router.rendering import RenderError, Rendering, RenderOptions
from router.renderings import Renderings
from router.texts import beginning_of
from router.token_keys import Encoded, TokenKeys
from router.tokenizer import Tokenizer
from router.tokens import Encoder, TokensLimits, TokensUnavailable
from router.upstream import Upstream

_IDS_MAX = 1 << 20  # given as ids: the keys of so many take 40 ms, on the loop
_BYTES_A_TOKEN = 4  # of text that is not tokenized: only its load counts


class _Model(NamedTuple):
    """A model that is tokenized here. `name`: as the configuration has it."""

    name: str
    renderings: Renderings
    encoder: Encoder
    state: TokenizerState


class _Encodes(Protocol):
    """What makes tokens and keys of a `source`, whatever that is; gives way only where it has to."""

    async def encode(self, source: Any, block_size: int, lora: str | None, salt: str | None) -> Encoded: ...


@dataclass(slots=True)
class _Question:
    """One prompt, ready for what encodes it. `local`: the model's name, where that is our own tokenizer; `others`: what
    versions of vLLM in use write that is not `source`."""

    source: Any
    encoder: _Encodes
    sizes: list[int]
    lora: str | None
    salt: str | None
    local: str | None
    others: Mapping[str | None, Rendering | RenderError]


class Encoding:
    """All models' ways from prompts to keys, over one prefix store."""

    def __init__(self, config: Config, core: Core, space: KeySpace, upstreams: Mapping[str, Upstream]) -> None:
        """Loads the tokenizers (0.1 to 1.5 s each); raises `ConfigError` naming a file that can't be used.

        `upstreams`: by pod, for those that are asked to tokenize.
        """
        kept = config.prefix_store_config
        limits = PrefixLimits(kept.bytes_max, kept.pod_mapping_ttl, kept.max_pod_sets_per_block)
        self.store = PrefixStore(space, secrets.randbits(64), core.index.unchanged, limits, config.pod_mappings_enabled)
        self._core = core
        self._recall = Recall(secrets.randbits(64), config.tokens.recall_max, config.tokens.recall_body_max)
        self._pool = ThreadPoolExecutor(config.tokens.threads, thread_name_prefix="tokenize")
        self._text_max = config.tokens.text_max
        self._space = space
        self._affinity_max = config.index.text_max
        self._keys = TokenKeys(space, self.store)
        self.pod_tokens = PodTokens(core.fleet, upstreams, self.store, self._keys, _asking_limits(config))
        self.parity = Parity(core.fleet, self.pod_tokens, self._ours, _parity_limits(config))
        self._models: dict[str, _Model] = {}
        self._as_served: dict[str, AsServed] = {}
        for model in config.models:
            names = (model.name, *model.aliases)
            self._as_served.update(dict.fromkeys(names, _as_served(model)))
            if model.tokenizer != ASK_THE_PODS:
                self._models.update(dict.fromkeys(names, self._load(model, names, space, config)))

    def close(self) -> None:
        self.pod_tokens.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> PrefixStats:
        return self.store.stats()

    def recalled(self, path: str, body: bytes) -> tuple[Prompt, Asked] | None:
        """What a body that was seen before means, and who holds its blocks now."""
        known = self._recall.get(path, body, self._core.fleet.epoch)
        if known is None:
            return None
        asked = Asked(known.prompt.model, known.tokens, known.further, known.keys, known.endings)
        for size, ending in known.endings.items():
            self._look_up(asked, ending, size, "partial")
        return known.prompt, asked

    async def understood(self, path: str, body: bytes, prompt: Prompt) -> Asked:
        """What a body that was not seen before asks; kept for the next time. Raises `UnknownModel`.

        Long new text is tokenized in threads, and pods are asked where they must be, by the deadline.
        """
        asked = await self._understood(prompt)
        if not asked.tokens:
            asked.tokens = len(body) // _BYTES_A_TOKEN
        self._remember(path, body, prompt, asked)
        return asked

    def _remember(self, path: str, body: bytes, prompt: Prompt, asked: Asked) -> None:
        """Keep what a body means, if all of it is known and will be the same tomorrow."""
        if asked.endings and not asked.reason and asked.by_version is None and not self._tells_time(prompt):
            epoch = self._core.fleet.epoch
            self._recall.put(
                path, body, Recalled(prompt, asked.tokens, asked.further, asked.keys, asked.endings, epoch)
            )

    async def _understood(self, prompt: Prompt) -> Asked:
        asked, question = self._question(prompt)
        if question is not None:
            await self._encode(asked, question)
            if question.others and asked.keys:
                asked.by_version = await self._encoded_otherwise(prompt, question)
            if question.local is not None and asked.reason is None:
                self.parity.offer(question.local, prompt)
        if asked.reason is not None and not asked.keys:
            beginning = beginning_of(self._space, prompt, self._affinity_max)
            if beginning is not None:
                asked.text, asked.tokens = beginning.keys, beginning.tokens or 0
        return asked

    async def _encode(self, asked: Asked, question: _Question) -> None:
        try:
            for size in question.sizes:
                encoded = await question.encoder.encode(question.source, size, question.lora, question.salt)
                self._add(asked, encoded, size)
        except NotTold as untold:
            asked.reason = f"not tokenized: {untold.reason}"
        except TokensUnavailable as unavailable:
            asked.reason = f"not tokenized: {unavailable.reason}"
            if unavailable.beginning is not None:
                self._add(asked, unavailable.beginning, size)
                asked.tokens += unavailable.rest_bytes // _BYTES_A_TOKEN

    async def _encoded_otherwise(self, prompt: Prompt, question: _Question) -> Mapping[str | None, Asked]:
        """The prompt as versions of vLLM have it that write it differently; one text is encoded once."""
        made: dict[Rendering | str, Asked] = {}
        by_version = {}
        for version, written in question.others.items():
            key = written if isinstance(written, Rendering) else written.reason
            asked = made.get(key)
            if asked is None:
                asked = made[key] = Asked(prompt.model, reads_cache=prompt.reads_cache)
                if isinstance(written, Rendering):
                    await self._encode(asked, replace(question, source=written))
                else:
                    asked.reason = f"not rendered: {written.reason}"
            by_version[version] = asked
        return by_version

    def _question(self, prompt: Prompt) -> tuple[Asked, _Question | None]:
        """Render. Without a question, `Asked.reason` says why the prompt stays unknown. Raises `UnknownModel`."""
        asked = Asked(prompt.model)
        if prompt.kind == "none":
            asked.reason = prompt.reason
            return asked, None
        sizes = self._core.fleet.grains(prompt.model)
        if not sizes:
            asked.reason = "the block size is not known yet"
            return asked, None
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        began = perf_counter()
        try:
            source, encoder, local, others = self._way(prompt, served)
        except RenderError as unrendered:
            asked.reason = f"not rendered: {unrendered.reason}"
            return asked, None
        except NotTold as untold:
            asked.reason = f"not tokenized: {untold.reason}"
            return asked, None
        asked.timing_us["render"] = round((perf_counter() - began) * 1e6)
        asked.further = _further(prompt)
        lora = served.lora if served is not None else None
        return asked, _Question(source, encoder, sizes, lora, prompt.cache_salt, local, others)

    def _way(
        self, prompt: Prompt, served: Served | None
    ) -> tuple[object, _Encodes, str | None, Mapping[str | None, Rendering | RenderError]]:
        """What this prompt is made into, by what, the model's name where that is our own tokenizer, and what versions
        in use write otherwise.

        Raises RenderError or NotTold.
        """
        if prompt.kind == "tokens":
            if len(prompt.prompts[0]) > _IDS_MAX:
                raise NotTold("too long for any context")
            return prompt.prompts[0], self._keys, None, {}
        base = served.base if served is not None else ""
        model = self._models.get(base)
        if model is not None and model.state.state != "degraded":
            rendering, others = model.renderings.render(prompt, self._core.fleet.versions(prompt.model))
            if len(rendering.text) > self._text_max:
                raise NotTold("too long for any context")
            return rendering, model.encoder, model.name, others
        as_served = self._as_served.get(base, AS_BY_DEFAULT)
        return question_of(prompt, as_served, self.pod_tokens.limits.question_bytes_max), self.pod_tokens, None, {}

    async def _ours(self, prompt: Prompt, version: str | None) -> Tokens | None:
        """The ids that are made here for a pod of this version, where they are."""
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        model = self._models.get(served.base) if served is not None else None
        if model is None or prompt.model is None:
            return None
        sizes = self._core.fleet.grains(prompt.model)
        try:
            rendering = model.renderings.of(version).render(prompt)
            encoded = await model.encoder.encode(rendering, sizes[0] if sizes else 16)
        except (RenderError, TokensUnavailable):
            return None
        return encoded.tokens

    def _add(self, asked: Asked, encoded: Encoded, size: int) -> None:
        """Keys for one block size, and who holds them."""
        asked.tokens = encoded.count
        asked.timing_us["tokenize"] = round(encoded.tokenize_us)
        asked.timing_us["keys"] = round(encoded.keys_us)
        asked.endings[size] = encoded.ending
        asked.keys[size] = encoded.ending.keys
        self._look_up(asked, encoded.ending, size, encoded.lookup)

    def _look_up(self, asked: Asked, ending: Ending, size: int, lookup: Literal["partial", "miss"]) -> None:
        """The match: the kept one if it still holds, else a new one."""
        began = monotonic()
        match = self.store.find_mapping(ending, asked.pods, began)
        if match is None:
            match = self._core.match(ending.keys)
            self.store.cache_pod_mapping(ending, asked.pods, match, began)
            asked.lookup = lookup
        else:
            asked.lookup = "hit"
        asked.matches[size] = match
        asked.timing_us["lookup"] = round((monotonic() - began) * 1e6)

    def _tells_time(self, prompt: Prompt) -> bool:
        """Might this prompt's text be another one tomorrow?"""
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        model = self._models.get(served.base) if served is not None else None
        return prompt.kind == "chat" and (
            model is None or model.renderings.renderer.tells_time or model.state.state == "degraded"
        )  # what templates of pods do is not known here

    def _load(self, model: ModelConfig, names: tuple[str, ...], space: KeySpace, config: Config) -> _Model:
        tokens = config.tokens
        limits = TokensLimits(
            tokens.deadline, tokens.inline_max, sliced_bytes_max=tokens.sliced_max, waiting_bytes_max=tokens.waiting_max
        )
        tokenizer = Tokenizer(Path(model.tokenizer), config.prefix_store_config.piece_bytes, tokens.threads)
        encoder = Encoder(model.name, tokenizer, space, self.store, self._pool, limits)
        return _Model(model.name, renderings_of(model), encoder, self.parity.watch(names, _as_served(model)))


def _as_served(model: ModelConfig) -> AsServed:
    return AsServed(model.chat_template_kwargs, model.exclude_tools_when_tool_choice_none)


def _asking_limits(config: Config) -> PodTokensLimits:
    tokens = config.tokens
    return PodTokensLimits(tokens.deadline, tokens.hedge_delay, tokens.questions_max, tokens.question_max)


def _parity_limits(config: Config) -> ParityLimits:
    parity = config.parity
    return ParityLimits(parity.first, parity.share, parity.recheck_interval, parity.queue_max)


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


def _further(prompt: Prompt) -> int:
    """About how many tokens the prompts after the first have."""
    further: tuple[Any, ...] = prompt.prompts[1:]
    return sum(len(p) // _BYTES_A_TOKEN if isinstance(p, str) else len(p) for p in further)
