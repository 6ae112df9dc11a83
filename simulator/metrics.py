"""`/metrics`: vLLM's names that routers read, as Prometheus text built when asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.engine import Engine

BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
"""Buckets of vLLM's time_to_first_token_seconds, used here for all times."""

BOUNDS_TOKENS = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))
"""Of its histograms of tokens."""

_DRAFTS = ("drafts", "draft_tokens", "accepted_tokens")


class Histogram:
    """Counts of observed values by bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def exposition(engines: Iterable[Engine], model: str, loras: Iterable[str], version: tuple[int, ...]) -> str:
    """The text for all ranks; labels are `engine` (the rank) and `model_name`."""
    engines = list(engines)
    model = _escaped(model)
    lines: list[str] = []
    for name, kind, values in _families(engines, version):
        lines += [f"# HELP vllm:{name} Simulated.", f"# TYPE vllm:{name} {kind}"]
        lines += [
            f'vllm:{name}{{engine="{engine.rank}",model_name="{model}"}} {float(value)}'
            for engine, value in zip(engines, values, strict=True)
        ]
    for name, histograms in _histograms(engines, version):
        lines += [f"# HELP vllm:{name} Simulated.", f"# TYPE vllm:{name} histogram"]
        for engine, histogram in zip(engines, histograms, strict=True):
            lines += _histogram_lines(name, f'engine="{engine.rank}",model_name="{model}"', histogram)
    lines += _cache_config(engines) + _sleep_state(engines, model)
    if names := _escaped(",".join(loras)):
        running = ",".join(sorted({r.origin.lora.name for e in engines for r in e.scheduler.running if r.origin.lora}))
        waiting = ",".join(sorted({r.origin.lora.name for e in engines for r in e.scheduler.waiting if r.origin.lora}))
        labels = f'max_lora="{names.count(",") + 1}",running_lora_adapters="{_escaped(running)}"'
        labels += f',waiting_lora_adapters="{_escaped(waiting)}"'
        lines += ["# TYPE vllm:lora_requests_info gauge", f"vllm:lora_requests_info{{{labels}}} 1.0"]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A label's value as the text format wants it."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _families(engines: list[Engine], version: tuple[int, ...]) -> list[tuple[str, str, list[float]]]:
    schedulers = [engine.scheduler for engine in engines]
    counters = [scheduler.counters for scheduler in schedulers]
    families: list[tuple[str, str, list[float]]] = [
        ("num_requests_running", "gauge", [len(s.running) for s in schedulers]),
        ("num_requests_waiting", "gauge", [len(s.waiting) for s in schedulers]),
        ("kv_cache_usage_perc", "gauge", [s.pool.used / s.pool.usable for s in schedulers]),
        ("prefix_cache_queries_total", "counter", [c.queried for c in counters]),
        ("prefix_cache_hits_total", "counter", [c.hit for c in counters]),
        ("num_preemptions_total", "counter", [c.preemptions for c in counters]),
        ("prompt_tokens_total", "counter", [c.prompt for c in counters]),
        ("generation_tokens_total", "counter", [c.generated for c in counters]),
        ("request_success_total", "counter", [c.finished for c in counters]),
    ]
    if version < (0, 11):
        families.append(("gpu_cache_usage_perc", "gauge", [s.pool.used / s.pool.usable for s in schedulers]))
    if version >= (0, 20):
        families.append(("prompt_tokens_cached_total", "counter", [c.hit for c in counters]))
    if any(engine.limits.reuse.drafter for engine in engines):  # whose drafts are never accepted
        families += [(f"spec_decode_num_{what}_total", "counter", [0.0] * len(engines)) for what in _DRAFTS]
    return families


def _histograms(engines: list[Engine], version: tuple[int, ...]) -> list[tuple[str, list[Histogram]]]:
    histograms = [
        ("time_to_first_token_seconds", [e.latencies.first_token for e in engines]),
        ("inter_token_latency_seconds", [e.latencies.between_tokens for e in engines]),
        ("request_queue_time_seconds", [e.latencies.queue for e in engines]),
        ("e2e_request_latency_seconds", [e.latencies.request for e in engines]),
        ("request_prefill_time_seconds", [e.latencies.prefill for e in engines]),
        ("request_prompt_tokens", [e.sizes.prompt for e in engines]),
    ]
    if version >= (0, 20):
        histograms.append(("request_prefill_kv_computed_tokens", [e.sizes.computed for e in engines]))
    return histograms


def _histogram_lines(name: str, labels: str, histogram: Histogram) -> list[str]:
    lines = []
    below = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        below += count
        lines.append(f'vllm:{name}_bucket{{{labels},le="{bound}"}} {float(below)}')
    lines.append(f"vllm:{name}_count{{{labels}}} {float(below)}")
    lines.append(f"vllm:{name}_sum{{{labels}}} {histogram.total}")
    return lines


def _cache_config(engines: list[Engine]) -> list[str]:
    lines = ["# HELP vllm:cache_config_info Simulated.", "# TYPE vllm:cache_config_info gauge"]
    for engine in engines:
        size, count = engine.limits.block_size, engine.limits.blocks_max
        labels = (
            f'block_size="{size}",cache_dtype="auto",enable_prefix_caching="{engine.limits.reuse.caches}",engine="{engine.rank}",'
            f'kv_cache_size_tokens="{size * count}",num_gpu_blocks="{count}",num_gpu_blocks_override="{count}",'
            f'prefix_caching_hash_algo="sha256"'
        )
        lines.append(f"vllm:cache_config_info{{{labels}}} 1.0")
    return lines


def _sleep_state(engines: list[Engine], model: str) -> list[str]:
    lines = ["# HELP vllm:engine_sleep_state Simulated.", "# TYPE vllm:engine_sleep_state gauge"]
    for engine in engines:
        asleep = engine.resting == "asleep"
        for state, value in (("awake", not asleep), ("weights_offloaded", asleep), ("discard_all", False)):
            labels = f'engine="{engine.rank}",model_name="{model}",sleep_state="{state}"'
            lines.append(f"vllm:engine_sleep_state{{{labels}}} {float(value)}")
    return lines
