"""Pod mappings: the matches of prompts seen before, kept until an event touches what they hang on.

A mapping belongs to one exact prompt (an `Ending`) and one set of pods that were asked for. It is served only while the
index says that the same match would come out now; the time to live is an upper bound beside that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from indexer.blocks import Keys
from indexer.match import Holder, Match

PodSet: TypeAlias = frozenset[Holder] | None
"""The pods that were asked for; None: all."""

Reason = Literal["event", "ttl", "manual", "lru"]

# What one mapping weighs beside its match's arrays, and each of its hits: measured with tracemalloc, rounded up.
_MAPPING_BYTES = 700
_HIT_BYTES = 100


def pod_set(pods: Iterable[Holder] | None) -> PodSet:
    """The canonical name of a set of pods: order and repetition don't matter. None: all pods."""
    return None if pods is None else frozenset(pods)


class CleanUp(NamedTuple):
    """How many mappings one slice of a clean-up removed, and whether no expired one is left."""

    removed: int
    done: bool


@dataclass(slots=True, eq=False)
class Mapping:
    """One match, when it was made, and where it is kept."""

    match: Match
    cached_at: float
    pods: PodSet
    ending: Ending
    nbytes: int


@dataclass(slots=True, eq=False)
class Ending:
    """The end of a prompt: its block keys, and its mappings with the one used last at the end."""

    keys: Keys
    tokens: int
    mappings: dict[PodSet, Mapping] = field(default_factory=dict)
    live: bool = True
    """False once it is evicted: nothing can be cached here any more."""


class PodMappings:
    """All mappings, oldest first. `unchanged` is exact: would this match come out of the index now?"""

    def __init__(self, unchanged: Callable[[Match], bool], ttl_s: float, enabled: bool = True) -> None:
        self._unchanged = unchanged
        self._ttl_s = ttl_s
        self.enabled = enabled
        self._by_age: OrderedDict[Mapping, None] = OrderedDict()
        self.nbytes = 0
        self.hits = 0
        self.removed: dict[Reason, int] = {"event": 0, "ttl": 0, "manual": 0, "lru": 0}

    def __len__(self) -> int:
        return len(self._by_age)

    def find(self, ending: Ending, pods: PodSet, now: float) -> Match | None:
        """The match of this very prompt among `pods`, if it still holds."""
        mapping = ending.mappings.get(pods)
        if mapping is None:
            return None
        if now - mapping.cached_at >= self._ttl_s:
            self.remove(mapping, "ttl")
            return None
        if not self._unchanged(mapping.match):
            self.remove(mapping, "event")
            return None
        self.hits += 1
        ending.mappings[pods] = ending.mappings.pop(pods)
        return mapping.match

    def put(self, ending: Ending, pods: PodSet, match: Match, now: float) -> None:
        """Keep `match`, in place of an older one for the same pods."""
        if not self.enabled or not ending.live:
            return
        if pods in ending.mappings:
            self._forget(ending.mappings[pods])
        nbytes = _MAPPING_BYTES + match.rows.nbytes + _HIT_BYTES * len(match.hits)
        mapping = Mapping(match, now, pods, ending, nbytes)
        ending.mappings[pods] = mapping
        self._by_age[mapping] = None
        self.nbytes += nbytes

    def remove(self, mapping: Mapping, reason: Reason) -> None:
        self._forget(mapping)
        self.removed[reason] += 1

    def remove_all(self, ending: Ending, reason: Reason) -> None:
        for mapping in list(ending.mappings.values()):
            self.remove(mapping, reason)

    def invalidate(self, keys: Keys) -> int:
        """Remove the mappings of all prompts that have one of these blocks; looks at each mapping. Returns how many."""
        gone = [mapping for mapping in self._by_age if np.isin(mapping.ending.keys, keys).any()]
        for mapping in gone:
            self.remove(mapping, "manual")
        return len(gone)

    def cleanup(self, now: float, limit: int) -> CleanUp:
        """Remove at most `limit` expired mappings; the cost is that of what is removed."""
        removed = 0
        while (oldest := next(iter(self._by_age), None)) is not None and now - oldest.cached_at >= self._ttl_s:
            if removed >= limit:
                return CleanUp(removed, False)
            self.remove(oldest, "ttl")
            removed += 1
        return CleanUp(removed, True)

    def _forget(self, mapping: Mapping) -> None:
        del mapping.ending.mappings[mapping.pods]
        del self._by_age[mapping]
        self.nbytes -= mapping.nbytes
