"""What /metrics costs: a scrape of many pods, in how long slices, and that of several workers made one.

    python -m benchmarks.scrape [--pods 256] [--workers 4] [--rounds 30]

CPU ms beside prometheus_client's own writing of the same samples in the same run. A slice is what runs between two
turns of the event loop; the best of the rounds is told, as another process beside only adds to it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from router.metrics.families import MetricFamily, labels_of, text_of
from router.metrics.metrics import Metrics
from router.server.long_answers import at_once, in_turns
from router.workers.merging import Heads, as_lines, families_of, merged, read
from tests.fakes.cores import MODEL, core_of
from tests.fakes.prefix_stats import no_stats

_FIGURES = (
    "running waiting kv_usage preemptions cache_queries cache_hits external_queries external_hits prompt_tokens "
    "prompt_tokens_cached"
).split()


class _Written(Collector):
    """The same families, for prometheus_client."""

    def __init__(self, families: list[MetricFamily]) -> None:
        self._metrics = []
        for family in families:
            metric = Metric(family.name.removesuffix("_total"), family.text, family.kind)
            metric.samples = [Sample(s.partition("{")[0], labels_of(s), value) for s, value in family.samples]
            self._metrics.append(metric)

    def collect(self) -> list[Metric]:
        return self._metrics


def metrics_of(pods: int) -> Metrics:
    """A gateway with so many pods, all of which have served and told."""
    core = core_of(pods, index={"blocks_max": 10_000, "pods_max": max(512, pods)})
    metrics = Metrics(core, no_stats)
    for pod in core.fleet.pods.values():
        pod.engine = dict.fromkeys(_FIGURES, 123.5)
        for code in (200, 503):
            metrics.count(MODEL, pod.name, code)
    return metrics


async def spent(work: Callable[[], Coroutine[Any, Any, bytes]], rounds: int) -> tuple[float, float]:
    """CPU ms of it, and of its longest slice."""
    whole, longest = [], []
    for _ in range(rounds):
        gc.collect()
        slices: list[float] = []
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        async def measured(slices: list[float], done: asyncio.Event) -> None:
            await work()
            done.set()

        task = loop.create_task(measured(slices, done))
        while not done.is_set():
            began = time.process_time()
            await asyncio.sleep(0)
            slices.append(time.process_time() - began)
        await task
        whole.append(sum(slices))
        longest.append(max(slices))
    return min(whole) * 1e3, min(longest) * 1e3


async def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=256)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    metrics = metrics_of(given.pods)
    families = at_once(families_of(metrics.steps()))
    told = at_once(as_lines(families))
    written = _Written(families)

    async def theirs() -> bytes:
        return generate_latest(written)

    async def of_workers() -> bytes:
        heads: Heads = {}
        workers = [await in_turns(read(told, heads)) for _ in range(given.workers)]
        return await in_turns(text_of(await in_turns(merged(workers, 0.5))))

    gc.disable()
    scrape = await spent(metrics.scrape, given.rounds)
    reference = await spent(theirs, given.rounds)
    together = await spent(of_workers, given.rounds)
    lines = metrics.text().count(b"\n")
    print(f"{given.pods} pods, {lines} lines; CPU ms, and of the longest slice")
    for name, (whole, longest) in {
        "scrape": scrape, f"of {given.workers} workers, as one": together, "prometheus_client": reference,
    }.items():  # fmt: skip
        print(f"  {name:<24} {whole:6.1f} {longest:6.2f}   {whole / reference[0]:5.2f} x")


if __name__ == "__main__":
    asyncio.run(main())
