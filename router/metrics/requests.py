"""Families of requests: how they ended, how long they took, how they were decided."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from router.metrics.families import (
    UNKNOWN_MODEL,
    MetricFamily,
    Sample,
    Steps,
    counter,
    counters,
    escaped,
    gauge,
    histogram,
    histograms,
    labels,
    word,
)
from scorer.working_set import LIVE_S

if TYPE_CHECKING:
    from router.core.decision import Core
    from router.metrics.metrics import Metrics

_PODS = 32  # in one step
_ANSWERS = 64  # likewise
_OWN_REFUSALS = (429, 502, 503, 504)  # of ours, without a pod
_AWAY = "than the holder of the longest prefix"
_PICKS = {
    "holds the longest prefix": "longest_prefix",
    f"less loaded {_AWAY}": "less_loaded",
    f"gives up less {_AWAY}": "evicts_less",
    f"computes it sooner {_AWAY}": "sooner",
    "the prefix is not known": "unknown_prefix",
    "least loaded": "least_loaded",
    "turn": "turn",
}
"""Words for the usual reasons of picks; those of others are made of their sentences."""


def of_requests(metrics: Metrics) -> Steps:
    """See the module."""
    yield from _answers(metrics)
    yield histogram(
        "warmroute_request_duration_seconds", "From a request's body to its answer's end.", metrics.durations
    )
    yield histogram(
        "warmroute_time_to_first_byte_seconds", "From a request's body to its answer's first byte.", metrics.first_bytes
    )
    stages = [({"stage": stage}, each) for stage, each in metrics.stages.items()]
    yield histograms("warmroute_decision_seconds", "Stages of a decision.", stages)
    yield histogram("warmroute_whole_decision_seconds", "From a prompt to its pick, all stages.", metrics.decisions)
    yield None
    yield counters("warmroute_retries_total", "Attempts given up before the first byte.", "reason", metrics.retries)
    core = metrics.core
    yield from _shadow(core)
    text = "Retries that the budget did not allow."
    yield counter("warmroute_retries_refused_total", text, metrics.retries_refused)
    yield gauge("warmroute_retry_budget", "Retries that the budget has left.", core.budget.left, "sum")
    text = "Requests that waited for room, by how that ended."
    yield counters("warmroute_admissions_total", text, "result", metrics.admissions)
    yield histogram("warmroute_queue_wait_seconds", "Waiting for room, or for the best pod.", metrics.queue_waits)
    yield gauge("warmroute_admission_waiting", "Requests that wait for room.", core.queue.waiting, "sum")
    yield gauge("warmroute_sessions_held", "Requests that wait for the pod that is best.", core.hold.waiting, "sum")
    now = metrics.clock()
    yield gauge("warmroute_sessions_live", "Sessions of the last minute.", core.sessions.live(LIVE_S, now), "sum")
    yield gauge("warmroute_open_streams", "Answers that are on their way as streams.", metrics.streams, "sum")
    with contextlib.suppress(RuntimeError):  # there is no loop
        yield gauge("warmroute_tasks", "Tasks of the event loop.", len(asyncio.all_tasks()), "sum")
    yield histogram(
        "warmroute_loop_lag_seconds", "How late the event loop does what is due, looked at 20 times a second.",
        metrics.loop_lags,
    )  # fmt: skip
    yield from _picks(metrics.picks)


def _picks(picks: Mapping[str, int]) -> Iterable[MetricFamily]:
    counts: dict[str, float] = dict.fromkeys(_PICKS.values(), 0)
    for sentence, count in picks.items():
        reason = _PICKS.get(sentence.partition(":")[0]) or word(sentence)
        counts[reason] = counts.get(reason, 0) + count
    yield counters("warmroute_picks_total", "Decisions.", "reason", counts)
    text = "Prompts sent to another pod than the one that held most of them: what that held is computed there again."
    away = sum(count for sentence, count in picks.items() if sentence.endswith(_AWAY))
    yield counter("warmroute_cross_node_transfers_total", text, away)


def _shadow(core: Core) -> Iterable[MetricFamily]:
    shadow, name = core.shadow, "warmroute_shadow_picks_total"
    if shadow is None:
        return
    text = "Decisions of another policy that only looks on, by whether it would have picked the same."
    counts = {"other": shadow.picks - shadow.same, "same": shadow.same}
    samples: list[Sample] = [
        (name + labels(policy=shadow.name, result=result), count) for result, count in counts.items()
    ]
    yield MetricFamily(name, "counter", text, "sum", samples)


def _answers(metrics: Metrics) -> Iterable[MetricFamily | None]:
    """Each pod's good answers, and what we answer ourselves, are there from the start: `rate` has to see their zero."""
    fleet, name = metrics.core.fleet, "warmroute_requests_total"
    counts: dict[tuple[str, str, int], int] = {(UNKNOWN_MODEL, "", code): 0 for code in _OWN_REFUSALS}
    yield None
    for place, pod in enumerate(list(fleet.pods.values())):
        if place % _PODS == 0:
            yield None
        counts.update({(model, pod.name, 200): 0 for model, served in pod.served.items() if served.lora is None})
    counts.update(metrics.requests)
    yield None
    samples: list[Sample] = []
    for place, ((model, pod_name, code), count) in enumerate(counts.items(), 1):
        samples.append((f'{name}{{code="{code}",model="{escaped(model)}",pod="{escaped(pod_name)}"}}', count))
        if place % _ANSWERS == 0:
            yield None
    yield MetricFamily(name, "counter", "Answers sent.", "sum", samples)
