"""Block keys: token ids (with what else vLLM hashes) to chained 64-bit keys.

A block key names the content of a block *and* of all blocks before it, as vLLM's own block hash does, but
under a secret seed: keys can't be crafted by a client, are never shown, and mean nothing to who has another seed.
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
"""Block keys, shape (n // block_size,): one for each full block, in order."""

Extras: TypeAlias = Sequence[object]
"""What vLLM hashes into a block beside its token ids, as we order it: LoRA name or None, then anything else: cache salt
(block 0 only), (multimodal id, offset) … So a name and a salt that are spelt alike stay apart."""

_encode = msgspec.msgpack.Encoder().encode


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

    def root(self, block_size: int) -> int:
        """The parent of every first block: chains of different block sizes never meet."""
        return xxhash.xxh3_64_intdigest(block_size.to_bytes(4, "little"), self._seed)

    def chain(
        self,
        tokens: Tokens,
        block_size: int,
        parent: int | None = None,
        lora: str | None = None,
        salt: str | None = None,
    ) -> Keys:
        """Keys of the full blocks of `tokens`, resumed from the key `parent` (None: from the start).

        `lora` is part of every block; `salt` of a chain's first block only, so it is ignored when resuming.
        """
        if lora is None and (salt is None or parent is not None):
            return np.array(self.follow(tokens, block_size, parent), dtype=np.uint64)
        count = len(tokens) // block_size
        extras: list[Extras | None] = [None if lora is None else [lora]] * count
        if parent is None and salt is not None and count:
            extras[0] = [lora, salt]
        return self.chain_extras(tokens, block_size, parent, extras)

    def chain_extras(
        self, tokens: Tokens, block_size: int, parent: int | None, extras: Sequence[Extras | None]
    ) -> Keys:
        """As `chain`, with the extras of each block given (None or empty: none)."""
        digest = xxhash.xxh3_64_intdigest
        view = tokens.data
        key = self.root(block_size) if parent is None else parent
        keys: list[int] = []
        for index in range(len(tokens) // block_size):
            block = view[index * block_size : (index + 1) * block_size]
            extra = extras[index]
            key = digest(block.tobytes() + _encode(list(extra)) if extra else block, key)
            keys.append(key)
        return np.array(keys, dtype=np.uint64)

    def follow(self, tokens: Tokens, block_size: int, parent: int | None = None) -> list[int]:
        """As `chain`, of plain tokens, for whoever takes the keys one by one."""
        digest, over = xxhash.xxh3_64_intdigest, len(tokens) % block_size
        key = self.root(block_size) if parent is None else parent
        whole = tokens[: len(tokens) - over] if over else tokens
        blocks = whole.view(f"V{4 * block_size}").tolist()  # bytes: made and hashed faster than slices of a view
        return [key := digest(block, key) for block in blocks]
