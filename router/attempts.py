"""One request on its way: where it may go, and what is given back and counted, on every way out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from router.core import Asked, Core, Placed
from router.metrics import Metrics
from router.proxy import Outcome
from router.upstream import Upstream

_Headers = Sequence[tuple[bytes, bytes]]

_CLIENT_GONE = 499  # nginx's number for an answer that nobody waited for


class Routing:
    """The proxy's `Routes` for one request: every `route` is one attempt."""

    __slots__ = ("_core", "_metrics", "_upstreams", "asked", "began", "request_id", "streaming")

    def __init__(
        self,
        core: Core,
        metrics: Metrics,
        upstreams: Mapping[str, Upstream],
        asked: Asked,
        request_id: bytes,
        streaming: bool,
        began: float,
    ) -> None:
        """`began`: when the body was there, monotonic."""
        self._core = core
        self._metrics = metrics
        self._upstreams = upstreams
        self.asked = asked
        self.request_id = request_id
        self.streaming = streaming
        self.began = began

    def route(self, exclude: frozenset[str]) -> Attempt:
        """Decide and take; raises `UnknownModel`, `NoFitPod`."""
        now = time.monotonic()
        core, metrics = self._core, self._metrics
        placed = core.route(self.asked, exclude, now)
        decision = placed.decision
        metrics.stages["score"].observe(time.monotonic() - now)
        metrics.picks[decision.reason] += 1
        metrics.predicted_tokens += decision.matched_tokens
        return Attempt(self, core, metrics, self._upstreams[decision.rank.id.pod], placed)


class Attempt:
    """The proxy's `Assignment`: one pod, taken for one attempt."""

    __slots__ = ("_core", "_metrics", "_placed", "_routing", "request_headers", "response_headers", "upstream")

    def __init__(self, routing: Routing, core: Core, metrics: Metrics, upstream: Upstream, placed: Placed) -> None:
        self._routing = routing
        self._core = core
        self._metrics = metrics
        self._placed = placed
        self.upstream = upstream
        rank = placed.decision.rank
        self.request_headers: _Headers = [(b"x-request-id", routing.request_id)]
        if len(rank.pod.ranks) > 1:
            self.request_headers = [*self.request_headers, (b"x-data-parallel-rank", b"%d" % rank.id.rank)]
        self.response_headers: _Headers = [
            (b"x-warmroute-pod", rank.id.pod.encode()),
            (b"x-warmroute-matched-tokens", b"%d" % placed.decision.matched_tokens),
            (b"x-request-id", routing.request_id),
        ]

    @property
    def pod(self) -> str:
        return self._placed.decision.rank.id.pod

    def first_byte(self, now: float) -> None:
        self._metrics.first_bytes.observe(now - self._routing.began)
        self._core.first_byte(self._placed, self._routing.streaming, now)

    def failed(self, reason: str, now: float) -> None:
        self._metrics.retries[reason] += 1
        self._core.release(self._placed, False, now)
        self._core.suspect(self.pod, now)

    def finished(self, outcome: Outcome, now: float) -> None:
        self._core.release(self._placed, _served(outcome.status), now)
        metrics, routing = self._metrics, self._routing
        code = _CLIENT_GONE if outcome.status is None and outcome.client_gone else outcome.status
        if code is not None:  # else the client gets an error of ours, which is counted where it is sent
            metrics.count(routing.asked.model, self.pod, code)
        metrics.durations.observe(now - routing.began)
        usage = outcome.usage
        if usage is None or not routing.asked.keys:
            return
        cached = usage.cached_tokens or 0
        metrics.actual_tokens += cached
        metrics.window.add(now, cached, usage.prompt_tokens)
        metrics.errors.observe(abs(cached - self._placed.decision.matched_tokens))


def _served(status: int | None) -> bool:
    """Whether the pod worked on the prompt: what it refuses leaves no block behind."""
    return status is not None and status < 400
