"""What a store gives up first where it runs full: what was not used for longest, or what is worth least for its bytes.

`lru`: in the order of use. `weighted_lru`: of what was not used for longest, some are looked at, and of these goes what
has the lowest sum of shares in [0, 1]: `recency` * place in that order + `frequency` * uses - `size` * bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from math import log1p
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar

EvictionPolicy: TypeAlias = Literal["lru", "weighted_lru"]

_LOOKED_AT = 2  # so many times as many as go: of more, what is new would go before what is old


class EvictionLimits(NamedTuple):
    """`threshold`: share of the store's bytes from which on something goes; `batch_size`: so many in one go."""

    policy: EvictionPolicy
    frequency: float
    size: float
    recency: float
    threshold: float
    batch_size: int


class Evictable(Protocol):
    """What may go. `hits`: how often it was used."""

    hits: int
    nbytes: int


_E = TypeVar("_E", bound=Evictable)


def first_to_go(oldest: Iterable[_E], limits: EvictionLimits) -> Sequence[_E]:
    """Some of those that there are, who goes first at first. `oldest`: in the order of their last use."""
    if limits.policy == "lru":
        return list(islice(oldest, limits.batch_size))
    looked_at = list(islice(oldest, _LOOKED_AT * limits.batch_size))
    most = max([log1p(each.hits) for each in looked_at], default=0.0) or 1.0
    largest = max([each.nbytes for each in looked_at], default=1)
    last = max(1, len(looked_at) - 1)
    worth = [
        limits.recency * place / last + limits.frequency * log1p(each.hits) / most - limits.size * each.nbytes / largest
        for place, each in enumerate(looked_at)
    ]
    order = sorted(range(len(looked_at)), key=worth.__getitem__)
    return [looked_at[place] for place in order[: limits.batch_size]]
