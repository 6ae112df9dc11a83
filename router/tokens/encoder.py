"""From a body to what it asks of the fleet, its `Demand`: token count, block keys, and what else it says.

The sources of a model's tokens, in order: a tokenizer here, the pods' `/render`, their `/tokenize`; one that is proven
wrong is passed over. Token ids need none. What can't be tokenized gets a reason, and is routed by load and by its text.
Never an error that the pod would not give too.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from router.core.demand import Apart
from router.core.fleet import Pod
from router.core.token_proof import Doubt
from router.core.token_states import Ladder, Origin, Shape, Source, TokenizerState
from router.errors import Saturated, UnknownModel
from router.prompts.beginnings import beginning_of
from router.prompts.own_encodings import OwnEncoding, by_folder, by_names, is_tokenized
from router.prompts.prompt import Prompt, is_large, parse, parse_large
from router.prompts.rendering import RenderError, config_of
from router.prompts.renderings import Group, Renderings, renderings_of, written
from router.prompts.skim import model_at_an_end
from router.tokens.given import Encoded, GivenTokens
from router.tokens.large_bodies import LargeBodies
from router.tokens.local import LocalTokens, LocalTokensLimits, TokensUnavailable
from router.tokens.parity import Parity, ParityLimits, Trials, told_of
from router.tokens.questions import (
    AS_BY_DEFAULT,
    NO_RENDER,
    AsServed,
    NotTold,
    NotToldReason,
    Question,
    question_by,
)
from router.tokens.recall import Recall
from router.tokens.remote import RemoteTokens, RemoteTokensLimits
from router.tokens.tokenizer import Tokenizer
from router.tokens.understanding import (
    BYTES_A_TOKEN,
    Gathered,
    Understood,
    further_tokens,
    in_versions,
    read_again,
    shape_of,
    why_unknown,
    with_model,
)
from router.upstream.pool import Upstream

log = logging.getLogger("warmroute.tokens")

_IDS_MAX = 1 << 20  # given as ids: the keys of so many take 40 ms, on the loop
_OTHER: NotToldReason = "the pods' /tokenize is not what their chats are encoded by"
_VERSIONS_MAX = 4  # of vLLM that are asked about one prompt: a rolling upgrade has two
_LATE = "there was no time to read so large a body"


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
    see `Demand`; `others`: what versions of vLLM in use write otherwise, or why it is not known."""

    form: Any
    source: _TokenSource
    local: str | None = None
    origin: Origin | None = None
    others: Mapping[str | None, _Way | RenderError | NotTold] = MappingProxyType({})


