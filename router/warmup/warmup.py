"""Prompts are warmed: made tokens, which the prefix store keeps, and computed by as many pods as should hold them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from indexer.blocks import size_of
from router.config.fleet import WarmupConfig
from router.core.decision import Core
from router.core.demand import Demand, End
from router.core.fleet import Pod
from router.errors import ConfigError, RouterError
from router.handover.estates import tokens_held
from router.handover.idle_pods import IdlePods
from router.tokens.encoder import Encoder
from router.tokens.given import LookupResult
from router.warmup.prompts import WarmPrompt
from router.warmup.sources import read_all

log = logging.getLogger("warmroute.warmup")

_PAUSE_S = 0.02  # between two looks at whether somebody is idle
_LOOK_S = 1.0  # between two looks at whether a pod has joined


@dataclass(slots=True)
class Warmed:
    """What became of one prompt. `known`: how much of its text was tokenized before; `pods`: who holds it, as far as
    known, or was asked to compute it; `computed` and `failed`: how many of them did and did not; `late`: how many more
    should have it, and were not idle in time; `reason`: why its tokens are not known."""

    tokens: int
    known: LookupResult
    pods: list[str] = field(default_factory=list)
    computed: int = 0
    failed: int = 0
    late: int = 0
    reason: str | None = None


class Warmup:
    """See the module."""

    def __init__(
        self,
        core: Core,
        encoder: Encoder,
        idle: IdlePods,
        given: WarmupConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `ConfigError` for files that can't be warmed from."""
        self._core = core
        self._encoder = encoder
        self._idle = idle
        self._given = given
        self._prompts = _prompts(given)
        self._clock = clock

    async def warm(self, path: str, body: bytes, pods: int) -> Warmed:
        """One prompt, as the body of a request; `pods` of them should hold it. Raises `RouterError`."""
        meaning = self._encoder.recalled(path, body)
        if meaning is None:
            prompt = await self._encoder.parsed(path, body)
            if prompt.model is None:
                self._core.fleet.check_unnamed()
            meaning = await self._encoder.understood(path, body, prompt)
        demand = meaning.demand
        self._core.fleet.serving(demand.model)
        warmed = Warmed(demand.tokens, meaning.known, reason=demand.reason)
        if pods and demand.reads_cache:
            await self._compute(path, body, demand, pods, warmed)
        return warmed

    async def run(self, prefills: bool) -> None:
        """Warm what the configuration names, now and whenever a pod joins or is started anew.

        `prefills`: pods compute it, too.
        """
        given, seen = self._given, set[tuple[Pod, object, int]]()
        while self._prompts:
            fit = self._fit()
            if fit - seen:
                await self._warm_all(given.prefill_pods if prefills else 0)
            seen = fit
            await asyncio.sleep(_LOOK_S)

    async def _warm_all(self, pods: int) -> None:
        began, tokens, computed, wrong, model = self._clock(), 0, 0, 0, self._only_model()
        for prompt in self._prompts:
            try:
                warmed = await self.warm(prompt.path, prompt.body(model), pods)
            except RouterError as error:
                wrong += 1
                log.warning("%s: is not warmed: %s", prompt.name, error.message)
                continue
            tokens, computed = tokens + warmed.tokens, computed + warmed.computed
            wrong += bool(warmed.failed or warmed.late)
        log.info(
            "warmed: %d prompts of %d tokens in %.1f s, %d times computed by pods, %d not as wanted",
            len(self._prompts), tokens, self._clock() - began, computed, wrong,
        )  # fmt: skip

    def _fit(self) -> set[tuple[Pod, object, int]]:
        """Pods that are fit, each with what changes when it is started anew: also faster than anybody looks."""
        now, fit = self._clock(), set[tuple[Pod, object, int]]()
        for pod in self._core.fleet.pods.values():
            if pod.fit(now):
                restarts = sum(rank.feed.counts.restart for rank in pod.ranks if rank.feed is not None)
                fit.add((pod, pod.engine.get("started"), restarts))
        return fit

    def _only_model(self) -> str | None:
        """The base model, where there is but one: prompts need not name it."""
        names = [model["id"] for model in self._core.fleet.union_of_models() if not model.get("parent")]
        return names[0] if len(names) == 1 else None

    async def _compute(self, path: str, body: bytes, demand: Demand, pods: int, warmed: Warmed) -> None:
        """By as many pods as do not have it yet, at the same time; each when it is idle."""
        until, holding = self._clock() + self._given.patience, self._holding(demand)
        asked, sending = set(holding), set[asyncio.Task[End]]()
        while len(asked) < pods and self._clock() < until:
            placement = self._idle.place(demand, idle) if (idle := self._idle.names() - asked) else None
            if placement is None:
                if not self._others(demand, asked):
                    break  # all that serve it have it
                await asyncio.sleep(_PAUSE_S)
                continue
            asked.add(placement.pod.name)
            sending.add(asyncio.get_running_loop().create_task(self._idle.compute(path, body, placement)))
        done = [end.is_done for end in await asyncio.gather(*sending)]
        warmed.computed, warmed.failed = sum(done), len(done) - sum(done)
        warmed.late = max(0, min(pods, len(asked | self._others(demand, asked))) - len(asked))
        warmed.pods = sorted(asked)

    def _holding(self, demand: Demand) -> set[str]:
        """Who has it but for a last block."""
        held = tokens_held(self._core, demand, self._clock())
        least = min((len(keys) - 1) * size_of(grain) for grain, keys in demand.keys.items()) if demand.keys else 0
        return {name for name, tokens in held.items() if least > 0 and tokens >= least}

    def _others(self, demand: Demand, asked: set[str]) -> set[str]:
        """Who serves the model, is fit, and was not asked."""
        now = self._clock()
        try:
            return {rank.pod.name for rank in self._core.fleet.serving(demand.model) if rank.pod.fit(now)} - asked
        except RouterError:
            return set()


def _prompts(given: WarmupConfig) -> list[WarmPrompt]:
    try:
        return read_all(given.files, given.delimiter, given.file_max, os.environ)
    except ConfigError as error:
        raise ConfigError(f"warmup.files: {error.message}") from None
