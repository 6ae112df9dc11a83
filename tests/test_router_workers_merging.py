"""What several workers tell, made one: what is added, what is not, and counters that never fall."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.config.settings import Config
from router.core.decision import Core
from router.metrics.families import MetricFamily, gauge, gauges, text_of
from router.metrics.metrics import Departures, Metrics
from router.server.long_answers import at_once
from router.tokens.encoder import PrefixStats
from router.workers import merging
from router.workers.kept_counters import Counts, kept
from router.workers.merging import Columns, Heads, as_lines, families_of, merged, read
from router.workers.worker import Worker
from tests.fakes.cores import core_of


def metrics_with(core: Core, requests: int) -> Metrics:
    """The series of one worker that has answered so many requests."""
    zeros = {field.name: 0 for field in dataclasses.fields(PrefixStats)}
    stats = PrefixStats(**{**zeros, "nbytes": 1000, "evictions": {}, "invalidations": {}})  # type: ignore[arg-type]
    metrics = Metrics(core, lambda: stats, clock=lambda: 100.0)
    for _ in range(requests):
        metrics.count("m", "pod-0", 200)
        metrics.durations.observe(0.002)
    metrics.window.add(100.0, 30 * requests, 100 * requests)
    return metrics


def test_sessions_of_all_workers() -> None:
    """Each has routed some: what lives in a pod's cache for each is added, and so is who waits."""
    pod = {"pod": "pod-0", "rank": 0, "live_tokens": 100, "capacity_tokens": 1000, "ratio": 0.1, "offloaded_blocks": 0}
    unknown = {**pod, "pod": "pod-1", "capacity_tokens": None, "ratio": None}
    own = {
        "live": 1, "kept": 2, "continuing": 0.5, "held": 1, "waiting_for_room": 0,
        "working_set": {"tokens": 100, "capacity_tokens": 1000, "ratio": 0.1},
        "pods": [pod, unknown], "waiting": [{"waits_s": 1.0}], "sessions": [{"session": "a"}],
    }  # fmt: skip
    told = merging.merged_sessions({0: own, 1: {**own, "continuing": 0.7, "waiting": [], "sessions": []}})
    assert [told[name] for name in ("live", "kept", "held", "continuing")] == [2, 4, 2, 0.7]
    assert told["working_set"] == {"tokens": 200, "capacity_tokens": 1000, "ratio": 0.2}
    assert [(each["live_tokens"], each["ratio"]) for each in told["pods"]] == [(200, 0.2), (200, None)]
    assert told["waiting"] == [{"waits_s": 1.0, "worker": 0}] and told["sessions"] == [{"session": "a", "worker": 0}]


def values_of(families: Sequence[MetricFamily | Columns]) -> dict[str, float]:
    """By series, as it is written."""
    return {series: value for family in families for series, value in family.samples}


def told(families: Any) -> list[Columns]:
    """As it comes from another process."""
    return at_once(read(at_once(as_lines(at_once(families_of(families))))))


def test_counts_are_added_and_facts_are_not() -> None:
    """Counters, histograms and loads are added; what every worker knows of a pod is told once."""
    workers = []
    for requests in (3, 4):
        core = core_of(1)
        for _ in range(requests):
            core.fleet.pods["pod-0"].ranks[0].load.admit(100, 0.0)
        feed = core.fleet.pods["pod-0"].ranks[0].feed
        assert feed is not None
        feed.counts.stored += 10 * requests
        workers.append(told(metrics_with(core, requests).steps()))
    values = values_of(at_once(merged(workers, 0.3)))
    assert values['warmroute_requests_total{code="200",model="m",pod="pod-0"}'] == 7
    assert values["warmroute_request_duration_seconds_count"] == 7
    assert values['warmroute_request_duration_seconds_bucket{le="0.001"}'] == 0
    assert values['warmroute_request_duration_seconds_bucket{le="0.0025"}'] == 7
    assert values['warmroute_pod_inflight_requests{pod="pod-0"}'] == 7
    assert values['warmroute_pod_inflight_prefill_tokens{pod="pod-0"}'] == 700
    assert values["warmroute_prefix_store_bytes"] == 2000
    assert values['warmroute_events_total{pod="pod-0",type="stored"}'] == 40
    assert values['warmroute_pod_state{pod="pod-0",state="exact"}'] == 1
    assert (values["warmroute_cache_hit_ratio"], values["warmroute_cache_miss_ratio"]) == (0.3, 0.7)


