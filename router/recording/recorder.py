"""The recorder of one process: requests that are over wait in memory for a moment, and go to disk in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from itertools import count
from typing import NamedTuple

from indexer.blocks import Keys
from router.config.settings import RecordConfig
from router.core.decision import Core
from router.core.demand import Demand
from router.metrics.families import Steps, counters
from router.plan.recording import Entry, RecordedFleet, RecordedPod, ids_of, line_of
from router.recording.log_file import LogFile

log = logging.getLogger("warmroute.recording")

_WRITE_S = 1.0  # between two batches
_BATCH = 2_000  # requests of a batch: their lines are some MB
_FLEET_S = (2.0, 60.0)  # between two lines with what is known of the pods: at first, and at most
_USUAL_TOKEN_BYTES = {True: 200.0, False: 5.0}  # of an answer that is streamed, or comes whole, before any was seen
_TURN = 0.05  # of one answer, in what is their mean


class Ended(NamedTuple):
    """How a request ended. Times are monotonic; `tokens`: of the answer, None where the pod did not say."""

    began: float
    ended: float
    status: int
    pod: str | None = None
    first_at: float | None = None  # its first token; None: that was not seen
    streams: bool = True
    tokens: int | None = None
    bytes_out: int = 0
    cached: int | None = None


class _Noted(NamedTuple):
    keys: Keys
    size: int
    tokens: int
    answer: int
    ended: Ended


class Recorder:
    """See the module. More than `queue_max` that wait are dropped, and counted."""

    def __init__(self, given: RecordConfig, core: Core, policy: str) -> None:
        """`given.path` is one."""
        assert given.path is not None
        self.written = 0
        self.dropped = 0
        self._core = core
        self._policy = policy
        self._queue_max = given.queue_max
        self._file = LogFile(given.path, given.size_max)
        self._waiting: deque[_Noted] = deque()
        self._numbers = count(time.time_ns())
        self._epoch_s = time.time() - time.monotonic()
        self._token_bytes = dict(_USUAL_TOKEN_BYTES)
        self._fleet_at = float("-inf")  # when the next one tells it
        self._fleet_s = _FLEET_S[0]
        self._failed = False
        self._task: asyncio.Task[None] | None = None

    def note(self, demand: Demand, ended: Ended) -> None:
        """A request is over. One whose prompt is not known is nothing to plan for."""
        blocks = demand.blocks
        if blocks is None:
            return
        if len(self._waiting) >= self._queue_max:
            self.dropped += 1
            return
        self._waiting.append(_Noted(*blocks, demand.tokens + demand.further, self._answer(ended), ended))

    async def start(self) -> None:
        """Write, from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """All that was noted is written."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while self._waiting:
            await self._write()
        self._file.close()

    def collect(self) -> Steps:
        """What was written, and what was not."""
        text = "Requests that were to be written down."
        counts = {"written": self.written, "dropped": self.dropped}
        yield counters("warmroute_recorded_requests_total", text, "result", counts)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_S)
            while self._waiting:
                await self._write()

    async def _write(self) -> None:
        """One batch. What can't be written is dropped: the log says so when it begins."""
        batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
        now = time.monotonic()
        fleet = self._fleet() if now >= self._fleet_at else None
        try:
            new = await asyncio.shield(asyncio.to_thread(self._append, batch, fleet))
        except OSError as error:
            self.dropped += len(batch)
            if not self._failed:
                log.warning("%s can't be written: %s", self._file.path, error.strerror)
            self._failed = True
            return
        self.written += len(batch)
        self._failed = False
        if fleet is not None:
            self._fleet_at = now + self._fleet_s
            self._fleet_s = min(_FLEET_S[1], 2 * self._fleet_s)
        elif new:
            self._fleet_at = now  # the next one says it here, too

    def _append(self, batch: list[_Noted], fleet: RecordedFleet | None) -> bool:
        lines = []
        for noted in batch:
            lines.append(line_of(self._entry(noted), fleet))
            fleet = None
        return self._file.append(b"".join(lines))

    def _entry(self, noted: _Noted) -> Entry:
        ended, tokens = noted.ended, noted.tokens
        ids = ids_of(noted.keys, noted.size, tokens, next(self._numbers))
        return Entry(
            at_ms=round((ended.began + self._epoch_s) * 1e3),
            tokens=tokens,
            answer=noted.answer,
            blocks=ids,
            pod=ended.pod,
            status=ended.status,
            ttft_s=None if ended.first_at is None else ended.first_at - ended.began,
            took_s=ended.ended - ended.began,
            cached=ended.cached,
        )

    def _answer(self, ended: Ended) -> int:
        """Its tokens: as the pod says, else by its bytes."""
        mean = self._token_bytes[ended.streams]
        if ended.tokens is None:
            return max(1, round(ended.bytes_out / mean))
        if ended.tokens > 0 and ended.bytes_out:
            self._token_bytes[ended.streams] = mean + _TURN * (ended.bytes_out / ended.tokens - mean)
        return max(1, ended.tokens)

    def _fleet(self) -> RecordedFleet:
        """What is known of the pods now."""
        ranks = list(self._core.fleet.ranks)
        rates = [rank.load.rate for rank in ranks]
        sizes = [size for rank in ranks if (size := rank.block_size) is not None]
        pods = [
            RecordedPod(rank.id.pod if len(rank.pod.ranks) == 1 else f"{rank.id.pod}/{rank.id.rank}",
                        rank.capacity, round(rank.load.rate.slowness(), 4))
            for rank in ranks
        ]  # fmt: skip
        fleet = rates[0].fleet if rates else None
        return RecordedFleet(
            pods=pods,
            block_size=max(sizes, default=0),
            base_s=fleet.base_s if fleet is not None else 0.0,
            token_s=fleet.per_token if fleet is not None else 0.0,
            position_s=fleet.per_position if fleet is not None else 0.0,
            policy=self._policy,
        )
