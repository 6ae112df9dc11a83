"""Token ids from the pods' own `/render` or `/tokenize`: without a tokenizer here, for one question per prompt.

A question is about one version of vLLM: others may make other tokens of the same prompt. It goes to the fit pod of that
version with the least to do; after `hedge_delay_s` without an answer, or on a failure, to a
second one. Equal questions at one time are asked once; answers are kept in the prefix store. Pods that break off when
they are asked are counted: the request itself, which may be the cause, is then sent to so many fewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import orjson

from indexer.blocks import Tokens
from indexer.prefixes import PrefixStore
from indexer.text_blocks import Family
from router.core.fleet import Fleet, Pod
from router.tokens.given import Encoded, GivenTokens
from router.tokens.questions import NO_RENDER, RENDER_CHAT, NotTold, NotToldReason, Question
from router.upstream.failures import BREAKS, UpstreamError
from router.upstream.pool import Upstream

if TYPE_CHECKING:
    from router.config.tokens import TokensConfig

_LOOKS_MAX = 16  # pods that are looked at in one go
_OTHER_METHOD = 405
_LOOK_INTERVAL_S = 1.0  # between two looks at who is new
_NO_RENDER_S = 300.0  # a pod that does not render is asked again after it: it may be another one then
_PODS_ASKED_MAX = 2  # for one question
_AVOIDED_S = 5.0  # a pod that was slow or failed comes last for so long
_KEPT_S = 600.0  # an answer is kept for so long at most
_HEADERS = [(b"content-type", b"application/json")]
_REFUSALS = (400, 413, 422)  # this prompt's fault: another pod would say the same
_BYTES_PER_TOKEN_MAX = 12  # of an answer: an id of up to 10 digits, and what is between two
_PARSED_AT_ONCE_BYTES = 64 * 1024  # of an answer: 0.3 to 0.5 ms


_FINAL: frozenset[NotToldReason] = frozenset(("the pods' /tokenize refuses it", "its tokens are multimodal"))
"""Another pod would say the same."""


@dataclass(frozen=True, slots=True)
class RemoteTokensLimits:
    """The bounds of RemoteTokens."""

    deadline_s: float
    hedge_delay_s: float
    questions_max: int
    """Questions under way; more wait for their turn, by the deadline."""
    question_bytes_max: int
    breaks_max: int
    """When more pods than this have broken off, no further one is asked."""

    @classmethod
    def of(cls, tokens: TokensConfig, breaks_max: int) -> Self:
        """As configured."""
        return cls(tokens.deadline, tokens.hedge_delay, tokens.questions_max, tokens.question_max, breaks_max)


class _Asking:
    """A question under way: `task` tells the ids; `broken` pods broke off so far."""

    __slots__ = ("broken", "task")

    task: asyncio.Task[Tokens]

    def __init__(self) -> None:
        self.broken = 0


class _Route(NamedTuple):
    """Whether a pod of this version has a `/render`, as of some time ago."""

    version: object
    until: float
    there: bool

    def is_old(self, pod: Pod, now: float) -> bool:
        return self.until <= now or self.version != pod.version


_UNSEEN = _Route(None, 0.0, False)


class _Whole:
    """Questions are kept whole: that one begins like another says nothing of its tokens. A store's Cutter."""

    window_bytes = 1 << 62

    def first(self, data: bytes, window: int) -> int:
        return 0

    def ends(self, data: bytes, start: int = 0) -> list[int]:
        return [len(data)]

    def count(self, ids: Tokens, nbytes: int) -> None:
        """No part of them."""


_WHOLE = _Whole()


