"""Families of what vLLM's own /metrics say, of each pod, under one name for all its versions. Pure.

What a pod does not tell has no series. Of these counters none is ours: they fall when a pod is started anew.
"""

from __future__ import annotations

from typing import NamedTuple

from router.core.fleet import Fleet, Pod
from router.metrics.families import MetricFamily, Steps, escaped

_PODS = 16  # in one step
_FIGURES = {
    "running": ("engine_requests_running", "Requests that it computes, as it says."),
    "waiting": ("engine_requests_waiting", "Requests that wait there, as it says."),
    "kv_usage": ("engine_kv_cache_usage_ratio", "Share of its KV cache in use, as it says."),
    "cpu_usage": ("engine_cpu_cache_usage_ratio", "Share of its KV cache in main memory in use, as it says."),
    "preemptions": ("engine_preemptions_total", "Requests that it put back, as it says."),
    "cache_queries": ("engine_prefix_cache_queries_total", "Prompt tokens looked up in its cache, as it says."),
    "cache_hits": ("engine_prefix_cache_hits_total", "Prompt tokens found in its cache, as it says."),
    "external_queries": (
        "engine_external_cache_queries_total", "Prompt tokens looked up in its connector's cache, as it says.",
    ),
    "external_hits": ("engine_external_cache_hits_total", "Prompt tokens found in its connector's cache, as it says."),
    "prompt_tokens": ("engine_prompt_tokens_total", "Prompt tokens, as it says."),
    "prompt_tokens_cached": ("engine_prompt_tokens_cached_total", "Those of them that it had cached, as it says."),
}  # fmt: skip

CACHE_FIGURES = frozenset((
    "kv_usage", "cpu_usage", "cache_queries", "cache_hits", "external_queries", "external_hits", "prompt_tokens",
    "prompt_tokens_cached", "hit_rate",
))  # fmt: skip
"""Of what a pod tells, what is about its caches."""

METHODS = ("prefix_cache_counters", "prompt_token_counters", "hit_rate_gauge", "none")
"""How a pod's own hit ratio is found, in the order in which they are tried."""


class OwnHitRatio(NamedTuple):
    """What a pod says of its cache; `method`: one of `METHODS`."""

    ratio: float | None
    method: str


def own_hit_ratio(pod: Pod) -> OwnHitRatio:
    """Since the pod was started; by counters if there are any, as a gauge of old versions is of an unknown stretch."""
    told = pod.engine
    for method, part, whole in (
        (METHODS[0], "cache_hits", "cache_queries"), (METHODS[1], "prompt_tokens_cached", "prompt_tokens"),
    ):  # fmt: skip
        if part in told and whole in told:
            return OwnHitRatio(told[part] / told[whole] if told[whole] else 0.0, method)
    if "hit_rate" in told:
        return OwnHitRatio(max(0.0, told["hit_rate"]), METHODS[2])  # -1 stands for nothing yet
    return OwnHitRatio(None, METHODS[3])


def of_engines(fleet: Fleet) -> Steps:
    """See the module."""
    families = {
        figure: MetricFamily(
            f"warmroute_{name}", "counter" if name.endswith("_total") else "gauge", text,
            "min" if name.endswith("_total") else "max", [],
        )
        for figure, (name, text) in _FIGURES.items()
    }  # fmt: skip
    text = "Share of prompt tokens that it had cached since its start, as it says, by the method that tells."
    ratios = MetricFamily("warmroute_engine_cache_hit_ratio", "gauge", text, "max", [])
    for place, pod in enumerate(list(fleet.pods.values())):
        if place % _PODS == 0:
            yield None
        told, name = pod.engine, escaped(pod.name)
        if not told:
            continue
        of = f'{{pod="{name}"}}'
        for figure, family in families.items():
            if figure in told:
                family.samples.append((family.name + of, told[figure]))
        ratio, method = own_hit_ratio(pod)
        if ratio is not None:
            ratios.samples.append((f'{ratios.name}{{method="{method}",pod="{name}"}}', ratio))
    yield from families.values()
    yield ratios
