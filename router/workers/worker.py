"""Which of a host's workers this process is, and what they have in common."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from router.config.gateway import GatewayConfig
from router.config.settings import Config
from router.config.values import Section
from scorer.board import Board, row_of

_S = TypeVar("_S", bound=Section)


@dataclass(slots=True, frozen=True)
class Worker:
    """`folder`: of all workers and nobody else. `memory`: descriptor of what they share. `seed`: of their block keys.

    `life`: how often its place was taken before.
    """

    number: int
    workers: int
    folder: Path
    memory: int
    seed: int
    life: int = 0

    def socket(self, number: int) -> Path:
        """Where a worker answers the others."""
        return self.folder / f"worker-{number}.sock"

    def counts(self, number: int) -> Path:
        """Where a worker keeps what it has told of its counters: they go on with whoever has its place after it."""
        return self.folder / f"worker-{number}.json"

    def part(self, config: Config) -> Config:
        """The configuration of this worker: of what is bounded over all of them it has its part.

        Requests and prompt tokens in flight are not parted but counted together, over the board.
        """
        gateway, admission, upstream = config.gateway, config.admission, config.upstream
        return _with(
            config,
            gateway=_with(
                gateway,
                connections_max=self._part(gateway.connections_max, 1),
                bodies_max=max(gateway.body_max, self._part(gateway.bodies_max, 1)),
            ),
            admission=_with(
                admission,
                queue_max=self._part(admission.queue_max),
                flow_queue_max=self._part(admission.flow_queue_max, 1),
            ),
            upstream=_with(upstream, retry_floor=self._part(upstream.retry_floor)),
        )

    def _part(self, whole: int, least: int = 0) -> int:
        """Parts of all workers add up to the whole, unless that is less than `least` for each."""
        return max(least, whole // self.workers + (self.number < whole % self.workers))


class Rows(NamedTuple):
    """The memory of the board: rows of the workers, then those of other gateways'. `own`: the row of this worker."""

    memory: memoryview
    workers: int
    own: int
    row: np.dtype[Any]
    guests: int

    @property
    def board(self) -> Board:
        """What the others do."""
        return Board(self.memory, self.workers, self.own, self.row, guests=self.guests)


def row_of_each(gateway: GatewayConfig) -> np.dtype[Any]:
    """What each worker writes."""
    return row_of(gateway.workers_ranks_max, gateway.workers_sendings_max)


def rows_of(config: Config, worker: Worker | None) -> Rows | None:
    """The board's memory; None: nobody else is there whose load could be known."""
    row, guests = row_of_each(config.gateway), config.peers.guests
    if worker is not None:
        size = (worker.workers + guests) * row.itemsize
        return Rows(memoryview(mmap.mmap(worker.memory, size)), worker.workers, worker.number, row, guests)
    return Rows(memoryview(bytearray((1 + guests) * row.itemsize)), 1, 0, row, guests) if guests else None


def _with(section: _S, **changes: object) -> _S:
    return section.model_copy(update=changes)
