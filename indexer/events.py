"""What a pod's KV-cache feed says, as values: decoded, but not yet believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from indexer.blocks import Extras, Tokens

Tier: TypeAlias = Literal["gpu", "cpu", "disk"]
TIERS: tuple[Tier, ...] = ("gpu", "cpu", "disk")

PREFIX_KINDS = (None, "full_attention", "mla_attention", "sink_full_attention")
"""Of a KV-cache group: it keeps every block of a prompt (None: the version has no kinds, and one group)."""


class BlockStored(msgspec.Struct, frozen=True):
    """Blocks that a pod now holds; block i has `tokens[i * block_size : (i + 1) * block_size]`.

    `hashes` and `parent` are engine hashes, reduced to their low 64 bits; `parent` None: block 0 starts the prompt.
    `extras`: one entry a block, or None where the pod's version does not report them. `again`: those of the blocks that
    are held already are told of once more, and are no further copies.
    """

    hashes: Sequence[int]
    parent: int | None
    tokens: Tokens
    block_size: int
    tier: Tier = "gpu"
    lora_id: int | None = None
    lora_name: str | None = None
    extras: list[Extras | None] | None = None
    group: int | None = None
    kind: str | None = None
    window: int | None = None
    again: bool = False


class BlockRemoved(msgspec.Struct, frozen=True):
    """One physical copy of each of these blocks is gone; other copies may still be held."""

    hashes: Sequence[int]
    tier: Tier = "gpu"
    group: int | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True):
    """The pod holds nothing any more."""


Event: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(msgspec.Struct, frozen=True):
    """The events of one scheduler step; `ts`: the pod's wall clock, seconds.

    `bad`: why events in it could not be decoded; `unknown`: the types of well-formed events that we do not know.
    """

    ts: float
    events: list[Event]
    rank: int | None = None
    bad: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
