"""The requests of late, as they came: what a pod that leaves could pass on, and how much of it is wanted again. Pure.

Block keys cannot be turned into prompts again, so bodies are kept, the newest, within bounds, in memory only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from indexer.blocks import Grain, Keys
from router.core.demand import Demand

_BYTES_BESIDE = 1_000  # of one entry beside its body and keys


@dataclass(slots=True, eq=False)
class Asked:
    """One prompt, and how often it was asked for: `weight` as of `at`; half of it is left after a half-life."""

    at: float
    weight: float
    path: str
    body: bytes
    demand: Demand
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = _BYTES_BESIDE + len(self.body) + sum(keys.nbytes for keys in self.demand.keys.values())

    @property
    def chain(self) -> tuple[Grain, Keys]:
        """Its keys, by one of the ways in which blocks are made."""
        return next(iter(self.demand.keys.items()))


class Recent:
    """See the module. Within `bytes_max`; larger bodies than `body_max` are not kept; `half_life_s`: see `Asked`."""

    def __init__(self, bytes_max: int, body_max: int, half_life_s: float) -> None:
        self.bytes_max = bytes_max
        self._body_max = min(body_max, bytes_max)
        self._half_life_s = half_life_s
        self._asked: OrderedDict[int, Asked] = OrderedDict()  # by the last key: it stands for all before it
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._asked)

    def note(self, path: str, body: bytes, demand: Demand, now: float) -> None:
        """A request was served. One whose prompt is not known whole, or is one of several, is not kept."""
        if not demand.is_alone or not demand.reads_cache or not demand.keys or len(body) > self._body_max:
            return
        _, keys = next(iter(demand.keys.items()))
        if not len(keys):
            return
        name: int = keys.item(-1)
        known = self._asked.get(name)
        weight = 1.0 if known is None else 1.0 + self.left_of(known, now)
        if known is not None:
            if known.demand is demand:  # the very same body
                known.at, known.weight = now, weight
                self._asked.move_to_end(name)
                return
            self.nbytes -= self._asked.pop(name).nbytes
        asked = self._asked[name] = Asked(now, weight, path, body, demand)
        self.nbytes += asked.nbytes
        while self.nbytes > self.bytes_max:
            self.nbytes -= self._asked.popitem(last=False)[1].nbytes

    def left_of(self, asked: Asked, now: float) -> float:
        """How much its weight is worth now."""
        return float(asked.weight * 0.5 ** ((now - asked.at) / self._half_life_s))

    def asked(self) -> Collection[Asked]:
        """All, the oldest first."""
        return self._asked.values()
