"""Are the token ids that we make the pods' own? Asked of the first of each model, version and shape, then of some.

Off the hot path: `offer` puts a prompt into a small queue, `run` asks one at a time. Only prompts that some pod has
served are offered: one that breaks the pod which it is sent to must not be shown to a further one. At a difference
the pods' ids are used in place of ours (`TokenizerState.degraded`), until the very prompt that differed does so no
more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Self

import numpy as np

from indexer.blocks import Tokens, size_of
from router.core.decision import Core
from router.core.demand import Demand
from router.core.fleet import Fleet, Pod
from router.core.token_proof import AHEAD, TRIALS_MAX, Doubt
from router.core.token_states import SHAPES, Shape, TokenizerState, Witness
from router.errors import UnknownModel
from router.prompts.own_encodings import by_names, is_tokenized
from router.prompts.prompt import Prompt
from router.tokens.questions import AsServed, NotTold, question_of
from router.tokens.remote import RemoteTokens
from router.tokens.understanding import read_again, shape_of

if TYPE_CHECKING:
    from router.config.tokens import ParityConfig

log = logging.getLogger("warmroute.parity")

_AROUND = 3  # token ids shown on either side of the first that differs
_LOOK_S = 1.0
_VERSIONS_MAX = 100  # of one model; above it (pods that make them up) none is new


@dataclass(frozen=True, slots=True)
class ParityLimits:
    """How much is compared, and how often."""

    first: int
    """Requests of each model, version of vLLM and shape; 0: none."""
    share: float
    """Of the requests after these; 0: none."""
    recheck_interval_s: float
    queue_max: int
    """Prompts that wait to be compared; more are not kept."""
    look_interval_s: float
    """Between two looks at who serves what, in which version."""

    @classmethod
    def of(cls, parity: ParityConfig) -> Self:
        """As configured."""
        return cls(parity.first, parity.share, parity.recheck_interval, parity.queue_max, _LOOK_S)


@dataclass(slots=True, eq=False)
class _Watched:
    """One model with a tokenizer here. `due`: comparisons still to be made, by version and shape."""

    names: tuple[str, ...]
    state: TokenizerState
    served: AsServed
    due: dict[str, dict[Shape, int]] = field(default_factory=dict)
    wanted: frozenset[Shape] = frozenset()  # shapes that some version which a fit pod has is due in
    seen: int = 0
    witness: Prompt | None = None  # the prompt that differed
    quiet_until: float = 0.0  # pods that can't be asked, or differ, are left alone for a while


class Parity:
    """See the module."""

    def __init__(
        self,
        fleet: Fleet,
        pods: RemoteTokens,
        ours: Callable[[Prompt, str | None], Awaitable[Tokens | None]],
        limits: ParityLimits,
        clock: Callable[[], float] = monotonic,
        trials: Trials | None = None,
    ) -> None:
        """`ours`: the ids that we make of a prompt for a pod of a version; None where we can't. `trials`: see there."""
        self._fleet = fleet
        self._pods = pods
        self._ours = ours
        self.limits = limits
        self._trials = trials
        self._clock = clock
        self._every = round(1 / limits.share) if limits.share else 0
        self._watched: dict[TokenizerState, _Watched] = {}
        self._comparing = 0
        self._queue: asyncio.Queue[tuple[_Watched, Witness]] = asyncio.Queue(limits.queue_max)

    def watch(self, names: tuple[str, ...], served: AsServed) -> TokenizerState:
        """Prompts of the model of these names are tokenized here: its state, which changes with comparisons."""
        state = TokenizerState()
        wanted = frozenset(SHAPES if self.limits.first else ())  # pods may be fit before the next look at them
        self._watched[state] = _Watched(names, state, served, wanted=wanted)
        self._fleet.tokenizers.update(dict.fromkeys(names, state))
        return state

    def offer(self, demand: Demand, witness: Witness) -> None:
        """A pod has answered a request, whole. Called for each that is not large: costs next to nothing."""
        origin = demand.origin
        watched = self._watched.get(origin.state) if origin is not None else None
        if origin is None or watched is None or demand.reason is not None:
            return
        watched.seen += 1
        if self._queue.full():
            return
        if origin.shape in watched.wanted or (self._every and watched.seen % self._every == 0):
            self._queue.put_nowait((watched, witness))

    @property
    def waiting(self) -> int:
        """Prompts that are still to be compared, the one that is being compared among them."""
        return self._queue.qsize() + self._comparing

    async def run(self) -> None:
        """Compare what was offered, and what differed, for ever."""
        while True:
            try:
                self._look()
                await self._turn()
            except Exception:  # one comparison's fault must not end all others
                log.exception("a comparison of token ids has failed")
                await asyncio.sleep(self.limits.look_interval_s)
            finally:
                self._comparing = 0

    async def _turn(self) -> None:
        try:
            async with asyncio.timeout(self.limits.look_interval_s):
                watched, witness = await self._queue.get()
        except TimeoutError:
            pass
        else:
            self._comparing = 1
            self._look()
            if watched.state.state != "degraded":
                await self._check(watched, read_again(witness, self._fleet))
        for watched in self._watched.values():
            if watched.witness is not None and watched.quiet_until <= self._clock():
                await self._recheck(watched, watched.witness)
        if self._trials is not None:
            await self._trials.run(self._clock() + self.limits.recheck_interval_s)

    def _look(self) -> None:
        """Which comparisons are due?"""
        now = self._clock()
        for watched in self._watched.values():
            present = {_version(pod) for name in watched.names for pod in self._serving(name)}
            for version in present - watched.due.keys():
                if len(watched.due) < _VERSIONS_MAX:
                    watched.due[version] = dict.fromkeys(SHAPES, self.limits.first)
            if not watched.due:
                continue  # there was no pod yet
            due = {shape for version in present for shape, left in watched.due.get(version, {}).items() if left}
            quiet = watched.state.state == "degraded" or watched.quiet_until > now
            watched.wanted = frozenset() if quiet else frozenset(due)

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
        shape, due = shape_of(prompt), watched.due
        pod = max(pods, key=lambda pod: (due.get(_version(pod), {}).get(shape, 0), -pod.requests))
        try:
            difference = await self._difference(watched, prompt, pod)
        except NotTold as error:
            watched.state.reason = f"not compared: {error.reason}"
            if error.reason in _NOT_THE_PROMPTS_FAULT:
                watched.quiet_until = self._clock() + self.limits.recheck_interval_s
            return
        left = due.get(_version(pod), {})
        if left.get(shape):
            left[shape] -= 1
        if difference is not None:
            self._degrade(watched, prompt, pod, difference)
        elif watched.state.state != "degraded":
            watched.state.equal(shape)

    async def _recheck(self, watched: _Watched, witness: Prompt) -> None:
        """Ask every version about the prompt that differed: if it does no more, ours are used again."""
        watched.quiet_until = self._clock() + self.limits.recheck_interval_s
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
        watched.state.restore()
        self._fleet.changed()  # what is known by the pods' ids counts no more

    async def _difference(self, watched: _Watched, prompt: Prompt, pod: Pod) -> str | None:
        """None: the pod's ids are ours. Raises NotTold, also where there is nothing to compare."""
        limits = self._pods.limits
        own = by_names(self._fleet.names_of(watched.names[0])) if prompt.kind == "chat" else None
        if not is_tokenized(own, [pod.version]):
            raise NotTold("the pods' /tokenize is not what their chats are encoded by")
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
        reason = f"token ids differed from those of {where}, see the log: the pods are asked for them"
        watched.state.degrade(reason, None, 0.0)
        watched.witness = prompt
        self._fleet.changed()  # what is known by our ids counts no more
        watched.quiet_until = self._clock() + self.limits.recheck_interval_s


