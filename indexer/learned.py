"""What was learned of a pod, as values that are saved and sent.

Apart from `indexer.trust` and `indexer.groups`, which may be machine code: msgspec reads a record's fields from
annotations that mypyc does not keep.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Role: TypeAlias = Literal["window", "state"]


class Learned(msgspec.Struct, frozen=True):
    """What reports have shown of a pod, as it is told elsewhere. Rules as (drop, look, unit)."""

    rule: tuple[int, int, int]
    guess: tuple[int, int, int]
    sure: bool
    proven: bool
    disproofs: int
    proofs: int


class GroupsKnown(msgspec.Struct, frozen=True):
    """The groups of a pod without what they keep, as they are told elsewhere."""

    indexed: int | None
    block_size: int
    needed: int
    hybrid: bool
    states: bool
    unsure: bool
    roles: dict[int, Role]
