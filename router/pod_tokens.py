"""Token ids from the pods' own `/tokenize`: exact without a tokenizer here, for the price of one question per prompt.

A question goes to the fit pod with the least to do; after `hedge_delay_s` without an answer, or on a failure, to a
second one. Equal questions at one time are asked once; answers are kept in the prefix store.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic, perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson

from indexer.blocks import Tokens
from indexer.prefixes import PrefixStore
from indexer.text_blocks import Family
from router.failures import UpstreamError
from router.fleet import Fleet, Pod
from router.prompt import Fields, Prompt
from router.token_keys import Encoded, TokenKeys
from router.upstream import Upstream

NotToldReason = Literal[
    "documents are unknown to the pods' /tokenize",
    "reasoning_effort is unknown to the pods' /tokenize",
    "truncation is unknown to the pods' /tokenize",
    "too long for any context",
    "too long to ask a pod",
    "nested too deeply to ask a pod",
    "no pod is fit to be asked",
    "the pods' /tokenize is too slow",
    "the pods' /tokenize fails",
    "the pods' /tokenize refuses it",
    "the request names no model",
    "it is not tokenized here",
]

_CHAT_FIELDS = ("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs", "tools")
"""What changes a chat's prompt, and `/tokenize` takes (beside messages and add_special_tokens)."""
_UNKNOWN_FIELDS: Mapping[str, NotToldReason] = {
    "documents": "documents are unknown to the pods' /tokenize",
    "reasoning_effort": "reasoning_effort is unknown to the pods' /tokenize",
}
"""What changes a chat's prompt, and `/tokenize` ignores."""

_PODS_ASKED_MAX = 2  # for one question
_AVOIDED_S = 5.0  # a pod that was slow or failed comes last for so long
_KEPT_S = 600.0  # an answer is kept for so long at most
_TARGET = b"/tokenize"
_NULL = re.compile(rb"null(?<=[:,\[]null)[,}\]]").search  # as a value; or, seldom, in a text that has the same
_HEADERS = [(b"content-type", b"application/json")]
_REFUSALS = (400, 413, 422)  # this prompt's fault: another pod would say the same
_BYTES_PER_TOKEN_MAX = 12  # of an answer: an id of up to 10 digits, and what is between two
_PARSED_AT_ONCE_BYTES = 64 * 1024  # of an answer: 0.3 to 0.5 ms


class NotTold(Exception):
    """The pods can't tell this prompt's tokens (in time): it is routed by load alone."""

    def __init__(self, reason: NotToldReason) -> None:
        super().__init__(reason)
        self.reason = reason


class PodTokensLimits(NamedTuple):
    """The bounds of PodTokens."""

    deadline_s: float = 2.0
    hedge_delay_s: float = 0.15
    questions_max: int = 32
    """Questions under way; more wait for their turn, by the deadline."""
    question_bytes_max: int = 2 * 2**20


class Question(NamedTuple):
    """One body of `/tokenize`. `keep`: of the answer, the last so many ids (None: all)."""

    model: str
    body: bytes
    keep: int | None = None
    special: bool = False
    """Special tokens are added, which truncation would keep: what they are is not told."""


class AsServed(NamedTuple):
    """How the pods of a model were started, as far as `/tokenize` does not follow it by itself."""

    template_kwargs: Mapping[str, Any]
    exclude_tools_when_tool_choice_none: bool


AS_BY_DEFAULT = AsServed({}, False)


def question_of(prompt: Prompt, served: AsServed, bytes_max: int) -> Question:
    """What to ask for this prompt (of several: the first); raises NotTold. Equal prompts give equal questions."""
    if prompt.model is None:
        raise NotTold("the request names no model")
    body: Fields = {"model": prompt.model, "add_special_tokens": prompt.add_special_tokens}
    if prompt.kind == "chat":
        body.update(_chat(prompt.fields, served, bytes_max))
    else:
        text = str(prompt.prompts[0])
        if len(text) > bytes_max:
            raise NotTold("too long to ask a pod")
        body["prompt"] = text
    data = _json(body)
    if len(data) > bytes_max:
        raise NotTold("too long to ask a pod")
    return Question(prompt.model, data, prompt.truncate_prompt_tokens, prompt.add_special_tokens)


def _json(body: Fields) -> bytes:
    """As pods read it. orjson is fifteen times faster, but makes null of NaN, and does not know 2**64; pods do."""
    try:
        data = orjson.dumps(body)
        if not _NULL(data):
            return data
    except TypeError:  # also where it is nested deeply
        pass
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError:
        raise NotTold("nested too deeply to ask a pod") from None


def _chat(fields: Fields, served: AsServed, chars_max: int) -> Fields:
    for name, reason in _UNKNOWN_FIELDS.items():
        if fields.get(name) is not None:
            raise NotTold(reason)
    messages = fields["messages"]
    if sum(map(_chars, messages)) > chars_max:  # looked at first, so that no time goes into writing it down
        raise NotTold("too long to ask a pod")
    body: Fields = {"messages": messages}
    body.update((name, fields[name]) for name in _CHAT_FIELDS if fields.get(name) is not None)
    if served.exclude_tools_when_tool_choice_none and fields.get("tool_choice") == "none":
        body.pop("tools", None)
    if served.template_kwargs:
        body["chat_template_kwargs"] = {**served.template_kwargs, **body.get("chat_template_kwargs", {})}
    return body


