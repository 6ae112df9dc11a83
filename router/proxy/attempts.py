"""One request on its way: where it may go, and what is given back and counted, on every way out."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from router.core.decision import Asked, Change, Core, Placed
from router.errors import Full, NoRetry
from router.metrics import Metrics
from router.proxy.proxy import Outcome
from router.proxy.refusals import DISPUTES, REFUSALS
from router.proxy.waiting_room import Admission, Claims
from router.server.asgi import Headers
from router.upstream.pool import Upstream

log = logging.getLogger("warmroute.attempts")


_UNKNOWN = "the prefix is not known"  # a label must be bounded; the whole reason is in the decision
_CLIENT_GONE = 499  # nginx's number for an answer that nobody waited for
_INTERNAL_ERROR = 500  # the pod's, and maybe the fault of the request: it counts less than other failures
_NOT_FOUND = 404
_STAPLE = frozenset(("/v1/chat/completions", "/v1/completions"))  # where every pod that has the model says no 404
_OWN_BOUND = "pool_full"  # a failure that is no fault of the pod
_OURS = frozenset(("cancelled", "internal", "unsendable_request"))  # ends of an attempt that say nothing of the pod


class _Accused(NamedTuple):
    """A pod that said `status`; `before` and `until`: until when it was suspect before, and is for that."""

    placed: Placed
    status: int
    before: float
    until: float


class Routing:
    """The proxy's `Routes` for one request: every `route` is one attempt."""

    __slots__ = (
        "_accused", "_admission", "_claims", "_core", "_look_again", "_metrics", "_path", "_upstreams", "asked",
        "began", "request_id", "served", "streaming", "streams",
    )  # fmt: skip

    def __init__(
        self,
        core: Core,
        metrics: Metrics,
        upstreams: Mapping[str, Upstream],
        asked: Asked,
        request_id: bytes,
        streaming: bool,
        began: float,
        admission: Admission[Attempt],
        claims: Claims,
        path: str = "",
        streams: bool = False,
        look_again: Callable[[bool], Awaitable[None]] | None = None,
    ) -> None:
        """`streaming`: the first byte is about the prompt alone; `streams`: the answer is to be a stream. `began`: when
        the body was there, monotonic. `look_again`: have all pods say anew what they serve.
        """
        self._core = core
        self._metrics = metrics
        self._upstreams = upstreams
        self.asked = asked
        self.request_id = request_id
        self.streaming = streaming
        self.began = began
        self._admission = admission
        self._claims = claims
        self._path = path
        self.streams = streams
        self._look_again = look_again
        self.served = False  # a pod has answered, whole
        self._accused: list[_Accused] = []  # said what may be the client's fault, or their own

    def route(self, exclude: frozenset[str]) -> Attempt:
        """Decide and take; raises `UnknownModel`, `NoFitPod`, `NoRetry`, or `Full`: then one may `wait`."""
        queue = self._core.queue
        if queue.waiting and not exclude and queue.holds(self.asked.model):
            raise Full("Others wait for the same pods.")
        if exclude:
            self._ask_anew()
        return self._take(exclude)

    async def wait(self, full: Full) -> Attempt:
        """As `route`, when the turn has come; raises `Saturated` where it does not come soon."""
        self._ask_anew()
        return await self._admission.wait(self, full)

    async def look_again(self) -> None:
        """See `Routes`."""
        if self._look_again is not None and self.asked.model is not None:
            await self._look_again(self._path in _STAPLE)

    def accuse(self, placed: Placed, status: int, now: float) -> None:
        """A pod said one of `DISPUTES`. Whose fault it is, the next answer tells; until then, others come first."""
        if status == _NOT_FOUND and self._path not in _STAPLE:
            return
        before = placed.pod.suspect_until
        self._core.suspect(placed.pod.name, now)
        self._accused.append(_Accused(placed, status, before, placed.pod.suspect_until))

    def understood(self, now: float) -> None:
        """A pod has taken the request for what it is: who did not is at fault."""
        for accused in self._accused:
            change = self._core.failed(accused.placed, True, now)
            if change is not None:
                _tell(change, accused.status)
        self._accused = []

    def acquit(self) -> None:
        """See `Routes`."""
        for accused in self._accused:
            pod = accused.placed.pod
            if pod.suspect_until == accused.until:
                pod.suspect_until = accused.before
        self._accused = []

    @property
    def broken(self) -> int:
        """See `Routes`."""
        return self.asked.broken

    @property
    def disputed(self) -> bool:
        return bool(self._accused)

    def freed(self) -> None:
        """Something was given back while others wait."""
        self._admission.serve()

    # What admission asks of a guest

    @property
    def flow(self) -> bytes:
        return self._claims.flow()

    @property
    def priority(self) -> int:
        return self._claims.urgency()

    @property
    def tokens(self) -> int:
        return self.asked.tokens + self.asked.further

    @property
    def group(self) -> str | None:
        return self.asked.model

    def enter(self) -> Attempt:
        return self._take(frozenset())

    def leave(self, taken: Attempt) -> None:
        taken.finished(Outcome(None, 0, None, client_gone=True, error="cancelled"), time.monotonic())

    def _ask_anew(self) -> None:
        """Time passes before the next decision: who holds the blocks is to be looked up again."""
        self.asked = replace(self.asked, matches={})

    def _take(self, exclude: frozenset[str]) -> Attempt:
        now = time.monotonic()
        core, metrics = self._core, self._metrics
        try:
            placed = core.route(self.asked, exclude, now)
        except NoRetry:
            metrics.retries_refused += 1
            raise
        decision = placed.decision
        metrics.stages["score"].observe(time.monotonic() - now)
        metrics.picks[decision.pick.reason if self.asked.reason is None else _UNKNOWN] += 1
        metrics.predicted_tokens += decision.matched_tokens
        return Attempt(self, core, metrics, self._upstreams[decision.rank.id.pod], placed)


