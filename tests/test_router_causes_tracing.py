"""Traces: what pods and collectors are told of a request, and nothing where nobody asked."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from router.causes.tracing import tracing_of
from router.config.settings import TracingConfig
from router.service import Service
from tests.fakes.answering import MODEL, Answering, response
from tests.fakes.peers import peer, until
from tests.fakes.services import in_process

export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 1}


@contextlib.asynccontextmanager
async def before(*pods: Answering) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """The gateway in front of them, all fit."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(pod)) for pod in pods]
        static = [{"name": f"pod-{number}", "address": each.address} for number, each in enumerate(peers)]
        config = {"discovery": {"static": static}, "scoring": {"policy": "round-robin"}}
        service, client = await stack.enter_async_context(in_process(config))
        await until(lambda: all(pod.fit(0.0) for pod in service.core.fleet.pods.values()))
        yield service, client


def sent(pod: Answering) -> list[str]:
    """What the pod's newest request had as `traceparent`."""
    lines = pod.posts[-1].head.decode().split("\r\n")
    return [line.partition(": ")[2] for line in lines if line.lower().startswith("traceparent:")]


async def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a configuration a client's header goes on as it came, and nobody is told anything."""
    pod = Answering()
    async with before(pod) as (service, client):
        assert service.journal.tracing is None
        given = f"00-{TRACE}-{SPAN}-01"
        await client.post("/v1/completions", json=BODY, headers={"traceparent": given})
        assert sent(pod) == [given]
        await client.post("/v1/completions", json=BODY)
        assert sent(pod) == []


@pytest.mark.parametrize("given", [f"00-{TRACE}-{SPAN}-01", None, "00-nonsense-01"])
async def test_spans(given: str | None) -> None:
    """The request, its decisions and attempts under it, the pod's own spans under the attempt's."""
    failing, serving = Answering(response(503, b"{}")), Answering()
    async with before(failing, serving) as (service, client):
        exporter = memory.InMemorySpanExporter()
        service.journal.tracing = tracing_of(TracingConfig(), [export.SimpleSpanProcessor(exporter)])
        headers = {"x-request-id": "r-1"} | ({} if given is None else {"traceparent": given})
        while not failing.posts:
            exporter.clear()
            answer = await client.post("/v1/completions", json=BODY, headers=headers)
            await service.journal.settled()
        assert answer.status_code == 200
        spans: dict[str, list[Any]] = {}
        for span in exporter.get_finished_spans():
            spans.setdefault(span.name, []).append(span)
        (server,) = spans["POST /v1/completions"]
        decisions, attempts = spans["decision"], spans["attempt"]
        assert [each.attributes["warmroute.pod"] for each in attempts] == ["pod-0", "pod-1"]
        assert [each.attributes["warmroute.result"] for each in attempts] == ["503", "200"]
        assert all(each.attributes["warmroute.reason"] for each in decisions)
        assert all(each.attributes["warmroute.matched_tokens"] == 0 for each in decisions)
        assert {each.parent.span_id for each in (*decisions, *attempts)} == {server.context.span_id}
        assert len({each.context.span_id for each in exporter.get_finished_spans()}) == 5
        for pod, attempt in zip((failing, serving), attempts, strict=True):
            assert sent(pod) == [f"00-{server.context.trace_id:032x}-{attempt.context.span_id:016x}-01"]
        assert server.attributes["warmroute.request_id"] == "r-1"
        assert server.attributes["http.response.status_code"] == 200
        assert server.attributes["gen_ai.request.model"] == MODEL
        assert all(server.start_time <= each.start_time <= each.end_time <= server.end_time for each in attempts)
        if given is not None and TRACE in given:
            assert (server.context.trace_id, server.parent.span_id) == (int(TRACE, 16), int(SPAN, 16))
        else:
            assert server.parent is None and server.context.trace_id != int(TRACE, 16)


async def test_who_does_not_want_a_trace_gets_none() -> None:
    """A client that says so, or chance: the pod hears it too, and no span is made."""
    pod = Answering()
    async with before(pod) as (service, client):
        exporter = memory.InMemorySpanExporter()
        processors = [export.SimpleSpanProcessor(exporter)]
        for sample, given in ((1.0, f"00-{TRACE}-{SPAN}-00"), (0.0, None)):
            service.journal.tracing = tracing_of(TracingConfig(sample=sample), processors)
            headers = {} if given is None else {"traceparent": given}
            await client.post("/v1/completions", json=BODY, headers=headers)
            await service.journal.settled()
            (told,) = sent(pod)
            assert told.endswith("-00") and (given is None or TRACE in told)
        assert not exporter.get_finished_spans()
