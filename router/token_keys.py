"""Token ids to block keys, through the prefix store: for prompts that need no tokenizer of ours."""

from __future__ import annotations

from time import perf_counter

from indexer.blocks import KeySpace, Tokens
from indexer.mappings import Ending
from indexer.prefixes import PrefixStore
from router.cuts import RawCuts
from router.tokens import Encoded, Lookup


class TokenKeys:
    """The keys of token ids, whoever made them: equal ids of two models share what is kept of them."""

    def __init__(self, space: KeySpace, store: PrefixStore) -> None:
        self._space = space
        self._store = store
        self._family = store.family("ids", RawCuts())
        self.failures = 0
        """How often the prefix store failed and keys were computed without it."""

    def encode_now(self, ids: Tokens, block_size: int, lora: str | None = None, salt: str | None = None) -> Encoded:
        """The keys of `ids`; of those that begin as others did before, only the new ones are computed."""
        began = perf_counter()
        variant = (block_size, lora, salt)
        lookup: Lookup = "miss"
        try:
            found = self._store.find_longest_tokens(self._family, ids.tobytes())
            if found.block is not None:
                lookup = "partial"
            if found.whole is None:
                ends = found.ends()
                starts = [found.known, *ends]
                self._store.extend(found, ends, [found.data[a:b] for a, b in zip(starts, ends, strict=False)])
            assert found.whole is not None
            ending = self._store.ending(found.whole, variant)
        except Exception:  # a fault of the cache must not cost the answer
            self.failures += 1
            keys = self._space.chain(ids, block_size, None, lora, salt)
            lookup, ending = "miss", Ending(keys, len(ids), live=False)
        return Encoded(ending, ids, lookup, 0.0, (perf_counter() - began) * 1e6)

    async def encode(self, ids: Tokens, block_size: int, lora: str | None = None, salt: str | None = None) -> Encoded:
        """As `encode_now`, which never has to wait."""
        return self.encode_now(ids, block_size, lora, salt)