class _Question(NamedTuple):
    """One prompt, ready for what encodes it, for pods of these versions of vLLM."""

    way: _Way
    versions: Sequence[str | None]
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
        self._large_bodies = LargeBodies(config.tokens.reading_max)
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
            self._as_served.update(dict.fromkeys(names, AsServed.by(model)))
            if model.tokenizer != ASK_THE_PODS:
                self._models.update(dict.fromkeys(names, self._load(model, names, space, config)))

    def close(self) -> None:
        self.remote.close()
        self._large_bodies.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> PrefixStats:
        return self._core.store.stats()

    def recalled(self, path: str, body: bytes) -> Understood | None:
        """What a body that was seen before means."""
        return self._recall.get(path, body, self._core.fleet.epoch)

    async def parsed(self, path: str, body: bytes) -> Prompt:
        """What a body that was not seen before says; raises `BadRequest`, and `Saturated` where there is no time to
        find out for whom a large one is."""
        if not is_large(body, self._body_inline_max):
            return with_model(parse(path, body), self._core.fleet)
        try:
            prompt = await self._large_bodies.do(len(body), parse_large, path, body, self._decoded_max)
        except TimeoutError:
            return self._late(body)
        return with_model(prompt, self._core.fleet)

    def _late(self, body: bytes) -> Prompt:
        model = model_at_an_end(body)
        if model is None and not self._core.fleet.is_of_one_model:
            raise Saturated("Too many large requests are being read.")
        return Prompt("none", model, {}, reason=_LATE, large=len(body))

    async def understood(self, path: str, body: bytes, prompt: Prompt) -> Understood:
        """What a body that was not seen before means; kept for the next time. Raises `UnknownModel`.

        Long new text is tokenized in threads, and pods are asked where they must be, by the deadline.
        """
        gathered = await self._gather(prompt)
        if not gathered.tokens:
            gathered.tokens = prompt.guessed_tokens(len(body))
        meaning = gathered.meaning(prompt)
        known = prompt.model is None or self._core.fleet.is_known(prompt.model)
        if known and meaning.lasts and (meaning.demand.text is not None or not self._tells_time(prompt)):
            self._recall.put(path, body, meaning.again(), self._core.fleet.epoch)
        return meaning

    async def _gather(self, prompt: Prompt) -> Gathered:
        for _ in range(2):  # the second time without pods that do not render
            gathered, question = await self._question(prompt)
            if question is None:
                break
            if question.way.others:
                gathered, done = await self._encode_in_versions(prompt, gathered, question)
            else:
                done = await self._encode(gathered, question, question.way)
            if done:
                break
        if gathered.reason is not None and not gathered.keys:
            with contextlib.suppress(TimeoutError):
                beginning = await self._off_loop(prompt, beginning_of, self._space, prompt, self._affinity_max)
                if beginning is not None:
                    gathered.text, gathered.tokens = beginning.keys, beginning.tokens or 0
        return gathered

    async def _encode_in_versions(
        self, prompt: Prompt, gathered: Gathered, question: _Question
    ) -> tuple[Gathered, bool]:
        """As `_encode`, for versions of vLLM that write the prompt differently; one text is encoded once."""
        way = question.way
        made = {way.form: gathered}
        ways = {each.form: each for each in way.others.values() if isinstance(each, _Way)}
        made.update((form, Gathered(origin=each.origin, further=gathered.further)) for form, each in ways.items())
        encoded = [self._encode(made[each.form], question, each) for each in (way, *ways.values())]
        done = all(await asyncio.gather(*encoded)) or any(each.broken for each in made.values())
        by_version = {}
        for version in question.versions:
            each = way.others.get(version, way)
            by_version[version] = made[each.form] if isinstance(each, _Way) else Gathered(reason=why_unknown(each))
        return in_versions(by_version, prompt), done

    async def _encode(self, gathered: Gathered, question: _Question, way: _Way) -> bool:
        """False where another source is to be asked."""
        try:
            for size in question.sizes:
                encoded = await way.source.encode(way.form, size, question.lora, question.salt)
                gathered.broken += encoded.broken
                gathered.add(encoded, size)
                if question.lora is not None or question.salt is not None:
                    self._set_apart(gathered, question, encoded, size)
        except NotTold as untold:
            gathered.reason = why_unknown(untold)
            gathered.broken += untold.broken
            return untold.reason != NO_RENDER or untold.broken > 0  # what breaks pods is not asked in another way
        except TokensUnavailable as unavailable:
            gathered.reason = f"not tokenized: {unavailable.reason}"
            if unavailable.beginning is not None:
                gathered.add(unavailable.beginning, size)
                gathered.tokens += unavailable.rest_bytes // BYTES_A_TOKEN
        return True

    def _set_apart(self, gathered: Gathered, question: _Question, encoded: Encoded, size: int) -> None:
        """It has an adapter, or a salt: keep by which keys the same tokens are known without."""
        plain = {} if gathered.apart is None else dict(gathered.apart.plain)
        plain[size] = self._space.chain(encoded.tokens, size)
        gathered.apart = Apart(question.lora, question.salt, plain)

    async def _off_loop(self, prompt: Prompt, make: Callable[..., _T], *given: Any) -> _T:
        """What `make` makes of a prompt: in a thread if that is large, and then raises `TimeoutError`, too."""
        if not prompt.large:
            return make(*given)
        return await self._large_bodies.do(prompt.large, make, *given)

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
            gathered.reason = why_unknown(unrendered)
            return gathered, None
        except NotTold as untold:
            gathered.reason, gathered.origin = why_unknown(untold), self._by_text(prompt, served, shape)
            return gathered, None
        except TimeoutError:
            gathered.reason = _LATE
            return gathered, None
        gathered.timing_us["render"] = round((perf_counter() - began) * 1e6)
        gathered.further, gathered.origin = further_tokens(prompt), way.origin
        lora = served.lora if served is not None else None
        versions = self._core.fleet.versions(prompt.model) if way.others else ()
        return gathered, _Question(way, versions, sizes, lora, prompt.cache_salt)

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
        renders = self.remote.versions(prompt.model)
        if not renders:
            raise NotTold("the request names no model" if prompt.model is None else "no pod is fit to be asked")
        states = {version: ladder.asked(there, is_tokenized(own, (version,))) for version, there in renders.items()}
        best = next(filter(None, states.values()), None)
        if best is None:
            ladder.current, ladder.why = "text", f"{why}, the pods do not render, and {_OTHER}"
            raise NotTold(_OTHER)
        ladder.current, ladder.why = best.source, why
        origins = {state: origin(state) for state in states.values() if state is not None}
        asked = {version: None if state is None else origins[state] for version, state in states.items()}
        as_served = self._as_served.get(base, AS_BY_DEFAULT)
        return partial(self._asked, asked, partial(question_by, prompt, as_served, bytes_max))

    def _given(self, prompt: Prompt) -> _Way:
        if len(prompt.prompts[0]) > _IDS_MAX:
            raise NotTold("too long for any context")
        return _Way(prompt.prompts[0], self._keys)

    def _asked(self, origins: Mapping[str | None, Origin | None], by: Callable[[Source], Question]) -> _Way:
        """Of the pods' versions of vLLM, each is asked by its own source; None: it has none."""
        ways: dict[str | None, _Way | NotTold] = {}
        why = NotTold(_OTHER)
        for number, (version, origin) in enumerate(origins.items()):
            try:
                if origin is None or number >= _VERSIONS_MAX:
                    raise NotTold(_OTHER if origin is None else "too many versions of vLLM are in use")
                ways[version] = _Way(by(origin.state.source)._replace(version=version), self.remote, None, origin)
            except NotTold as untold:
                ways[version] = why = untold
        first = next((way for way in ways.values() if isinstance(way, _Way)), None)
        if first is None:
            raise why
        return first._replace(others={version: way for version, way in ways.items() if way is not first})

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
        pod = self._core.fleet.pods.get(doubt.pod)
        if doubt.witness is None or pod is None:
            return None
        prompt = read_again(doubt.witness, self._core.fleet)
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        model = self._models.get(served.base) if served is not None else None
        try:
            if doubt.origin.state.source != "local":
                return self.remote.known(self._question_to(pod, prompt, doubt.origin.state.source))
            if model is None:
                return None
            encoded = model.tokens.encode_now(model.renderings.of(pod.version).render(prompt), 16)
            return None if encoded is None else encoded.tokens
        except (NotTold, RenderError, TokensUnavailable, UnknownModel):
            return None

    async def ids_by(self, state: TokenizerState, prompt: Prompt, pod: str) -> Tokens | None:
        """What a source makes of a prompt for a pod, whether or not it is in use; None where it makes nothing."""
        known = self._core.fleet.pods.get(pod)
        if known is None:
            return None
        if state.source == "local":
            return await self._ours(prompt, known.version)
        try:
            return await self.remote.ask(self._question_to(known, prompt, state.source))
        except (NotTold, UnknownModel):
            return None

    def _question_to(self, pod: Pod, prompt: Prompt, source: Source) -> Question:
        """What pods like this one are asked; raises NotTold."""
        served = self._core.fleet.served(prompt.model) if prompt.model is not None else None
        as_served = self._as_served.get(served.base if served is not None else "", AS_BY_DEFAULT)
        question = question_by(prompt, as_served, self.remote.limits.question_bytes_max, source)
        return question._replace(version=pod.version)

    def _load(self, model: ModelConfig, names: tuple[str, ...], space: KeySpace, config: Config) -> _Model:
        tokenizer = Tokenizer(Path(model.tokenizer), config.prefix_store_config.piece_bytes, config.tokens.threads)
        limits = LocalTokensLimits.of(config.tokens)
        tokens = LocalTokens(model.name, tokenizer, space, self._core.store, self._pool, limits)
        folder = Path(model.tokenizer)
        described = config_of(folder)
        own, typed = by_folder(folder, described), "model_type" in described
        state = self.parity.watch(names, AsServed.by(model))
        return _Model(model.name, renderings_of(model), tokens, state, own, typed)


def _rendered(prompt: Prompt, groups: Sequence[Group], model: _Model, origin: Origin, text_max: int) -> _Way:
    rendering, others = written(prompt, groups)
    if len(rendering.text) > text_max:
        raise NotTold("too long for any context")
    way = _Way(rendering, model.tokens, model.name, origin)
    if not others:
        return way
    ways = ((version, one, way._replace(form=one)) for version, one in others.items())
    return way._replace(others={v: one if isinstance(one, RenderError) else each for v, one, each in ways})


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