def _chars(message: Fields) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    return sum(len(part["text"]) for part in content or () if type(part) is dict and type(part.get("text")) is str)


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


class PodTokens:
    """See the module. `counts`: questions by what came of them."""

    def __init__(
        self,
        fleet: Fleet,
        upstreams: Mapping[str, Upstream],
        store: PrefixStore,
        keys: TokenKeys,
        limits: PodTokensLimits = PodTokensLimits(),  # noqa: B008 (immutable)
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
        self._asking: dict[Question, asyncio.Task[Tokens]] = {}
        self._avoided_until: dict[str, float] = {}
        self._turn = 0
        self.counts: Counter[str] = Counter(
            {"told": 0, "kept": 0, "joined": 0, "hedged": 0, "slow": 0, "failed": 0, "refused": 0}
        )

    def close(self) -> None:
        """Nobody waits for what is under way any more."""
        for task in self._asking.values():
            task.cancel()

    # --- as an encoder

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
        ids = await self.ask(question)
        encoded = self._encoded(question, ids, (block_size, lora, salt), began)
        encoded.lookup = "miss"
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
            block = self._store.find_longest_tokens(self._family(), question.body).whole
        except Exception:  # a fault of the cache must not cost the answer
            self._store.failures += 1
            return None
        return None if block is None else block.tokens()

    def _keep(self, question: Question, ids: Tokens) -> None:
        try:
            found = self._store.find_longest_tokens(self._family(), question.body)
            if found.whole is None:
                self._store.extend(found, found.ends(), ids, [len(ids)])
        except Exception:  # a fault of the cache must not cost the answer
            self._store.failures += 1

    def _family(self) -> Family:
        """Templates may write the date, and pods may come back with another one: answers are not kept for long."""
        return self._store.family(f"told:{int(self._clock() // _KEPT_S)}", _WHOLE, _WHOLE.count)

    # --- asking

    async def ask(self, question: Question) -> Tokens:
        """The ids by one of the fit pods that serve the model; raises NotTold, by the deadline."""
        asking = self._asking.get(question)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask(question))
            self._asking[question] = asking
            asking.add_done_callback(lambda done: self._asked(question, done))
        else:
            self.counts["joined"] += 1
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await asyncio.shield(asking)  # others may wait for it too
        except TimeoutError:
            raise NotTold("the pods' /tokenize is too slow") from None

    def _asked(self, question: Question, done: asyncio.Task[Tokens]) -> None:
        self._asking.pop(question, None)
        if not done.cancelled():
            done.exception()  # looked at, also where nobody waits any more

    async def _ask(self, question: Question) -> Tokens:
        try:
            async with asyncio.timeout(self.limits.deadline_s), self._room:
                ids = await self._hedged(question)
        except TimeoutError:
            self.counts["slow"] += 1
            raise NotTold("the pods' /tokenize is too slow") from None
        self.counts["told"] += 1
        self._keep(question, ids)
        return ids

    async def _hedged(self, question: Question) -> Tokens:
        left = self._best(question.model)
        why = NotTold("no pod is fit to be asked")
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
                    if not isinstance(error, NotTold) or error.reason == "the pods' /tokenize refuses it":
                        raise error
                    why = error
            raise why
        except asyncio.CancelledError:
            self._avoid(waiting.values())
            raise
        finally:
            for task in waiting:
                task.cancel()

    def _best(self, model: str) -> list[str]:
        """The pods to ask, in order: those in good standing first, of these the least busy."""
        now = self._clock()
        pods = {rank.pod.name: rank.pod for rank in self._fleet.serving(model) if rank.pod.fit(now)}
        self._turn += 1
        turn, count = self._turn, len(pods)

        def order(numbered: tuple[int, Pod]) -> tuple[bool, int, int]:
            number, pod = numbered
            return self._avoided_until.get(pod.name, 0.0) > now, pod.requests, (number - turn) % count

        best = heapq.nsmallest(_PODS_ASKED_MAX, enumerate(pods.values()), key=order)
        return [pod.name for _, pod in best if pod.name in self._upstreams]

    def _avoid(self, pods: Iterable[str]) -> None:
        now = self._clock()
        self._avoided_until = {name: until for name, until in self._avoided_until.items() if until > now}
        self._avoided_until.update((pod, now + _AVOIDED_S) for pod in pods)

    async def ask_pod(self, pod: str, question: Question) -> Tokens:
        """The ids by this pod; raises NotTold. Without a deadline of its own."""
        try:
            upstream = self._upstreams[pod]
            response = await upstream.request("POST", _TARGET, [*_HEADERS, *upstream.own_key()], question.body)
            try:
                room = len(question.body) * _BYTES_PER_TOKEN_MAX + _PARSED_AT_ONCE_BYTES
                body = await response.read(room)
            finally:
                response.close()
        except UpstreamError:
            return self._failed(pod)
        if response.status in _REFUSALS:
            self.counts["refused"] += 1
            raise NotTold("the pods' /tokenize refuses it")
        if response.status != 200:
            return self._failed(pod)
        try:
            return await _ids(body)
        except (ValueError, KeyError, TypeError, OverflowError):
            return self._failed(pod)

    def _failed(self, pod: str) -> Tokens:
        self.counts["failed"] += 1
        self._avoid([pod])
        raise NotTold("the pods' /tokenize fails")


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
