"""Which of a host's workers this process is, and what they have in common."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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

    def board(self, gateway: GatewayConfig) -> Board:
        """What the others do."""
        row = row_of(gateway.workers_ranks_max, gateway.workers_sendings_max)
        memory = mmap.mmap(self.memory, self.workers * row.itemsize)
        return Board(memoryview(memory), self.workers, self.number, row)

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


def _with(section: _S, **changes: object) -> _S:
    return section.model_copy(update=changes)
