"""What a pod alone holds of the prompts of late, and what it costs to lose it. Pure; time comes in as `now`.

Of a prompt, one pod at most holds more than all others: what it has more is lost with it. A lost token costs one token
of prefill for each time that it is asked for again; how often that will be is taken from how often it was, of late.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from indexer.blocks import size_of
from router.core.decision import Core
from router.core.demand import Demand
from router.errors import UnknownModel
from router.handover.recent import Asked, Recent


class Lost(NamedTuple):
    """Of a prompt, only `pod` holds the tokens from `start` to `end`."""

    pod: str
    start: int
    end: int


@dataclass(slots=True, eq=False)
class Legacy:
    """A prompt of which nobody else holds the tokens from `start` to `end`; `own_tokens`: those of them that no longer
    prompt of the same pod has, too. `weight`: how often they were asked for of late."""

    asked: Asked
    start: int
    end: int
    own_tokens: int
    weight: float


class Estate:
    """What one pod alone holds."""

    def __init__(self) -> None:
        self.legacies: list[Legacy] = []
        self._owners: dict[int, Legacy] = {}  # by block key

    @property
    def tokens(self) -> int:
        return sum(legacy.own_tokens for legacy in self.legacies)

    @property
    def cost_tokens(self) -> float:
        """Expected tokens of prefill, if all of it is lost."""
        return sum(legacy.own_tokens * legacy.weight for legacy in self.legacies)

    def add(self, asked: Asked, lost: Lost, weight: float) -> None:
        """One prompt more; to be called for the longest first, which then stand for those that they continue."""
        grain, keys = asked.chain
        size = size_of(grain)
        chain = keys[lost.start // size : lost.end // size].tolist()
        if not chain:
            return
        shared = bisect_left(range(len(chain)), True, key=lambda place: chain[place] not in self._owners)
        if shared:
            self._owners[chain[shared - 1]].weight += weight
        if shared < len(chain):
            legacy = Legacy(asked, lost.start, lost.end, (len(chain) - shared) * size, weight)
            self.legacies.append(legacy)
            self._owners.update(dict.fromkeys(chain[shared:], legacy))

    def dearest(self) -> list[Legacy]:
        """What is most asked for comes first; of equals, the newest."""
        return sorted(self.legacies, key=lambda legacy: (legacy.weight, legacy.asked.at), reverse=True)


class HeldPrompt(NamedTuple):
    """A prompt of late, and how many leading tokens of it each pod holds."""

    asked: Asked
    weight: float
    tokens: Mapping[str, int]


class Loss(NamedTuple):
    """What it costs to lose a pod. `alone_tokens`: of prompts of late, that nobody else holds; `cost_tokens`: the same
    by how often they will be asked for; `cost_s`: seconds to compute that."""

    pod: str
    cost_tokens: float
    cost_s: float
    alone_tokens: int
    prompts: int
    blocks: int
    requests: int


def tokens_held(core: Core, demand: Demand, now: float) -> dict[str, int]:
    """How many leading tokens of a prompt each pod holds; those that hold none are left out."""
    held: dict[str, int] = {}
    try:
        ranks = core.fleet.serving(demand.model)
    except UnknownModel:
        return held
    holders = core.look_up(demand, None, now)
    for rank in ranks:
        tokens = holders.here(demand.of(rank), rank).blocks * (rank.block_size or 0)
        if tokens > held.get(rank.id.pod, 0):
            held[rank.id.pod] = tokens
    return held


def lost_with(tokens: Mapping[str, int], gone: Collection[str]) -> Lost | None:
    """Who holds more of a prompt than all others; those `gone` do not count."""
    most = sorted(((held, pod) for pod, held in tokens.items() if pod not in gone), reverse=True)[:2]
    if not most:
        return None
    second = most[1][0] if len(most) > 1 else 0
    return Lost(most[0][1], second, most[0][0]) if most[0][0] > second else None


def held_now(core: Core, recent: Recent, now: float) -> Generator[None, None, list[HeldPrompt]]:
    """All prompts of late, the longest first."""
    held = list[HeldPrompt]()
    for asked in sorted(recent.asked(), key=lambda asked: asked.demand.tokens, reverse=True):
        tokens = tokens_held(core, asked.demand, now)
        if tokens:
            held.append(HeldPrompt(asked, recent.left_of(asked, now), tokens))
        yield
    return held


def estates(held: Sequence[HeldPrompt], gone: Collection[str]) -> Generator[None, None, dict[str, Estate]]:
    """What each pod alone holds, if those `gone` are."""
    each: dict[str, Estate] = {}
    for one in held:
        lost = lost_with(one.tokens, gone)
        if lost is not None:
            each.setdefault(lost.pod, Estate()).add(one.asked, lost, one.weight)
        yield
    return each


def losses(core: Core, held: Sequence[HeldPrompt], gone: Collection[str]) -> Generator[None, None, list[Loss]]:
    """What each pod is worth, the least first; of equals, who holds fewer blocks, and has less to do."""
    each = yield from estates(held, gone)
    found = []
    for name, pod in core.fleet.pods.items():
        if name in gone:
            continue
        estate, rate = each.get(name, _NOTHING), pod.ranks[0].load.rate
        cost = estate.cost_tokens
        blocks = sum(core.index.held(rank.id) for rank in pod.ranks)
        loss = Loss(
            name, cost, rate.cost_s(round(cost), 0), estate.tokens, len(estate.legacies), blocks, pod.requests
        )  # fmt: skip
        found.append(loss)
    return sorted(found, key=lambda loss: (loss.cost_tokens, loss.blocks, loss.requests))


def cheapest(
    core: Core, recent: Recent, count: int, now: float
) -> Generator[None, None, tuple[list[Loss], list[Loss]]]:
    """The `count` pods whose loss costs least, together: with each, what it shared with the next is theirs alone. And
    all pods, each as if it alone was lost. Those on their way out are neither."""
    held = yield from held_now(core, recent, now)
    gone = {name for name, pod in core.fleet.pods.items() if pod.draining or pod.leaving}
    each = yield from losses(core, held, gone)
    left, picked = each, list[Loss]()
    while left and len(picked) < count:
        picked.append(left[0])
        gone.add(left[0].pod)
        if len(picked) < count:
            left = yield from losses(core, held, gone)
    return picked, each


_NOTHING = Estate()
