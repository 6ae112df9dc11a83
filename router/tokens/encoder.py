"""From a body to what it asks of the fleet, its `Demand`: token count, block keys, and what else it says.

The sources of a model's tokens, in order: a tokenizer here, the pods' `/render`, their `/tokenize`; one that is proven
wrong is passed over. Token ids need none. What can't be tokenized gets a reason, and is routed by load and by its text.
Never an error that the pod would not give too.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

from indexer.blocks import KeySpace, Tokens
from indexer.prefixes import PrefixStats
from router.config.fleet import ASK_THE_PODS, ModelConfig
from router.config.settings import Config
from router.core.cards import Served
from router.core.decision import Core
from router.core.demand import Demand
from router.core.token_proof import Doubt
from router.core.token_states import Ladder, Origin, Shape, TokenizerState, Witness
from router.errors import UnknownModel
from router.prompts.beginnings import beginning_of
from router.prompts.own_encodings import OwnEncoding, by_folder, by_names, is_tokenized
from router.prompts.prompt import Prompt, is_large, parse, parse_large
from router.prompts.rendering import RenderError, Rendering, config_of
from router.prompts.renderings import Group, Renderings, renderings_of, written
from router.tokens.given import Encoded, GivenTokens
from router.tokens.local import LocalTokens, LocalTokensLimits, TokensUnavailable
from router.tokens.parity import Parity, ParityLimits, Trials, told_of
from router.tokens.questions import (
    AS_BY_DEFAULT,
    NO_RENDER,
    AsServed,
    NotTold,
    NotToldReason,
    Question,
    question_of,
    render_question_of,
)
from router.tokens.recall import Recall
from router.tokens.remote import RemoteTokens, RemoteTokensLimits
from router.tokens.tokenizer import Tokenizer
from router.tokens.understanding import Gathered, Understood, shape_of
from router.upstream.pool import Upstream

log = logging.getLogger("warmroute.tokens")

_IDS_MAX = 1 << 20  # given as ids: the keys of so many take 40 ms, on the loop
_OTHER: NotToldReason = "the pods' /tokenize is not what their chats are encoded by"
_BYTES_A_TOKEN = 4  # of text that is not tokenized: only its load counts


_T = TypeVar("_T")


class _Model(NamedTuple):
    """A model that is tokenized here. `name`: as the configuration has it. `own`: how vLLM encodes its chats, where
    that is not by a template; `typed`: its config.json says what it is."""

    name: str
    renderings: Renderings
    tokens: LocalTokens
    state: TokenizerState
    own: OwnEncoding | None
    typed: bool


class _TokenSource(Protocol):
    """What makes tokens and keys of a prompt in its own `form` (a text, ids, a question); gives way only where it
    has to."""

    async def encode(self, form: Any, block_size: int, lora: str | None, salt: str | None) -> Encoded: ...


class _Way(NamedTuple):
    """What a prompt is made into, and by what. `local`: the model's name, where that is our own tokenizer; `origin`:
    see `Demand`; `others`: what versions of vLLM in use write otherwise."""

    form: Any
    source: _TokenSource
    local: str | None = None
    origin: Origin | None = None
    others: Mapping[str | None, Rendering | RenderError] = MappingProxyType({})


class _Question(NamedTuple):
    """One prompt, ready for what encodes it."""

    way: _Way
    sizes: list[int]
    lora: str | None
    salt: str | None


class Encoder:
    """All models' ways from prompts to keys, over one prefix store."""

    def __init__(self, config: Config, core: Core, space: KeySpace, upstreams: Mapping[str, Upstream]) -> None:
        """Loads the tokenizers (0.1 to 1.5 s each); raises `ConfigError` naming a file that can't be used.

        `upstreams`: by pod, for those that are asked to tokenize.
        """
        self._core = core
        self._recall = Recall(secrets.randbits(64), config.tokens.recall_max, config.tokens.recall_body_max)
        self._pool = ThreadPoolExecutor(config.tokens.threads, thread_name_prefix="tokenize")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._body_inline_max = config.tokens.body_inline_max
        self._decoded_max = config.tokens.decoded_max
        self._text_max = config.tokens.text_max
        self._space = space
        self._affinity_max = config.index.text_max
        self._keys = GivenTokens(space, core.store)
        asking = RemoteTokensLimits.of(config.tokens, config.upstream.breaks_max)
        self.remote = RemoteTokens(core.fleet, upstreams, core.store, self._keys, asking)
        self._trials = Trials(core, self.ids_by)
        self.parity = Parity(core.fleet, self.remote, self._ours, ParityLimits.of(config.parity), trials=self._trials)
        self._models: dict[str, _Model] = {}
        self._owns: dict[str, tuple[int, OwnEncoding | None]] = {}  # by base model, as of an epoch of the fleet
        self._as_served: dict[str, AsServed] = {}
        for model in config.models:
            names = (model.name, *model.aliases)
            self._as_served.update(dict.fromkeys(names, _as_served(model)))
            if model.tokenizer != ASK_THE_PODS:
                self._models.update(dict.fromkeys(names, self._load(model, names, space, config)))

    def close(self) -> None:
        self.remote.close()
        for pool in (self._pool, self._reading):
            pool.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> PrefixStats:
        return self._core.store.stats()

    def recalled(self, path: str, body: bytes) -> Understood | None:
        """What a body that was seen before means."""
        return self._recall.get(path, body, self._core.fleet.epoch)

    async def parsed(self, path: str, body: bytes) -> Prompt:
        """What a body that was not seen before says; raises `BadRequest`."""
        if not is_large(body, self._body_inline_max):
            return parse(path, body)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading, parse_large, path, body, self._decoded_max)

    async def understood(self, path: str, body: bytes, prompt: Prompt) -> Understood:
        """What a body that was not seen before means; kept for the next time. Raises `UnknownModel`.

        Long new text is tokenized in threads, and pods are asked where they must be, by the deadline.
        """
        gathered = await self._gather(prompt)
        if not gathered.tokens:
            gathered.tokens = prompt.guessed_tokens(len(body))
        demand, kept = gathered.demand(prompt), prompt.understood()
        if demand.endings and not demand.reason and demand.by_version is None and not self._tells_time(prompt):
            # All of it is known, and will be the same tomorrow.
            self._recall.put(path, body, Understood(kept, demand), self._core.fleet.epoch)
        return Understood(kept, demand, gathered.known, gathered.timing_us, gathered.broken)

    async def _gather(self, prompt: Prompt) -> Gathered:
        gathered, question = await self._question(prompt)
        if question is not None and not await self._encode(gathered, question):
            gathered, question = await self._question(prompt)  # without pods that do not render
            if question is not None:
                await self._encode(gathered, question)
        if question is not None and question.way.others and gathered.keys:
            gathered.by_version = await self._encoded_otherwise(prompt, question)
        if gathered.reason is not None and not gathered.keys:
            beginning = await self._off_loop(prompt, beginning_of, self._space, prompt, self._affinity_max)
            if beginning is not None:
                gathered.text, gathered.tokens = beginning.keys, beginning.tokens or 0
        return gathered

    async def _encode(self, gathered: Gathered, question: _Question) -> bool:
        """False where another source is to be asked."""
        try:
            way = question.way
            for size in question.sizes:
                encoded = await way.source.encode(way.form, size, question.lora, question.salt)
                gathered.broken += encoded.broken
                gathered.add(encoded, size)
        except NotTold as untold:
            gathered.reason = f"not tokenized: {untold.reason}"
            gathered.broken += untold.broken
            return untold.reason != NO_RENDER or untold.broken > 0  # what breaks pods is not asked in another way
        except TokensUnavailable as unavailable:
            gathered.reason = f"not tokenized: {unavailable.reason}"
            if unavailable.beginning is not None:
                gathered.add(unavailable.beginning, size)
                gathered.tokens += unavailable.rest_bytes // _BYTES_A_TOKEN
        return True

    async def _encoded_otherwise(self, prompt: Prompt, question: _Question) -> Mapping[str | None, Demand]:
        """The prompt as versions of vLLM have it that write it differently; one text is encoded once."""
        made: dict[Rendering | str, Demand] = {}
        by_version = {}
        for version, one in question.way.others.items():
            key = one if isinstance(one, Rendering) else one.reason
            demand = made.get(key)
            if demand is None:
                gathered = Gathered(origin=question.way.origin)
                if isinstance(one, Rendering):
                    await self._encode(gathered, question._replace(way=question.way._replace(form=one)))
                else:
                    gathered.reason = f"not rendered: {one.reason}"
                demand = made[key] = gathered.demand(prompt)
            by_version[version] = demand
        return by_version

    async def _off_loop(self, prompt: Prompt, make: Callable[..., _T], *given: Any) -> _T:
        """What `make` makes of a prompt: in a thread if that is large."""
        if not prompt.large:
            return make(*given)
        return await asyncio.get_running_loop().run_in_executor(self._reading, make, *given)

    async def _question(self, prompt: Prompt) -> tuple[Gathered, _Question | None]:
        """Render. Without a question, its reason says why the prompt stays unknown. Raises `UnknownModel`."""
        gathered = Gathered()
        if prompt.kind == "none":
            gathered.reason = prompt.reason
            return gathered, None
        sizes = self._core.fleet.grains(prompt.model)
        if not sizes:
            gathered.reason = "the block size is not known yet"
            return gathered, None
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        began = perf_counter()
        try:
            shape = await self._off_loop(prompt, shape_of, prompt)
            way = await self._off_loop(prompt, self._way(prompt, served, shape))
        except RenderError as unrendered:
            gathered.reason = f"not rendered: {unrendered.reason}"
            return gathered, None
        except NotTold as untold:
            gathered.reason, gathered.origin = f"not tokenized: {untold.reason}", self._by_text(prompt, served, shape)
            return gathered, None
        gathered.timing_us["render"] = round((perf_counter() - began) * 1e6)
        gathered.further, gathered.origin = _further(prompt), way.origin
        lora = served.lora if served is not None else None
        return gathered, _Question(way, sizes, lora, prompt.cache_salt)

    def _way(self, prompt: Prompt, served: Served | None, shape: Shape) -> Callable[[], _Way]:
        """Makes what a prompt is made into, by the best source that is not proven wrong; changes nothing, so that it
        may be called in a thread. This, and what it returns, raise RenderError or NotTold.
        """
        if prompt.kind == "tokens":
            return partial(self._given, prompt)
        base, lora = (served.base, served.lora) if served is not None else ("", None)
        ladder, versions = self.ladder(base), self._core.fleet.versions(prompt.model)
        own = self._own_encoding(base) if prompt.kind == "chat" else None
        bytes_max = self.remote.limits.question_bytes_max
        trial = ladder.trial(shape, monotonic())
        model = self._models.get(base)
        why = _why_not_here(model, own, prompt)

        def origin(state: TokenizerState) -> Origin:
            return Origin(state, shape, prompt.model, lora, prompt.cache_salt, trial)

        if model is not None and why is None:
            ladder.current, ladder.why = "local", "it is tokenized here"
            renderings = model.renderings
            groups = renderings.ready(prompt, versions) if prompt.large else renderings.groups(versions)
            return partial(_rendered, prompt, groups, model, origin(model.state), self._text_max)
        why = why or "it has no tokenizer here"
        if ladder.render.state != "degraded" and self.remote.renders(prompt.model):
            ladder.current, ladder.why = "render", why
            return partial(self._asked, render_question_of, prompt, bytes_max, origin=origin(ladder.render))
        ladder.current, ladder.why = "tokenize", why
        if ladder.tokenize.state == "degraded" or not is_tokenized(own, versions):
            ladder.current, ladder.why = "text", f"{why}, the pods do not render, and {_OTHER}"
            raise NotTold(_OTHER)
        as_served = self._as_served.get(base, AS_BY_DEFAULT)
        return partial(self._asked, question_of, prompt, as_served, bytes_max, origin=origin(ladder.tokenize))

    def _given(self, prompt: Prompt) -> _Way:
        if len(prompt.prompts[0]) > _IDS_MAX:
            raise NotTold("too long for any context")
        return _Way(prompt.prompts[0], self._keys)

    def _asked(self, make: Callable[..., Question], *given: Any, origin: Origin) -> _Way:
        return _Way(make(*given), self.remote, None, origin)

    def ladder(self, base: str) -> Ladder:
        """A base model's sources of tokens."""
        ladders = self._core.fleet.ladders
        ladder = ladders.get(base)
        if ladder is None:
            self._forget_bases()
            model = self._models.get(base)
            ladder = ladders[base] = Ladder(model.state if model is not None else None)
        return ladder

    def _forget_bases(self) -> None:
        """Of base models that no pod serves any more: a new one comes in their place."""
        tables: tuple[dict[str, Any], ...] = (self._core.fleet.ladders, self._owns)
        served = {"", *self._core.fleet.base_models()}
        for table in tables:
            for base in table.keys() - served:
                del table[base]

    def _by_text(self, prompt: Prompt, served: Served | None, shape: Shape) -> Origin | None:
        """Of a prompt that no source tells the tokens of: one that was wrong may be tried on it."""
        if served is None or prompt.kind not in ("chat", "text"):
            return None
        ladder = self.ladder(served.base)
        trial = ladder.trial(shape, monotonic())
        return Origin(ladder.text, shape, prompt.model, served.lora, prompt.cache_salt, trial)

    def _own_encoding(self, base: str) -> OwnEncoding | None:
        """How vLLM encodes this model's chats, if not by a template: by its folder, else by the pods' names for it."""
        epoch = self._core.fleet.epoch
        known = self._owns.get(base)
        if known is None or known[0] != epoch:
            model = self._models.get(base)
            own = None if model is None else model.own
            if own is None and (model is None or not model.typed):
                own = by_names(self._core.fleet.names_of(base))
            known = self._owns[base] = (epoch, own)
        return known[1]

    async def _ours(self, prompt: Prompt, version: str | None) -> Tokens | None:
        """The ids that are made here for a pod of this version, where they are."""
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        model = self._models.get(served.base) if served is not None else None
        if model is None or prompt.model is None:
            return None
        sizes = self._core.fleet.grains(prompt.model)
        try:
            rendering = model.renderings.of(version).render(prompt)
            encoded = await model.tokens.encode(rendering, sizes[0] if sizes else 16)
        except (RenderError, TokensUnavailable):
            return None
        return encoded.tokens

    def _tells_time(self, prompt: Prompt) -> bool:
        """Might this prompt's text be another one tomorrow?"""
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        model = self._models.get(served.base) if served is not None else None
        return prompt.kind == "chat" and (
            model is None or model.renderings.renderer.tells_time or model.state.state == "degraded"
        )  # what templates of pods do is not known here

    # --- proof

    def judge(self, now: float) -> None:
        """Believe what the pods' events and counts say of the tokens that were predicted."""
        for doubt in self._core.proof.judge(now):
            self._doubted(doubt, now)

    def _doubted(self, doubt: Doubt, now: float) -> None:
        """Say it; where it is proof, pass the source over."""
        state, model = doubt.origin.state, doubt.origin.model
        if state.state == "degraded":
            return
        told = told_of(doubt, self._made(doubt))
        if not doubt.proof:
            log.warning("%s: tokens by %s may be wrong (%s): %s", model, state.source, doubt.origin.shape, told)
            return
        log.error("%s: tokens by %s are wrong (%s): %s", model, state.source, doubt.origin.shape, told)
        reason = f"requests to {doubt.pod} had other tokens ({doubt.origin.shape}), see the log"
        state.degrade(reason, doubt.origin.shape, now + self.parity.limits.recheck_interval_s)
        self._core.fleet.changed()  # what is known by these ids counts no more
        served = self._core.fleet.served(model) if model is not None else None
        if served is not None and state.source == "local":
            self._trials.doubt(doubt, self.ladder(served.base).tokenize)

    def _made(self, doubt: Doubt) -> Tokens | None:
        """The ids that were made of a prompt, as far as they are at hand."""
        if doubt.witness is None:
            return None
        prompt, pod = parse(*doubt.witness), self._core.fleet.pods.get(doubt.pod)
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        try:
            form = self._way(prompt, served, doubt.origin.shape)().form
            if isinstance(form, Question):
                return self.remote.known(form)
            model = self._models.get(served.base) if served is not None else None
            if model is None or pod is None:
                return None
            encoded = model.tokens.encode_now(model.renderings.of(pod.version).render(prompt), 16)
            return None if encoded is None else encoded.tokens
        except (NotTold, RenderError, TokensUnavailable, UnknownModel):
            return None

    async def ids_by(self, state: TokenizerState, witness: Witness, pod: str) -> Tokens | None:
        """What a source makes of a prompt for a pod, whether or not it is in use; None where it makes nothing."""
        prompt = parse(*witness)
        if state.source == "local":
            known = self._core.fleet.pods.get(pod)
            return None if known is None else await self._ours(prompt, known.version)
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        as_served = self._as_served.get(served.base if served is not None else "", AS_BY_DEFAULT)
        bytes_max = self.remote.limits.question_bytes_max
        try:
            if state.source == "render":
                return await self.remote.ask(render_question_of(prompt, bytes_max))
            return await self.remote.ask(question_of(prompt, as_served, bytes_max))
        except (NotTold, UnknownModel):
            return None

    def _load(self, model: ModelConfig, names: tuple[str, ...], space: KeySpace, config: Config) -> _Model:
        tokenizer = Tokenizer(Path(model.tokenizer), config.prefix_store_config.piece_bytes, config.tokens.threads)
        limits = LocalTokensLimits.of(config.tokens)
        tokens = LocalTokens(model.name, tokenizer, space, self._core.store, self._pool, limits)
        folder = Path(model.tokenizer)
        described = config_of(folder)
        own, typed = by_folder(folder, described), "model_type" in described
        state = self.parity.watch(names, _as_served(model))
        return _Model(model.name, renderings_of(model), tokens, state, own, typed)