_NOT_THE_PROMPTS_FAULT = frozenset(
    ("the pods' /tokenize is too slow", "the pods' /tokenize fails", "no pod is fit to be asked")
)


class Trials:
    """Sources of tokens that events proved wrong, tried again on prompts that pods have served."""

    def __init__(self, core: Core, ids_by: Callable[[TokenizerState, Prompt, str], Awaitable[Tokens | None]]) -> None:
        """`ids_by`: what a source makes of a prompt for a pod; None: nothing."""
        self._core = core
        self._ids_by = ids_by
        self._alike: deque[tuple[Doubt, TokenizerState]] = deque(maxlen=TRIALS_MAX)

    def doubt(self, doubt: Doubt, next_one: TokenizerState) -> None:
        """A source was proven wrong: is the next one as wrong?"""
        self._alike.append((doubt, next_one))

    async def run(self, later: float) -> None:
        """Try what there is; a source that is wrong again is left alone until `later`."""
        while self._alike:
            doubt, next_one = self._alike.popleft()
            wrong, model = doubt.origin.state, doubt.origin.model
            if doubt.witness is None:
                continue
            prompt = read_again(doubt.witness, self._core.fleet)
            ours = await self._ids_by(wrong, prompt, doubt.pod)
            theirs = await self._ids_by(next_one, prompt, doubt.pod)
            if ours is not None and theirs is not None and np.array_equal(ours, theirs) and wrong.state == "degraded":
                log.error("%s: tokens by %s are as wrong: they are the same", model, next_one.source)
                next_one.degrade(wrong.reason or "", wrong.failed, wrong.trial_at)
                self._core.fleet.changed()
        trials = self._core.proof.trials
        while trials:
            trial = trials.popleft()
            state, origin = trial.state, trial.origin
            if state.state != "degraded":
                continue
            ids = await self._ids_by(state, read_again(trial.witness, self._core.fleet), trial.rank.pod)
            if ids is None:
                continue
            keys = self._core.space.chain(ids, trial.grain, None, origin.lora, origin.salt)
            keys = keys[: max(0, len(ids) - AHEAD) // size_of(trial.grain)]
            if not len(keys):
                continue
            right = self._core.index.confirmed_blocks(trial.rank, keys) == len(keys)
            if state.tried(right, later):
                log.info("%s: tokens by %s are the pods' again", origin.model, state.source)
                state.restore()
                state.confirm(origin.shape)
                self._core.fleet.changed()


def difference_of(ours: Tokens, theirs: Tokens, start: int = 0) -> str:
    """Both lists around their first difference, in words. `start`: the place of their first id in the prompt."""
    at = first_difference(ours, theirs)
    around = slice(max(0, at - _AROUND), at + _AROUND + 1)
    return (
        f"at place {start + at}: ours {ours[around].tolist()} ({len(ours)} in all), "
        f"the pod's {theirs[around].tolist()} ({len(theirs)})"
    )


def told_of(doubt: Doubt, ours: Tokens | None) -> str:
    """Where the tokens part, in words: places and ids, never text."""
    if doubt.counts is not None:
        return "{} has {} tokens of a prompt of {}".format(doubt.pod, *reversed(doubt.counts))
    start = (doubt.block or 0) * doubt.size
    where = f"{doubt.pod} holds other blocks from place {start} on"
    block = None if ours is None else ours[start : start + doubt.size]
    if block is None or len(block) < doubt.size or not doubt.theirs:
        return where
    theirs = max(doubt.theirs, key=lambda one: first_difference(block, one))
    return f"{where}, {difference_of(block, theirs, start)}"


def first_difference(ours: Tokens, theirs: Tokens) -> int:
    """How many leading ids are equal."""
    length = min(len(ours), len(theirs))
    unequal = np.flatnonzero(ours[:length] != theirs[:length])
    return int(unequal[0]) if len(unequal) else length


def _version(pod: Pod) -> str:
    return pod.version if isinstance(pod.version, str) else ""
