"""What causes are named by: fates of blocks, who asked with which adapter or salt, fingerprints of prompts. Pure.

Fed with what pods gave up and with each prompt that was served; of neither any text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np

from indexer.blocks import Keys
from indexer.losses import GivenUp
from indexer.match import Holder
from router.causes.ghosts import Fate, Ghosts
from router.causes.prints import Prints
from router.core.demand import Demand

_NAMES_MIN = 16  # pods, and adapters and salts, that are told apart
_BLOCKS_A_NAME = (
    64  # or one for so many blocks that are remembered; and so often, what a pod had to do when it lost some
)
_STEP = 1000  # blocks that are noted in one step: well under 1 ms
_TWINS_SHARE = 4  # prompts with an adapter or a salt are fewer


LossSteps: TypeAlias = Generator[None, None, None]


class Load(NamedTuple):
    """What a pod had to do when it gave something up: requests in flight, tokens to compute, blocks that it gave up."""

    requests: int
    prefill_tokens: int
    blocks: int


class Names:
    """Numbers for names, from 1 on, each once; only the newest `names_max` are still known by them."""

    def __init__(self, names_max: int) -> None:
        self._names_max = names_max
        self._numbers: dict[Hashable, int] = {}
        self._names: dict[int, Hashable] = {}
        self._count = 0

    def number(self, name: Hashable) -> int:
        """The number of this name."""
        number = self._numbers.get(name)
        if number is None:
            self._count += 1
            number = self._numbers[name] = self._count
            self._names[number] = name
            if len(self._names) > self._names_max:
                oldest = next(iter(self._names))
                del self._numbers[self._names.pop(oldest)]
        return number

    def name(self, number: int) -> Hashable | None:
        """The name of this number; None: it is not known any more."""
        return self._names.get(number)


class CauseMemory:
    """See the module."""

    def __init__(self, blocks_max: int, prompts_max: int) -> None:
        """0 and 0: nothing is remembered."""
        self.ghosts = Ghosts(blocks_max)
        self.prints = Prints(prompts_max)
        self._twins = Ghosts(blocks_max // _TWINS_SHARE)
        names_max = max(_NAMES_MIN, blocks_max // _BLOCKS_A_NAME)
        self._names = Names(names_max)
        self._variants = Names(names_max)
        self._loads: deque[Load] = deque(maxlen=names_max)
        self._loads_noted = 0
        self._apart = False  # somebody has used an adapter or a salt

    def lost(self, lost: Iterable[GivenUp], load: Callable[[Holder], tuple[int, int]], now: float) -> LossSteps:
        """Pods gave blocks up. `load`: a pod's requests and tokens to compute, now. In steps: a pod may lose many."""
        by_pod: dict[tuple[Holder, str], list[GivenUp]] = {}
        for one in lost:
            by_pod.setdefault((one.pod, one.why), []).append(one)
        for (pod, _), ones in by_pod.items():
            self._loads.append(Load(*load(pod), sum(len(one.keys) for one in ones)))
            self._loads_noted += 1
            who, note = self._names.number(pod), self._loads_noted
            for one in ones:
                for start in range(0, len(one.keys), _STEP):
                    keys = one.keys[start : start + _STEP]
                    self.ghosts.lose(
                        keys if isinstance(keys, list) else np.asarray(keys).tolist(), now, one.why, who, note
                    )
                    yield

    def served(self, demand: Demand, keys: Keys, pod: Holder, at: float) -> None:
        """A prompt was served that was sent to `pod` as was decided `at`: its `keys` that nobody held then."""
        self.ghosts.ask(keys, at, self._names.number(pod))
        if demand.apart is not None:
            self._apart = True
            variant = self._variants.number(_variant(demand))
            for plain in demand.apart.plain.values():
                self._twins.ask(plain, at, variant)

    def pod_of(self, fate: Fate) -> Holder | None:
        """Whom a fate is about; None: that is not known any more."""
        return self._names.name(fate.who)

    def load_of(self, fate: Fate) -> Load | None:
        """What that pod had to do then, if that is still known."""
        place = fate.note - self._loads_noted - 1
        return self._loads[place] if fate.note and -len(self._loads) <= place < 0 else None

    def twin(self, demand: Demand, keys: Keys, grain: int, before: float) -> tuple[int, str | None, bool] | None:
        """So many leading blocks were asked for with another adapter (its name; None: without), or the same one and
        another salt: then True."""
        mine = _variant(demand)
        plain = keys if demand.apart is None else demand.apart.plain.get(grain, keys)
        found: tuple[int, tuple[str | None, int | None]] | None = None
        if demand.apart is not None:
            asked = sum(fate.blocks for fate in self.ghosts.look(plain, before))
            if asked:
                found = asked, (None, None)
        for fate in self._twins.look(plain, before)[:1] if self._apart else ():
            variant = self._variants.name(fate.who)
            if isinstance(variant, tuple) and variant != mine and (found is None or fate.blocks > found[0]):
                found = fate.blocks, variant
        if found is None:
            return None
        blocks, (adapter, _) = found
        return blocks, adapter, adapter == mine[0]


def _variant(demand: Demand) -> tuple[str | None, int | None]:
    """Its adapter, and what tells its salt from others: the salt itself is not kept."""
    if demand.apart is None:
        return None, None
    adapter, salt, _ = demand.apart
    return adapter, None if salt is None else hash(salt)
