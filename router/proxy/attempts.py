"""One request on its way: where it may go, and what is given back and counted, on every way out."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from indexer.match import Hit
from router.causes.request_log import GONE
from router.causes.tracing import span_for, traceparent
from router.core.decision import Core
from router.core.demand import NOT_DONE, BreakerChange, End, Placement, Story, Try
from router.core.fleet import RankId
from router.core.token_states import Witness
from router.errors import Full, NoRetry
from router.metrics.metrics import Metrics
from router.proxy.preparation import Preparation, Preparations
from router.proxy.proxy import Outcome
from router.proxy.refusals import DECLINED, DISPUTES, REFUSALS
from router.proxy.usage import Usage
from router.proxy.waiting_room import Claims, WaitingRoom
from router.recording.recorder import Ended, Recorder
from router.server.asgi import Headers
from router.tokens.understanding import Understood
from router.upstream.pool import Upstream
from scorer.hold import Held

log = logging.getLogger("warmroute.attempts")


_UNKNOWN = "the prefix is not known"  # a label must be bounded; the whole reason is in the decision
_CLIENT_GONE = 499  # nginx's number for an answer that nobody waited for
_INTERNAL_ERROR = 500
_NOT_FOUND = 404
_STAPLE = frozenset(("/v1/chat/completions", "/v1/completions"))  # where every pod that has the model says no 404
_OWN_BOUND = "pool_full"  # a failure that is no fault of the pod
_OURS = frozenset(("cancelled", "internal", "unsendable_request"))  # ends of an attempt that say nothing of the pod


class Dispatch(NamedTuple):
    """What all requests are dispatched by."""

    core: Core
    metrics: Metrics
    upstreams: Mapping[str, Upstream]
    waiting_room: WaitingRoom[Attempt]
    look_again: Callable[[bool], Awaitable[None]]
    """Have all pods say anew what they serve."""
    shows_own_keys: bool
    """Pods are shown their own API keys in place of the clients'."""
    tells_matches: bool
    """Clients are told how many tokens were matched."""
    recorder: Recorder | None
    preparations: Preparations | None = None
    """Where prompts may go in pieces."""


@dataclass(slots=True, eq=False)
class Request:
    """What a request is beside its body."""

    id: bytes
    path: str
    began: float
    """When the body was there, monotonic."""
    claims: Claims
    witness: Witness | None = None


class Routing:
    """The proxy's `Routes` for one request: every `route` is one attempt."""

    __slots__ = ("_accused", "_dispatch", "_meaning", "_others", "demand", "last", "request", "served", "story")

    def __init__(
        self, dispatch: Dispatch, meaning: Understood, others: Mapping[RankId, Hit] | None, request: Request
    ) -> None:
        """`others`: what other gateways know of who holds its prompt, where they were asked."""
        self._dispatch = dispatch
        self._meaning = meaning
        self._others = others
        self.demand = meaning.demand
        self.request = request
        self.served = False  # a pod has answered, whole
        self.story = Story(request.id, request.path, request.began)
        self.last: Placement | None = None  # the newest attempt's
        self._accused: list[tuple[Placement, int]] = []  # of what may be the client's fault, or their own; by status

    @property
    def streams(self) -> bool:
        """The answer is to be a stream."""
        return self._meaning.streams

    def route(self, exclude: frozenset[str]) -> Attempt:
        """Decide and take; raises `UnknownModel`, `NoFitPod`, `NoRetry`, or `Full`: then one may `wait`."""
        queue = self._dispatch.core.queue
        if queue.waiting and not exclude and queue.holds(self.demand.model):
            raise Full("Others wait for the same pods.")
        return self._take(exclude)

    async def wait(self, full: Full) -> Attempt:
        """As `route`, when the turn has come; raises `Saturated` where it does not come soon."""
        began = time.monotonic()
        try:
            return await self._dispatch.waiting_room.wait(self, full)
        finally:
            self._dispatch.metrics.queue_waits.observe(time.monotonic() - began)

    async def look_again(self) -> None:
        """See `Routes`."""
        if self.demand.model is not None:
            await self._dispatch.look_again(self.request.path in _STAPLE)

    def is_accusing(self, placement: Placement, status: int) -> bool:
        """May such an answer be the pod's own fault? Until the next one tells, others come first."""
        if status in DISPUTES:
            return status != _NOT_FOUND or self.request.path in _STAPLE
        return status in DECLINED and placement.pod.breaker.is_doubted

    def accuse(self, placement: Placement, status: int) -> None:
        """A pod has said what is disputed."""
        self._accused.append((placement, status))

    def understood(self, now: float, served: bool) -> None:
        """A pod has taken the request for what it is, and maybe `served` it: who did not is at fault."""
        left = []
        for placement, status in self._accused:
            if served or status in DISPUTES:
                _tell(self._dispatch.core.convict(placement, now), status)
            else:
                left.append((placement, status))
        self._accused = left

    def acquit(self) -> None:
        """See `Routes`."""
        for placement, _ in self._accused:
            self._dispatch.core.acquit(placement)
        self._accused = []

    @property
    def broken(self) -> int:
        """See `Routes`."""
        return self._meaning.broken

    @property
    def disputed(self) -> bool:
        return bool(self._accused)

    @property
    def path(self) -> str:
        return self.request.path

    @property
    def priority_given(self) -> int | None:
        return self._meaning.priority

    def freed(self) -> None:
        """Something was given back: somebody may wait for it."""
        core = self._dispatch.core
        if core.queue.waiting or core.hold.waiting:
            self._dispatch.waiting_room.serve()

    # What admission asks of a guest

    @property
    def flow(self) -> bytes:
        return self.request.claims.flow()

    @property
    def priority(self) -> int:
        return self.request.claims.urgency()

    @property
    def tokens(self) -> int:
        return self.demand.tokens + self.demand.further

    @property
    def group(self) -> str | None:
        return self.demand.model

    def enter(self, held: Held | None = None) -> Attempt:
        return self._take(frozenset(), held)

    def leave(self, taken: Attempt) -> None:
        taken.finished(Outcome(None, 0, None, client_gone=True, error="cancelled"), time.monotonic())

    def _take(self, exclude: frozenset[str], held: Held | None = None) -> Attempt:
        core, metrics, demand = self._dispatch.core, self._dispatch.metrics, self.demand
        began = time.monotonic()
        holders = core.look_up(demand, self._others, began)
        now = time.monotonic()
        try:
            request = self.request
            session = request.claims.session()
            placement = core.route(demand, holders, exclude, now, request.witness, held, session)
        except NoRetry:
            metrics.retries_refused += 1
            raise
        decided = time.monotonic()
        metrics.stages["score"].observe(decided - now)
        meaning, understood_us = self._meaning, 0
        if demand.keys:
            timing_us = meaning.timing_us
            keys_s = 0.0
            if timing_us:
                keys_s, understood_us = timing_us.get("keys", 0) * 1e-6, sum(timing_us.values())
            metrics.looked_up("hit" if holders.kept else meaning.known, now - began, keys_s)
        metrics.decisions.observe(decided - began + understood_us * 1e-6)
        decision = placement.decision
        decision.story, self.last = self.story, placement
        metrics.picks[decision.pick.reason if demand.reason is None else _UNKNOWN] += 1
        metrics.predicted_tokens += decision.matched_tokens
        preparations, preparation = self._dispatch.preparations, None
        if preparations is not None and not exclude:
            preparation = preparations.begin(self, placement, decided)
        return Attempt(self, self._dispatch, placement, preparation)


