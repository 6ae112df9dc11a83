"""Engine hashes: the chained digests that name a block's content and all before it.

As in vLLM: digest(parent digest, token ids, LoRA name in all blocks and cache salt in the first). Routers must
treat them as opaque, so the exact bytes that are hashed here are our own; chain, seed and width are vLLM's.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def root_digest(seed: str) -> bytes:
    """The parent of every first block: 32 bytes; pods of equal seed make equal hashes."""
    return hashlib.sha256(b"root\0" + seed.encode()).digest()


def block_digest(parent: bytes, token_ids: Sequence[int], lora: str | None, salt: str | None) -> bytes:
    """32 bytes: the sha256 of parent, tokens and, tagged, LoRA name and cache salt."""
    digest = hashlib.sha256(parent)
    digest.update(array("I", token_ids).tobytes())
    for tag, text in ((b"lora", lora), (b"salt", salt)):
        if text is not None:
            encoded = text.encode()
            digest.update(tag + len(encoded).to_bytes(4, "big") + encoded)
    return digest.digest()


class Chain:
    """The digests of one growing sequence of tokens: `digests[i]` names block i and all before it."""

    def __init__(
        self, root: bytes, block_size: int, lora: str | None = None, salt: str | None = None, ahead: int = 0
    ) -> None:
        """`ahead`: tokens behind a block that its digest covers, too; a block has none before these are there."""
        self.digests: list[bytes] = []
        self._parent = root
        self._block_size = block_size
        self._lora = lora
        self._salt = salt
        self._ahead = ahead

    def extend(self, token_ids: Sequence[int]) -> None:
        """Hash the blocks of `token_ids` (the whole sequence so far) that have become full."""
        size, ahead = self._block_size, self._ahead
        for index in range(len(self.digests), (len(token_ids) - ahead) // size):
            block = token_ids[index * size : (index + 1) * size + ahead]
            self._parent = block_digest(self._parent, block, self._lora, self._salt if index == 0 else None)
            self.digests.append(self._parent)
