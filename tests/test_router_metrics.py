"""What is counted: histograms and the window, bounded labels, and a text that Prometheus's own parser reads."""

from __future__ import annotations

import sys
from collections.abc import Generator
from types import FrameType

import pytest
from prometheus_client.parser import text_string_to_metric_families

from indexer.events import BlockStored
from router.config.settings import SeriesConfig
from router.core.fleet import RankId
from router.metrics.families import text_of
from router.metrics.histograms import Histogram, Window
from router.metrics.metrics import Metrics
from router.server.long_answers import at_once
from tests.fakes.cores import MODEL, asked, core_of, route, store, tokens_of
from tests.fakes.prefix_stats import no_stats, stats_of


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples by name and labels."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_histogram() -> None:
    """A value on a bound is below it; however many there were, and whenever somebody has looked, none is lost."""
    of = Histogram((1.0, 10.0))
    for value in (0.5, 1.0, 1.5, 10.0, 99.0):
        of.observe(value)
    assert of.totals() == of.totals() == ([2, 2, 1], 112.0)
    for _ in range(10_000):
        of.observe(5.0)
    assert of.totals() == ([2, 10_002, 1], 50_112.0)


def test_window() -> None:
    """A share by tokens, of the last minute; what is older is gone, also where nothing came after it."""
    window = Window()
    assert window.ratio(0.0) == 0.0
    window.add(0.0, 100, 100)
    window.add(30.0, 0, 300)
    assert window.ratio(30.5) == 0.25
    assert window.ratio(59.9) == 0.25
    assert window.ratio(60.0) == 0.0
    assert window.ratio(1e6) == 0.0
    window.add(60.2, 50, 100)
    assert window.ratio(60.3) == 0.125


def test_labels_are_bounded() -> None:
    """A model that nobody serves is `unknown`, whatever a client calls it."""
    metrics = Metrics(core_of(1), no_stats)
    for name in (MODEL, "made up", "x" * 10_000, None):
        metrics.count(name, "pod-0", 200)
    found = {
        dict(labels)["model"]: value for (name, labels), value in samples(metrics).items() if "requests_total" in name
    }
    assert found == {MODEL: 1.0, "unknown": 3.0}


def test_pods_are_told() -> None:
    """Blocks by tier, state, and what is in flight, of each pod; the worst rank's state is the pod's."""
    core = core_of(2, ranks=2)
    metrics = Metrics(core, no_stats)
    store(core, "pod-0", 1)
    event = BlockStored([1, 2], None, tokens_of(7, 32), 16, "cpu")
    core.index.apply(RankId("pod-0", 1), event)
    placed = route(core, asked(core, 5), frozenset(("pod-0",)), 0.0)
    feed = core.fleet.pods["pod-1"].ranks[1].feed
    assert feed is not None
    feed.frame(0, b"\xc1", 0.0)
    told = samples(metrics)

    def of(name: str, **labels: str) -> float:
        return told[(f"warmroute_{name}", tuple(sorted(labels.items())))]

    assert [of("pod_blocks", pod="pod-0", tier=tier) for tier in ("gpu", "cpu", "disk")] == [10, 2, 0]
    assert of("pod_blocks", pod="pod-1", tier="predicted") == 10
    assert of("pod_inflight_requests", pod="pod-1") == 1
    assert of("pod_inflight_prefill_tokens", pod="pod-1") == placed.ticket.tokens == 160
    assert of("pod_backlog_seconds", pod="pod-0") == 0.0
    assert of("pod_prefill_tokens_per_second", pod="pod-0") == pytest.approx(1000)
    assert of("pod_state", pod="pod-0", state="exact") == 1
    assert [of("pod_state", pod="pod-1", state=state) for state in ("exact", "degraded", "blind")] == [0, 1, 0]
    assert of("event_decode_errors_total", pod="pod-1") == 1


