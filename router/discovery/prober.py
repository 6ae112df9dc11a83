"""Probing one pod for as long as it is known: whether it answers, what it serves, whether it rests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import orjson

from router.config.fleet import ProbeConfig
from router.core.cards import card_of, only
from router.core.decision import Core
from router.core.fleet import Pod, Rest
from router.discovery.prefills import Prefills
from router.discovery.vllm_metrics import read_metrics
from router.upstream.failures import ConnectFailed, ConnectTimeout, ResponseTimeout, UpstreamError
from router.upstream.pod_client import PodClient

log = logging.getLogger("warmroute.pods")

_JITTER = 0.1  # share of the interval by which probes are spread
_DETAILS_EVERY = 5  # probes between two looks at models, version and metrics of a pod that is known
_WELCOME = (b"/version", b"/metrics", b"/is_sleeping", b"/is_paused")  # of what is asked, not needed


class Prober:
    """See the module. `probed`: there was at least one answer, or one failure."""

    def __init__(
        self,
        core: Core,
        pod: Pod,
        client: PodClient,
        probe: ProbeConfig,
        model: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model`: the only one, with its adapters, that the pod is asked for."""
        self._core = core
        self._pod = pod
        self._client = client
        self._probe = probe
        self._model = model
        self._clock = clock
        self._models_seen: bytes | None = None  # the newest answer that was read
        self._may_rest = False  # it says whether it does
        self._prefills = Prefills()
        self._looks = asyncio.Lock()  # two looks at once would be one too many
        self.probed = asyncio.Event()

    async def run(self) -> None:
        count, before = 0, self._clock()
        while True:
            began = self._clock()
            fine = await self._ask_health()
            if fine and (count % _DETAILS_EVERY == 0 or self._pod.models is None or self._pod.block_size is None):
                fine = await self._ask_details()
            elif fine:
                resting = self._pod.rest is not None  # who waits for it wants to know at once that it is awake
                if self._needs_counters or resting or self._prefills.wanted(self._pod.ranks):
                    await self._ask_metrics()
                if self._may_rest or resting:
                    await self._ask_rest()
            self._note(fine, before)
            self.probed.set()
            count, before = count + 1 if fine else 0, began
            await asyncio.sleep(self._probe.interval * random.uniform(1 - _JITTER, 1 + _JITTER))

    async def look(self) -> bool:
        """Ask now what it serves. False: it did not tell."""
        async with self._looks:
            return await self._ask_models()

    def _note(self, fine: bool, since: float) -> None:
        """A probe is over."""
        pod, fleet = self._pod, self._core.fleet
        was, panicked = pod.healthy, fleet.panics
        fleet.probed(pod, fine, since, self._probe.failures_max)
        if was != pod.healthy:
            log.info("%s is %s", pod.name, "fit" if pod.healthy else f"unfit: {pod.unanswered}")
        if panicked != fleet.panics:
            log.warning("too many pods do not answer probes: %s", "not believed" if fleet.panics else "believed again")

    async def _ask_health(self) -> bool:
        return await self._asked(b"/health") is not None

    async def _ask_details(self) -> bool:
        """Models are needed; the rest is welcome."""
        if not await self.look():
            return False
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = orjson.loads(await self._asked(b"/version") or b"null")["version"]
            self._core.fleet.learned_version(self._pod, said)
        await self._ask_metrics()
        await self._ask_rest()
        return True

    async def _ask_models(self) -> bool:
        body = await self._asked(b"/v1/models")
        if body is None:
            return False
        if body == self._models_seen:
            return True
        try:
            known = [m for m in orjson.loads(body)["data"] if isinstance(m.get("id"), str)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return self._fails(f"/v1/models can't be read: {error or type(error).__name__}")
        if self._model is not None:
            known = self._only(self._model, known)
            if not known:
                return self._fails(f"it does not serve {self._model}, which the configuration says")
        self._models_seen = body
        if self._core.fleet.learned_models(self._pod, known):
            log.info("%s: a name in /v1/models stands for other weights now", self._pod.name)
            self._forget()
        return True

    @staticmethod
    def _only(model: str, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = only(model, map(card_of, known))
        return [each for each in known if each["id"] in names]

    async def _ask_rest(self) -> None:
        """Does it rest? Its metrics tell of sleep, too; a pod that nobody can put to rest answers 404."""
        pod = self._pod
        rest: Rest | None = "asleep" if pod.engine.get("awake") == 0 else None
        asleep = await self._says(b"/is_sleeping", "is_sleeping")
        if asleep is not None:
            self._may_rest = True
            paused = await self._says(b"/is_paused", "is_paused")
            rest = "asleep" if asleep else "paused" if paused else None
        elif self._may_rest:
            return  # it has told before: as it was
        if self._core.fleet.rests(pod, rest):
            log.info("%s is %s", pod.name, rest or "awake again")
            self._forget()

    async def _says(self, path: bytes, name: str) -> bool | None:
        body = await self._asked(path)
        try:
            said = orjson.loads(body or b"null")[name]
        except (ValueError, KeyError, TypeError):
            return None
        return said if type(said) is bool else None

    def _forget(self) -> None:
        """What it held is gone, or stands for something else."""
        for rank in self._pod.ranks:
            if rank.feed is not None:
                rank.feed.forget(why="cleared")
            self._core.index.clear(rank.id)
            self._core.texts.clear(rank.id)

    async def _ask_metrics(self) -> None:
        asked_at = self._clock()
        text = await self._asked(b"/metrics")
        if text is not None:
            self._prefills.looked(self._pod.ranks, text, asked_at)
            figures, self._pod.engine_names = read_metrics(text.decode(errors="replace"))
            if self._core.fleet.measured(self._pod, figures):
                log.info("%s has been started anew", self._pod.name)
                self._may_rest = False

    async def _asked(self, target: bytes) -> bytes | None:
        """The pod's answer, if it is a good one; what is wrong is said once in a row of failures."""
        needed = target not in _WELCOME
        try:
            answer = await self._client.get(target)
        except UpstreamError as error:
            if needed:
                nobody = isinstance(error, ConnectFailed) and not isinstance(error, ConnectTimeout)
                how = "no connection" if nobody else "no answer in time" if _is_late(error) else "a broken answer"
                self._fails(f"{how} to {target.decode()}", f": {error}", listens=not nobody)
            return None
        if answer.fine:
            return answer.body
        if needed:
            self._fails(f"it says {answer.status} to {target.decode()}", listens=False)
        return None

    def _fails(self, how: str, details: str = "", listens: bool | None = None) -> bool:
        """Always False. A probe has failed; said once in a row of failures. `details`: for the log alone."""
        if self._pod.fails(how, listens):
            log.info("%s: %s%s", self._pod.name, how, details)
        return False

    @property
    def _needs_counters(self) -> bool:
        """The pod's counters are all that its feed can be checked by."""
        return not self._pod.evidence.usage and any(rank.feed is not None for rank in self._pod.ranks)


def _is_late(error: UpstreamError) -> bool:
    return isinstance(error, ResponseTimeout | ConnectTimeout)