class Attempt:
    """The proxy's `Assignment`: one pod, taken for one attempt."""

    __slots__ = (
        "_dispatch", "_first_at", "_placement", "_routing", "_told", "preparation", "request_headers", "upstream",
    )  # fmt: skip

    def __init__(
        self, routing: Routing, dispatch: Dispatch, placement: Placement, preparation: Preparation | None
    ) -> None:
        self.preparation = preparation
        self._routing = routing
        self._dispatch = dispatch
        self._placement = placement
        self._first_at: float | None = None  # its first byte, monotonic
        self._told = False  # how it ended
        rank = placement.rank
        self.upstream = dispatch.upstreams[rank.id.pod]
        self.request_headers: Headers = [(b"x-request-id", routing.request.id)]
        if len(rank.pod.ranks) > 1:
            number = rank.pod.global_rank(rank.id.rank)
            if number is not None:  # else it picks one itself, and its events will say which
                self.request_headers = [*self.request_headers, (b"x-data-parallel-rank", b"%d" % number)]
        if routing.story.trace is not None:
            trace = routing.story.trace
            sent = traceparent(trace, span_for(trace, placement.decision))
            self.request_headers = [*self.request_headers, (b"traceparent", sent)]
        if dispatch.shows_own_keys:
            self.request_headers = [*self.request_headers, *self.upstream.own_key()]

    @property
    def response_headers(self) -> Headers:
        """As of now: what the pod is to have cached is more once the prompt's pieces are there."""
        placement = self._placement
        told = [(b"x-warmroute-pod", placement.rank.id.pod.encode()), (b"x-request-id", self._routing.request.id)]
        if self._dispatch.tells_matches:
            told.append((b"x-warmroute-matched-tokens", b"%d" % placement.promised))
        return told

    @property
    def pod(self) -> str:
        return self._placement.rank.id.pod

    @property
    def computes(self) -> bool:
        """The head of a stream comes at once; a whole answer from a pod that is well may take its time."""
        return not self._routing.streams and self._placement.pod.usable

    def is_disputed(self, status: int) -> bool:
        """See `Assignment`."""
        return status in DISPUTES or self._routing.is_accusing(self._placement, status)

    def first_byte(self, now: float) -> None:
        routing = self._routing
        if routing.disputed:
            routing.understood(now, served=True)
        self._first_at, metrics = now, self._dispatch.metrics
        routing.story.first_at = now
        metrics.first_bytes.observe(now - routing.request.began)
        if routing.streams:
            metrics.streams += 1
        _tell(self._dispatch.core.first_byte(self._placement, routing.demand.tells_prefill, now), None)
        routing.freed()

    def failed(self, reason: str, now: float) -> None:
        self._dispatch.metrics.gave_up(self.pod, reason)
        self._tried(reason, now)
        self._end(End("full" if reason == _OWN_BOUND else "failed"), reason, now)

    def refused(self, status: int, retry_after_s: float | None, now: float) -> None:
        self._dispatch.metrics.gave_up(self.pod, f"status_{status}")
        self._tried(status, now)
        if self._routing.is_accusing(self._placement, status):
            self._routing.accuse(self._placement, status)
            self._end(End("disputed", status), status, now)
        elif status in DISPUTES:
            self._end(End("void", status), status, now)
        else:
            self._end(End("refused", status, retry_after_s), status, now)

    def finished(self, outcome: Outcome, now: float) -> None:
        routing, metrics, status = self._routing, self._dispatch.metrics, outcome.told or outcome.status
        if routing.disputed and status is not None and _understood(status):
            routing.understood(now, served=status < NOT_DONE)
        self._end(_end_of(outcome), outcome.error or status, now)
        if self.preparation is not None and outcome.usage is not None:
            outcome = replace(outcome, usage=self.preparation.counted(outcome.usage))
        code = _CLIENT_GONE if status is None and outcome.client_gone else status
        story = routing.story
        story.status, story.error = code, outcome.error
        if outcome.client_gone:
            story.error = GONE
        if not self._told:
            self._tried(story.error or code or 0, now)
        if code is not None:  # else the client gets an error of ours, which is counted where it is sent
            metrics.count(routing.demand.model, self.pod, code)
        metrics.durations.observe(now - routing.request.began)
        if self._first_at is not None:
            self._generated(outcome.usage, self._first_at, now)
        whole = outcome.error is None and not outcome.client_gone
        routing.served = whole and status is not None and status < 400
        if self._dispatch.recorder is not None:
            self._record(self._dispatch.recorder, outcome, now)
        usage = outcome.usage
        if usage is None:
            return
        story.usage = (usage.prompt_tokens, usage.cached_tokens)
        if not routing.demand.is_counted:
            return
        cached = usage.cached_tokens or 0
        metrics.actual_tokens += cached
        metrics.window.add(now, cached, usage.prompt_tokens)
        metrics.errors.observe(abs(cached - self._placement.decision.matched_tokens))

    def _generated(self, usage: Usage | None, first_at: float, now: float) -> None:
        """Something was computed for it."""
        routing, metrics = self._routing, self._dispatch.metrics
        began, streams = routing.request.began, routing.streams
        if streams:
            metrics.streams -= 1
        generation = metrics.generations.of(routing.request.path, routing.demand.model)
        if generation is None:
            return
        generation.durations.observe(now - began)
        if streams:
            generation.first_tokens.observe(first_at - began)
        if usage is None:
            return
        generation.input_tokens.observe(usage.prompt_tokens)
        made = usage.output_tokens
        if made is not None:
            generation.output_tokens.observe(made)
            if streams and made > 1:
                generation.output_s.observe((now - first_at) / (made - 1))

    def _record(self, recorder: Recorder, outcome: Outcome, now: float) -> None:
        routing, usage, status = self._routing, outcome.usage, outcome.status
        told = (None, None) if usage is None else (usage.output_tokens, usage.cached_tokens)
        first_at = self._first_at if routing.demand.tells_prefill else None
        ended = Ended(
            routing.request.began, now, _CLIENT_GONE if status is None else status, self.pod, first_at,
            routing.streams, told[0], outcome.bytes_out, told[1],
        )  # fmt: skip
        recorder.note(routing.demand, ended)

    def _tried(self, how: int | str, now: float) -> None:
        """It is over, like this."""
        self._told = True
        self._routing.story.tries.append(Try(self._placement.rank.id, how, now))

    def _end(self, end: End, word: str | int | None, now: float) -> None:
        """`word`: of an error, or a status."""
        if self.preparation is not None:
            self.preparation.over()
        _tell(self._dispatch.core.finish(self._placement, end, now), word)
        self._routing.freed()


def _end_of(outcome: Outcome) -> End:
    status, usage = outcome.told or outcome.status, outcome.usage
    if outcome.error is not None:
        return End("void" if outcome.error in _OURS else "cut", status)
    if status in DISPUTES:
        return End("void", status)  # whose fault that is, nobody knows
    if usage is None or outcome.client_gone:
        return End("served", status)
    return End("served", status, usage=(usage.prompt_tokens, usage.cached_tokens))


def _tell(change: BreakerChange | None, word: str | int | None) -> None:
    if change is None:
        return
    if change.open:
        log.warning("%s is ejected: %s, the last one with %s", change.pod, change.reason, word)
    else:
        log.info("%s is not ejected any more: %s", change.pod, change.reason)


def _understood(status: int) -> bool:
    return status < _INTERNAL_ERROR and status not in DISPUTES and status not in REFUSALS
