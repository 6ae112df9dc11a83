"""The prefix store: what is known of the texts of prompts seen before: their token ids, block keys and pod mappings.

A text may be cut at places that depend on nearby bytes only, so texts that begin alike have cuts in common; each cut
is found by the hash of all bytes from the start. A `TextBlock` has what was new of one text, over all cuts in it. Where
another text goes on from one of them, the block is split, so what texts have in common is kept once. A block's parent
stands for the beginning before it, and lives at least as long. The text itself is not kept. Everything is within
`bytes_max`; what goes first is said by `eviction`, from the ends of texts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import xxhash

from indexer.blocks import Keys, KeySpace, Tokens, blocks_in, size_of
from indexer.eviction import EvictionLimits, first_to_go
from indexer.mappings import CleanUp, Ending, PodMappings, pod_set
from indexer.match import Holder, Match
from indexer.text_blocks import CUT_BYTES, Counter, Cutter, Family, Found, TextBlock, Variant

# What these weigh beside the keys: measured with tracemalloc.
KEYS_BYTES = 200
ENDING_BYTES = 400

VARIANTS_MAX = 16
"""Usual `variants_per_block_max`: nobody has asked for another."""

_DIGEST = xxhash.xxh3_128_intdigest


class PrefixLimits(NamedTuple):
    """The bounds of a PrefixStore."""

    bytes_max: int
    mapping_ttl_s: float
    pod_sets_per_block_max: int
    variants_per_block_max: int
    """Salts and LoRA names whose keys are kept with one text block; the oldest goes."""
    eviction: EvictionLimits


class Lookup(NamedTuple):
    """`hit`: tokens and match are known; `partial`: some or all tokens; `miss`: nothing."""

    result: Literal["hit", "partial", "miss"]
    found: Found
    match: Match | None


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Sizes now, and counts since the start."""

    blocks: int
    nbytes: int
    mappings: int
    hits: int
    partials: int
    misses: int
    failures: int
    evictions: dict[str, int]
    invalidations: dict[str, int]