def _rendered(prompt: Prompt, groups: Sequence[Group], model: _Model, origin: Origin, text_max: int) -> _Way:
    rendering, others = written(prompt, groups)
    if len(rendering.text) > text_max:
        raise NotTold("too long for any context")
    return _Way(rendering, model.tokens, model.name, origin, others)


def _why_not_here(model: _Model | None, own: OwnEncoding | None, prompt: Prompt) -> str | None:
    """Why a prompt is not tokenized here; None: it is."""
    if model is None:
        return "it has no tokenizer here"
    if own is not None:
        return f"vLLM encodes its chats by code of its own ({own}), not by a template"
    if model.state.state == "degraded":
        return "the tokens that are made here are not the pods'"
    if prompt.kind == "chat" and model.renderings.renderer.lacks_template and not prompt.fields.get("chat_template"):
        return "its folder has no chat template, and pods may have one (--chat-template)"
    return None


def _as_served(model: ModelConfig) -> AsServed:
    return AsServed(model.chat_template_kwargs, model.exclude_tools_when_tool_choice_none)


def _further(prompt: Prompt) -> int:
    """About how many tokens the prompts after the first have."""
    further: tuple[Any, ...] = prompt.prompts[1:]
    return sum(len(p) // _BYTES_A_TOKEN if isinstance(p, str) else len(p) for p in further)
