"""Families of the caches: what they spare, what they hold, how they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.metrics.families import MetricFamily, Sample, Steps, counter, counters, gauge, gauges, histogram

if TYPE_CHECKING:
    from router.metrics.metrics import Metrics

_EVICTIONS = ("lru", "variants", "manual")
_INVALIDATIONS = ("event", "ttl", "manual", "lru")


def of_caches(metrics: Metrics, now: float) -> Steps:
    """See the module."""
    yield from _tokens(metrics, now)
    yield None
    stats, index = metrics.store(), metrics.core.index
    yield histogram(
        "warmroute_cache_lookup_latency_seconds", "Prefix store and index, for one prompt.", metrics.lookups
    )
    yield histogram(
        "warmroute_cache_storage_latency_seconds", "A batch of events, from the socket into the index; of 1 in 64.",
        metrics.stores,
    )  # fmt: skip
    yield counters("warmroute_prefix_store_lookups_total", "Lookups of prompts.", "result", metrics.prefix_lookups)
    yield gauge("warmroute_prefix_store_entries", "Text blocks kept.", stats.blocks, "sum")
    yield gauge("warmroute_prefix_store_bytes", "Bytes of text blocks and mappings.", stats.nbytes, "sum")
    text = "Faults of the prefix store, done without."
    yield counter("warmroute_prefix_store_failures_total", text, stats.failures)
    yield _evictions(stats.evictions)
    text = "Mappings of prompts to pods given up."
    given_up = dict.fromkeys(_INVALIDATIONS, 0) | stats.invalidations
    yield counters("warmroute_pod_mapping_invalidations_total", text, "reason", given_up)
    yield gauge("warmroute_global_index_size", "Blocks that the index has room taken for.", index.blocks)
    yield counter("warmroute_index_refusals_total", "Blocks for which the index had no room.", index.refusals)
    text = "Blocks given up for other pods' sake."
    yield counters("warmroute_index_evictions_total", text, "reason", {"share": index.evictions})
    yield gauge("warmroute_index_bytes", "Bytes of the index.", index.nbytes, "sum")
    items, nbytes = {"index": index.blocks, "text": stats.blocks}, {"index": index.nbytes, "text": stats.nbytes}
    yield gauges("warmroute_cache_size_items", "Blocks in the index, and text blocks.", "cache", items)
    yield gauges("warmroute_cache_size_bytes", "Of the index, and of the prefix store.", "cache", nbytes, "sum")


def _tokens(metrics: Metrics, now: float) -> Steps:
    ratio = metrics.window.ratio(now)
    yield gauge("warmroute_cache_hit_ratio", "Share of prompt tokens that pods had cached, last minute.", ratio)
    yield gauge("warmroute_cache_miss_ratio", "Share of prompt tokens that pods computed, last minute.", 1 - ratio)
    predicted = "Cached tokens that were predicted at decisions."
    yield counter("warmroute_predicted_cached_tokens_total", predicted, metrics.predicted_tokens)
    yield counter("warmroute_actual_cached_tokens_total", "Cached tokens, as pods reported.", metrics.actual_tokens)
    text = "Cached tokens that some pod could have served: the longest that any held."
    yield counter("warmroute_reachable_cached_tokens_total", text, metrics.reachable_tokens)
    yield counter(
        "warmroute_captured_cached_tokens_total", "Of these, what the picked pods held.", metrics.captured_tokens
    )
    yield counters(
        "warmroute_missed_tokens_total", "Prompt tokens that were computed, by why.", "cause", metrics.missed_tokens
    )
    text = "Predicted against reported cached tokens."
    yield histogram("warmroute_prediction_error_tokens", text, metrics.errors)


def _evictions(text_blocks: Mapping[str, int]) -> MetricFamily:
    name, counts = "warmroute_cache_evictions_total", dict.fromkeys(_EVICTIONS, 0) | dict(text_blocks)
    samples: list[Sample] = [(f'{name}{{cache="text",reason="{reason}"}}', count) for reason, count in counts.items()]
    return MetricFamily(name, "counter", "Entries given up.", "sum", samples)
