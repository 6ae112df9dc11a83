"""What all parts of a gateway tell: by the names that were promised, from the start, documented, and well-formed.

python -m tests.test_router_metrics_families     writes the tables of docs/metrics.md
"""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from router.alerts.conditions import ALERTS
from router.metrics.families import MetricFamily, gauge, gauges, histograms, labels, labels_of, text_of, word
from router.metrics.histograms import Histogram
from router.server.long_answers import at_once
from router.service import Service
from tests.fakes.services import operators

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metrics.md"
FAMILIES_MARK, ALERTS_MARK, END = "<!-- families -->", "<!-- alerts -->", "<!-- end -->"

PROMISED = """
    requests_total{model,pod,code} request_duration_seconds time_to_first_byte_seconds decision_seconds{stage}
    cache_hit_ratio cache_miss_ratio predicted_cached_tokens_total actual_cached_tokens_total prediction_error_tokens
    prefix_store_lookups_total{result} prefix_store_entries prefix_store_bytes cache_evictions_total{cache,reason}
    cache_lookup_latency_seconds pod_mapping_invalidations_total{reason} global_index_size index_bytes
    pod_blocks{pod,tier} pod_state{pod,state} pod_inflight_requests{pod} pod_inflight_prefill_tokens{pod}
    events_total{pod,type} event_lag_seconds{pod} event_gaps_total{pod} event_replays_total{pod,result}
    event_orphans_total{pod} event_decode_errors_total{pod} retries_total{reason} breaker_state{pod}
    picks_total{reason} pod_up{pod} pod_fit{pod,reason} event_last_heard_seconds{pod} index_refusals_total
    index_evictions_total{reason} missed_tokens_total{cause} reachable_cached_tokens_total captured_cached_tokens_total
    hit_rule{pod,rule} token_source{model,source} discovery_pods{source} discovery_sync{source} queue_wait_seconds
    snapshot_age_seconds cross_node_transfers_total node_cache_consistency cache_utilization alerts{name}
    loop_lag_seconds build_info{version,python,native} sessions_live sessions_held working_set_ratio
""".split()

OPTIONAL = {
    "warmroute_shadow_picks_total": (
        "counter", "policy, result", "Decisions of `scoring.shadow`, by whether it would have picked the same.",
    ),
    "warmroute_shared_index_up": ("gauge", "", "1: the shared index is there, and answers."),
    "warmroute_shared_index_written_pods": ("gauge", "", "Pods (ranks) whose state this gateway writes there."),
    "warmroute_shared_index_questions_total": ("counter", "result", "Prompts that the shared index was asked for."),
    "warmroute_shared_index_blocks_total": ("counter", "result", "Changed blocks, by what became of them."),
    "warmroute_event_frames_unclaimed_total": ("counter", "", "Frames at the bound endpoint that name no pod."),
    "warmroute_recorded_requests_total": ("counter", "result", "Requests that were to be written down (`record`)."),
    "warmroute_pieced_requests_total": ("counter", "", "Requests whose prompts went in pieces (`scoring.pieces`)."),
    "warmroute_pieces_total": (
        "counter", "result", "Pieces of prompts: computed, failed, or computed of which the next one found nothing.",
    ),
    "warmroute_pieces_tokens_total": ("counter", "", "Tokens that pods computed for pieces."),
    "warmroute_peers": ("gauge", "", "Other gateways that answer."),
    "warmroute_peers_heard": ("gauge", "", "Workers of other gateways whose load is heard."),
    "warmroute_peer_datagrams_total": ("counter", "result", "Datagrams between gateways about what is in flight."),
    "warmroute_workers": ("gauge", "", "Workers of this gateway that answer."),
    "warmroute_worker_restarts_total": ("counter", "", "Workers that died and were started again."),
}  # fmt: skip
"""What is told only where something is configured, or a pod tells it: type, labels, meaning."""


def told(service: Service) -> list[MetricFamily]:
    """All families, as they are at the start but for what pods tell of themselves."""
    figures = (
        "running waiting kv_usage cpu_usage preemptions cache_queries cache_hits external_queries external_hits "
        "prompt_tokens prompt_tokens_cached"
    ).split()
    for pod in service.core.fleet.pods.values():
        pod.engine = dict.fromkeys(figures, 1.0)
    return [family for family in service.metrics.steps() if family is not None]


def label_names(family: MetricFamily) -> list[str]:
    """Those of all its series but a bucket's."""
    return sorted({name for series, _ in family.samples for name in labels_of(series)} - {"le"})


async def rows() -> dict[str, tuple[str, str, str]]:
    """Type, labels and meaning of each family, by name."""
    async with operators() as (_, service):
        found = {family.name: (family.kind, ", ".join(label_names(family)), family.text) for family in told(service)}
    return OPTIONAL | found


async def test_all_that_is_promised_is_there_from_the_start() -> None:
    """By its name and labels, with at least one series: a rate sees the first one counted."""
    async with operators() as (_, service):
        found = {family.name: family for family in service.metrics.steps() if family is not None}
        for promise in PROMISED:
            name, _, wanted = promise.rstrip("}").partition("{")
            family = found[f"warmroute_{name}"]
            assert label_names(family) == sorted(filter(None, wanted.split(","))), promise
            assert family.samples, promise
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= set(found)
    assert {name for name in found if name.startswith("gen_ai_")} == {
        "gen_ai_client_token_usage", "gen_ai_server_request_duration_seconds",
        "gen_ai_server_time_per_output_token_seconds", "gen_ai_server_time_to_first_token_seconds",
    }  # fmt: skip


