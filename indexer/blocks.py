"""Block keys: token ids (with what else vLLM hashes) to chained 64-bit keys.

A block key names the content of a block *and* of all blocks before it, as vLLM's own block hash does, but
under a secret seed: keys can't be crafted by a client, are shown to operators only, and mean nothing under another.
vLLM's hashes stay opaque (`engine hash`). A key is `xxh3_64(token ids ‖ extras, seed=parent key)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

Tokens: TypeAlias = NDArray[np.uint32]
"""Token ids, shape (n,), C-contiguous."""

Keys: TypeAlias = NDArray[np.uint64]
"""Block keys, shape (blocks_in(n, grain),): one for each full block, in order."""

Grain: TypeAlias = int
"""How tokens become keys: the block size, and in the bits above it how many tokens behind a block its key covers, too.

A pod with a drafter may hash these along (vLLM from 0.33 on). Without, as nearly always, a grain is the block size.
"""

_AHEAD_BIT = 24
BLOCK_SIZE_MAX = (1 << _AHEAD_BIT) - 1
AHEAD_MAX = 255
"""Tokens behind a block: as many as a drafter foretells, a few."""

Extras: TypeAlias = Sequence[object]
"""What vLLM hashes into a block beside its token ids, as we order it: LoRA name or None, then anything else: cache salt
(block 0 only), (multimodal id, offset) … So a name and a salt that are spelt alike stay apart."""

_encode = msgspec.msgpack.Encoder().encode


def grain_of(block_size: int, ahead: int) -> Grain:
    """Blocks of so many tokens, of which each is known by `ahead` tokens more."""
    return ahead << _AHEAD_BIT | block_size


def size_of(grain: Grain) -> int:
    """Tokens a block."""
    return grain & BLOCK_SIZE_MAX


def ahead_of(grain: Grain) -> int:
    """Tokens behind a block that its key covers."""
    return grain >> _AHEAD_BIT


def blocks_in(tokens: int, grain: Grain) -> int:
    """How many blocks of a prompt of so many tokens have a key: those of which all that it covers is there."""
    return max(0, tokens - ahead_of(grain)) // size_of(grain)


def cut(tokens: Tokens, grain: Grain) -> list[bytes]:
    """What the key of each block covers: bytes, as they are made and hashed faster than slices of a view."""
    if len(tokens) == grain:  # one block of a plain grain, as a pod stores while it decodes
        return [tokens.tobytes()]
    size, ahead = size_of(grain), ahead_of(grain)
    if ahead:
        raw = tokens.tobytes()
        starts = range(0, 4 * size * blocks_in(len(tokens), grain), 4 * size)
        return [raw[start : start + 4 * (size + ahead)] for start in starts]
    over = len(tokens) % size
    whole = tokens[: len(tokens) - over] if over else tokens
    blocks: list[bytes] = whole.view(f"V{4 * size}").tolist()
    return blocks


class KeySpace:
    """Keys under one seed: equal content gives equal keys, and only under it."""

    def __init__(self, seed: int) -> None:
        """`seed`: a random 64-bit number, kept secret."""
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF

    def reseed(self, seed: int) -> None:
        """Other keys from now on: whoever keeps some has to forget them."""
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def salt(self) -> int:
        """A number that nobody knows who does not know the seed."""
        return xxhash.xxh3_64_intdigest(b"salt", self._seed)

    def root(self, grain: Grain) -> int:
        """The parent of every first block: chains of different grains never meet."""
        return xxhash.xxh3_64_intdigest(grain.to_bytes(4, "little"), self._seed)

    def chain(
        self,
        tokens: Tokens,
        grain: Grain,
        parent: int | None = None,
        lora: str | None = None,
        salt: str | None = None,
    ) -> Keys:
        """Keys of the full blocks of `tokens`, resumed from the key `parent` (None: from the start).

        `lora` is part of every block; `salt` of a chain's first block only, so it is ignored when resuming.
        """
        blocks = cut(tokens, grain)
        first = blocks[0] + _encode([lora, salt]) if blocks and salt is not None and parent is None else None
        if lora is not None:
            name = _encode([lora])
            blocks = [block + name for block in blocks]
        if first is not None:
            blocks[0] = first
        return np.array(self.follow(blocks, grain, parent), dtype=np.uint64)

    def chain_extras(self, tokens: Tokens, grain: Grain, parent: int | None, extras: Sequence[Extras | None]) -> Keys:
        """As `chain`, with the extras of each block given (None or empty: none)."""
        return np.array(self.follow(cut(tokens, grain), grain, parent, extras), dtype=np.uint64)

    def follow(
        self,
        blocks: Sequence[bytes],
        grain: Grain,
        parent: int | None = None,
        extras: Sequence[Extras | None] | None = None,
    ) -> list[int]:
        """As `chain`, of tokens that were `cut`, with the extras of each block given (None or empty: none)."""
        digest = xxhash.xxh3_64_intdigest
        key = self.root(grain) if parent is None else parent
        if extras is None:
            return [key := digest(block, key) for block in blocks]
        return [
            key := digest(block + _encode(list(extra)) if extra else block, key)
            for block, extra in zip(blocks, extras, strict=False)
        ]
