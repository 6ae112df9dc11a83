"""What a worker counts, told so that it never falls: who takes the seat of a worker that died goes on where it was.

A counter that falls looks to Prometheus as if all of it had been counted anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.core import CounterMetricFamily, Metric

from router.workers.merging import Family, counters_of, families_of, gauges_of, merged
from router.workers.worker import Seat

_RESTARTS = "warmroute_worker_restarts"


class Counts:
    """The series of one worker. `collect` gives those of the process, `window` its last minute's tokens."""

    def __init__(
        self, seat: Seat, collect: Callable[[], Iterable[Metric]], window: Callable[[], tuple[int, int]]
    ) -> None:
        self._life = seat.life
        self._collect = collect
        self._window = window
        self._file = seat.counts(seat.number)
        self._before = [family for family in kept(self._file) if family[0] != _RESTARTS]

    def told(self) -> dict[str, Any]:
        """As JSON: the families, and (cached, asked) tokens of the last minute. The counters are kept before."""
        restarts = CounterMetricFamily(_RESTARTS, "Workers that died and were started again.")
        restarts.add_metric((), self._life)
        families = families_of([*self._collect(), restarts])
        counters = merged([counters_of(families), self._before])
        _keep(self._file, counters)
        return {"families": gauges_of(families) + counters, "window": self._window()}


def kept(file: Path) -> list[Family]:
    """The counters that a worker has told last; none if it has told none."""
    with contextlib.suppress(OSError, orjson.JSONDecodeError):
        families: list[Family] = orjson.loads(file.read_bytes())
        return families
    return []


def _keep(file: Path, families: list[Family]) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(orjson.dumps(families))
    os.replace(new, file)
