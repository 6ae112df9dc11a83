"""Token ids to block keys, through the prefix store: for prompts that need no tokenizer of ours."""

from __future__ import annotations

from time import perf_counter
from typing import Literal

import numpy as np

from indexer.blocks import Keys, KeySpace, Tokens
from indexer.mappings import Ending
from indexer.prefixes import PrefixStore
from indexer.text_blocks import TextBlock
from router.tokens.safe_cuts import RawCuts

LookupResult = Literal["partial", "miss"]
"""`miss`: nothing was known of this prompt; `partial`: the tokens of some or all of it were."""


class Encoded:
    """A prompt's tokens and keys. `ending` is where the prefix store keeps the prompt's pod mappings."""

    __slots__ = ("_block", "_ids", "broken", "ending", "keys_us", "lookup", "tokenize_us")

    def __init__(
        self,
        ending: Ending,
        source: TextBlock | Tokens,
        lookup: LookupResult,
        tokenize_us: float,
        keys_us: float,
    ) -> None:
        self.ending = ending
        self._block = source if isinstance(source, TextBlock) else None
        self._ids = source if isinstance(source, np.ndarray) else None
        self.lookup = lookup
        self.broken = 0  # pods that broke off when they were asked for the tokens
        self.tokenize_us = tokenize_us
        self.keys_us = keys_us

    @property
    def keys(self) -> Keys:
        """Keys of the full blocks (read-only)."""
        return self.ending.keys

    @property
    def count(self) -> int:
        """The number of tokens."""
        return self.ending.tokens

    @property
    def tokens(self) -> Tokens:
        """The token ids (read-only), put together when asked for: routing needs the keys only."""
        if self._block is not None:
            return self._block.tokens()
        assert self._ids is not None
        return self._ids


class GivenTokens:
    """The keys of token ids, whoever made them: equal ids of two models share what is kept of them."""

    def __init__(self, space: KeySpace, store: PrefixStore) -> None:
        self._space = space
        self._store = store
        self._family = store.family("ids", RawCuts(), RawCuts.count)

    def encode_now(self, ids: Tokens, block_size: int, lora: str | None = None, salt: str | None = None) -> Encoded:
        """The keys of `ids`; of those that begin as others did before, only the new ones are computed."""
        began = perf_counter()
        variant = (block_size, lora, salt)
        lookup: LookupResult = "miss"
        try:
            found = self._store.find_longest_tokens(self._family, ids.tobytes())
            if found.block is not None:
                lookup = "partial"
            if found.whole is None:
                self._store.extend(found, found.ends(), found.data[found.known :])
            assert found.whole is not None
            ending = self._store.ending(found.whole, variant)
        except Exception:  # a fault of the cache must not cost the answer
            self._store.failures += 1
            return self.unkept(ids, block_size, lora, salt)
        return Encoded(ending, ids, lookup, 0.0, (perf_counter() - began) * 1e6)

    def unkept(self, ids: Tokens, block_size: int, lora: str | None = None, salt: str | None = None) -> Encoded:
        """The keys of `ids`, without the prefix store."""
        began = perf_counter()
        ending = Ending(self._space.chain(ids, block_size, None, lora, salt), len(ids), live=False)
        return Encoded(ending, ids, "miss", 0.0, (perf_counter() - began) * 1e6)

    async def encode(self, ids: Tokens, block_size: int, lora: str | None = None, salt: str | None = None) -> Encoded:
        """As `encode_now`, which never has to wait."""
        return self.encode_now(ids, block_size, lora, salt)