def test_lookups() -> None:
    """Each is counted by what was known, and observes its stages; its latency is that of keys and look-up."""
    metrics = Metrics(core_of(1), no_stats)
    metrics.understood({"render": 10, "tokenize": 20, "keys": 30})
    metrics.looked_up("partial", 40e-6, 30e-6)
    told = samples(metrics)
    results = [told[("warmroute_prefix_store_lookups_total", (("result", r),))] for r in ("hit", "partial", "miss")]
    assert results == [0, 1, 0]
    for stage in ("render", "tokenize", "keys", "lookup"):
        assert told[("warmroute_decision_seconds_count", (("stage", stage),))] == 1
    assert told[("warmroute_cache_lookup_latency_seconds_sum", ())] == pytest.approx(70e-6)


def test_prefix_store_is_told() -> None:
    """Its sizes, evictions and invalidations by reason."""
    stats = stats_of(blocks=7, nbytes=99, evictions={"lru": 3}, invalidations={"ttl": 2})
    told = samples(Metrics(core_of(1), lambda: stats))
    assert told[("warmroute_prefix_store_entries", ())] == 7
    assert told[("warmroute_prefix_store_bytes", ())] == 99
    assert told[("warmroute_cache_evictions_total", (("cache", "text"), ("reason", "lru")))] == 3
    assert told[("warmroute_pod_mapping_invalidations_total", (("reason", "ttl"),))] == 2


def series_of_requests(metrics: Metrics) -> set[tuple[str, str]]:
    """Model and pod of each series of requests."""
    found = [dict(labels) for name, labels in samples(metrics) if name == "warmroute_requests_total"]
    return {(labels["model"], labels["pod"]) for labels in found}


def test_series_of_the_departed_end() -> None:
    """A pod and an adapter leave: their counts are told for an hour more; who comes back in time is not forgotten."""
    core = core_of(3)
    metrics = Metrics(core, no_stats)
    pod = core.fleet.pods["pod-1"]
    core.fleet.learned_models(pod, [{"id": MODEL}, {"id": "adapter", "parent": MODEL}])
    for model, name in ((MODEL, "pod-0"), (MODEL, "pod-1"), (MODEL, "pod-2"), ("adapter", "pod-1"), (None, "")):
        metrics.count(model, name, 200)
    every = series_of_requests(metrics)
    returning = core.fleet.pods["pod-2"]
    at_once(metrics.end_departed(0.0))
    core.fleet.leave("pod-1")
    core.fleet.leave("pod-2")
    for now in (100.0, 3700.0):
        at_once(metrics.end_departed(now))
        assert series_of_requests(metrics) == every
        if now == 100.0:
            core.fleet.join(returning)
    at_once(metrics.end_departed(3701.0))
    assert series_of_requests(metrics) == {(MODEL, "pod-0"), (MODEL, "pod-2"), ("unknown", "")}


def test_there_are_so_many_series_and_no_more() -> None:
    """Whatever a pod answers: beyond the bound all counts go to one series a code, and none is lost."""
    core = core_of(5)
    metrics = Metrics(core, no_stats, given=SeriesConfig(series_max=100))
    for pod in core.fleet.pods:
        for code in range(200, 250):
            metrics.count(MODEL, pod, code)
    assert len(metrics.requests) == 100 + 50
    assert sum(metrics.requests.values()) == 250
    assert metrics.requests[("other", "", 200)] == 3


def longest_step(steps: Generator[None, None, object]) -> int:
    """Calls of the step that has most of them."""
    calls = longest = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for _ in steps:
            longest, calls = max(longest, calls), 0
    finally:
        sys.setprofile(None)
    return longest


def test_a_scrape_of_many_pods_is_made_of_short_steps() -> None:
    """Others have their turns of the loop between: no step grows with the number of pods."""
    longest = []
    for pods in (50, 400):
        core = core_of(pods)
        metrics = Metrics(core, no_stats)
        for pod in core.fleet.pods:
            metrics.count(MODEL, pod, 200)
        longest.append(longest_step(text_of(metrics.steps())))
    assert longest[1] < 1.3 * longest[0]


async def test_a_scrape_is_one_text() -> None:
    """In turns or at once: the same series, each family's help once."""
    core = core_of(300)
    metrics = Metrics(core, no_stats, clock=lambda: 1.0)
    text = await metrics.scrape()
    assert text == metrics.text()
    assert text.count(b"# HELP warmroute_pod_state ") == 1
    assert len([name for name, _ in samples(metrics) if name == "warmroute_pod_blocks"]) == 4 * 300
