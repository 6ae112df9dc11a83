"""One request at one pod after the other: what each attempt says to the pod and to the client, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from router.causes.request_log import GONE
from router.config.settings import RecordConfig
from router.core.decision import Core
from router.core.demand import Demand, Trace
from router.errors import Full, NoRetry
from router.metrics.histograms import Histogram
from router.metrics.metrics import Metrics
from router.proxy.attempts import Attempt, Dispatch, Request, Routing
from router.proxy.proxy import Outcome
from router.proxy.usage import Usage
from router.proxy.waiting_room import ClaimRules, Claims, WaitingRoom
from router.recording.recorder import Recorder
from router.tokens.understanding import Understood
from router.upstream.pod_keys import PodKey
from router.upstream.pool import Upstream
from tests.fakes.cores import MODEL, NOBODY, asked, core_of, store
from tests.fakes.limits import upstream_limits
from tests.fakes.prefix_stats import no_stats

PATH = "/v1/completions"
FRAGILE = {"failures_in_row": 1}


class Desk:
    """Where requests are dispatched, as they come: all at one moment."""

    def __init__(self, core: Core, recorder: Recorder | None = None, **shows: bool) -> None:
        self.core = core
        self.metrics = Metrics(core, no_stats)
        self.looks: list[bool] = []
        self.began = time.monotonic()
        room: WaitingRoom[Attempt] = WaitingRoom(core, 1.0, self.metrics.admissions)
        pods = core.fleet.pods.values()
        upstreams = {pod.name: Upstream(pod.address, upstream_limits(), key=PodKey(pod.name, None)) for pod in pods}
        keys, matches = shows.get("keys", False), shows.get("matches", False)
        self.dispatch = Dispatch(core, self.metrics, upstreams, room, self.look_again, keys, matches, recorder)

    async def look_again(self, urgent: bool) -> None:
        self.looks.append(urgent)

    def ask(self, demand: Demand | None = None, path: str = PATH, **meaning: Any) -> Routing:
        request = Request(b"id-1", path, self.began, Claims(ClaimRules(True, 0), ()))
        understood = Understood(Demand(MODEL, 100) if demand is None else demand, **meaning)
        return Routing(self.dispatch, understood, None, request)

    def tripped(self) -> list[str]:
        return [name for name, pod in self.core.fleet.pods.items() if pod.breaker.tripped]


def observed(histogram: Histogram) -> tuple[int, float]:
    """How many values, and their sum."""
    counts, total = histogram.totals()
    return sum(counts), pytest.approx(total)


def test_what_a_stream_leaves_behind() -> None:
    """Its times, its tokens as the pod tells them, how far off the prediction was, and its story."""
    desk = Desk(core := core_of(1), matches=True)
    store(core, "pod-0", 1, 96)
    routing = desk.ask(asked(core, 1, tells_prefill=True), streams=True)
    attempt, metrics, began = routing.route(NOBODY), desk.metrics, desk.began
    assert (b"x-warmroute-matched-tokens", b"96") in attempt.response_headers and metrics.predicted_tokens == 96
    attempt.first_byte(began + 0.5)
    assert metrics.streams == 1
    attempt.finished(Outcome(200, 999, Usage(160, 64, 5)), began + 2.5)
    assert metrics.streams == 0 and metrics.requests == {(MODEL, "pod-0", 200): 1}
    generation = metrics.generations.of(PATH, MODEL)
    assert generation is not None
    for histogram, value in (
        (metrics.first_bytes, 0.5), (metrics.durations, 2.5), (metrics.errors, 32), (generation.durations, 2.5),
        (generation.first_tokens, 0.5), (generation.input_tokens, 160), (generation.output_tokens, 5),
        (generation.output_s, 0.5),
    ):  # fmt: skip
        assert observed(histogram) == (1, value)
    assert metrics.actual_tokens == 64 and routing.served
    story = routing.story
    assert (story.status, story.error, story.usage, story.first_at) == (200, None, (160, 64), began + 0.5)
    assert [(one.at.pod, one.how, one.ended) for one in story.tries] == [("pod-0", 200, began + 2.5)]
    assert core.in_flight == 0


def test_what_a_pod_does_not_tell_is_nothing_cached() -> None:
    """Old ones leave it out; the prediction is as far off."""
    desk = Desk(core := core_of(1))
    store(core, "pod-0", 1, 96)
    routing = desk.ask(asked(core, 1))
    routing.route(NOBODY).finished(Outcome(200, 9, Usage(160, None, 5)), desk.began)
    assert (desk.metrics.actual_tokens, routing.story.usage) == (0, (160, None))
    assert observed(desk.metrics.errors) == (1, 96)


def test_what_comes_whole_has_no_first_token() -> None:
    """Nor a time by the token; of one token alone a stream has none either."""
    for streams, made in ((False, 5), (True, 1), (True, None)):
        desk = Desk(core_of(1))
        attempt = desk.ask(streams=streams).route(NOBODY)
        attempt.first_byte(desk.began + 0.5)
        attempt.finished(Outcome(200, 9, Usage(100, None, made)), desk.began + 1.0)
        generation = desk.metrics.generations.of(PATH, MODEL)
        assert generation is not None and observed(generation.output_s)[0] == desk.metrics.streams == 0
        assert observed(generation.first_tokens)[0] == streams and observed(generation.output_tokens)[0] == bool(made)
        assert desk.metrics.actual_tokens == 0 and observed(desk.metrics.errors)[0] == 0, "its prompt is not known"


@pytest.mark.parametrize(
    ("outcome", "code", "error", "how", "served"),
    [
        (Outcome(200, 9, None), 200, None, 200, True),
        (Outcome(399, 9, None), 399, None, 399, True),
        (Outcome(400, 9, None), 400, None, 400, False),
        (Outcome(200, 9, None, told=500), 500, None, 500, False),
        (Outcome(200, 9, None, error="reset"), 200, "reset", "reset", False),
        (Outcome(None, 0, None, error="reset"), None, "reset", "reset", False),
        (Outcome(200, 9, None, client_gone=True), 200, GONE, GONE, False),
        (Outcome(None, 0, None, client_gone=True, error="cancelled"), 499, GONE, GONE, False),
    ],
)
def test_how_it_ended_is_told(outcome: Outcome, code: int | None, error: str | None, how: object, served: bool) -> None:
    """By what the client got, and what went wrong; an error of ours is counted where it is sent."""
    desk = Desk(core_of(1))
    routing = desk.ask()
    routing.route(NOBODY).finished(outcome, desk.began + 1.0)
    assert desk.metrics.requests == ({} if code is None else {(MODEL, "pod-0", code): 1})
    assert (routing.story.status, routing.story.error, routing.served) == (code, error, served)
    assert [one.how for one in routing.story.tries] == [how] and desk.core.in_flight == 0
    assert observed(desk.metrics.durations) == (1, 1.0)


@pytest.mark.parametrize(
    ("outcome", "ejected"),
    [
        (Outcome(200, 9, None), False),
        (Outcome(500, 9, None), True),
        (Outcome(200, 9, None, told=502), True),
        (Outcome(200, 9, None, error="reset"), True),
        (Outcome(None, 0, None, error="cancelled", client_gone=True), False),
        (Outcome(None, 0, None, error="internal"), False),
        (Outcome(None, 0, None, error="unsendable_request"), False),
        (Outcome(404, 9, None), False),
        (Outcome(400, 9, None), False),
    ],
)
def test_what_is_the_pods_fault(outcome: Outcome, ejected: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It is ejected where it breaks off or fails, and an operator reads why; not for what we or clients did."""
    desk = Desk(core_of(2, breaker={"requests_min": 1}))
    desk.core.fleet.pods["pod-1"].drain(True)
    with caplog.at_level(logging.INFO):
        desk.ask().route(NOBODY).finished(outcome, desk.began - 100.0)
        assert desk.tripped() == ["pod-0"] * ejected
        desk.ask().route(NOBODY).first_byte(desk.began)
    word = outcome.error or outcome.told or outcome.status
    assert [text for text in caplog.messages if text.startswith("pod-0 is ejected: ")] == [
        f"pod-0 is ejected: 1 of 1 requests failed, the last one with {word}"
    ] * ejected
    assert any("pod-0 is not ejected any more" in text for text in caplog.messages) is ejected


