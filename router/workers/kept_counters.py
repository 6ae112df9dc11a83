"""What a worker counts, told so that it never falls: who takes the place of a worker that died goes on where it was.

A counter that falls looks to Prometheus as if all of it had been counted anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from itertools import chain
from pathlib import Path

import orjson

from router.metrics.families import Steps, counter, labels_of
from router.metrics.metrics import Departures
from router.server.long_answers import at_once
from router.workers.merging import Columns, as_lines, columns_of, counters_of, families_of, gauges_of, merged, read
from router.workers.worker import Worker

_RESTARTS = "warmroute_worker_restarts_total"


class Counts:
    """The series of one worker. `collect` gives those of the process, `departures` says which names' series end."""

    def __init__(self, worker: Worker, collect: Callable[[], Steps], departures: Departures) -> None:
        self._life = worker.life
        self._collect = collect
        self._departures = departures
        self._file = worker.counts(worker.number)
        self._before = [each for each in at_once(kept(self._file)) if each.family.name != _RESTARTS]

    def told(self, now: float) -> Generator[None, None, bytes]:
        """The families, as `merging.as_lines` has them; the counters are kept before."""
        restarts = counter(_RESTARTS, "Workers that died and were started again.", self._life)
        families = yield from families_of(chain(self._collect(), [restarts]))
        yield from self._end_departed(now)
        counters = yield from merged([[columns_of(each) for each in counters_of(families)], list(self._before)])
        lines = yield from as_lines(counters)
        _keep(self._file, lines)
        gauges = yield from as_lines(gauges_of(families))
        return gauges + b"\n" + lines

    def _end_departed(self, now: float) -> Generator[None, None, None]:
        """Of former lives as of this one: the series of pods and models that left long ago end."""
        lasting: list[Columns] = []
        for family, *columns in self._before:
            samples = [each for each in zip(*columns, strict=True) if not self._is_over(each[0], now)]
            lasting.append(columns_of(family._replace(samples=samples)))
            yield
        self._before = lasting
        self._departures.forget(now)

    def _is_over(self, series: str, now: float) -> bool:
        if "{" not in series:
            return False
        labels = labels_of(series)
        return any(self._departures.is_over(labels.get(label, ""), now) for label in ("pod", "model"))


def kept(file: Path) -> Generator[None, None, list[Columns]]:
    """The counters that a worker has told last; none if it has told none."""
    with contextlib.suppress(OSError, orjson.JSONDecodeError, TypeError, ValueError):
        families = yield from read(file.read_bytes())
        return families
    return []


def _keep(file: Path, lines: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(lines)
    os.replace(new, file)