async def test_labels_are_words() -> None:
    """No value of a label is a sentence: a dashboard need not quote prose."""
    async with operators() as (_, service):
        service.metrics.picks["gives up less than the holder of the longest prefix"] += 1
        service.metrics.picks["least loaded: all are saturated"] += 1
        service.metrics.picks["the less loaded of two that were drawn"] += 1
        values = {
            value for family in told(service) for series, _ in family.samples for value in labels_of(series).values()
        }
    assert [value for value in values if not re.fullmatch(r"[\w.+:/-]*", value)] == []
    assert {"evicts_less", "least_loaded", "the_less_loaded_of_two_that_were_drawn"} <= values


def written() -> dict[str, tuple[str, str, str]]:
    """The table of families in the page."""
    text = PAGE.read_text(encoding="utf-8").partition(FAMILIES_MARK)[2].partition(END)[0]
    found = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", text, re.MULTILINE)
    return {name: (kind, given, meaning) for name, kind, given, meaning in found}


async def test_every_family_is_documented_and_nothing_else() -> None:
    """With its type, labels and meaning; what the sources name and a plain gateway does not tell, too."""
    assert written() == await rows()
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "router").rglob("*.py"))
    named = set(re.findall(r'"((?:warmroute|process|gen_ai)_[a-z_]+)"', sources))
    labels_there = {label for _, given_labels, _ in written().values() for label in given_labels.split(", ")}
    assert named - set(written()) - labels_there == set()


def test_every_alert_is_documented() -> None:
    """By its name, with what it means."""
    text = PAGE.read_text(encoding="utf-8").partition(ALERTS_MARK)[2].partition(END)[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)) == ALERTS


async def exposition() -> bytes:
    """The text of a gateway whose pods tell all that pods may tell."""
    async with operators() as (client, service):
        told(service)
        return (await client.get("/metrics")).content


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_promtool_has_nothing_to_say() -> None:
    """Prometheus's own linter reads the text, and finds no fault in names, types and helps."""
    text = asyncio.run(exposition())
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


@given(st.dictionaries(st.sampled_from("abc"), st.text(), max_size=3), st.floats() | st.integers(-10, 10))
def test_any_label_and_any_number_is_read_back(values: dict[str, str], value: float) -> None:
    """By Prometheus' own parser, and by ours."""
    series = "x" + labels(**values)
    assert labels_of(series) == values
    text = at_once(text_of([MetricFamily("x", "gauge", "A\nhelp \\.", "max", [(series, value)])])).decode()
    if not any("\r" in each or "\x0b" in each for each in values.values()):
        (family,) = text_string_to_metric_families(text)
        (sample,) = family.samples
        assert sample.labels == values
        assert sample.value == value or (math.isnan(value) and math.isnan(sample.value)) or abs(value) >= 1e300


def test_histograms_with_labels() -> None:
    """`le` stands where the alphabet has it; buckets are cumulative."""
    of = Histogram((1.0, 2.0))
    for value in (0.5, 1.5, 9.0):
        of.observe(value)
    (early,) = [histograms("h", "H.", [({"a": "1"}, of)])]
    assert [series for series, _ in early.samples[:2]] == ['h_bucket{a="1",le="1.0"}', 'h_bucket{a="1",le="2.0"}']
    late = histograms("h", "H.", [({"stage": "50%"}, of)])
    assert late.samples == [
        ('h_bucket{le="1.0",stage="50%"}', 1), ('h_bucket{le="2.0",stage="50%"}', 2),
        ('h_bucket{le="+Inf",stage="50%"}', 3), ('h_count{stage="50%"}', 3), ('h_sum{stage="50%"}', 11.0),
    ]  # fmt: skip


def test_a_family_is_one_help_and_its_samples() -> None:
    """Also where there are none yet, or more than are made at once."""
    many = gauges("many", "M.", "n", {str(n): n for n in range(1000)})
    text = at_once(text_of(iter([gauge("one", "O.", 3), None, many, MetricFamily("none", "gauge", "N.", "max", [])])))
    lines = text.decode().splitlines()
    assert lines[:3] == ["# HELP one O.", "# TYPE one gauge", "one 3"]
    assert lines[-2:] == ["# HELP none N.", "# TYPE none gauge"]
    assert len(lines) == 3 + 2 + 1000 + 2


def test_words() -> None:
    """What stands before a colon, with nothing but letters, numbers and lines between them."""
    assert word("least loaded: nobody holds it") == "least_loaded"
    assert word("2 blocks at a time, the last 1 computed again") == "2_blocks_at_a_time_the_last_1_computed_again"


def tables() -> Iterator[tuple[str, str]]:
    """By their marks."""
    lines = [f"| `{name}` | {kind} | {given} | {text} |" for name, (kind, given, text) in asyncio.run(rows()).items()]
    yield FAMILIES_MARK, "\n".join(["| name | type | labels | meaning |", "|---|---|---|---|", *sorted(lines)])
    alerts = [f"| `{name}` | {text} |" for name, text in ALERTS.items()]
    yield ALERTS_MARK, "\n".join(["| name | it fires when |", "|---|---|", *alerts])


def write_page() -> None:
    """The tables of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for mark, table in tables():
        head, _, rest = text.partition(mark)
        text = f"{head}{mark}\n{table}\n{END}{rest.partition(END)[2]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_page()