def test_one_worker_is_itself() -> None:
    """Made one of one, the text is the worker's own, and Prometheus can read it."""

    metrics = metrics_with(core_of(2), 5)
    text = at_once(text_of(at_once(merged([told(metrics.steps())]))))
    assert sorted(text.splitlines()) == sorted(metrics.text().splitlines())
    assert len(list(text_string_to_metric_families(text.decode()))) > 20


def counts_of(worker: Worker, requests: int, pods: int = 1) -> Counts:
    """Those of one life of a worker."""
    core = core_of(pods)
    return Counts(worker, metrics_with(core, requests).steps, Departures(core.fleet, 3600.0))


def told_values(counts: Counts, now: float = 0.0) -> dict[str, float]:
    """All series that it tells."""
    return values_of(at_once(read(at_once(counts.told(now)))))


def test_counters_go_on_after_a_death(tmp_path: Path) -> None:
    """Who takes a place adds to what was told from it; gauges are those of now; others find the counters as well."""
    before = Worker(1, 2, tmp_path, 0, 0)
    assert told_values(counts_of(before, 5))["warmroute_request_duration_seconds_count"] == 5
    left = values_of(at_once(kept(before.counts(1))))
    assert left["warmroute_request_duration_seconds_count"] == 5
    assert not [name for name in left if name.startswith("warmroute_index_bytes")]
    after = dataclasses.replace(before, life=1)
    for _ in range(2):  # asked twice, it is told the same
        values = told_values(counts_of(after, 2))
    assert values["warmroute_request_duration_seconds_count"] == 5 + 2 + 2
    assert values["warmroute_prefix_store_bytes"] == 1000
    assert values["warmroute_worker_restarts_total"] == 1


def test_what_former_lives_counted_of_departed_pods_ends(tmp_path: Path) -> None:
    """The pod of a life before is gone: its series are told for an hour more, then they end, in the file, too."""
    worker = Worker(1, 2, tmp_path, 0, 0)
    of_departed = 'warmroute_event_gaps_total{pod="pod-1"}'
    assert of_departed in told_values(counts_of(worker, 5, pods=2))
    counts = counts_of(dataclasses.replace(worker, life=1), 2)
    for now, is_told in ((0.0, True), (3600.0, True), (3601.0, False), (9000.0, False)):
        assert (of_departed in told_values(counts, now)) == is_told
        assert 'warmroute_event_gaps_total{pod="pod-0"}' in told_values(counts, now)
    assert of_departed not in values_of(at_once(kept(worker.counts(1))))


@pytest.mark.parametrize("lines", [None, b"", b"[["])
def test_nothing_was_told(tmp_path: Path, lines: bytes | None) -> None:
    """A worker that died before it was asked, or while it wrote, leaves nothing."""
    file = tmp_path / "worker-0.json"
    if lines is not None:
        file.write_bytes(lines)
    assert at_once(kept(file)) == []


def test_numbers_are_added_wherever_they_are() -> None:
    """Mappings by their keys; what is no number stays as the first says."""
    values = [{"a": 1, "b": {"c": 2, "on": True}, "names": ["x"]}, {"a": 3, "b": {"c": 4, "on": False}}]
    assert merging.added(values) == {"a": 4, "b": {"c": 6, "on": True}, "names": ["x"]}


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_parts_add_up(workers: int) -> None:
    """Parts of what is bounded over all workers make up the whole; what they count together is not parted."""
    whole = Config.model_validate(
        {"admission": {"queue_max": 5, "prefill_tokens_max": 10}, "upstream": {"retry_floor": 10},
         "gateway": {"connections_max": 100, "requests_max": 9}}
    )  # fmt: skip
    parts = [Worker(number, workers, Path(), 0, 0).part(whole) for number in range(workers)]
    assert sum(part.admission.queue_max for part in parts) == 5
    assert sum(part.upstream.retry_floor for part in parts) == 10
    assert sum(part.gateway.connections_max for part in parts) == 100
    assert {part.gateway.requests_max for part in parts} == {9}
    assert {part.admission.prefill_tokens_max for part in parts} == {10}
    assert min(part.admission.flow_queue_max for part in parts) >= 1
    assert {part.gateway.bodies_max >= part.gateway.body_max for part in parts} == {True}


