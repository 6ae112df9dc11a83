"""Heirs compute what only a pod that leaves holds, before it goes: the most asked for first, and only who is idle.

`before` is for a pod that is drained on purpose, which is used until then; `begin` for one that was told to end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from router.config.fleet import HandoverConfig
from router.core.decision import Core
from router.core.demand import Placement
from router.handover.estates import Legacy, estates, held_now, tokens_held
from router.handover.idle_pods import IdlePods
from router.handover.recent import Recent
from router.metrics.families import Steps, counter, counters, gauge
from router.server.long_answers import in_turns

log = logging.getLogger("warmroute.handover")

_THEIR_FAULT = 500  # from this status on, it is the pod's
_PAUSE_S = 0.02  # between two looks at whether somebody is idle


@dataclass(slots=True)
class Handed:
    """What became of one pod's legacy: prompts and tokens in all, and of the prompts those that heirs have computed,
    those that need not be any more, and those of which the computing failed."""

    prompts: int = 0
    tokens: int = 0
    done: int = 0
    needless: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class _Leaver:
    """One pod on its way out."""

    task: asyncio.Task[None]
    handed: Handed


@dataclass(slots=True, eq=False)
class _Estate:
    """What of one is still to be handed over. `broken`: pods that failed at it; `again`: at what."""

    queue: deque[Legacy]
    broken: set[str] = field(default_factory=set)
    again: list[Legacy] = field(default_factory=list)

    def failed(self, legacy: Legacy, pod: str) -> None:
        """That pod is asked no more, and another one inherits: once, as it may be the legacy that breaks them."""
        self.broken.add(pod)
        if all(legacy is not one for one in self.again):
            self.again.append(legacy)
            self.queue.append(legacy)


class Handover:
    """See the module. `recent`: what it works from."""

    def __init__(
        self,
        core: Core,
        idle: IdlePods,
        given: HandoverConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recent = Recent(given.kept_max, given.body_max, given.half_life)
        self._core = core
        self._idle = idle
        self._given = given
        self._clock = clock
        self._leavers: dict[str, _Leaver] = {}
        self._ending: set[asyncio.Task[None]] = set()  # of pods that are gone
        self._counts = {"done": 0, "needless": 0, "failed": 0, "late": 0}
        self._tokens = 0

    def begin(self, name: str) -> None:
        """A pod leaves: have others compute what it alone holds; once for each time that it leaves."""
        if name in self._leavers or not len(self.recent):
            return
        handed = Handed()
        task = asyncio.get_running_loop().create_task(self._hand_over(name, handed))
        self._leavers[name] = _Leaver(task, handed)

    async def before(self, name: str, wait_s: float) -> Handed | None:
        """The same, and wait for it, for `wait_s` at most: then it goes on by itself. None: it was called off."""
        self.begin(name)
        leaver = self._leavers.get(name)
        if leaver is None:
            return Handed()
        if wait_s > 0:
            await asyncio.wait([leaver.task], timeout=wait_s)
        return replace(leaver.handed) if self._leavers.get(name) is leaver else None

    def stays(self, name: str) -> None:
        """It does not leave after all."""
        leaver = self._leavers.pop(name, None)
        if leaver is not None:
            leaver.task.cancel()

    def left(self, name: str) -> None:
        """It is gone: heirs go on, and whoever comes under its name may leave in turn."""
        leaver = self._leavers.pop(name, None)
        if leaver is not None and not leaver.task.done():
            self._ending.add(leaver.task)
            leaver.task.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        tasks = [*self._ending, *(leaver.task for leaver in self._leavers.values())]
        self._leavers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def collect(self) -> Steps:
        """Its families."""
        text = "Prompts of pods that left, by what became of them."
        yield counters("warmroute_handover_prompts_total", text, "result", self._counts)
        yield counter("warmroute_handover_tokens_total", "Tokens that heirs have computed.", self._tokens)
        yield gauge("warmroute_recent_bytes", "Of requests of late that are kept.", self.recent.nbytes)

    async def _hand_over(self, name: str, handed: Handed) -> None:
        until = self._clock() + self._given.patience
        held = await in_turns(held_now(self._core, self.recent, self._clock()))
        each = await in_turns(estates(held, self._out - {name}))
        legacies = self._chosen(each[name].dearest()) if name in each else []
        handed.prompts, handed.tokens = len(legacies), sum(legacy.own_tokens for legacy in legacies)
        estate, sending = _Estate(deque(legacies)), set[asyncio.Task[None]]()
        queue = estate.queue
        try:
            while (queue or sending) and self._clock() < until:
                while queue and (heirs := self._idle.names().difference(self._leavers, estate.broken)):
                    legacy = queue.popleft()
                    placement = self._place(name, legacy, heirs)
                    if placement is None:
                        handed.needless += 1
                        self._counts["needless"] += 1
                        continue
                    computing = self._compute(legacy, placement, handed, estate)
                    sending.add(asyncio.get_running_loop().create_task(computing))
                if sending:
                    _, sending = await asyncio.wait(sending, timeout=_PAUSE_S, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(_PAUSE_S)
        finally:
            self._counts["late"] += len(queue)
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
        if legacies:
            log.info(
                "%s: of %d prompts that it alone held, heirs have %d",
                name,
                handed.prompts,
                handed.done + handed.needless,
            )

    @property
    def _out(self) -> set[str]:
        """Who is on the way out, and inherits nothing."""
        return {name for name, pod in self._core.fleet.pods.items() if pod.draining or pod.leaving}

    def _chosen(self, legacies: list[Legacy]) -> list[Legacy]:
        """As many as heirs have room for, beside what is their own."""
        given, room, chosen = self._given, 0.0, list[Legacy]()
        for pod in self._core.fleet.pods.values():
            if pod.name not in self._leavers and not (pod.draining or pod.leaving):
                blocks = pod.blocks if pod.blocks is not None else float("inf")
                room += given.room_share * sum(blocks * (rank.block_size or 0) for rank in pod.ranks)
        for legacy in legacies:
            if legacy.own_tokens >= given.tokens_min and legacy.own_tokens <= room and len(chosen) < given.prompts_max:
                room -= legacy.own_tokens
                chosen.append(legacy)
        return chosen

    def _place(self, name: str, legacy: Legacy, heirs: frozenset[str]) -> Placement | None:
        """Pick the heir as if it was a request; None where somebody else holds it by now, or nobody may have it."""
        held = tokens_held(self._core, legacy.asked.demand, self._clock())
        out = self._out | {name}
        if (
            max((tokens for pod, tokens in held.items() if pod not in out), default=0) + self._given.tokens_min
            > legacy.end
        ):
            return None
        return self._idle.place(legacy.asked.demand, heirs)

    async def _compute(self, legacy: Legacy, placement: Placement, handed: Handed, estate: _Estate) -> None:
        """Have an heir compute it."""
        end = await self._idle.compute(legacy.asked.path, legacy.asked.body, placement)
        fine = end.is_done
        handed.done, handed.failed = handed.done + fine, handed.failed + (not fine)
        self._counts["done" if fine else "failed"] += 1
        if fine:
            self._tokens += legacy.own_tokens
        elif end.status is None or end.status >= _THEIR_FAULT:
            estate.failed(legacy, placement.pod.name)
