"""Traces of requests, for OpenTelemetry: the request, each decision, each attempt; `warmroute[otel]` has what it needs.

On its way a request only gets its ids, so that its pod's spans come under ours; the spans are made of its story once it
is over. Whether a trace is wanted, its beginning says: the client, or chance where it has none.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from router.causes.names import Why
from router.config.settings import TracingConfig
from router.core.demand import Placement, Story, Trace
from router.errors import ConfigError, RouterError
from router.server.asgi import Headers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_TRACEPARENT = b"traceparent"
_IS_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?").fullmatch
_NO_VERSION = b"ff"
_SAMPLED = 1
_ERROR = 500
_FLUSH_MS = 2000


class _Times(NamedTuple):
    """From monotonic seconds to nanoseconds of the wall clock."""

    offset_s: float

    def ns(self, at: float) -> int:
        return round((at + self.offset_s) * 1e9)


class Tracing:
    """See the module."""

    def __init__(self, provider: TracerProvider, sample: float) -> None:
        """`sample`: share of the traces that begin here which are wanted."""
        from opentelemetry import trace

        self._api = trace
        self._provider = provider
        self._ids = _GivenIds()
        cast(Any, provider).id_generator = self._ids
        self._tracer = provider.get_tracer("warmroute")
        self._bound = round(sample * (1 << 64))

    def begin(self, headers: Headers) -> Trace:
        """A request came with these headers."""
        for name, value in headers:
            found = _IS_TRACEPARENT(value) if name == _TRACEPARENT else None
            if found is not None and found[1] != _NO_VERSION:
                trace_id, parent = int(found[2], 16), int(found[3], 16)
                if trace_id and parent:
                    return Trace(trace_id, parent, _span_id(), bool(int(found[4], 16) & _SAMPLED))
        trace_id = random.getrandbits(128) or 1
        return Trace(trace_id, None, _span_id(), trace_id & ((1 << 64) - 1) < self._bound)

    def tell(self, story: Story, model: str | None, placement: Placement | None, refusal: RouterError | None) -> None:
        """A request is over: give its spans to whoever exports them."""
        trace, story.trace = story.trace, None  # it has the decisions, which have the story
        if trace is None or not trace.sampled:
            return
        api, times = self._api, _Times(time.time() - time.monotonic())
        ended = story.ended_at or story.began
        attributes = _of_request(story, model, placement)
        above = self._context(trace, trace.parent) if trace.parent is not None else None
        server = self._span(
            f"POST {story.path}", api.SpanKind.SERVER, trace, (trace.span, above), times.ns(story.began)
        )
        server.set_attributes(attributes)
        if refusal is not None:
            server.add_event("refused", {"error.type": refusal.word, "message": refusal.message}, times.ns(ended))
        if story.status is None or story.status >= _ERROR or story.error is not None:
            server.set_status(api.StatusCode.ERROR, story.error)
        within = self._context(trace, trace.span)
        decided_from = story.began
        for (span_id, decision), tried in zip(trace.attempts, story.tries, strict=False):
            start, end = times.ns(decided_from), times.ns(max(decided_from, decision.at))
            deciding = self._span("decision", api.SpanKind.INTERNAL, trace, (_span_id(), within), start)
            deciding.set_attributes(
                {
                    "warmroute.pod": decision.rank.id.pod,
                    "warmroute.rank": decision.rank.id.rank,
                    "warmroute.matched_tokens": decision.matched_tokens,
                    "warmroute.prompt_tokens": decision.demand.tokens,
                    "warmroute.reason": decision.reason,
                    "warmroute.candidates": len(decision.ranks),
                }
            )
            deciding.end(end)
            attempt = self._span("attempt", api.SpanKind.CLIENT, trace, (span_id, within), end)
            attempt.set_attributes({"warmroute.pod": tried.at.pod, "warmroute.result": str(tried.how)})
            if isinstance(tried.how, int):
                attempt.set_attribute("http.response.status_code", tried.how)
            if not isinstance(tried.how, int) or tried.how >= _ERROR:
                attempt.set_status(api.StatusCode.ERROR, str(tried.how))
            decided_from = max(tried.ended, decision.at)
            attempt.end(times.ns(decided_from))
        server.end(times.ns(ended))

    def close(self) -> None:
        """Export what is left; blocks for seconds where nobody takes it."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()

    def _context(self, trace: Trace, span: int) -> Any:
        """Of spans under this one."""
        api = self._api
        known = api.SpanContext(trace.trace_id, span, is_remote=True, trace_flags=api.TraceFlags(_SAMPLED))
        return api.set_span_in_context(api.NonRecordingSpan(known))

    def _span(self, name: str, kind: Any, trace: Trace, place: tuple[int, Any], start: int) -> Any:
        """`place`: its id, and the context that it is in."""
        self._ids.trace_id, self._ids.span_id = trace.trace_id, place[0]
        empty = self._api.set_span_in_context(self._api.INVALID_SPAN)
        context = empty if place[1] is None else place[1]
        return self._tracer.start_span(name, context=context, kind=kind, start_time=start)


class _GivenIds:
    """Ids that were drawn before. An `IdGenerator` of the SDK."""

    trace_id = span_id = 0

    def generate_span_id(self) -> int:
        return self.span_id

    def generate_trace_id(self) -> int:
        return self.trace_id

    def is_trace_id_random(self) -> bool:
        return True


def traceparent(trace: Trace, span: int) -> bytes:
    """As the header says it."""
    return b"00-%032x-%016x-%02x" % (trace.trace_id, span, trace.sampled)


def span_for(trace: Trace, decision: Any) -> int:
    """The id of the next attempt's span."""
    span = _span_id()
    trace.attempts.append((span, decision))
    return span


def tracing_of(given: TracingConfig, processors: Iterable[Any] = ()) -> Tracing | None:
    """None where it is off. `processors`: of spans, beside the exporter. Raises `ConfigError` where something lacks."""
    if given.endpoint is None and not processors:
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        provider = TracerProvider(ALWAYS_ON, Resource.create({"service.name": given.service}))
        if given.endpoint is not None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(given.endpoint)))
    except ImportError as error:
        raise ConfigError(f"tracing.endpoint needs more: pip install 'warmroute[otel]' ({error})") from error
    for processor in processors:
        provider.add_span_processor(processor)
    return Tracing(provider, given.sample)


def _of_request(story: Story, model: str | None, placement: Placement | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "http.request.method": "POST",
        "url.path": story.path,
        "warmroute.request_id": story.id.decode("latin-1"),
        "warmroute.attempts": len(story.tries),
    }
    if story.status is not None:
        attributes["http.response.status_code"] = story.status
    if model is not None:
        attributes["gen_ai.request.model"] = model
    if story.error is not None:
        attributes["error.type"] = story.error
    if story.first_at is not None:
        attributes["gen_ai.server.time_to_first_token"] = story.first_at - story.began
    if placement is not None:
        attributes["warmroute.pod"] = placement.decision.rank.id.pod
    if isinstance(story.why, Why):
        attributes["gen_ai.usage.input_tokens"] = story.why.tokens
        attributes["warmroute.cached_tokens"] = story.why.delivered
        for one in story.why.missed:
            name = f"warmroute.missed.{one.cause}"
            attributes[name] = attributes.get(name, 0) + one.tokens
    return attributes


def _span_id() -> int:
    return random.getrandbits(64) or 1