class PrefixStore:
    """See the module. Not for use by several threads."""

    def __init__(
        self,
        space: KeySpace,
        seed: int,
        unchanged: Callable[[Match], bool],
        limits: PrefixLimits,
        enable_mappings: bool = True,
    ) -> None:
        """`seed`: a random 64-bit number, kept secret. `unchanged`: of the index whose matches are kept."""
        self._space = space
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        self._limits = limits
        self.mappings = PodMappings(unchanged, limits.mapping_ttl_s, enable_mappings)
        self._blocks: dict[int, TextBlock] = {}
        self._leaves: OrderedDict[TextBlock, None] = OrderedDict()  # blocks without children, least recent first
        self._live = 0
        self._text_bytes = 0
        self._clock = 0
        self._known = self._misses = 0
        self._evicted = {"lru": 0, "variants": 0, "manual": 0}
        self.failures = 0
        """Faults in here that callers have met, who then did without."""

    def family(self, name: str, cutter: Cutter, counter: Counter) -> Family:
        """The family of this name: one per tokenizer and way to use it."""
        return Family(xxhash.xxh3_64_intdigest(name.encode(), self._seed), cutter, counter)

    # --- reading

    def find_longest_tokens(self, family: Family, data: bytes) -> Found:
        """The longest beginning of `data` (UTF-8 text) whose tokens are known."""
        name = _DIGEST(data, family.seed)
        block, cut = self._blocks.get(name), len(data)
        if block is None:
            block, cut = self._longest(family, data)
        if block is not None and cut != block.end:
            block = self._split(block, cut)
        if block is None:
            self._misses += 1
            return Found(family, data, name, None, 0)
        self._known += 1
        self._use(block)
        self._shrink()
        return Found(family, data, name, block, block.end)

    def find_longest_tokens_with_mappings(
        self, family: Family, data: bytes, variant: Variant, pods: Iterable[Holder] | None, now: float
    ) -> Lookup:
        """As `find_longest_tokens`, with the match among `pods` where the whole text has one that holds."""
        found = self.find_longest_tokens(family, data)
        block = found.whole
        match = self.find_mapping(self.ending(block, variant), pods, now) if block is not None else None
        if match is not None:
            return Lookup("hit", found, match)
        return Lookup("miss" if found.block is None else "partial", found, None)

    def find_mapping(self, ending: Ending, pods: Iterable[Holder] | None, now: float) -> Match | None:
        """The match kept at this end of a prompt, if the index would give the same now."""
        return self.mappings.find(ending, pod_set(pods), now)

    def stats(self) -> PrefixStats:
        mappings = self.mappings
        return PrefixStats(
            blocks=self._live,
            nbytes=self.nbytes,
            mappings=len(mappings),
            hits=mappings.hits,
            partials=self._known - mappings.hits,
            misses=self._misses,
            failures=self.failures,
            evictions=dict(self._evicted),
            invalidations={str(reason): count for reason, count in mappings.removed.items()},
        )

    @property
    def nbytes(self) -> int:
        """Bytes in use, at most `bytes_max` after every call."""
        return self._text_bytes + self.mappings.nbytes

    def keys_by_use(self) -> Iterator[Keys]:
        """The block keys of all texts, piece by piece: those used last first, of one text from its start.

        Between two pieces anything may change.
        """
        told: set[TextBlock] = set()
        for leaf in reversed(list(self._leaves)):
            pieces, block = [], leaf
            while block not in told:
                told.add(block)
                pieces.append(block)
                if block.parent is None:
                    break
                block = block.parent
            for piece in reversed(pieces):
                for keys in list(piece.keys.values()):
                    yield np.frombuffer(keys, dtype=np.uint64)

    # --- writing

    def extend(self, found: Found, ends: list[int], ids: Tokens | bytes, stops: list[int] | None = None) -> None:
        """The text up to the last of `ends`, which are cuts of it, has these further token ids.

        `stops`: how many of them come before each cut, where that is known; else the family's counter is asked for it,
        once somebody wants to know.
        """
        names = found.names(ends)
        block = self._blocks.get(names[-1])  # if there is one, somebody came first
        if block is not None and block.end != ends[-1]:
            block = self._split(block, ends[-1])
        if block is None or block.end != ends[-1]:
            block = self._add(found, ends, names, bytes(ids), stops)
        found.block, found.known = block, ends[-1]
        self._shrink()

    def ending(self, block: TextBlock, variant: Variant) -> Ending:
        """The block keys of the whole text up to `block`; what is known of them is not computed again."""
        ending = block.endings.get(variant)
        if ending is None:
            chain = block.chain()
            self._extend_keys(chain, variant)
            keys = np.frombuffer(b"".join([b.keys[variant] for b in chain]), dtype=np.uint64)
            ending = block.endings[variant] = Ending(keys, block.total, live=block.live)
            self._weigh(block, ENDING_BYTES + keys.nbytes)
            self._shrink()
        return ending

    def extend_keys(self, block: TextBlock, variant: Variant) -> None:
        """Compute the keys up to `block` now, so that `ending` of a longer text has less to do."""
        self._extend_keys(block.chain(), variant)
        self._shrink()

    def cache_pod_mapping(self, ending: Ending, pods: Iterable[Holder] | None, match: Match, now: float) -> None:
        """Keep the match of this prompt among `pods`; the one used least recently gives way."""
        self.mappings.put(ending, pod_set(pods), match, now)
        if len(ending.mappings) > self._limits.pod_sets_per_block_max:
            self.mappings.remove(next(iter(ending.mappings.values())), "lru")
        self._shrink()

    def invalidate_mappings(self, keys: Keys) -> int:
        """Forget the mappings of all prompts that have one of these blocks; returns how many."""
        return self.mappings.invalidate(keys)

    def cleanup_expired(self, now: float, limit: int = 1000) -> CleanUp:
        """Forget at most `limit` mappings whose time is over."""
        return self.mappings.cleanup(now, limit)

    def clear(self) -> int:
        """Forget everything; returns how many text blocks that were."""
        gone = list(dict.fromkeys(self._blocks.values()))
        for block in gone:
            self._discard(block, "manual")
        self._leaves.clear()
        return len(gone)

    # --- inside

    def _longest(self, family: Family, data: bytes) -> tuple[TextBlock | None, int]:
        """The last cut of `data` that is known, and the block that has it: if one is known, all cuts before it are.

        So if the first is not, none is. Else it is looked for from the end in growing steps, as prompts grow by
        little, and then by halves.
        """
        cutter, blocks, seed = family.cutter, self._blocks, family.seed
        view = memoryview(data)
        low, high = 0, len(data) // cutter.window_bytes + 1  # the answer's window is in [low, high)
        cut = 0
        while not cut and low < high - 1:
            low += 1
            cut = cutter.first(data, low)
        block = blocks.get(_DIGEST(view[:cut], seed)) if cut else None
        if block is None:
            return None, 0
        best, step, growing = (block, cut), 1, True
        while low < high - 1:
            window = max(low + 1, high - step) if growing else (low + high) // 2
            step *= 2
            cut = 0
            at = window
            while at > low and not (cut := cutter.first(data, at)):
                at -= 1
            block = blocks.get(_DIGEST(view[:cut], seed)) if cut else None
            if block is not None:
                best, low, growing = (block, cut), window, False
            elif cut:
                high = at
            else:
                low = window  # no cut in (low, window]
        return best

    def _extend_keys(self, chain: list[TextBlock], variant: Variant) -> None:
        """Give every block of `chain` its keys, resumed after the last one before which none is missing."""
        first = next((place for place, block in enumerate(chain) if variant not in block.keys), len(chain))
        if first == len(chain):
            return
        grain, lora, salt = variant
        total = chain[first - 1].total if first else 0
        done = blocks_in(total, grain)
        parent, left = _resume(chain[:first], variant, total - done * size_of(grain))
        ids = np.frombuffer(b"".join([left, *(block.ids for block in chain[first:])]), dtype=np.uint32)
        raw = self._space.chain(ids, grain, parent, lora, salt).tobytes()
        start = 0
        for block in chain[first:]:
            end = (blocks_in(block.total, grain) - done) * 8
            self._set_keys(block, variant, raw[start:end])
            start = end

    def _set_keys(self, block: TextBlock, variant: Variant, keys: bytes) -> None:
        if variant not in block.keys:
            if len(block.keys) >= self._limits.variants_per_block_max:
                self._drop_variant(block, next(iter(block.keys)))
            block.keys[variant] = keys
            self._weigh(block, KEYS_BYTES + len(keys))

    def _drop_variant(self, block: TextBlock, variant: Variant) -> None:
        weight = KEYS_BYTES + len(block.keys.pop(variant))
        ending = block.endings.pop(variant, None)
        if ending is not None:
            self.mappings.remove_all(ending, "lru")
            ending.live = False
            weight += ENDING_BYTES + ending.keys.nbytes
        self._weigh(block, -weight)
        self._evicted["variants"] += 1

    def _add(self, found: Found, cuts: list[int], names: list[int], ids: bytes, stops: list[int] | None) -> TextBlock:
        """A new block behind what was found."""
        self._clock += 1
        parent = found.block
        block = TextBlock(found.family, parent, cuts, names, ids, stops, self._clock)
        if parent is not None:
            if not parent.live:
                return block  # evicted meanwhile: good for this answer, but not kept
            parent.children += 1
            self._leaves.pop(parent, None)
        self._enter(block)
        self._leaves[block] = None
        return block

    def _enter(self, block: TextBlock) -> None:
        block.live = True
        for name in block.names:
            self._blocks.setdefault(name, block)
        self._live += 1
        self._text_bytes += block.nbytes

    def _split(self, block: TextBlock, cut: int) -> TextBlock | None:
        """The part of a block up to one of its cuts, as a block of its own, which becomes its parent.

        If that turns out to be no place between tokens, none of the block's inner cuts is trusted.
        """
        place = bisect_left(block.cuts, cut)
        count, stop, stops = place + 1, block.stop(place), block.stops
        if stop is None:
            self._forget(block, len(block.cuts) - 1)
            return block.parent
        head = TextBlock(
            block.family, block.parent, block.cuts[:count], block.names[:count], block.ids[: 4 * stop],
            stops and stops[:count], block.used,
        )  # fmt: skip
        before = block.parent.total if block.parent else 0
        for variant, keys in block.keys.items():
            nbytes = 8 * (blocks_in(head.total, variant[0]) - blocks_in(before, variant[0]))
            head.keys[variant] = keys[:nbytes]
            block.keys[variant] = keys[nbytes:]
            head.nbytes += KEYS_BYTES + nbytes
            self._weigh(block, -nbytes)
        self._forget(block, count)
        self._weigh(block, -4 * stop)
        block.ids = block.ids[4 * stop :]
        block.stops = stops and [other - stop for other in stops[count:]]
        block.parent, head.children = head, 1
        self._enter(head)
        return head

    def _forget(self, block: TextBlock, count: int) -> None:
        """The first `count` cuts of a block are its own no longer."""
        for name in block.names[:count]:
            if self._blocks.get(name) is block:
                del self._blocks[name]
        del block.names[:count], block.cuts[:count]
        self._weigh(block, -CUT_BYTES * count)

    def _use(self, block: TextBlock) -> None:
        self._clock += 1
        block.used = self._clock
        block.hits += 1
        if not block.children:
            self._leaves.move_to_end(block)

    def _weigh(self, block: TextBlock, nbytes: int) -> None:
        block.nbytes += nbytes
        if block.live:
            self._text_bytes += nbytes

    def _shrink(self) -> None:
        eviction = self._limits.eviction
        full = self._limits.bytes_max * eviction.threshold
        while self.nbytes > full and self._leaves:
            for leaf in first_to_go(self._leaves, eviction):
                self._give_up(leaf)
                if self.nbytes <= full:
                    break

    def _give_up(self, leaf: TextBlock) -> None:
        del self._leaves[leaf]
        self._discard(leaf, "lru")
        parent = leaf.parent
        if parent is not None:
            parent.children -= 1
            parent.hits += leaf.hits
            if not parent.children:
                self._leaves[parent] = None
                if parent.used <= leaf.used:  # nobody used it for itself since
                    self._leaves.move_to_end(parent, last=False)

    def _discard(self, block: TextBlock, reason: str) -> None:
        for name in block.names:
            if self._blocks.get(name) is block:
                del self._blocks[name]
        self._live -= 1
        self._text_bytes -= block.nbytes
        block.live = False
        for ending in block.endings.values():
            self.mappings.remove_all(ending, "manual" if reason == "manual" else "lru")
            ending.live = False
        self._evicted[reason] += 1


def _resume(chain: Sequence[TextBlock], variant: Variant, count: int) -> tuple[int | None, bytes]:
    """The last key of `chain`, and its last `count` ids, of which no key was made yet."""
    left, wanted = b"", 4 * count
    for block in reversed(chain):
        if len(left) >= wanted:
            break
        left = block.ids[max(0, len(block.ids) + len(left) - wanted) :] + left
    keys = next((block.keys[variant] for block in reversed(chain) if block.keys[variant]), None)
    parent = int(np.frombuffer(keys[-8:], dtype=np.uint64)[0]) if keys else None
    return parent, left