class RemoteTokens:
    """See the module. `counts`: questions by what came of them."""

    def __init__(
        self,
        fleet: Fleet,
        upstreams: Mapping[str, Upstream],
        store: PrefixStore,
        keys: GivenTokens,
        limits: RemoteTokensLimits,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`upstreams`: by pod; those that come later are found too."""
        self.limits = limits
        self._fleet = fleet
        self._upstreams = upstreams
        self._store = store
        self._keys = keys
        self._clock = clock
        self._room = asyncio.Semaphore(limits.questions_max)
        self._asking: dict[Question, _Asking] = {}
        self._avoided_until: dict[str, float] = {}
        self._no_render_until: dict[str, float] = {}
        self._routes: dict[str, _Route] = {}  # what was seen of pods' /render
        self._turn = 0
        self.counts: Counter[str] = Counter(
            {"told": 0, "kept": 0, "joined": 0, "hedged": 0, "slow": 0, "failed": 0, "refused": 0}
        )

    def close(self) -> None:
        """Nobody waits for what is under way any more."""
        for asking in self._asking.values():
            asking.task.cancel()

    async def run(self) -> None:
        """Look for ever, from time to time."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def look(self) -> None:
        """Which pods have a `/render` at all? Looked at once in a while, beside the requests, without a prompt."""
        now, fleet = self._clock(), self._fleet
        new = [
            pod
            for pod in fleet.pods.values()
            if pod.fit(now) and pod.name in self._upstreams and self._routes.get(pod.name, _UNSEEN).is_old(pod, now)
        ]
        await asyncio.gather(*map(self._look, new[:_LOOKS_MAX]))
        self._routes = {name: route for name, route in self._routes.items() if name in fleet.pods}

    async def _look(self, pod: Pod) -> None:
        """A GET of what only takes POST: 405 where it is, else 404."""
        there, before = False, self._routes.get(pod.name)
        if before is not None and before.version != pod.version:
            self._no_render_until.pop(pod.name, None)  # it was another one that did not
        with contextlib.suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(self.limits.deadline_s):
                upstream = self._upstreams[pod.name]
                response = await upstream.request("GET", RENDER_CHAT, upstream.own_key(), b"")
                response.close()
                there = response.status == _OTHER_METHOD
        self._routes[pod.name] = _Route(pod.version, self._clock() + _NO_RENDER_S, there)

    def renders(self, model: str | None) -> bool:
        """Is there a pod that renders this model's prompts, as far as is known?"""
        return any(self.versions(model).values())

    def versions(self, model: str | None) -> dict[str | None, bool]:
        """The versions of vLLM of the fit pods that can be asked, and whether a pod of each renders."""
        versions: dict[str | None, bool] = {}
        for pod in self._serving(model) if model is not None else ():
            versions[pod.version] = self._renders(pod) or versions.get(pod.version, False)
        return versions

    def _serving(self, model: str) -> list[Pod]:
        """The fit pods that can be asked."""
        now = self._clock()
        pods = dict.fromkeys(rank.pod for rank in self._fleet.serving(model))
        return [pod for pod in pods if pod.name in self._upstreams and pod.fit(now)]

    def _renders(self, pod: Pod) -> bool:
        return self._routes.get(pod.name, _UNSEEN).there and self._no_render_until.get(pod.name, 0.0) <= self._clock()

    # --- as a source of tokens

    def encode_now(
        self, question: Question, block_size: int, lora: str | None = None, salt: str | None = None
    ) -> Encoded | None:
        """The prompt's tokens and keys if they are known, None where `encode` must be awaited. Raises NotTold."""
        began = perf_counter()
        ids = self.known(question)
        if ids is None:
            return None
        self.counts["kept"] += 1
        encoded = self._encoded(question, ids, (block_size, lora, salt), began)
        encoded.lookup = "partial"
        return encoded

    async def encode(
        self, question: Question, block_size: int, lora: str | None = None, salt: str | None = None
    ) -> Encoded:
        """As `encode_now`; what is not known is asked. Raises NotTold, also at the deadline."""
        encoded = self.encode_now(question, block_size, lora, salt)
        if encoded is not None:
            return encoded
        began = perf_counter()
        ids, broken = await self._told(question)
        encoded = self._encoded(question, ids, (block_size, lora, salt), began)
        encoded.lookup, encoded.broken = "miss", broken
        return encoded

    def _encoded(
        self, question: Question, ids: Tokens, variant: tuple[int, str | None, str | None], began: float
    ) -> Encoded:
        if question.keep is not None and question.keep < len(ids):
            if question.special:
                raise NotTold("truncation is unknown to the pods' /tokenize")
            ids = ids[len(ids) - question.keep :]
        told = perf_counter()
        encoded = self._keys.encode_now(ids, *variant)
        encoded.tokenize_us = (told - began) * 1e6
        return encoded

    # --- what is kept

    def known(self, question: Question) -> Tokens | None:
        """What a pod has told before."""
        try:
            block = self._store.find_longest_tokens(self._family(question), question.body).whole
        except Exception:  # a fault of the cache must not cost the answer
            self._store.failures += 1
            return None
        return None if block is None else block.tokens()

    def _keep(self, question: Question, ids: Tokens) -> None:
        try:
            found = self._store.find_longest_tokens(self._family(question), question.body)
            if found.whole is None:
                self._store.extend(found, found.ends(), ids, [len(ids)])
        except Exception:  # a fault of the cache must not cost the answer
            self._store.failures += 1

    def _family(self, question: Question) -> Family:
        """Templates may write the date, and pods may come back with another one: answers are not kept for long."""
        name = f"told:{question.renders:d}:{question.version}:{int(self._clock() // _KEPT_S)}"
        return self._store.family(name, _WHOLE, _WHOLE.count)

    # --- asking

    async def ask(self, question: Question) -> Tokens:
        """The ids by one of the fit pods that serve the model in this version; raises NotTold, by the deadline."""
        ids, _ = await self._told(question)
        return ids

    async def _told(self, question: Question) -> tuple[Tokens, int]:
        """The same, with how many pods broke off before."""
        asking = self._asking.get(question)
        if asking is None:
            asking = self._asking[question] = _Asking()
            asking.task = asyncio.get_running_loop().create_task(self._ask(question, asking))
            asking.task.add_done_callback(lambda done: self._asked(question, done))
        else:
            self.counts["joined"] += 1
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await asyncio.shield(asking.task), asking.broken  # others may wait for it too
        except TimeoutError:
            raise NotTold("the pods' /tokenize is too slow", asking.broken) from None
        except NotTold as untold:
            raise NotTold(untold.reason, asking.broken) from None

    def _asked(self, question: Question, done: asyncio.Task[Tokens]) -> None:
        self._asking.pop(question, None)
        if not done.cancelled():
            done.exception()  # looked at, also where nobody waits any more

    async def _ask(self, question: Question, asking: _Asking) -> Tokens:
        try:
            async with asyncio.timeout(self.limits.deadline_s), self._room:
                ids = await self._hedged(question, asking)
        except TimeoutError:
            self.counts["slow"] += 1
            raise NotTold("the pods' /tokenize is too slow") from None
        self.counts["told"] += 1
        self._keep(question, ids)
        return ids

    async def _hedged(self, question: Question, asking: _Asking) -> Tokens:
        left = self._best(question)
        why = NotTold(NO_RENDER if question.renders else "no pod is fit to be asked")
        waiting: dict[asyncio.Task[Tokens], str] = {}  # in the order in which they were asked
        try:
            while left or waiting:
                if left:
                    pod = left.pop(0)
                    waiting[asyncio.create_task(self.ask_pod(pod, question))] = pod
                delay_s = self.limits.hedge_delay_s if left else None
                done, _ = await asyncio.wait(waiting, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
                self.counts["hedged"] += not done
                for task in done:
                    error = task.exception()
                    if error is None:
                        self._avoid(list(waiting.values())[: list(waiting).index(task)])  # asked before, and beaten
                        return task.result()
                    del waiting[task]
                    if not isinstance(error, NotTold) or error.reason in _FINAL:
                        raise error
                    why = error
                    asking.broken += error.broken
                    if asking.broken > self.limits.breaks_max:
                        left = []
            raise why
        except asyncio.CancelledError:
            self._avoid(waiting.values())
            if question.renders:
                self._no_render(waiting.values())
            raise
        finally:
            for task in waiting:
                task.cancel()

    def _best(self, question: Question) -> list[str]:
        """The pods to ask, in order: those in good standing first, of these the least busy."""
        now = self._clock()
        pods = [pod for pod in self._serving(question.model) if pod.version == question.version]
        if question.renders:
            pods = list(filter(self._renders, pods))
        self._turn += 1
        turn, count = self._turn, len(pods)

        def order(numbered: tuple[int, Pod]) -> tuple[bool, int, int]:
            number, pod = numbered
            return self._avoided_until.get(pod.name, 0.0) > now, pod.requests, (number - turn) % count

        best = heapq.nsmallest(_PODS_ASKED_MAX, enumerate(pods), key=order)
        return [pod.name for _, pod in best]

    def _avoid(self, pods: Iterable[str]) -> None:
        now = self._clock()
        self._avoided_until = {name: until for name, until in self._avoided_until.items() if until > now}
        self._avoided_until.update((pod, now + _AVOIDED_S) for pod in pods)

    async def ask_pod(self, pod: str, question: Question) -> Tokens:
        """The ids by this pod; raises NotTold. Without a deadline of its own."""
        try:
            upstream = self._upstreams[pod]
            headers = [*_HEADERS, *upstream.own_key()]
            response = await upstream.request("POST", question.target, headers, question.body)
            try:
                room = len(question.body) * _BYTES_PER_TOKEN_MAX + _PARSED_AT_ONCE_BYTES
                body = await response.read(room)
            finally:
                response.close()
        except UpstreamError as error:
            return self._failed(pod, question, error.breaks)
        if response.status in _REFUSALS:
            self.counts["refused"] += 1
            raise NotTold("the pods' /tokenize refuses it")
        if response.status != 200:
            return self._failed(pod, question, int(response.status in BREAKS))
        try:
            return await (_rendered(body) if question.renders else _ids(body))
        except (ValueError, KeyError, TypeError, OverflowError, IndexError):
            return self._failed(pod, question)

    def _no_render(self, pods: Iterable[str]) -> None:
        """These pods do not render, or too slowly. Those of which nothing was heard for long are forgotten."""
        now = self._clock()
        self._no_render_until = {name: until for name, until in self._no_render_until.items() if until > now}
        self._no_render_until.update((pod, now + _NO_RENDER_S) for pod in pods)

    def _failed(self, pod: str, question: Question, broken: int = 0) -> Tokens:
        if question.renders:
            self._no_render([pod])
            raise NotTold(NO_RENDER, broken)
        self.counts["failed"] += 1
        self._avoid([pod])
        raise NotTold("the pods' /tokenize fails", broken)


async def _rendered(body: bytes) -> Tokens:
    """The ids that a request is to be generated from: of the first, where there are several.

    Raises what `_ids` raises, IndexError, and NotTold where ids are not all that there is.
    """
    found = orjson.loads(body) if len(body) <= _PARSED_AT_ONCE_BYTES else await asyncio.to_thread(orjson.loads, body)
    while isinstance(found, list):
        found = found[-1 if found and isinstance(found[0], list) else 0]  # 0.15: the conversation, then its prompts
    if found.get("features"):
        raise NotTold("its tokens are multimodal")
    return _checked(array("I", found["token_ids"] if "token_ids" in found else found["prompt_token_ids"]))


async def _ids(body: bytes) -> Tokens:
    """`tokens` of an answer. A long list is read in parts, between which others have their turn.

    Raises ValueError, KeyError, TypeError or OverflowError for what is no such answer.
    """
    if len(body) <= _PARSED_AT_ONCE_BYTES:
        return _checked(array("I", orjson.loads(body)["tokens"]))
    start = body.index(b"[", body.index(b'"tokens"')) + 1
    end = body.index(b"]", start)
    ids = array("I")
    while start < end:
        at = end
        if end - start > _PARSED_AT_ONCE_BYTES:
            at = body.rindex(b",", start, start + _PARSED_AT_ONCE_BYTES)
        ids.extend(orjson.loads(b"[%b]" % body[start:at]))
        start = at + 1
        await asyncio.sleep(0)
    return _checked(ids)


def _checked(ids: Sequence[int]) -> Tokens:
    if not ids:
        raise ValueError("there are no tokens")
    return np.array(ids, dtype=np.uint32)