def test_the_next_one_is_tried() -> None:
    """What failed is counted by its pod and its reason, the pod comes after others; all of it is in the story."""
    desk = Desk(core := core_of(3))
    routing = desk.ask()
    first = routing.route(NOBODY)
    first.failed("connect_timeout", desk.began + 1.0)
    second = routing.route(frozenset((first.pod,)))
    second.refused(503, 7.0, desk.began + 2.0)
    third = routing.route(frozenset((first.pod, second.pod)))
    third.finished(Outcome(200, 1, None), desk.began + 3.0)
    assert [one.how for one in routing.story.tries] == ["connect_timeout", 503, 200]
    assert [one.ended - desk.began for one in routing.story.tries] == pytest.approx([1.0, 2.0, 3.0])
    assert desk.metrics.retries["connect_timeout"] == desk.metrics.retries["status_503"] == 1
    assert desk.metrics.failures == {first.pod: 1, second.pod: 1} and core.in_flight == 0
    pods = core.fleet.pods
    assert pods[first.pod].suspect_until > desk.began and pods[third.pod].suspect_until == 0.0
    assert pods[second.pod].breaker.avoided(desk.began + 8.9) and not pods[second.pod].breaker.avoided(desk.began + 9.1)
    assert desk.metrics.requests == {(MODEL, third.pod, 200): 1}


