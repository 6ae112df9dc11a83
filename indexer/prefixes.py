"""The prefix store: what is known of the texts of prompts seen before: their token ids, block keys and pod mappings.

A text is cut into pieces at places that depend on nearby bytes only, so texts that begin alike have blocks in common.
A `TextBlock` stands for a text's beginning up to one cut (or for a whole text) and is found by the hash of all bytes
from the start. Its parent stands for the beginning up to the cut before, and lives at least as long. The text itself
is not kept. Everything is within `bytes_max`; what was used least recently goes first, from the ends of texts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import xxhash

from indexer.blocks import Keys, KeySpace, Tokens
from indexer.mappings import CleanUp, Ending, PodMappings, pod_set
from indexer.match import Match, Pod

Variant: TypeAlias = tuple[int, str | None, str | None]
"""What block keys depend on beside the token ids: block size, LoRA name, cache salt."""

# What these weigh beside their token ids and keys, table entries and allocation included: measured with tracemalloc.
_BLOCK_BYTES = 560
_KEYS_BYTES = 200
_ENDING_BYTES = 400

_DIGEST = xxhash.xxh3_128_intdigest


class Cutter(Protocol):
    """The rule that says where texts are cut: at most one place in each window of bytes, the same in longer texts."""

    window_bytes: int

    def first(self, data: bytes, window: int) -> int:
        """The cut in the given window of `data`, 0 if there is none."""

    def ends(self, data: bytes, start: int = 0) -> list[int]:
        """Where the pieces of `data[start:]` end; the last is `len(data)`."""


class PrefixLimits(NamedTuple):
    """The bounds of a PrefixStore."""

    bytes_max: int = 512 * 2**20
    mapping_ttl_s: float = 30.0
    pod_sets_per_block_max: int = 5
    variants_per_block_max: int = 16
    """Salts and LoRA names whose keys are kept with one text block; the oldest goes."""


@dataclass(frozen=True, slots=True)
class Family:
    """Texts that are cut and tokenized alike; the same bytes in two families have nothing in common."""

    seed: int
    cutter: Cutter


class TextBlock:
    """A text's beginning. `ids` and `keys` are those of its last piece only, as native bytes; `total` counts tokens."""

    __slots__ = ("children", "endings", "ids", "keys", "live", "name", "nbytes", "parent", "total", "used")

    def __init__(self, name: int, parent: TextBlock | None, ids: bytes, used: int) -> None:
        self.name = name
        self.parent = parent
        self.ids = ids
        self.total: int = len(ids) // 4 + (parent.total if parent else 0)
        self.keys: dict[Variant, bytes] = {}
        self.endings: dict[Variant, Ending] = {}
        self.children = 0
        self.used = used
        self.live = False
        self.nbytes = _BLOCK_BYTES + len(ids)

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
        """Where the pieces that are not known end."""
        return self.family.cutter.ends(self.data, self.known)


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
        limits: PrefixLimits = PrefixLimits(),  # noqa: B008 (immutable)
        enable_mappings: bool = True,
    ) -> None:
        """`seed`: a random 64-bit number, kept secret. `unchanged`: of the index whose matches are kept."""
        self._space = space
        self._seed = seed & 0xFFFF_FFFF_FFFF_FFFF
        self._limits = limits
        self.mappings = PodMappings(unchanged, limits.mapping_ttl_s, enable_mappings)
        self._blocks: dict[int, TextBlock] = {}
        self._leaves: OrderedDict[TextBlock, None] = OrderedDict()  # blocks without children, least recent first
        self._text_bytes = 0
        self._clock = 0
        self._known = self._misses = 0
        self._evicted = {"lru": 0, "variants": 0, "manual": 0}
        self.failures = 0
        """Faults in here that callers have met, who then did without."""

    def family(self, name: str, cutter: Cutter) -> Family:
        """The family of this name: one per tokenizer and way to use it."""
        return Family(xxhash.xxh3_64_intdigest(name.encode(), self._seed), cutter)

    # --- reading

    def find_longest_tokens(self, family: Family, data: bytes) -> Found:
        """The longest beginning of `data` (UTF-8 text) whose tokens are known."""
        name = _DIGEST(data, family.seed)
        block = self._blocks.get(name)
        if block is not None:
            self._known += 1
            self._use(block)
            return Found(family, data, name, block, len(data))
        block, known = self._longest(family, data)
        if block is None:
            self._misses += 1
        else:
            self._known += 1
            self._use(block)
        return Found(family, data, name, block, known)

    def find_longest_tokens_with_mappings(
        self, family: Family, data: bytes, variant: Variant, pods: Iterable[Pod] | None, now: float
    ) -> Lookup:
        """As `find_longest_tokens`, with the match among `pods` where the whole text has one that holds."""
        found = self.find_longest_tokens(family, data)
        block = found.whole
        match = self.find_mapping(self.ending(block, variant), pods, now) if block is not None else None
        if match is not None:
            return Lookup("hit", found, match)
        return Lookup("miss" if found.block is None else "partial", found, None)

    def find_mapping(self, ending: Ending, pods: Iterable[Pod] | None, now: float) -> Match | None:
        """The match kept at this end of a prompt, if the index would give the same now."""
        return self.mappings.find(ending, pod_set(pods), now)

    def stats(self) -> PrefixStats:
        mappings = self.mappings
        return PrefixStats(
            blocks=len(self._blocks),
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

    # --- writing

    def extend(self, found: Found, ends: Sequence[int], ids: Sequence[Tokens | bytes]) -> None:
        """The next pieces of the text, which end at `ends`, have these token ids."""
        digest = found.digest
        if digest is None:
            digest = found.digest = xxhash.xxh3_128(found.data[: found.known], seed=found.family.seed)
        data, blocks = memoryview(found.data), self._blocks
        block, known = found.block, found.known
        for end, piece_ids in zip(ends, ids, strict=True):
            if end == len(data):
                name = found.name
            else:
                digest.update(data[known:end])
                name = digest.intdigest()
            block = blocks.get(name) or self._add(name, block, bytes(piece_ids))
            known = end
        found.block, found.known = block, known
        if block is not None and block.live and not block.children:
            self._leaves[block] = None
        self._shrink()

    def ending(self, block: TextBlock, variant: Variant) -> Ending:
        """The block keys of the whole text up to `block`; what is known of them is not computed again."""
        ending = block.endings.get(variant)
        if ending is None:
            chain = block.chain()
            self._extend_keys(chain, variant)
            keys = np.frombuffer(b"".join([b.keys[variant] for b in chain]), dtype=np.uint64)
            ending = block.endings[variant] = Ending(keys, block.total, live=block.live)
            self._weigh(block, _ENDING_BYTES + keys.nbytes)
            self._shrink()
        return ending

    def extend_keys(self, block: TextBlock, variant: Variant) -> None:
        """Compute the keys up to `block` now, so that `ending` of a longer text has less to do."""
        self._extend_keys(block.chain(), variant)
        self._shrink()

    def cache_pod_mapping(self, ending: Ending, pods: Iterable[Pod] | None, match: Match, now: float) -> None:
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
        gone = list(self._blocks.values())
        for block in gone:
            self._discard(block, "manual")
        self._leaves.clear()
        return len(gone)

    # --- inside

    def _longest(self, family: Family, data: bytes) -> tuple[TextBlock | None, int]:
        """The last cut of `data` whose block is known: if one is known, all cuts before it are.

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
        size, lora, salt = variant
        total = chain[first - 1].total if first else 0
        parent, left = _resume(chain[:first], variant, total % size)
        ids = np.frombuffer(b"".join([left, *(block.ids for block in chain[first:])]), dtype=np.uint32)
        raw = self._space.chain(ids, size, parent, lora, salt).tobytes()
        start = 0
        done = total // size
        for block in chain[first:]:
            end = (block.total // size - done) * 8
            self._set_keys(block, variant, raw[start:end])
            start = end

    def _set_keys(self, block: TextBlock, variant: Variant, keys: bytes) -> None:
        if variant not in block.keys:
            if len(block.keys) >= self._limits.variants_per_block_max:
                self._drop_variant(block, next(iter(block.keys)))
            block.keys[variant] = keys
            self._weigh(block, _KEYS_BYTES + len(keys))

    def _drop_variant(self, block: TextBlock, variant: Variant) -> None:
        weight = _KEYS_BYTES + len(block.keys.pop(variant))
        ending = block.endings.pop(variant, None)
        if ending is not None:
            self.mappings.remove_all(ending, "lru")
            ending.live = False
            weight += _ENDING_BYTES + ending.keys.nbytes
        self._weigh(block, -weight)
        self._evicted["variants"] += 1

    def _add(self, name: int, parent: TextBlock | None, ids: bytes) -> TextBlock:
        """A new block, which is not among the leaves yet: the next one may grow on it at once."""
        self._clock += 1
        block = TextBlock(name, parent, ids, self._clock)
        if parent is not None:
            if not parent.live:
                return block  # evicted meanwhile: good for this answer, but not kept
            parent.children += 1
            self._leaves.pop(parent, None)
        block.live = True
        self._blocks[name] = block
        self._text_bytes += block.nbytes
        return block

    def _use(self, block: TextBlock) -> None:
        self._clock += 1
        block.used = self._clock
        if not block.children:
            self._leaves.move_to_end(block)

    def _weigh(self, block: TextBlock, nbytes: int) -> None:
        block.nbytes += nbytes
        if block.live:
            self._text_bytes += nbytes

    def _shrink(self) -> None:
        while self.nbytes > self._limits.bytes_max and self._leaves:
            leaf, _ = self._leaves.popitem(last=False)
            self._discard(leaf, "lru")
            parent = leaf.parent
            if parent is not None:
                parent.children -= 1
                if not parent.children:
                    self._leaves[parent] = None
                    if parent.used <= leaf.used:  # nobody used it for itself since
                        self._leaves.move_to_end(parent, last=False)

    def _discard(self, block: TextBlock, reason: str) -> None:
        del self._blocks[block.name]
        self._text_bytes -= block.nbytes
        block.live = False
        for ending in block.endings.values():
            self.mappings.remove_all(ending, "manual" if reason == "manual" else "lru")
            ending.live = False
        self._evicted[reason] += 1


def _resume(chain: Sequence[TextBlock], variant: Variant, count: int) -> tuple[int | None, bytes]:
    """The last key of `chain`, and its last `count` ids, which fill no block yet."""
    left = b""
    for block in reversed(chain):
        if len(left) >= 4 * count:
            break
        left = block.ids + left
    keys = next((block.keys[variant] for block in reversed(chain) if block.keys[variant]), None)
    parent = int(np.frombuffer(keys, dtype=np.uint64)[-1]) if keys else None
    return parent, left[len(left) - 4 * count :]
