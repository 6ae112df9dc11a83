"""What a pod's KV-cache feed says, as values: decoded, but not yet believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from indexer.blocks import Extras, Grain, Tokens, cut, grain_of

Tier: TypeAlias = Literal["gpu", "cpu", "disk"]
TIERS: tuple[Tier, ...] = ("gpu", "cpu", "disk")

PREFIX_KINDS = (None, "full_attention", "mla_attention", "sink_full_attention")
"""Of a KV-cache group: it keeps every block of a prompt (None: the version has no kinds, see `indexer.groups`)."""
WINDOW_KINDS = ("sliding_window", "sliding_window_mla")
"""It keeps the last blocks of a prompt, as far as its window reaches back."""
STATE_KINDS = ("mamba", "gdn", "kda", "linear_attention", "short_conv")
"""It keeps a state, as it was after some blocks."""
ASIDE_KINDS = ("encoder_only_attention", "cross_attention")
"""Prefixes do not hang on it."""


class BlockStored(msgspec.Struct, frozen=True, gc=False):
    """Blocks that a pod now holds; block i has `tokens[i * block_size : (i + 1) * block_size]`.

    Without tokens, in a lower tier, blocks that another tier holds under the same hashes; `block_size` may be 0 then.
    `hashes` and `parent` are engine hashes, reduced to their low 64 bits; `parent` None: block 0 starts the prompt.
    `extras`: one entry a block, or None where the pod's version does not report them. `ahead`: the tokens behind each
    block that its hash covers, equally many of each, one after the other; None: it covers none. `again`: those of the
    blocks that are held already are told of once more, and are no further copies.
    """

    hashes: Sequence[int]
    parent: int | None
    tokens: Tokens
    block_size: int
    tier: Tier = "gpu"
    lora_id: int | None = None
    lora_name: str | None = None
    extras: Sequence[Extras | None] | None = None
    group: int | None = None
    kind: str | None = None
    window: int | None = None
    ahead: Tokens | None = None
    again: bool = False

    @property
    def whole(self) -> bool:
        """Every block of its tokens is told of: groups that keep only some leave the others out."""
        return len(self.hashes) * self.block_size == len(self.tokens)

    @property
    def grain(self) -> Grain:
        """By which its keys are made."""
        if self.ahead is None or not self.hashes:
            return self.block_size
        return grain_of(self.block_size, len(self.ahead) // len(self.hashes))

    def covered(self) -> list[bytes]:
        """As `blocks.cut`: what the key of each of its blocks covers."""
        if self.ahead is None:
            return cut(self.tokens, self.block_size)
        blocks = len(self.hashes)
        rows = np.hstack([self.tokens.reshape(blocks, -1), self.ahead.reshape(blocks, -1)])
        return [row.tobytes() for row in rows]


class BlockRemoved(msgspec.Struct, frozen=True, gc=False):
    """One physical copy of each of these blocks is gone; other copies may still be held."""

    hashes: Sequence[int]
    tier: Tier = "gpu"
    group: int | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, gc=False):
    """The pod holds nothing any more in this tier: in its own cache, where the event does not say which."""

    tier: Tier = "gpu"


Event: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(msgspec.Struct, frozen=True, gc=False):
    """The events of one scheduler step; `ts`: the pod's wall clock, seconds.

    `bad`: why events in it could not be decoded; `unknown`: the types of well-formed events that we do not know.
    """

    ts: float
    events: list[Event]
    rank: int | None = None
    bad: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def told_again(event: Event) -> Event:
    """It may tell of blocks that the pod only reused."""
    if isinstance(event, BlockStored) and event.parent is None and event.tier == "gpu":
        return msgspec.structs.replace(event, again=True)
    return event


def extras_of(event: BlockStored, adapter: str | None) -> list[Extras | None] | None:
    """What goes into each block's key beside its tokens; None: nothing. `adapter`: its name, where the event has none.

    vLLM lists the LoRA name, if there is one, before the rest; versions before 0.17 list nothing.
    """
    lora: object = event.lora_name or adapter
    if lora is None:
        if event.lora_id:
            lora = ("lora_id", event.lora_id)
        elif not event.extras or not any(event.extras):
            return None
    extras = []
    for listed in event.extras or [None] * len(event.hashes):
        rest = listed or []
        extras.append([lora, *(rest[1:] if lora is not None and rest[:1] == [lora] else rest)])
    return [extra if len(extra) > 1 or extra[0] is not None else None for extra in extras]