@pytest.mark.parametrize("bound", ["pod_requests_max", "pod_prefill_tokens_max"])
async def test_what_is_given_back_lets_the_next_one_in(bound: str) -> None:
    """With the end of an attempt, or with its first byte where its prefill was in the way; its wait is counted."""
    desk = Desk(core_of(1, admission={bound: 1}))
    first, second = desk.ask(), desk.ask()
    attempt = first.route(NOBODY)
    with pytest.raises(Full) as full:
        second.route(NOBODY)
    waiting = asyncio.create_task(second.wait(full.value))
    await asyncio.sleep(0)
    assert desk.core.queue.waiting == 1
    if bound == "pod_requests_max":
        attempt.finished(Outcome(200, 1, None), time.monotonic())
    else:
        attempt.first_byte(time.monotonic())
    for _ in range(5):
        await asyncio.sleep(0)
    assert waiting.done() and (await waiting).pod == "pod-0" and observed(desk.metrics.queue_waits)[0] == 1


def test_retries_are_bounded() -> None:
    """Where the budget is spent, nothing is taken, and that is counted."""
    desk = Desk(core := core_of(2, upstream={"retry_share": 0.0, "retry_floor": 1}))
    routing, others = desk.ask(), frozenset(("pod-0",))
    routing.route(others)
    for refused in (1, 2):
        with pytest.raises(NoRetry):
            routing.route(others)
        assert desk.metrics.retries_refused == refused and core.in_flight == 1


def test_who_does_not_answer_is_ejected_but_for_our_own_bound() -> None:
    """That all of our connections to it are in use is no fault of the pod."""
    for reason, ejected in (("pool_full", False), ("reset", True)):
        desk = Desk(core_of(2, breaker=FRAGILE))
        attempt = desk.ask().route(frozenset(("pod-1",)))
        attempt.failed(reason, desk.began)
        assert desk.tripped() == ["pod-0"] * ejected


@pytest.mark.parametrize(
    ("path", "status", "accused"),
    [(PATH, 404, True), ("/v1/files", 404, False), ("/v1/files", 401, True), (PATH, 403, True)],
)
def test_who_alone_refuses_is_at_fault(path: str, status: int, accused: bool) -> None:
    """Another pod has served it then; a 404 says nothing where not all pods need have the path."""
    desk = Desk(core_of(2, breaker=FRAGILE))
    routing = desk.ask(path=path)
    first = routing.route(frozenset(("pod-1",)))
    assert first.is_disputed(status)
    first.refused(status, None, desk.began)
    assert routing.disputed is accused and desk.tripped() == []
    second = routing.route(frozenset(("pod-0",)))
    second.first_byte(desk.began)
    assert desk.tripped() == ["pod-0"] * accused and not routing.disputed, "a stream may go on for minutes"
    second.finished(Outcome(200, 1, None), desk.began)
    assert desk.tripped() == ["pod-0"] * accused


@pytest.mark.parametrize(
    ("status", "convicted"),
    [(200, True), (299, True), (400, True), (404, False), (429, False), (500, False), (None, False)],
)
def test_what_the_next_pod_says_tells_whose_fault_it_was(status: int | None, convicted: bool) -> None:
    """Whoever understands the request convicts the one that did not; one that fails itself proves nothing."""
    desk = Desk(core_of(3, breaker=FRAGILE))
    routing = desk.ask()
    routing.route(frozenset(("pod-1", "pod-2"))).refused(401, None, desk.began)
    outcome = Outcome(status, 1, None, error="reset" if status is None else None)
    routing.route(frozenset(("pod-0", "pod-2"))).finished(outcome, desk.began)
    assert ("pod-0" in desk.tripped()) is convicted is not routing.disputed


def test_who_calls_all_clients_wrong_is_doubted() -> None:
    """It is accused then, until another pod says the same; only one that serves the request convicts it of that."""
    for status, convicted in ((200, True), (422, False)):
        desk = Desk(core_of(2, breaker=FRAGILE))
        core, others = desk.core, frozenset(("pod-1",))
        while not core.fleet.pods["pod-0"].breaker.is_doubted:
            desk.ask().route(others).finished(Outcome(400, 1, None), desk.began)
        routing = desk.ask()
        attempt = routing.route(others)
        assert attempt.is_disputed(400) and not attempt.is_disputed(503)
        attempt.refused(400, None, desk.began)
        assert routing.disputed and core.fleet.pods["pod-0"].suspect_until > desk.began
        routing.route(frozenset(("pod-0",))).finished(Outcome(status, 1, None), desk.began)
        assert desk.tripped() == ["pod-0"] * convicted
        routing.acquit()
        assert not routing.disputed and core.fleet.pods["pod-0"].breaker.is_doubted is convicted


