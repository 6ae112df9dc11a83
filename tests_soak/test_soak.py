"""An hour of mixed load while pods are killed, stopped, slowed and lied for: nothing hangs, and nothing grows.

`SOAK_MINUTES` makes it shorter. A round is all troubles once, then rest; what the gateway takes at rest is compared.
"""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.fakes.processes import MODEL, GatewayProcess, PodProcess, gateway, pods
from tests_chaos.figures import at_rest, footprint
from tests_chaos.load import DROPPED, HUNG, WRONG, Load
from tests_chaos.settings import PACE, SETTINGS
from tests_chaos.troubles import Span, carry_out, plan
from tests_soak.mixture import Mixture

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
EVERY_S = 7.0  # between two troubles: a pod that was killed is back when its turn comes again
WARM_ROUNDS = 2  # all that fills up in time is full then
MEMORY_SLACK_BYTES = 12 * 2**20  # as large bodies come and go, the allocator keeps more or less of them
TASKS_SLACK = 4
SERIES_SLACK = 60  # codes and reasons that no round before has met
TOLD: dict[str, Any] = {
    **SETTINGS,
    "cacheCleanupInterval": 1,
    "metrics": {"departed_kept": 10},
}


@dataclass(frozen=True, slots=True)
class Taken:
    """What the gateway takes at rest. `series`: lines of /metrics, without those of adapters that are served."""

    memory_bytes: int
    files: int
    tasks: int
    series: int

    def __str__(self) -> str:
        return f"{self.memory_bytes / 2**20:6.1f} MiB, {self.files} files, {self.tasks} tasks, {self.series} series"


async def taken(served: GatewayProcess, fleet: Sequence[PodProcess], files: int) -> Taken:
    """At rest, when the series of who left have ended."""
    at = await at_rest(served, fleet, files)
    await asyncio.sleep(TOLD["metrics"]["departed_kept"] + 3)
    text = (await asyncio.to_thread(served.get, "/metrics")).text
    told = (await asyncio.to_thread(served.get, "/v1/models")).json()["data"]
    adapters = [f'"{model["id"]}"' for model in told if model["id"] != MODEL]  # there are now more of them, now less
    series = sum(not line.startswith("#") and not any(name in line for name in adapters) for line in text.splitlines())
    return Taken(at.memory_bytes, at.open_files, int(served.metric("warmroute_tasks")), series)


def check_flat(rounds: Sequence[Taken]) -> None:
    """What it takes in the last rounds is what it took in the first warm ones. Of files `at_rest` knows: there are as
    many as at the very start."""
    warm = rounds[WARM_ROUNDS - 1 :]
    part = max(1, len(warm) // 4)
    for name, slack in (
        ("memory_bytes", MEMORY_SLACK_BYTES), ("tasks", TASKS_SLACK), ("series", SERIES_SLACK),
    ):  # fmt: skip
        first, last = (median(getattr(one, name) for one in some) for some in (warm[:part], warm[-part:]))
        assert last <= first + slack, (name, [str(one) for one in rounds])


async def test_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every request ends; memory, files, tasks and series are flat."""
    fleet = [PodProcess(f"pod-{number}", PACE) for number in range(4)]
    ends: collections.Counter[str] = collections.Counter()
    mixed: collections.Counter[tuple[str, str]] = collections.Counter()
    spans: list[Span] = []
    rounds: list[Taken] = []
    over = time.monotonic() + 60 * MINUTES
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet], **TOLD) as served:
        files = footprint(served).open_files
        while time.monotonic() < over or len(rounds) <= WARM_ROUNDS:
            seed = len(rounds)
            for pod in fleet:  # whoever is killed comes back with another adapter
                pod.options = (*PACE, "--lora", f"adapter-{seed}")
            load, mixture = Load(served.url, seed), Mixture(served, seed)
            turns = plan(seed, len(fleet))
            await mixture.during(
                lambda load=load, turns=turns: load.during(lambda: carry_out(turns, fleet, spans, EVERY_S))
            )  # type: ignore[misc]
            assert load.sent == len(load.told)
            ends.update(one.end for one in load.told)
            mixed.update(mixture.ends)
            rounds.append(await taken(served, fleet, files))
            with capsys.disabled():
                print(f"\nround {seed}: {rounds[-1]}; {dict(ends)}", flush=True)
        with capsys.disabled():
            print("\n".join(f"{kind:<8} {end:>8} {count:>6}" for (kind, end), count in sorted(mixed.items())))
        assert not [end for end in (HUNG, DROPPED, WRONG) if ends[end]], ends
        assert not [key for key in mixed if key[1] in (HUNG, DROPPED, "500")], mixed
        check_flat(rounds)
        assert "Traceback" not in served.logged()
        served.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(served.process.wait, 15) == 0