class Attempt:
    """The proxy's `Assignment`: one pod, taken for one attempt."""

    __slots__ = (
        "_core", "_judged", "_metrics", "_placed", "_routing", "request_headers", "response_headers", "upstream",
    )  # fmt: skip

    def __init__(self, routing: Routing, core: Core, metrics: Metrics, upstream: Upstream, placed: Placed) -> None:
        self._routing = routing
        self._core = core
        self._metrics = metrics
        self._placed = placed
        self._judged = False  # the pod's breaker knows how it went
        self.upstream = upstream
        rank = placed.decision.rank
        self.request_headers: Headers = [(b"x-request-id", routing.request_id)]
        if len(rank.pod.ranks) > 1:
            number = rank.pod.global_rank(rank.id.rank)
            if number is not None:  # else it picks one itself, and its events will say which
                self.request_headers = [*self.request_headers, (b"x-data-parallel-rank", b"%d" % number)]
        if core.config.shows_own_keys:
            self.request_headers = [*self.request_headers, *upstream.own_key()]
        self.response_headers: Headers = [
            (b"x-warmroute-pod", rank.id.pod.encode()),
            (b"x-request-id", routing.request_id),
        ]
        if core.tells_matches:
            matched = b"%d" % placed.decision.matched_tokens
            self.response_headers = [*self.response_headers, (b"x-warmroute-matched-tokens", matched)]

    @property
    def pod(self) -> str:
        return self._placed.decision.rank.id.pod

    @property
    def computes(self) -> bool:
        """The head of a stream comes at once; a whole answer from a pod that is well may take its time."""
        return not self._routing.streams and self._placed.pod.usable

    def first_byte(self, now: float) -> None:
        if self._routing.disputed:
            self._routing.understood(now)
        self._metrics.first_bytes.observe(now - self._routing.began)
        self._core.first_byte(self._placed, self._routing.streaming, now)
        if self._placed.pod.breaker.tripped:
            self._judge(True, now, None)  # at once: a stream may go on for minutes
        if self._core.queue.waiting:
            self._routing.freed()

    def failed(self, reason: str, now: float) -> None:
        self._metrics.retries[reason] += 1
        self._core.release(self._placed, False, now)
        self._core.suspect(self.pod, now)
        self._judge(None if reason == _OWN_BOUND else False, now, reason)
        if self._core.queue.waiting:
            self._routing.freed()

    def refused(self, status: int, retry_after_s: float | None, now: float) -> None:
        self._metrics.retries[f"status_{status}"] += 1
        self._core.release(self._placed, False, now)
        if status in DISPUTES:
            self._routing.accuse(self._placed, status, now)
            self._judge(None, now, status)
        else:
            if retry_after_s is None:
                self._core.suspect(self.pod, now)
            else:
                self._core.avoid(self._placed, now, retry_after_s)
            polite = status == 429 or retry_after_s is not None  # it lives, and has too much to do
            self._judge(polite, now, status)
        if self._core.queue.waiting:
            self._routing.freed()

    def finished(self, outcome: Outcome, now: float) -> None:
        self._core.release(self._placed, _served(outcome.status), now)
        self._judge(_verdict(outcome), now, outcome.error or outcome.status)
        if self._routing.disputed and outcome.status is not None and _understood(outcome.status):
            self._routing.understood(now)
        if self._core.queue.waiting:
            self._routing.freed()
        metrics, routing = self._metrics, self._routing
        code = _CLIENT_GONE if outcome.status is None and outcome.client_gone else outcome.status
        if code is not None:  # else the client gets an error of ours, which is counted where it is sent
            metrics.count(routing.asked.model, self.pod, code)
        metrics.durations.observe(now - routing.began)
        usage = outcome.usage
        asked = routing.asked
        whole = outcome.error is None and not outcome.client_gone
        routing.served = whole and _served(outcome.status)
        if usage is None or not asked.keys or asked.reason is not None or not asked.tells_cached:
            return
        if whole:
            self._core.reported(self._placed, usage.prompt_tokens, usage.cached_tokens)
        cached = usage.cached_tokens or 0
        metrics.actual_tokens += cached
        metrics.window.add(now, cached, usage.prompt_tokens)
        metrics.errors.observe(abs(cached - self._placed.decision.matched_tokens))

    def _judge(self, fine: bool | None, now: float, end: str | int | None) -> None:
        """Tell the pod's breaker how it went, once; `fine` is None where that says nothing of the pod.

        `end`: the word of an error, or a status.
        """
        if self._judged:
            return
        self._judged = True
        core, placed, change = self._core, self._placed, None
        if fine:
            change = core.succeeded(placed, now)
        elif fine is None:
            core.unproven(placed, now)
        else:
            change = core.failed(placed, end != _INTERNAL_ERROR, now)
        if change is not None:
            _tell(change, end)


def _tell(change: Change, end: str | int | None) -> None:
    if change.open:
        log.warning("%s is ejected: %s, the last one with %s", change.pod, change.reason, end)
    else:
        log.info("%s is not ejected any more: %s", change.pod, change.reason)


def _verdict(outcome: Outcome) -> bool | None:
    """Whether the pod did well; None if it was ended, by the client or by us, before it could show."""
    if outcome.error is not None:
        return None if outcome.error in _OURS else False
    if outcome.status in DISPUTES:
        return None  # whose fault that is, nobody knows
    return outcome.status is not None and outcome.status < _INTERNAL_ERROR


def _understood(status: int) -> bool:
    return status < _INTERNAL_ERROR and status not in DISPUTES and status not in REFUSALS


def _served(status: int | None) -> bool:
    """Whether the pod worked on the prompt: what it refuses leaves no block behind."""
    return status is not None and status < 400