def answer_of(name: str, items: list[dict[str, Any]], more: str = "") -> bytes:
    """As the endpoints write it."""
    return b'{"%b":[%b]%b}' % (name.encode(), merging.listed([orjson.dumps(item) for item in items]), more.encode())


def test_items_are_found_again_whatever_is_in_them() -> None:
    """Line ends within texts are escaped, so each line is one item; an empty list has none."""
    odd = [{"a": "\n],\n[", "b": [1, {"c": "}\r\n"}]}, {}, {"d": "\u2028"}]
    for items in (odd, odd[:1], []):
        body = answer_of("pods", items, ',"events_bound":null')
        assert orjson.loads(body)["pods"] == items
        assert [orjson.loads(item) for item in merging.items_of(body)] == items


@pytest.mark.parametrize("limit", [1, 3, 5, 100])
def test_the_last_decisions_of_all(limit: int) -> None:
    """Newest first, each with its worker."""
    of_workers = {1: [9.0, 4.0, 3.0], 0: [8.0, 5.0], 2: []}
    bodies = {worker: answer_of("decisions", [{"at": at} for at in ats]) for worker, ats in of_workers.items()}
    expected = sorted(((at, worker) for worker, ats in of_workers.items() for at in ats), reverse=True)[:limit]
    answer = orjson.loads(at_once(merging.decisions_of_all(bodies, limit)))
    assert [(one["at"], one["worker"]) for one in answer["decisions"]] == expected


def test_decisions_that_are_not_told_are_not_decoded() -> None:
    """But for one more of a worker."""
    of_one = [b'{"at":3.0}', b'{"at":2.0}', b'{"at":1.0}', b"not JSON"]
    body = b'{"decisions":[%b]}' % merging.listed(of_one)
    answer = orjson.loads(at_once(merging.decisions_of_all({0: body, 1: answer_of("decisions", [])}, 2)))
    assert [one["at"] for one in answer["decisions"]] == [3.0, 2.0]


def test_pods_of_all_are_made_in_steps_without_decoding() -> None:
    """The first tells what is of all, and each what it knows; a step for each worker."""
    bodies = {worker: answer_of("pods", [{"pod": f"{worker}"}], ',"events_bound":null') for worker in (2, 0, 1)}
    steps = merging.pods_of_all(bodies, 0)
    assert sum(1 for _ in iter(lambda: next(steps, True), True)) == 3
    assert orjson.loads(at_once(merging.pods_of_all(bodies, 0))) == {
        "pods": [{"pod": "2"}],
        "events_bound": None,
        "workers": [{"worker": worker, "pods": [{"pod": f"{worker}"}]} for worker in range(3)],
    }


def test_what_pods_cost_all_workers() -> None:
    """Each has seen some of the requests: costs are added, and who is cheapest to all of them is named."""

    def loss(pod: str, tokens: float, blocks: int = 9) -> dict[str, Any]:
        return {"pod": pod, "cost_tokens": tokens, "cost_s": tokens / 100, "alone_tokens": 16, "prompts": 1,
                "blocks": blocks, "requests": 2}  # fmt: skip

    one, two = [loss("a", 10.0), loss("b", 30.0)], [loss("b", 5.0), loss("a", 90.0)]
    told = merging.merged_losses(
        {
            0: {"pods": one[:1], "all": one, "prompts_known": 3},
            1: {"pods": two[:1], "all": two, "prompts_known": 4},
        }
    )
    assert [(each["pod"], each["cost_tokens"], each["blocks"]) for each in told["all"]] == [
        ("b", 35.0, 9), ("a", 100.0, 9)
    ]  # fmt: skip
    assert [each["pod"] for each in told["pods"]] == ["b"] and told["prompts_known"] == 7