async def test_pods_are_asked_anew_what_they_serve() -> None:
    """Where a model was named; at once where every pod that has the model has the path."""
    desk = Desk(core_of(1))
    for demand, path in ((Demand(MODEL), PATH), (Demand(MODEL), "/v1/files"), (Demand(None), PATH)):
        await desk.ask(demand, path).look_again()
    assert desk.looks == [True, False]


def test_what_a_pod_is_told() -> None:
    """The request's id; which rank, where there are several; its own key and the trace, where these are wanted."""
    plain = Desk(core_of(1))
    attempt = plain.ask().route(NOBODY)
    assert attempt.request_headers == [(b"x-request-id", b"id-1")]
    assert attempt.response_headers == [(b"x-warmroute-pod", b"pod-0"), (b"x-request-id", b"id-1")]
    desk = Desk(core_of(1, ranks=2, feeds=False), keys=True)
    routing = desk.ask()
    routing.story.trace = Trace(0xABC, None, 7, True)
    headers = dict(routing.route(NOBODY).request_headers)
    ((span, decision),) = routing.story.trace.attempts
    assert headers == {
        b"x-request-id": b"id-1",
        b"x-data-parallel-rank": b"%d" % decision.rank.id.rank,
        b"authorization": b"Bearer pod-0",
        b"traceparent": b"00-%032x-%016x-01" % (0xABC, span),
    }
    assert decision.story is routing.story and routing.last is not None and routing.last.decision is decision
    silent = Desk(core_of(1, ranks=2)).ask().route(NOBODY)
    assert [name for name, _ in silent.request_headers] == [b"x-request-id"], "its batches are yet to say it"


def test_a_pod_that_is_well_may_take_its_time() -> None:
    """For an answer that comes whole; the head of a stream comes at once."""
    desk = Desk(core_of(1))
    whole, stream = desk.ask().route(NOBODY), desk.ask(streams=True).route(NOBODY)
    assert whole.computes and not stream.computes
    desk.core.fleet.pods["pod-0"].drain(True)
    assert not whole.computes


def test_what_was_looked_up_is_counted() -> None:
    """How much of it was known, and how long the keys took; of a prompt whose tokens are not known, that it was so."""
    desk = Desk(core := core_of(1))
    metrics = desk.metrics
    desk.ask(asked(core, 1), known="miss", timing_us={"keys": 2_000_000, "tokenize": 3_000_000}).route(NOBODY)
    assert metrics.prefix_lookups == {"hit": 0, "partial": 0, "miss": 1}
    assert 2.0 < metrics.lookups.totals()[1] < 2.5 and 5.0 < metrics.decisions.totals()[1] < 5.5
    assert observed(metrics.stages["lookup"])[0] == observed(metrics.stages["score"])[0] == 1
    assert metrics.stages["score"].totals()[1] < 1.0 and "the prefix is not known" not in metrics.picks
    desk.ask(Demand(MODEL, 100, reason="the tokenizer is slow")).route(NOBODY)
    assert sum(metrics.prefix_lookups.values()) == 1 and metrics.picks["the prefix is not known"] == 1
    assert sum(metrics.picks.values()) == observed(metrics.decisions)[0] == 2


async def test_what_is_written_down_of_it(tmp_path: Path) -> None:
    """When it came and ended, what the client got and from whom, and its tokens; 499 where the client got nothing."""
    core = core_of(1)
    recorder = Recorder(RecordConfig(path=str(tmp_path / "log")), core, "overlap")
    desk = Desk(core, recorder)
    for outcome, tells in (
        (Outcome(200, 30, Usage(160, 64, 5)), True),
        (Outcome(200, 30, None), False),
        (Outcome(None, 0, None, client_gone=True, error="cancelled"), True),
    ):
        attempt = desk.ask(asked(core, 1, tells_prefill=tells), streams=True).route(NOBODY)
        if outcome.status is not None:
            attempt.first_byte(desk.began + 0.5)
        attempt.finished(outcome, desk.began + 2.0)
    await recorder.stop()
    lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    told = [[line[name] for name in ("status", "pod", "cached", "ttft", "took")] for line in lines]
    assert told == [[200, "pod-0", 64, 0.5, 2.0], [200, "pod-0", None, None, 2.0], [499, "pod-0", None, None, 2.0]]
    assert lines[0]["output_length"] == 5 and lines[0]["input_length"] == 160
