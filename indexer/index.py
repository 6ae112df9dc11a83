"""Which pod holds which block: fed by events, asked by prompts.

`apply(pod, event)` believes one event; `match(keys)` says how many leading blocks each pod holds; `predict` enters what
a pod is about to hold; `drop` forgets a pod. Everything is bounded; nothing waits; time comes in as `now`. A pod's
blocks are a bit in holder sets, so dropping a pod retires its bit at once and clears it in slices (`sweep`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.blocks import Extras, Keys, KeySpace
from indexer.engine import EngineMap
from indexer.errors import IndexerError
from indexer.events import PREFIX_KINDS, AllBlocksCleared, BlockRemoved, BlockStored, Event, Tier
from indexer.holders import HolderSets
from indexer.match import Hit, Match, Pod, Walk
from indexer.orphans import Orphans
from indexer.pages import PAGE, Pages

_PLANES = ("gpu", "predicted", "cpu", "disk")
_PREDICTED = _PLANES.index("predicted")


class Applied(NamedTuple):
    """What one event changed, in blocks."""

    stored: int = 0
    removed: int = 0
    orphans: int = 0
    unknown: int = 0  # removals of blocks that we did not know
    ignored: int = 0  # of KV-cache groups that prefixes do not need, or without a way to their content
    refused: int = 0  # stores for which the index has no room


class Holding(NamedTuple):
    """How many blocks a pod is known to hold."""

    gpu: int
    predicted: int
    cpu: int
    disk: int
    orphans: int


class Prediction(NamedTuple):
    """Rows that were entered as predicted for a pod at one decision."""

    pod: Pod
    rows: list[int]


@dataclass(slots=True)
class _Pod:
    bit: int
    orphans: Orphans
    tiers: dict[Tier, EngineMap] = field(default_factory=dict)
    predicted: dict[int, float] = field(default_factory=dict)  # row -> when it expires
    group: int | None = None  # the KV-cache group that is indexed


class PrefixIndex:
    """See the module. `pods_max` counts feeds (ranks); twice as many bits exist: dropped ones are swept late."""

    def __init__(self, space: KeySpace, blocks_max: int, pods_max: int = 512, orphans_max: int = 10_000) -> None:
        self._space = space
        self._pages = Pages(blocks_max)
        self._width = 2 * pods_max
        self._sets = HolderSets(self._width, len(_PLANES))
        self._orphans_max = orphans_max
        self._pods: dict[Pod, _Pod] = {}
        self._pod_of_bit: dict[int, Pod] = {}
        self._active = 0
        self._bits = list(range(self._width - 1, -1, -1))
        self._swept: deque[tuple[int, int, NDArray[np.uint32]]] = deque()  # bit, plane, rows to clear
        self._expiring: list[tuple[float, int, Prediction]] = []  # a heap
        self._predictions = 0
        self._version = 0
        self._epoch = 0

    # --- reading ---

    def match(self, keys: Keys) -> Match:
        """The leading blocks of `keys` (one chain, from the prompt's start) that each pod holds, exactly."""
        walk = Walk(self._pages, self._sets, self._active)
        walk.go(keys)
        if walk.left:
            walk.drops.append((len(keys), walk.left))
        rows = walk.rows[0] if len(walk.rows) == 1 else np.concatenate(walk.rows)
        return Match(self._hits(walk), len(keys), self._version, self._epoch, walk.frontier, rows)

    def unchanged(self, match: Match) -> bool:
        """Would `match` of the same keys give the same answer now? False is always safe; True is exact."""
        if match.version == self._version and match.epoch == self._epoch:
            return True
        if match.epoch != self._epoch:
            return False
        if match.frontier and self._pages.find(match.frontier):
            return False
        pages = match.pages()
        return not pages.size or int(self._pages.stamp_array[pages].max()) <= match.version

    def holding(self, pod: Pod) -> Holding:
        known = self._pods.get(pod)
        if known is None:
            return Holding(0, 0, 0, 0, 0)
        gpu, cpu, disk = (len(known.tiers[t]) if t in known.tiers else 0 for t in ("gpu", "cpu", "disk"))
        return Holding(gpu, len(known.predicted), cpu, disk, known.orphans.blocks)

    def held(self, pod: Pod) -> int:
        """Blocks of the pod's own cache that are held or predicted to be: one look-up, for every candidate."""
        known = self._pods.get(pod)
        if known is None:
            return 0
        hashes = known.tiers.get("gpu")
        return len(known.predicted) + (len(hashes) if hashes is not None else 0)

    @property
    def pods(self) -> Iterable[Pod]:
        return self._pods.keys()

    @property
    def blocks(self) -> int:
        """An upper bound of the distinct blocks held: the rows of all pages in use."""
        return self._pages.used * PAGE

    @property
    def nbytes(self) -> int:
        """Bytes of the tables: pages, and each pod's engine hashes."""
        maps = (m for pod in self._pods.values() for m in pod.tiers.values())
        return self._pages.nbytes + sum(m.nbytes for m in maps)

    # --- writing ---

    def apply(self, pod: Pod, event: Event, lora: str | None = None) -> Applied:
        """Believe one event of `pod`'s feed. `lora`: the adapter's name, where the event gives only its number."""
        self._version += 1
        known = self._known(pod)
        if isinstance(event, BlockStored):
            return self._store(known, event, lora)
        if isinstance(event, BlockRemoved):
            return self._remove(known, event)
        assert isinstance(event, AllBlocksCleared)
        return self.clear(pod)

    def predict(self, pod: Pod, keys: Keys, start: int, expires: float) -> Prediction:
        """`pod` is about to hold `keys[start:]` (it holds those before): believed until `expires`, or confirmed."""
        self._version += 1
        known = self._known(pod)
        mask = 1 << (_PREDICTED * self._width + known.bit)
        row = self._pages.find(int(keys[start - 1])) if start else 0
        rows: list[int] = []
        for key in keys[start:].tolist():
            row = self._row(key, row)
            if not row:
                break
            self._hold(row, mask)
            known.predicted[row] = max(expires, known.predicted.get(row, 0.0))
            rows.append(row)
        return self._expiring_at(expires, Prediction(pod, rows))

    def settle(self, prediction: Prediction, expires: float) -> None:
        """What is still unconfirmed of a prediction is believed until `expires` only."""
        known = self._pods.get(prediction.pod)
        if known is None or not known.predicted:
            return
        rows = [row for row in prediction.rows if known.predicted.get(row, 0.0) > expires]
        for row in rows:
            known.predicted[row] = expires
        self._expiring_at(expires, Prediction(prediction.pod, rows))

    def expire(self, now: float, blocks_max: int = 4096) -> int:
        """Forget predicted blocks whose time is over, about `blocks_max` a call. Returns how many."""
        self._version += 1
        gone = looked = 0
        while self._expiring and self._expiring[0][0] <= now and looked < blocks_max:
            _, _, prediction = heappop(self._expiring)
            looked += len(prediction.rows)
            known = self._pods.get(prediction.pod)
            if known is not None:
                gone += sum(self._unpredict(known, row, now) for row in prediction.rows)
        return gone

    def clear(self, pod: Pod) -> Applied:
        """`pod` stays, and holds nothing."""
        known = self._pods.get(pod)
        if known is None:
            return Applied()
        removed = sum(len(m) for m in known.tiers.values())
        self.drop(pod)
        self._known(pod).group = known.group
        return Applied(removed=removed)

    def drop(self, pod: Pod) -> None:
        """Forget a pod: it is in no match from now on; its rows are freed by `sweep`."""
        known = self._pods.pop(pod, None)
        if known is None:
            return
        self._epoch += 1
        self._active &= ~(1 << known.bit)
        del self._pod_of_bit[known.bit]
        for tier, rows in known.tiers.items():
            self._swept.append((known.bit, _PLANES.index(tier), rows.rows()))
        self._swept.append((known.bit, _PREDICTED, np.fromiter(known.predicted, np.uint32, len(known.predicted))))
        self._swept.append((known.bit, -1, np.zeros(0, np.uint32)))  # then the bit may be used again

    def sweep(self, rows_max: int = 1000) -> bool:
        """Clear the bits of dropped pods in at most `rows_max` rows; True if there is more to do."""
        self._version += 1
        while self._swept and rows_max > 0:
            bit, plane, rows = self._swept.popleft()
            if plane < 0:
                self._bits.append(bit)
                continue
            mask = 1 << (plane * self._width + bit)
            for row in rows[:rows_max].tolist():
                self._unhold(row, mask)
            if len(rows) > rows_max:
                self._swept.appendleft((bit, plane, rows[rows_max:]))
            rows_max -= len(rows)
        return bool(self._swept)

    # --- one block ---

    def _row(self, key: int, parent: int) -> int:
        """The row of `key`, made behind `parent` if there is none; 0 if there is no room."""
        pages = self._pages
        if parent and pages.keys[parent + 1] == key:
            return parent + 1
        return pages.find(key) or pages.place(key, parent)

    def _hold(self, row: int, mask: int) -> bool:
        """Set a bit of a row; False if it was set."""
        pages, sets = self._pages, self._sets
        old: int = pages.sets[row]
        before = sets.masks[old]
        if before & mask:
            return False
        page = row // PAGE
        if not old:
            pages.live[page] += 1
        pages.sets[row] = sets.moved(old, before | mask)
        pages.stamps[page] = self._version
        return True

    def _unhold(self, row: int, mask: int) -> None:
        """Clear a bit of a row; a page of which no row is held is given back."""
        pages, sets = self._pages, self._sets
        old: int = pages.sets[row]
        before = sets.masks[old]
        if not before & mask:
            return
        page = row // PAGE
        new = sets.moved(old, before & ~mask)
        pages.sets[row] = new
        pages.stamps[page] = self._version
        if not new:
            pages.live[page] -= 1
            if not pages.live[page]:
                pages.free(page)

    def _expiring_at(self, expires: float, prediction: Prediction) -> Prediction:
        if prediction.rows:
            self._predictions += 1
            heappush(self._expiring, (expires, self._predictions, prediction))
        return prediction

    def _unpredict(self, known: _Pod, row: int, now: float) -> bool:
        if known.predicted.get(row, now + 1) > now:
            return False
        del known.predicted[row]
        self._unhold(row, 1 << (_PREDICTED * self._width + known.bit))
        return True

    # --- events ---

    def _store(self, known: _Pod, event: BlockStored, lora: str | None) -> Applied:
        count = len(event.hashes)
        if not _indexed(known, event.group, event.kind):
            return Applied(ignored=count)
        if not len(event.tokens):
            return self._store_known(known, event)
        applied = self._store_content(known, event, lora)
        if known.orphans.blocks and applied.stored:
            return self._adopt(known, event.hashes[: applied.stored], lora, applied)
        return applied

    def _store_content(self, known: _Pod, event: BlockStored, lora: str | None) -> Applied:
        count = len(event.hashes)
        hashes = known.tiers.get(event.tier)
        if hashes is None:
            hashes = known.tiers[event.tier] = EngineMap()
        row = 0
        if event.parent is not None:
            row = _find_any(known, event.parent, hashes)
            if not row:
                known.orphans.add(event)
                return Applied(orphans=count)
        stored = self._store_rows(known, hashes, event, self._keys(event, row, lora), row)
        return Applied(stored=stored, refused=count - stored)

    def _keys(self, event: BlockStored, parent: int, lora: str | None) -> Keys:
        size, key = event.block_size, self._pages.keys[parent] if parent else None
        name: object = event.lora_name or lora
        if name is None and event.lora_id:
            name = ("lora_id", event.lora_id)
        if name is None and not (event.extras and any(event.extras)):
            return self._space.chain(event.tokens, size, key)
        return self._space.chain_extras(event.tokens, size, key, _extras(event, name))

    def _store_rows(self, known: _Pod, hashes: EngineMap, event: BlockStored, keys: Keys, row: int) -> int:
        mask = self._mask(known, event.tier)
        predicted_mask = 1 << (_PREDICTED * self._width + known.bit)
        predicted = known.predicted
        stored = 0
        for key, engine_hash in zip(keys.tolist(), event.hashes, strict=True):
            row = self._row(key, row)
            if not row:
                break
            stored += 1
            fresh = self._hold(row, mask)
            if row in predicted:
                del predicted[row]
                self._unhold(row, predicted_mask)
            named = hashes.find(engine_hash)
            if named == row:
                hashes.copies[engine_hash] = hashes.copies.get(engine_hash, 0) + 1
                continue
            if named:  # this hash named other content before: the pod's events contradict each other
                hashes.copies.pop(engine_hash, None)
                self._forget(hashes, engine_hash, mask)
            _name(hashes, engine_hash, row, fresh)
        return stored

    def _store_known(self, known: _Pod, event: BlockStored) -> Applied:
        """Blocks stored without tokens (an offload tier): their content is known if another tier holds them."""
        hashes = known.tiers.setdefault(event.tier, EngineMap())
        mask = self._mask(known, event.tier)
        stored = 0
        for engine_hash in event.hashes:
            row = _find_any(known, engine_hash, hashes)
            if not row:
                continue
            stored += 1
            fresh = self._hold(row, mask)
            if hashes.find(engine_hash):
                hashes.copies[engine_hash] = hashes.copies.get(engine_hash, 0) + 1
            else:
                _name(hashes, engine_hash, row, fresh)
        return Applied(stored=stored, ignored=len(event.hashes) - stored)

    def _adopt(self, known: _Pod, parents: list[int], lora: str | None, applied: Applied) -> Applied:
        """Store what waited for `parents`, and what waited for that; then apply the removals that came meanwhile."""
        ready, gone = deque(parents), []
        while ready:
            events, removed = known.orphans.adopt(ready.popleft())
            gone += removed
            for event in events:
                done = self._store_content(known, event, lora)
                applied = Applied(*(a + b for a, b in zip(applied, done, strict=True)))
                ready.extend(event.hashes[: done.stored])
        for tier, engine_hash in gone:
            self._forget(known.tiers[tier], engine_hash, self._mask(known, tier))
        return applied

    def _remove(self, known: _Pod, event: BlockRemoved) -> Applied:
        if not _indexed(known, event.group, None):
            return Applied(ignored=len(event.hashes))
        hashes = known.tiers.get(event.tier)
        mask = self._mask(known, event.tier)
        removed = unknown = 0
        for engine_hash in event.hashes:
            if hashes is not None and self._forget(hashes, engine_hash, mask):
                removed += 1
            elif not known.orphans.remove(event.tier, engine_hash):
                unknown += 1
        return Applied(removed=removed, unknown=unknown)

    def _forget(self, hashes: EngineMap, engine_hash: int, mask: int) -> bool:
        """One copy less of `engine_hash`; False if it is not known."""
        if engine_hash in hashes.copies:
            _count_down(hashes.copies, engine_hash)
            return True
        row = hashes.remove(engine_hash)
        if not row:
            return False
        if row in hashes.aliases:
            _count_down(hashes.aliases, row)
        else:
            self._unhold(row, mask)
        return True

    def _mask(self, known: _Pod, tier: Tier) -> int:
        return 1 << (_PLANES.index(tier) * self._width + known.bit)

    def _known(self, pod: Pod) -> _Pod:
        known = self._pods.get(pod)
        if known is None:
            while not self._bits:
                if not self._swept:
                    raise IndexerError(f"the index has room for {self._width} pods")
                self.sweep()
            known = self._pods[pod] = _Pod(self._bits.pop(), Orphans(self._orphans_max))
            self._pod_of_bit[known.bit] = pod
            self._active |= 1 << known.bit
            self._epoch += 1
        return known

    # --- hits ---

    def _hits(self, walk: Walk) -> dict[Pod, Hit]:
        hits: dict[Pod, Hit] = {}
        masks, width = self._sets.masks, self._width
        mixed = any(masks[number] >> width for _, number in walk.runs)
        for blocks, pods in walk.drops:
            if not blocks:
                continue
            hit = Hit(blocks, blocks)
            while pods:
                bit = (pods & -pods).bit_length() - 1
                pods &= pods - 1
                hits[self._pod_of_bit[bit]] = self._by_plane(walk.runs, bit, blocks) if mixed else hit
        return hits

    def _by_plane(self, runs: list[tuple[int, int]], bit: int, blocks: int) -> Hit:
        counts = [0, 0, 0, 0]
        ends = [start for start, _ in runs[1:]]
        for (start, number), end in zip(runs, [*ends, blocks], strict=True):
            mask = self._sets.masks[number] >> bit
            for plane in range(len(_PLANES)):
                if mask >> (plane * self._width) & 1:
                    counts[plane] += max(0, min(end, blocks) - start)
                    break
        gpu, predicted, cpu, disk = counts
        return Hit(blocks, gpu, predicted, cpu, disk)


def _extras(event: BlockStored, lora: object) -> list[Extras | None]:
    """vLLM lists the LoRA name, if there is one, before the rest; versions before 0.17 list nothing."""
    extras = []
    for listed in event.extras or [None] * len(event.hashes):
        rest = listed or []
        extras.append([lora, *(rest[1:] if lora is not None and rest[:1] == [lora] else rest)])
    return [extra if len(extra) > 1 or extra[0] is not None else None for extra in extras]


def _indexed(known: _Pod, group: int | None, kind: str | None) -> bool:
    """Is this KV-cache group the one that prefixes hang on? Hybrid models store the same hashes once per group."""
    if kind not in PREFIX_KINDS:
        return False
    if group is None:
        return True
    if known.group is None and kind is not None:
        known.group = group
    return group == (known.group or 0)


def _find_any(known: _Pod, engine_hash: int, first: EngineMap) -> int:
    row = first.find(engine_hash)
    if row or len(known.tiers) == 1:
        return row
    return next((r for m in known.tiers.values() if (r := m.find(engine_hash))), 0)


def _name(hashes: EngineMap, engine_hash: int, row: int, fresh: bool) -> None:
    """A hash that is not in the map names a row; `fresh`: the first hash that does so in this tier."""
    if not fresh:
        hashes.aliases[row] = hashes.aliases.get(row, 0) + 1
    hashes.add(engine_hash, row)


def _count_down(counts: dict[int, int], key: int) -> None:
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
