"""How a pod reuses what it holds of a prompt, and what it keeps beside: settings that events do not tell.

Rules: vLLM's `usage.prompt_tokens_details.cached_tokens` with and without drafters, seen on running servers of 0.32 and
0.33; the groups beside full attention as in recordings of Gemma 3 (0.32) and Qwen3-Next (0.33).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.events import Event, Origin, Removed, Stored

Kind = Literal["mamba", "sliding_window"]
LOOKAHEAD_SINCE = (0, 33)


@dataclass(frozen=True, slots=True)
class Reuse:
    """`drop`: of the `unit`s of blocks that were found, so many are computed again. `look`: tokens at a prompt's end
    that are computed anyhow. `ahead`: tokens behind a block that its hash covers. `drafter`: there is one. `window`:
    tokens that the model looks back in every layer; 0: all, in some.
    """

    drop: int = 0
    look: int = 1
    unit: int = 1
    ahead: int = 0
    drafter: bool = False
    caches: bool = True
    window: int = 0

    @classmethod
    def of(cls, drafter: str | None, version: tuple[int, ...]) -> Reuse:
        """As a version does it with `ngram` or `eagle` (also EAGLE-3, MTP), or without a drafter."""
        if drafter != "eagle":
            return cls(drafter=drafter is not None)
        if version >= LOOKAHEAD_SINCE:
            return cls(drafter=True, ahead=1)
        return cls(drafter=True, drop=1)

    def usable(self, found: int, tokens: int, block_size: int) -> int:
        """Blocks that are reused of a prompt of so many tokens, of which so many leading ones were found."""
        if not self.caches:
            return 0
        found = min(found, (tokens - self.look) // block_size)
        return max(0, found // self.unit - self.drop) * self.unit


class Group:
    """A KV-cache group beside full attention: it keeps the last block of a stretch that was computed (`mamba`), or as
    many as its window needs; at most `kept_max`, the oldest go first. Under the digests of the full group."""

    def __init__(self, number: int, kind: Kind, window: int, block_size: int, kept_max: int) -> None:
        """`window`: tokens."""
        self.number = number
        self.kind = kind
        self.window = window if kind == "sliding_window" else None
        self._needed = -(-(window - 1) // block_size) if kind == "sliding_window" else 1
        self._kept: OrderedDict[bytes, None] = OrderedDict()
        self._kept_max = kept_max
        self._block_size = block_size

    def store(self, chain: Sequence[bytes], token_ids: Sequence[int], span: range, origin: Origin) -> list[Event]:
        """The blocks of a sequence that `span` numbers were computed."""
        kept = [digest for digest in chain[span.start : span.stop][-self._needed :] if digest not in self._kept]
        self._kept.update(dict.fromkeys(kept))
        gone: list[Event] = []
        while len(self._kept) > self._kept_max:
            digest, _ = self._kept.popitem(last=False)
            gone.append(Removed(digest, self.number))
        size, parent = self._block_size, chain[span.start - 1] if span.start else None
        tokens = tuple(token_ids[span.start * size : span.stop * size])
        stored = Stored(tuple(kept), parent, tokens, span.start, origin, (), self.number, self.kind, self.window)
        return [*gone, stored]

    def ends(self, chain: Sequence[bytes], blocks: int) -> int:
        """The most blocks, of at most so many, after which this group can go on."""
        for end in range(blocks, 0, -1):
            first = end - 1 if self.kind == "mamba" else max(0, end - self._needed)
            if all(digest in self._kept for digest in chain[first:end]):
                return end
        return 0

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
