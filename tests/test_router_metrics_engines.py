"""What pods say of their own caches, under one name for all versions, by the best method that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.discovery.vllm_metrics import read_metrics
from router.metrics.engines import METHODS, of_engines, own_hit_ratio
from tests.fakes.cores import core_of

VECTORS = Path(__file__).parent / "vectors"
COUNTERS, TOKENS, GAUGE, NONE = METHODS


@pytest.mark.parametrize(
    ("text", "ratio", "method"),
    [
        ("", None, NONE),
        ("vllm:gpu_prefix_cache_hit_rate 0.25\nvllm:gpu_cache_usage_perc 0.5\n", 0.25, GAUGE),
        ("vllm:gpu_prefix_cache_hit_rate -1.0\n", 0.0, GAUGE),
        ("vllm:prompt_tokens_total 100\nvllm:prompt_tokens_cached_total 40\n", 0.4, TOKENS),
        ("vllm:gpu_prefix_cache_queries_total 10\nvllm:gpu_prefix_cache_hits_total 5\n", 0.5, COUNTERS),
        ("vllm:gpu_prefix_cache_queries 10\nvllm:gpu_prefix_cache_hits 4\n", 0.4, COUNTERS),
        (
            "vllm:prefix_cache_queries_total 10\nvllm:prefix_cache_hits_total 6\nvllm:gpu_prefix_cache_hit_rate 0.1\n"
            "vllm:prompt_tokens_total 100\nvllm:prompt_tokens_cached_total 40\n",
            0.6,
            COUNTERS,
        ),
        ("vllm:prefix_cache_queries_total 0\nvllm:prefix_cache_hits_total 0\n", 0.0, COUNTERS),
    ],
)
def test_its_hit_ratio_by_the_first_method_that_tells(text: str, ratio: float | None, method: str) -> None:
    """Counters by either name, prompt tokens, the gauge of old versions."""
    pod = core_of(1).fleet.pods["pod-0"]
    pod.engine = read_metrics(text)[0]
    assert own_hit_ratio(pod) == (ratio, method)


@pytest.mark.parametrize("version", sorted(path.parent.name for path in VECTORS.glob("*/metrics_end.txt")))
def test_every_recorded_version(version: str) -> None:
    """Its cache's figures are told by ours, with the names that it has itself, the newest where it has two."""
    core = core_of(1)
    pod = core.fleet.pods["pod-0"]
    pod.engine, pod.engine_names = read_metrics((VECTORS / version / "metrics_end.txt").read_text())
    told = {series: value for family in of_engines(core.fleet) if family for series, value in family.samples}
    hits = told['warmroute_engine_prefix_cache_hits_total{pod="pod-0"}']
    queries = told['warmroute_engine_prefix_cache_queries_total{pod="pod-0"}']
    assert told['warmroute_engine_cache_hit_ratio{method="prefix_cache_counters",pod="pod-0"}'] == hits / queries
    assert pod.engine_names["cache_hits"] == "vllm:prefix_cache_hits_total"
    assert 'warmroute_engine_kv_cache_usage_ratio{pod="pod-0"}' in told


def test_names_of_old_versions_are_shown() -> None:
    """Which name it was, where there are several for one figure."""
    _, names = read_metrics("vllm:gpu_cache_usage_perc 0.5\nvllm:cpu_cache_usage_perc 0.1\n")
    assert names == {"kv_usage": "vllm:gpu_cache_usage_perc", "cpu_usage": "vllm:cpu_cache_usage_perc"}
