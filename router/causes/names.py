"""The causes of misses: a fixed list, the same in answers, metrics and sentences. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cause = Literal[
    "first_seen", "changed", "evicted", "routed_away", "other_adapter", "other_salt", "tier", "block_edge",
    "feed_not_exact", "wrong_tokens", "pod_gone", "no_cache_read",
]  # fmt: skip


@dataclass(slots=True)
class Missed:
    """Tokens of a prompt that were computed again, or for the first time, and why. `kind`: of the detail, for sums."""

    cause: Cause
    tokens: int
    detail: str
    kind: str = ""


@dataclass(slots=True)
class Why:
    """Where one prompt's tokens came from: `tokens` in all are `delivered` from the cache, or `missed`.

    `reachable`: the longest beginning that any pod held, as its blocks are reused; `captured`: of the picked one.
    `known`: of its blocks, those that somebody held.
    """

    tokens: int
    reachable: int
    captured: int
    delivered: int
    missed: tuple[Missed, ...]
    known: int = 0
