"""What the prefix store keeps of texts: blocks that stand for their beginnings, and how they are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import xxhash

from indexer.blocks import Grain, Tokens
from indexer.mappings import Ending

Variant: TypeAlias = tuple[Grain, str | None, str | None]
"""What block keys depend on beside the token ids: grain, LoRA name, cache salt."""

BLOCK_BYTES, CUT_BYTES = 720, 200
"""What a text block and each cut weigh beside token ids and keys, table entries and allocation included: measured with
tracemalloc."""


class Cutter(Protocol):
    """The rule that says where texts are cut: at most one place in each window of bytes, the same in longer texts."""

    window_bytes: int

    def first(self, data: bytes, window: int) -> int:
        """The cut in the given window of `data`, 0 if there is none."""

    def ends(self, data: bytes, start: int = 0) -> list[int]:
        """Where the pieces of `data[start:]` end; the last is `len(data)`."""


Counter: TypeAlias = Callable[[Tokens, int], int | None]
"""How many of a text's last tokens its last bytes are; None if they begin inside a token."""


@dataclass(frozen=True, slots=True)
class Family:
    """Texts that are cut and tokenized alike; the same bytes in two families have nothing in common."""

    seed: int
    cutter: Cutter
    counter: Counter


class TextBlock:
    """A text's beginning. `ids` and `keys` are those after its parent only, as native bytes; `total` counts all tokens.

    `cuts` are places in the text, the last being its end, with their `names`; `stops`: how many of `ids` come before
    each, where that is known.
    """

    __slots__ = (
        "children", "cuts", "endings", "family", "hits", "ids", "keys", "live", "names", "nbytes", "parent", "stops",
        "total", "used",
    )  # fmt: skip

    def __init__(
        self,
        family: Family,
        parent: TextBlock | None,
        cuts: list[int],
        names: list[int],
        ids: bytes,
        stops: list[int] | None,
        used: int,
    ) -> None:
        self.family = family
        self.parent = parent
        self.cuts = cuts
        self.names = names
        self.ids = ids
        self.stops = stops
        self.total: int = len(ids) // 4 + (parent.total if parent else 0)
        self.keys: dict[Variant, bytes] = {}
        self.endings: dict[Variant, Ending] = {}
        self.children = 0
        self.hits = 0  # uses of it, and of what was behind it and is gone
        self.used = used
        self.live = False
        self.nbytes = BLOCK_BYTES + CUT_BYTES * len(cuts) + len(ids)

    @property
    def end(self) -> int:
        """Where it ends in the text."""
        return self.cuts[-1]

    def chain(self) -> list[TextBlock]:
        """The blocks from the text's start to this one."""
        blocks = []
        block: TextBlock | None = self
        while block is not None:
            blocks.append(block)
            block = block.parent
        blocks.reverse()
        return blocks

    def tokens(self) -> Tokens:
        """All token ids up to here (read-only)."""
        return np.frombuffer(b"".join([block.ids for block in self.chain()]), dtype=np.uint32)

    def stop(self, place: int) -> int | None:
        """How many of `ids` come before the cut number `place`; None if it lies inside a token."""
        if self.stops is not None:
            return self.stops[place]
        ids = np.frombuffer(self.ids, dtype=np.uint32)
        behind = self.family.counter(ids, self.end - self.cuts[place])
        return None if behind is None else len(ids) - behind


class Found:
    """How much of one text is known: `block` stands for its first `known` bytes. Grows by `PrefixStore.extend`."""

    __slots__ = ("block", "data", "digest", "family", "known", "name")

    def __init__(self, family: Family, data: bytes, name: int, block: TextBlock | None, known: int) -> None:
        self.family = family
        self.data = data
        self.name = name
        self.block = block
        self.known = known
        self.digest: xxhash.xxh3_128 | None = None

    @property
    def whole(self) -> TextBlock | None:
        """The block of the whole text, once all of it is known."""
        return self.block if self.known == len(self.data) else None

    def ends(self) -> list[int]:
        """Where what is not known may be cut; the last is the text's end."""
        return self.family.cutter.ends(self.data, self.known)

    def names(self, ends: Sequence[int]) -> list[int]:
        """The names of the beginnings up to the `ends`, which follow on what is known."""
        digest, view = self.digest, memoryview(self.data)
        if digest is None:
            digest = self.digest = xxhash.xxh3_128(view[: self.known], seed=self.family.seed)
        found, start, last = [], self.known, len(self.data)
        for end in ends:
            if end == last:
                found.append(self.name)
            else:
                digest.update(view[start:end])
                found.append(digest.intdigest())
                start = end
        return found
