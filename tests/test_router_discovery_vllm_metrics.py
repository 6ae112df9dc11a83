"""What a pod's /metrics tells, by the names of every recorded version."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.discovery.vllm_metrics import parse_metrics

VECTORS = Path(__file__).parent / "vectors"
ALWAYS = {"running", "waiting", "preemptions", "kv_usage", "cache_queries", "cache_hits", "block_size", "blocks"}


@pytest.mark.parametrize("version", sorted(path.parent.name for path in VECTORS.glob("*/metrics_end.txt")))
def test_every_recorded_version_tells_them(version: str) -> None:
    """Load, cache and its counters are always told; when it started wherever one process answers."""
    figures = parse_metrics((VECTORS / version / "metrics_end.txt").read_text())
    assert set(figures) >= ALWAYS
    assert ("started" in figures) == (version != "vllm-0.32.0-dp2")
    assert 0 <= figures["kv_usage"] <= 1 and 0 < figures["cache_hits"] < figures["cache_queries"]


def test_old_names_where_there_is_no_new_one() -> None:
    """A version that tells a figure by both names is not counted twice."""
    old = 'vllm:gpu_cache_usage_perc{engine="0"} 0.25\nvllm:gpu_prefix_cache_hits_total{engine="0"} 32.0\n'
    assert parse_metrics(old) == {"kv_usage": 0.25, "cache_hits": 32.0}
    both = old + 'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:prefix_cache_hits_total{engine="0"} 48.0\n'
    assert parse_metrics(both) == {"kv_usage": 0.5, "cache_hits": 48.0}


def test_engines_are_added_and_the_fullest_counts() -> None:
    """Requests, tokens and preemptions of all ranks; the fuller cache of two."""
    text = "".join(
        f'vllm:num_requests_running{{engine="{n}"}} {n + 1}\nvllm:kv_cache_usage_perc{{engine="{n}"}} 0.{n + 1}\n'
        for n in range(2)
    )
    assert parse_metrics(text) == {"running": 3.0, "kv_usage": 0.2}


def test_the_newest_lora_series_counts() -> None:
    """Series of former states remain; their value is the time at which they held."""
    text = (
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 30.0\n'
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters="c"} 40.0\n'
        'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a",waiting_lora_adapters="a"} 10.0\n'
    )
    assert parse_metrics(text) == {"lora_max": 4.0, "lora_running": 2.0, "lora_waiting": 1.0}


def test_what_cannot_be_read_is_left_out() -> None:
    """Absent figures degrade nothing."""
    text = 'vllm:num_requests_running{engine="0"} many\nvllm:kv_cache_usage_perc NaN\nvllm:\n{\n\nvllm:num_requests'
    assert parse_metrics(text) == {}
    assert parse_metrics('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0') == {"block_size": 16.0}
