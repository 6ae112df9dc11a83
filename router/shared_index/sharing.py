"""The shared index in a running gateway: one task that writes, questions before decisions, and what is seen of both.

Redis may go and come at any time. While it is away requests are routed by what is known here: after `_FAILURES_MAX`
questions in a row without an answer, none is asked until the task has spoken with Redis again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from indexer.blocks import Grain, Keys, KeySpace
from indexer.match import Hit
from router.config.index import RedisConfig
from router.core.decision import Core
from router.core.demand import Demand
from router.core.fleet import RankId
from router.metrics.families import Steps, counters, gauge
from router.shared_index.mirror import Mirror, Write, named
from router.shared_index.redis_index import RedisError, SharedIndex, SharedLimits

log = logging.getLogger("warmroute.shared")

_ROUND_S = 0.01  # between two batches
_LOOK_S = 0.1  # between two looks at whose knowledge is exact
_RENEWALS = 4  # in one lease
_RECONNECT_S = 0.5
_CANCEL_S = 0.1
_FAILURES_MAX = 3
_PODS_MAX = 512  # asked for at once


class Sharing:
    """See the module. `up`: the task spoke with Redis not long ago, and questions are answered."""

    def __init__(
        self, given: RedisConfig, core: Core, owner: str, reseeded: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        """`owner`: unique among all gateways. `reseeded` is called when all block keys have changed."""
        assert given.url is not None
        self.counts: Counter[str] = Counter(answered=0, timeout=0, error=0, refused=0)
        self._limits = SharedLimits.of(given)
        self._index = SharedIndex(given.url.get_secret_value(), given.key_prefix, owner, self._limits)
        self._mirror = Mirror(core.index, core.fleet, given.queue_max, given.block_ttl)
        self._given = given
        self._core = core
        self._reseeded = reseeded
        self._clock = clock
        self._connected = False
        self._failures = 0  # questions in a row
        self._reason: str | None = "not connected yet"
        self._run_id: str | None = None
        self._unsent: list[Write] = []
        self._unsure: dict[RankId, str] = {}
        self._look_at = self._renew_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._questions: set[asyncio.Task[Any]] = set()

    @property
    def up(self) -> bool:
        return self._connected and self._failures < _FAILURES_MAX

    async def start(self) -> None:
        """Have the common seed before anything is indexed, if Redis is there; then keep in touch with it."""
        try:
            async with asyncio.timeout(2 * self._given.timeout):
                await self._connect()
        except (RedisError, OSError) as error:
            self._went_away(error)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Leave: other gateways may take our pods at once."""
        tasks: set[asyncio.Task[Any]] = {*self._questions, *([self._task] if self._task is not None else [])}
        while tasks:  # more than once: before Python 3.12 `wait_for` may swallow a cancellation, and redis-py uses it
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=_CANCEL_S)
        try:
            async with asyncio.timeout(self._given.timeout):
                if self._connected:
                    names = {named(rank.id) for rank in self._core.fleet.ranks}  # some may be taken, and not ours yet
                    await self._index.drop([*names.union(self._mirror.names)])
                await self._index.aclose()
        except Exception as error:  # the leases end by themselves
            log.debug("leaving: %r", error)

    async def hits(self, demand: Demand) -> dict[RankId, Hit] | None:
        """What others know of ranks that are not known exactly here; None: nothing, or not by the deadline."""
        if not self._unsure or not self.up:
            return None
        asked = self._asked(demand)
        if not asked:
            return None
        if len(self._questions) >= self._limits.questions_max:
            self.counts["refused"] += 1
            return None
        question = asyncio.get_running_loop().create_task(self._answer(asked))
        self._questions.add(question)
        question.add_done_callback(self._questions.discard)
        # Not cancelled: it may be opening a connection, for which the deadline is too short.
        await asyncio.wait([question], timeout=self._given.deadline)
        hits = question.result() if question.done() else None
        if hits is None:
            self._failed("error" if question.done() else "timeout")
            return None
        self.counts["answered"] += 1
        self._failures = 0
        return hits

    def status(self) -> dict[str, Any]:
        """For `/cache/status`."""
        return {
            "up": self.up,
            "reason": None if self.up else self._reason or "questions are not answered in time",
            "written_pods": len(self._mirror.owned),
            "complete_pods": self._mirror.complete,
            "asked_pods": sorted(self._unsure.values()),
            "questions": dict(self.counts),
            "written": {**self._mirror.counts, "dropped": self._mirror.dropped},
        }

    def collect(self) -> Steps:
        """Its families."""
        up, pods = "1: the shared index is there, and answers.", "Pods (ranks) whose state this gateway writes."
        yield gauge("warmroute_shared_index_up", up, int(self.up), "min")
        yield gauge("warmroute_shared_index_written_pods", pods, len(self._mirror.owned), "sum")
        text = "Prompts that the shared index was asked for."
        yield counters("warmroute_shared_index_questions_total", text, "result", self.counts)
        mirrored = self._mirror.counts
        blocks = {"written": mirrored["blocks"], "refused": mirrored["refused"], "dropped": self._mirror.dropped}
        text = "Changed blocks, by what became of them."
        yield counters("warmroute_shared_index_blocks_total", text, "result", blocks)

    # --- asking ---

    def _asked(self, demand: Demand) -> list[tuple[Keys, list[RankId]]]:
        """Which of the candidates are to be asked for, by the keys that they have of the prompt."""
        asked: dict[tuple[Demand, Grain], list[RankId]] = {}
        count = 0
        for rank in self._core.fleet.serving(demand.model) if demand.keys else ():
            theirs, grain = demand.of(rank), rank.grain or 0
            if rank.id not in self._unsure or grain not in theirs.keys:
                continue
            if demand.pods is None or rank.id.pod in demand.pods:
                asked.setdefault((theirs, grain), []).append(rank.id)
                count += 1
                if count == _PODS_MAX:
                    break
        return [(theirs.keys[grain], ranks) for (theirs, grain), ranks in asked.items()]

    async def _answer(self, asked: Sequence[tuple[Keys, list[RankId]]]) -> dict[RankId, Hit] | None:
        """The hits; None if Redis does not give them: whatever fails there must not cost a request."""
        found: dict[RankId, Hit] = {}
        try:
            for keys, ranks in asked:
                names = {named(rank): rank for rank in ranks}
                hits = await self._index.match(keys, list(names))
                found.update((rank, hits[name]) for name, rank in names.items() if name in hits)
        except Exception as error:
            log.debug("not answered: %r", error)
            return None
        return found

    def _failed(self, result: str) -> None:
        self.counts[result] += 1
        self._failures += 1
        if self._failures == _FAILURES_MAX:
            log.warning("the shared index does not answer in time: it is not asked for now")

    # --- the task ---

    async def _run(self) -> None:
        while True:
            try:
                if not self._connected:
                    await self._connect()
                await self._round()
                await asyncio.sleep(_ROUND_S)
            except Exception as error:  # whatever it is: requests go on, and it is tried again
                self._went_away(error)
                await asyncio.sleep(_RECONNECT_S * random.uniform(0.5, 1.5))

    async def _connect(self) -> None:
        run_id = await self._index.connect()
        if run_id != self._run_id:  # another process: it may have lost what the one before knew
            self._leave(list(self._mirror.owned))
        await self._share_seed()
        self._run_id, self._connected, self._failures = run_id, True, 0
        if self._reason is not None:
            log.info("the shared index is there")
        self._reason = None
        self._renew_at = 0.0

    async def _share_seed(self) -> None:
        """Have the keys that all gateways have."""
        space: KeySpace = self._core.space
        seed = await self._index.seed(space.seed)
        if seed != space.seed:
            log.info("block keys are those of the other gateways from now on")
            self._leave(list(self._mirror.owned))
            space.reseed(seed)
            self._reseeded()

    def _leave(self, pods: Sequence[RankId]) -> None:
        """Write these no more, not even what was not sent yet."""
        self._mirror.disown(pods)
        names = {named(pod) for pod in pods}
        self._unsent = [write for write in self._unsent if write.pod not in names]

    def _went_away(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if self._connected or self._reason != reason:
            log.warning("the shared index is away, requests go on without it: %s", reason)
        self._connected, self._reason = False, reason

    async def _round(self) -> None:
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._look()
        if now >= self._renew_at:
            self._renew_at = now + self._given.lease / _RENEWALS
            await self._renew()
        if not self._unsent:
            self._unsent = self._mirror.collect(self._clock())
        if self._unsent:
            results = await self._index.write(self._unsent)
            writes, self._unsent = self._unsent, []
            self._mirror.sent(writes, results)

    def _look(self) -> None:
        """Whose own knowledge is not exact? They are asked for."""
        ranks = self._core.fleet.ranks
        self._unsure = {rank.id: named(rank.id) for rank in ranks if rank.state != "exact"}

    async def _renew(self) -> None:
        """Own what nobody owns and we know exactly; leave what we don't. It is also a proof that Redis is there."""
        await self._share_seed()  # Redis may have lost it
        wanted, kept, left = self._mirror.sort()
        self._leave(left)
        await self._index.drop([named(pod) for pod in left])
        renewed = await self._index.renew([named(pod) for pod in kept])
        self._leave([pod for pod, still in zip(kept, renewed, strict=True) if not still])
        taken = await self._index.take([named(pod) for pod in wanted])
        for pod, ours in zip(wanted, taken, strict=True):
            if ours:
                self._mirror.own(pod)
        self._failures = 0
