"""Are the token ids that we make the pods' own? Asked of the first requests of each model and version, then of some.

Off the hot path: `offer` puts a prompt into a small queue, `run` asks one at a time. At a difference the pods' ids are
used in place of ours (`TokenizerState.degraded`), until the very prompt that differed does so no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

import numpy as np

from indexer.blocks import Tokens
from router.errors import UnknownModel
from router.fleet import Fleet, Pod, TokenizerState
from router.pod_tokens import AsServed, NotTold, PodTokens, question_of
from router.prompt import Prompt

log = logging.getLogger("warmroute.parity")

_AROUND = 3  # token ids shown on either side of the first that differs
_VERSIONS_MAX = 100  # of one model; above it (pods that make them up) none is new


class ParityLimits(NamedTuple):
    """How much is compared, and how often."""

    first: int = 8
    """Requests of each model and version of vLLM; 0: none."""
    share: float = 0.001
    """Of the requests after these; 0: none."""
    recheck_interval_s: float = 60.0
    queue_max: int = 8
    """Prompts that wait to be compared; more are not kept."""
    look_interval_s: float = 1.0
    """Between two looks at who serves what, in which version."""


@dataclass(slots=True, eq=False)
class _Watched:
    """One model with a tokenizer here. `due`: comparisons still to be made, by version."""

    names: tuple[str, ...]
    state: TokenizerState
    served: AsServed
    due: dict[str, int] = field(default_factory=dict)
    wanted: bool = False  # some version that a fit pod has is due
    seen: int = 0
    witness: Prompt | None = None  # the prompt that differed
    quiet_until: float = 0.0  # pods that can't be asked, or differ, are left alone for a while


class Parity:
    """See the module."""

    def __init__(
        self,
        fleet: Fleet,
        pods: PodTokens,
        ours: Callable[[Prompt, str | None], Awaitable[Tokens | None]],
        limits: ParityLimits = ParityLimits(),  # noqa: B008 (immutable)
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`ours`: the ids that we make of a prompt for a pod of a version; None where we can't."""
        self._fleet = fleet
        self._pods = pods
        self._ours = ours
        self._limits = limits
        self._clock = clock
        self._every = round(1 / limits.share) if limits.share else 0
        self._watched: dict[str, _Watched] = {}
        self._comparing = 0
        self._queue: asyncio.Queue[tuple[_Watched, Prompt]] = asyncio.Queue(limits.queue_max)

    def watch(self, names: tuple[str, ...], served: AsServed) -> TokenizerState:
        """Prompts of the model of these names are tokenized here: its state, which changes with comparisons."""
        state = TokenizerState()
        self._watched[names[0]] = _Watched(names, state, served)
        self._fleet.tokenizers.update(dict.fromkeys(names, state))
        return state

    def offer(self, model: str, prompt: Prompt) -> None:
        """A request's prompt was tokenized here; `model`: its first name. Called for each: costs next to nothing."""
        watched = self._watched[model]
        watched.seen += 1
        if (watched.wanted or (self._every and watched.seen % self._every == 0)) and not self._queue.full():
            self._queue.put_nowait((watched, prompt))

    @property
    def waiting(self) -> int:
        """Prompts that are still to be compared, the one that is being compared among them."""
        return self._queue.qsize() + self._comparing

    async def run(self) -> None:
        """Compare what was offered, and what differed, for ever."""
        if not (self._limits.first or self._every):
            return
        while True:
            try:
                self._look()
                await self._turn()
            except Exception:  # one comparison's fault must not end all others
                log.exception("a comparison of token ids has failed")
                await asyncio.sleep(self._limits.look_interval_s)
            finally:
                self._comparing = 0

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(self._limits.look_interval_s):
                watched, prompt = await self._queue.get()
        except TimeoutError:
            pass
        else:
            self._comparing = 1
            if watched.state.state != "degraded":
                await self._check(watched, prompt)
        for watched in self._watched.values():
            if watched.witness is not None and watched.quiet_until <= self._clock():
                await self._recheck(watched, watched.witness)

    def _look(self) -> None:
        """Which comparisons are due?"""
        now = self._clock()
        for watched in self._watched.values():
            present = {_version(pod) for name in watched.names for pod in self._serving(name)}
            for version in present - watched.due.keys():
                if len(watched.due) < _VERSIONS_MAX:
                    watched.due[version] = self._limits.first
            due = any(watched.due.get(version) for version in present)
            watched.wanted = due and watched.witness is None and watched.quiet_until <= now

    def _serving(self, model: str | None) -> list[Pod]:
        """The fit pods that serve a model; none of one that nobody serves."""
        try:
            ranks = self._fleet.serving(model)
        except UnknownModel:
            return []
        now = self._clock()
        return list({rank.pod.name: rank.pod for rank in ranks if rank.pod.fit(now)}.values())

    async def _check(self, watched: _Watched, prompt: Prompt) -> None:
        """One comparison, by a pod of the version that was compared least."""
        pods = self._serving(prompt.model)
        if not pods:
            return
        left = watched.due
        pod = max(pods, key=lambda pod: (left.get(_version(pod), 0), -pod.requests))
        try:
            difference = await self._difference(watched, prompt, pod)
        except NotTold as error:
            watched.state.reason = f"not compared: {error.reason}"
            if error.reason in _NOT_THE_PROMPTS_FAULT:
                watched.quiet_until = self._clock() + self._limits.recheck_interval_s
            return
        version = _version(pod)
        if left.get(version):
            left[version] -= 1
        if difference is not None:
            self._degrade(watched, prompt, pod, difference)
        elif watched.state.state == "unverified":
            watched.state.state, watched.state.reason = "exact", None

    async def _recheck(self, watched: _Watched, witness: Prompt) -> None:
        """Ask every version about the prompt that differed: if it does no more, ours are used again."""
        watched.quiet_until = self._clock() + self._limits.recheck_interval_s
        pods = {_version(pod): pod for pod in self._serving(witness.model)}
        if not pods:
            return
        try:
            for pod in pods.values():
                if await self._difference(watched, witness, pod) is not None:
                    return
        except NotTold:
            return
        log.info("%s: token ids equal the pods' again", witness.model)
        watched.witness, watched.quiet_until = None, 0.0
        watched.due.clear()
        watched.state.state, watched.state.reason = "unverified", None
        self._fleet.changed()  # what is known by the pods' ids counts no more

    async def _difference(self, watched: _Watched, prompt: Prompt, pod: Pod) -> str | None:
        """None: the pod's ids are ours. Raises NotTold, also where there is nothing to compare."""
        limits = self._pods.limits
        question = question_of(prompt, watched.served, limits.question_bytes_max)
        if question.keep is not None:
            raise NotTold("truncation is unknown to the pods' /tokenize")
        ours = await self._ours(prompt, pod.version)
        if ours is None:
            raise NotTold("it is not tokenized here")
        try:
            async with asyncio.timeout(limits.deadline_s):
                theirs = await self._pods.ask_pod(pod.name, question)
        except TimeoutError:
            raise NotTold("the pods' /tokenize is too slow") from None
        watched.state.compared += 1
        if np.array_equal(ours, theirs):
            return None
        watched.state.different += 1
        return difference_of(ours, theirs)

    def _degrade(self, watched: _Watched, prompt: Prompt, pod: Pod, difference: str) -> None:
        where = f"{pod.name} (vLLM {_version(pod) or 'of an unknown version'})"
        log.error(
            "%s: token ids differ from those of %s %s. Its /tokenize is asked from now on.",
            prompt.model, where, difference,
        )  # fmt: skip
        watched.state.state = "degraded"
        watched.state.reason = f"token ids differed from those of {where}, see the log: the pods are asked for them"
        watched.witness = prompt
        self._fleet.changed()  # what is known by our ids counts no more
        watched.quiet_until = self._clock() + self._limits.recheck_interval_s


_NOT_THE_PROMPTS_FAULT = frozenset(
    ("the pods' /tokenize is too slow", "the pods' /tokenize fails", "no pod is fit to be asked")
)


def difference_of(ours: Tokens, theirs: Tokens) -> str:
    """Both lists around their first difference, in words."""
    length = min(len(ours), len(theirs))
    unequal = np.flatnonzero(ours[:length] != theirs[:length])
    at = int(unequal[0]) if len(unequal) else length
    around = slice(max(0, at - _AROUND), at + _AROUND + 1)
    return (
        f"at place {at}: ours {ours[around].tolist()} ({len(ours)} in all), "
        f"the pod's {theirs[around].tolist()} ({len(theirs)})"
    )


def _version(pod: Pod) -> str:
    return pod.version if isinstance(pod.version, str) else ""
