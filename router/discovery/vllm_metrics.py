"""A pod's /metrics -> the figures that we know, by names of all vLLM versions. Pure; what is absent stays absent."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import isfinite

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_NAME = re.compile(r"[^{ ]+")

_SUMS = {  # over engines
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_queries_total": "cache_queries",
    "vllm:prefix_cache_hits_total": "cache_hits",
    "vllm:external_prefix_cache_queries_total": "external_queries",
    "vllm:external_prefix_cache_hits_total": "external_hits",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:prompt_tokens_cached_total": "prompt_tokens_cached",
}
_LARGEST = {
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:kv_offload_cpu_cache_usage_perc": "cpu_usage",
    "vllm:gpu_prefix_cache_hit_rate": "hit_rate",
    "process_start_time_seconds": "started",
}
_OLD = {  # read only where the newer name is absent: some versions have both
    "vllm:gpu_cache_usage_perc": "vllm:kv_cache_usage_perc",
    "vllm:cpu_cache_usage_perc": "vllm:kv_offload_cpu_cache_usage_perc",
    "vllm:gpu_prefix_cache_queries_total": "vllm:prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_hits_total": "vllm:prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_queries": "vllm:prefix_cache_queries_total",  # of clients that add no ending
    "vllm:gpu_prefix_cache_hits": "vllm:prefix_cache_hits_total",
}
_CONFIG = "vllm:cache_config_info"
_LORA = "vllm:lora_requests_info"
_SLEEP = "vllm:engine_sleep_state"  # a series for each state of each engine
_DRAFTER = "vllm:spec_decode_"  # its series are there exactly where there is a drafter, of whatever kind


def parse_metrics(text: str) -> dict[str, float]:
    """Of all engines: running, waiting, preemptions, prompt_tokens and prompt_tokens_cached, cache_queries, cache_hits
    (tokens; external_… of a connector's cache) summed; kv_usage and cpu_usage (0 to 1) of the fullest, hit_rate of the
    best (a gauge of vLLM before its V1 engine); started (seconds since the epoch); block_size and blocks of one;
    lora_max, lora_running, lora_waiting; awake (1: every engine is, 0: one sleeps); drafter (1 if there is one); caches
    (0 if it caches no prefixes).
    """
    return read_metrics(text)[0]


def read_metrics(text: str) -> tuple[dict[str, float], dict[str, str]]:
    """The same, and the names by which the pod told what has had several; `adapters`: those that it runs now."""
    samples = _samples(text)
    names = {name: name for name in samples}
    for old, name in _OLD.items():
        if old in samples and name not in samples:
            samples[name], names[name] = samples[old], old
    figures = {figure: sum(v for _, v in samples[name]) for name, figure in _SUMS.items() if name in samples}
    figures |= {figure: max(v for _, v in samples[name]) for name, figure in _LARGEST.items() if name in samples}
    told_as = {figure: names[name] for name, figure in (_SUMS | _LARGEST).items() if name in samples}
    for labels, _ in samples.get(_CONFIG, ()):
        figures |= _numbers(labels, {"block_size": "block_size", "num_gpu_blocks": "blocks"})
        caches = dict(_LABEL.findall(labels)).get("enable_prefix_caching", "")
        figures |= {"caches": 0.0} if caches.lower() in ("false", "0") else {}
    awake = [value for line, value in samples.get(_SLEEP, ()) if 'sleep_state="awake"' in line]
    if awake:
        figures["awake"] = min(awake)
    if f"\n{_DRAFTER}" in f"\n{text}":
        figures["drafter"] = 1.0
    if _LORA in samples:  # a series for every state that there was; its value is when
        newest = max(samples[_LORA], key=lambda sample: sample[1])[0]
        figures |= _loras(newest)
        told_as["adapters"] = dict(_LABEL.findall(newest)).get("running_lora_adapters", "")
    return figures, told_as


def _samples(text: str) -> dict[str, list[tuple[str, float]]]:
    """The labels and values of the series that we know, by name."""
    known = {*_SUMS, *_LARGEST, *_OLD, _CONFIG, _LORA, _SLEEP}
    samples: dict[str, list[tuple[str, float]]] = {}
    for line in text.splitlines():
        name = _NAME.match(line)
        if name is None or name[0] not in known:
            continue
        try:
            value = float(line.rsplit(" ", 1)[1])
        except (ValueError, IndexError):
            continue
        if isfinite(value):
            samples.setdefault(name[0], []).append((line, value))
    return samples


def _numbers(line: str, wanted: dict[str, str]) -> dict[str, float]:
    labels, numbers = dict(_LABEL.findall(line)), {}
    for label, figure in wanted.items():
        try:
            value = float(labels[label])
        except (KeyError, ValueError):
            continue
        if isfinite(value):
            numbers[figure] = value
    return numbers


def _loras(line: str) -> dict[str, float]:
    labels = dict(_LABEL.findall(line))
    counts = {
        "lora_running": _count(labels.get("running_lora_adapters", "").split(",")),
        "lora_waiting": _count(labels.get("waiting_lora_adapters", "").split(",")),
    }
    return _numbers(line, {"max_lora": "lora_max"}) | counts


def _count(names: Iterable[str]) -> float:
    return float(sum(bool(name.strip()) for name in names))