def test_a_drain_of_all_workers() -> None:
    """What each has handed over is added, and said where there was something."""
    plain = {"pod": "a", "draining": True, "requests": 2}
    assert merging.merged_drain({0: plain, 1: {**plain, "requests": 3}}) == {**plain, "requests": 3}
    handed = {"prompts": 2, "tokens": 320, "done": 1, "needless": 1, "failed": 0}
    told = merging.merged_drain({0: {**plain, "handover": handed}, 1: plain, 2: {**plain, "handover": handed}})
    assert told["handover"] == {name: 2 * count for name, count in handed.items()}


def test_alerts_of_all_are_told_once() -> None:
    """What several tell of is one, since the first of them began; each worker that tells of it is named."""

    def one(name: str, since: float, subject: str | None = None) -> dict[str, Any]:
        return {"name": name, "subject": subject, "since": since, "for_s": 100.0 - since, "why": "-"}

    answers = {
        1: {"alerts": [one("breaker_open", 5.0, "pod-0")], "known": {"a": "A."}},
        0: {"alerts": [one("breaker_open", 7.0, "pod-0"), one("memory_high", 9.0)], "known": {"a": "A."}},
    }
    merged_answer = merging.merged_alerts(answers)
    told_once = [(each["name"], each["since"], each["for_s"], each["workers"]) for each in merged_answer["alerts"]]
    assert told_once == [("breaker_open", 5.0, 95.0, [0, 1]), ("memory_high", 9.0, 91.0, [0])]
    assert merged_answer["known"] == {"a": "A."}


def test_what_a_pod_counts_is_not_kept(tmp_path: Path) -> None:
    """A pod was started anew, and so was a worker: the pod's own counters are what it says now."""
    worker, core = Worker(0, 2, tmp_path, 0, 0), core_of(1)
    series = 'warmroute_engine_preemptions_total{pod="pod-0"}'
    for life, count in ((0, 900.0), (1, 3.0)):
        core.fleet.pods["pod-0"].engine = {"preemptions": count}
        counts = Counts(
            dataclasses.replace(worker, life=life), metrics_with(core, 1).steps, Departures(core.fleet, 3600.0)
        )
        assert told_values(counts)[series] == count


def test_what_is_no_number_is_not_merged() -> None:
    """One worker keeps the snapshot; the others have no age of it, in whatever order they tell."""
    ages = [gauge("age", "A.", value) for value in (float("nan"), 5.0, float("nan"))]
    workers = [at_once(read(at_once(as_lines([age])))) for age in ages]
    assert values_of(at_once(merged(workers))) == {"age": 5.0}


def test_series_that_only_some_workers_tell() -> None:
    """In any order, and each with others: all are told, in the way of their family."""
    each = [{"a": 1.0, "b": 2.0}, {"b": 5.0, "c": 3.0}, {"c": 1.0, "b": 2.0}]
    for join, wanted in {"sum": [1, 9, 4], "max": [1, 5, 3], "min": [1, 2, 1]}.items():
        workers = [told([gauges("load", "L.", "pod", values, join)]) for values in each]  # type: ignore[arg-type]
        merge = values_of(at_once(merged(workers)))
        assert merge == {f'load{{pod="{pod}"}}': value for pod, value in zip("abc", wanted, strict=True)}


def test_what_is_told_in_the_same_words_is_read_once() -> None:
    """Another worker's figures are its own all the same."""
    heads: Heads = {}
    lines = [at_once(as_lines([gauge("age", "A.", value)])) for value in (1.0, float("nan"), 3.0)]
    first, none, last = (at_once(read(line, heads))[0] for line in lines)
    assert len(heads) == 1 and first.series is last.series
    assert (first.values, last.values) == ([1.0], [3.0]) and none.values[0] != none.values[0]
