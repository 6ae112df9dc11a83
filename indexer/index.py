"""Which pod holds which block: fed by events, asked by prompts.

`apply(pod, event)` believes one event; `match(keys)` says how many leading blocks each pod holds; `predict` enters what
a pod is about to hold; `drop` forgets a pod. Everything is bounded; nothing waits; time comes in as `now`. A pod's
blocks are a bit in holder sets, so dropping a pod retires its bit at once and clears it in slices (`sweep`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.blocks import Keys, KeySpace
from indexer.changes import Changes
from indexer.errors import IndexerError
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, Tier
from indexer.groups import Groups, places_of
from indexer.holders import HolderSets
from indexer.ledger import CROWDED, Account, Applied, Ledger
from indexer.losses import Losses, LossReason
from indexer.match import Hit, Holder, Match, Walk, by_plane, by_tier, stretches
from indexer.orphans import Orphans
from indexer.pages import PAGE, Pages
from indexer.planes import PLANES, PREDICTED, PROMISED, STATE, WINDOW
from indexer.strangers import ROOT
from indexer.table import Table


class Holding(NamedTuple):
    """How many blocks a pod is known to hold."""

    gpu: int
    predicted: int
    cpu: int
    disk: int
    orphans: int


class Prediction(NamedTuple):
    """Rows that were entered as predicted for a pod at one decision."""

    pod: Holder
    rows: list[int]


class PrefixIndex:
    """See the module. `pods_max` counts feeds (ranks); twice as many bits exist: dropped ones are swept late."""

    def __init__(self, space: KeySpace, blocks_max: int, pods_max: int = 512, orphans_max: int = 10_000,
                 losses: Losses | None = None) -> None:  # fmt: skip
        self._pages = Pages(blocks_max)
        self._width = 2 * pods_max
        self._sets = HolderSets(self._width, len(PLANES))
        self._table = Table(self._pages, self._sets)
        self._ledger = Ledger(space, self._table, losses)
        self._orphans_max = orphans_max
        self._pods: dict[Holder, Account] = {}
        self._pod_of_bit: dict[int, Holder] = {}
        self._octets: dict[tuple[int, int], tuple[Holder, ...]] = {}  # by byte of a mask and value; of this epoch
        self._active = 0
        self._hybrid = 0  # bits of pods whose hits also hang on further KV-cache groups
        self._windowed = 0  # bits of those of which no group keeps every block: their hits are no prefixes
        self._layered = 0  # bits of pods with tiers below their own cache
        self.refusals = 0  # blocks for which there was no room
        self._bits = list(range(self._width - 1, -1, -1))
        self._swept: deque[tuple[int, int, NDArray[np.uint32]]] = deque()  # bit, plane, rows to clear
        self._expiring: list[tuple[float, int, Prediction]] = []  # a heap
        self._predictions = 0
        self._epoch = 0

    # --- reading ---

    def match(self, keys: Keys) -> Match:
        """The leading blocks of `keys` (one chain, from the prompt's start) that each pod holds, exactly."""
        walk = Walk(self._pages, self._sets, self._active)
        walk.go(keys)
        if walk.left:
            walk.drops.append((len(keys), walk.left))
        rows = walk.rows[0] if len(walk.rows) == 1 else np.concatenate(walk.rows)
        hits = self._hits(walk)
        if self._hybrid & walk.first:
            self._mind_groups(hits, walk.runs)
        if self._windowed & self._active:
            self._look_for_windows(hits, keys)
        return Match(hits, len(keys), self._table.version, self._epoch, walk.frontier, rows)

    def unchanged(self, match: Match) -> bool:
        """Would `match` of the same keys give the same answer now? False is always safe; True is exact."""
        if match.epoch != self._epoch:
            return False
        if match.version == self._table.version:
            return True
        if self._windowed or (match.frontier and self._pages.find(match.frontier)):
            return False
        pages = match.pages()
        if pages.size and int(self._pages.stamp_array[pages].max()) > match.version:
            return False
        match.version = self._table.version  # it is as good as new: the next look costs nothing
        return True

    def holding(self, pod: Holder) -> Holding:
        known = self._pods.get(pod)
        if known is None:
            return Holding(0, 0, 0, 0, 0)
        gpu, cpu, disk = (len(known.tiers[t]) if t in known.tiers else 0 for t in ("gpu", "cpu", "disk"))
        return Holding(gpu, len(known.predicted), cpu, disk, known.orphans.blocks)

    def held(self, pod: Holder) -> int:
        """Blocks of the pod's own cache that are held or predicted to be: one look-up, for every candidate."""
        return 0 if (known := self._pods.get(pod)) is None else len(known.predicted) + len(known.tiers.get("gpu", ()))

    def removed(self, pod: Holder) -> int:
        """Blocks that the pod has removed from its own cache, since it was last forgotten."""
        return 0 if (known := self._pods.get(pod)) is None else known.removals.count

    def confirmed(self, pod: Holder, tier: Tier, start: int, entries_max: int) -> tuple[Keys, int]:
        """A slice of the keys of what the pod holds in a tier, and where the next one starts; 0: there is none.

        Between two slices the pod may change: what is held all the while is in some slice.
        """
        known = self._pods.get(pod)
        hashes = known.tiers.get(tier) if known is not None else None
        if hashes is None:
            return np.zeros(0, np.uint64), 0
        stop = start + entries_max
        keys: Keys = self._pages.key_array[hashes.rows(start, stop)]
        return keys, stop if stop < hashes.entries else 0

    def holds(self, pod: Holder, event: Event) -> bool:
        """Does the pod hold, in the event's tier, one of the blocks that the event is about?"""
        known = self._pods.get(pod)
        return known is not None and known.holds(event)

    def groups(self, pod: Holder) -> Groups | None:
        """The pod's KV-cache groups, as its events have told of them."""
        known = self._pods.get(pod)
        return None if known is None else known.groups

    def awaits(self, pod: Holder) -> bool:
        """Did the pod store blocks whose parents are not known, and did not come since?"""
        known = self._pods.get(pod)
        return known is not None and bool(known.orphans.blocks or known.orphans.lost)

    def lacks(self, pod: Holder) -> bool:
        """Does it hold blocks for which there was no room?"""
        known = self._pods.get(pod)
        return known is not None and bool(known.refused.blocks or known.refused.lost)

    def could_have(self, pod: Holder) -> bool:
        """Is there room by now for what is known of `pod` only by its history?"""
        known = self._pods.get(pod)
        if known is None or known.refused.blocks or not known.refused.lost:
            return False
        crowded = self._pages.free < self._pages.pages_max * (1 - CROWDED)
        return known.refused.lost <= (self._ledger.share - known.held if crowded else self._pages.free * PAGE)

    @property
    def evictions(self) -> int:
        """Blocks that pods gave up for others' sake."""
        return self._ledger.evictions

    @property
    def pods(self) -> Iterable[Holder]:
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

    def apply(self, pod: Holder, event: Event, lora: str | None = None) -> Applied:
        """Believe one event of `pod`'s feed. `lora`: the adapter's name, where the event gives only its number."""
        self._table.version += 1
        known = self._pods.get(pod) or self._known(pod)
        if type(event) is BlockStored:
            applied = self._ledger.store(known, event, lora)
            if applied.refused:
                self.refusals += applied.refused
                if known.held < self._ledger.share:
                    self._ledger.serve(known, self._pods.values())
            if known.groups.hybrid and not self._hybrid & known.masks[0]:
                self._hybrid |= known.masks[0]
                self._epoch += 1
            if known.groups.windowed != bool(self._windowed & known.masks[0]):
                self._windowed ^= known.masks[0]
                self._epoch += 1
            if event.tier != "gpu" and not self._layered & known.masks[0]:
                self._layered |= known.masks[0]
                self._epoch += 1
            return applied
        if type(event) is BlockRemoved:
            applied = self._ledger.remove(known, event)
            if event.tier == "gpu":
                known.removals.note(event.hashes, applied.removed)
            return applied
        assert type(event) is AllBlocksCleared
        return self._clear_tier(pod, known, event.tier)

    def predict(self, pod: Holder, keys: Keys, start: int, expires: float) -> Prediction:
        """`pod` is about to hold `keys[start:]` (it holds those before): believed until `expires`, or confirmed."""
        self._table.version += 1
        known = self._known(pod)
        before = int(keys[start - 1]) if start else ROOT
        row = self._pages.find(before) if start else 0
        rows = self._pages.follow(keys[start:], row)
        known.strangers.expect(before)
        again = self._table.hold(rows, known.masks[PREDICTED])
        predicted = known.predicted
        longer = {row: until for row in again if (until := predicted.get(row, 0.0)) > expires} if again else {}
        predicted.update(dict.fromkeys(rows, expires))
        predicted.update(longer)
        if known.groups.states:
            self._table.hold(rows[-1:], known.masks[PROMISED])
        return self._expiring_at(expires, Prediction(pod, rows))

    def believed_until(self, pod: Holder, key: int) -> float:
        """When the prediction that `pod` holds this block expires; 0 if there is none."""
        known = self._pods.get(pod)
        return 0.0 if known is None else known.predicted.get(self._pages.find(key), 0.0)

    def is_pending(self, prediction: Prediction, number: int, expires: float) -> bool:
        """Is the block of this number among the predicted rows still no more than predicted, by this very prediction?

        `expires`: when it does. One that came, went, and was predicted again has another time.
        """
        known = self._pods.get(prediction.pod)
        rows = prediction.rows
        return known is not None and number < len(rows) and known.predicted.get(rows[number]) == expires

    def confirmed_blocks(self, pod: Holder, keys: Keys) -> int:
        """How many leading blocks of a chain the pod has said that it holds, in whichever tier."""
        known = self._pods.get(pod)
        if known is None:
            return 0
        masks = [known.masks[plane] for plane in range(len(PLANES)) if plane != PREDICTED]
        for number, key in enumerate(keys.tolist()):
            held = self._sets.masks[self._pages.sets[self._pages.find(key)]]
            if not any(held & mask for mask in masks):
                return number
        return len(keys)

    def gave_up(self, pod: Holder, keys: Keys, removed: int) -> bool:
        """Can the pod have given up some of these blocks since it had `removed` so many?"""
        known = self._pods.get(pod)
        if known is None or (gone := known.removals.since(removed)) is None:
            return True
        if gone and ("gpu" not in known.tiers or self.confirmed_blocks(pod, keys) < len(keys)):
            return True
        rows = {self._pages.find(key) for key in keys.tolist()}
        return any(known.tiers["gpu"].find(engine_hash) in rows for engine_hash in gone)

    def strangers(self, pod: Holder, parent: int) -> tuple[bytes, ...]:
        """The ids of blocks that the pod stored behind this key though others were predicted, the newest first."""
        known = self._pods.get(pod)
        return () if known is None else known.strangers.behind(parent)

    def settle(self, prediction: Prediction, expires: float) -> None:
        """What is still unconfirmed of a prediction is believed until `expires` only."""
        known = self._pods.get(prediction.pod)
        if known is None or not known.predicted:
            return
        rows = [row for row in prediction.rows if known.predicted.get(row, 0.0) > expires]
        known.predicted.update(dict.fromkeys(rows, expires))
        self._expiring_at(expires, Prediction(prediction.pod, rows))

    def expire(self, now: float, blocks_max: int = 4096) -> int:
        """Forget predicted blocks whose time is over, about `blocks_max` a call. Returns how many."""
        gone = looked = 0
        if self._expiring and self._expiring[0][0] <= now:
            self._table.version += 1
        while self._expiring and self._expiring[0][0] <= now and looked < blocks_max:
            _, _, prediction = heappop(self._expiring)
            looked += len(prediction.rows)
            known = self._pods.get(prediction.pod)
            if known is not None:
                expired = [row for row in prediction.rows if known.predicted.get(row, now + 1) <= now]
                self._table.unhold(expired, known.masks[PREDICTED] | known.masks[PROMISED])
                for row in expired:
                    del known.predicted[row]
                gone += len(expired)
        return gone

    def watch(self, pod: Holder, changes: Changes | None) -> None:
        """Note in `changes` what becomes of the pod's confirmed blocks, until it is dropped; None: no longer."""
        self._known(pod).changes = changes

    def hide(self, pod: Holder, hidden: bool) -> None:
        """What a hidden pod holds goes on being written, and is in no match until it is shown again."""
        bit = self._known(pod).masks[0]
        if bool(self._active & bit) is hidden:
            self._active ^= bit
            self._epoch += 1

    def clear(self, pod: Holder, anew: bool = False, why: LossReason | None = None) -> Applied:
        """`pod` stays, and holds nothing. `anew`: it may be another one now, with other KV-cache groups."""
        known = self._pods.get(pod)
        if known is None:
            return Applied()
        removed = sum(len(m) for m in known.tiers.values())
        hidden = not self._active & known.masks[0]
        self.drop(pod, why or ("restarted" if anew else "forgotten"))
        empty = self._known(pod)
        empty.changes, empty.special = known.changes, known.special
        if not anew:
            empty.groups = known.groups.emptied()
            self._hybrid |= empty.masks[0] if empty.groups.hybrid else 0
            self._windowed |= empty.masks[0] if empty.groups.windowed else 0
        self.hide(pod, hidden)
        return Applied(removed=removed)

    def refill(self, blocks_max: int = 4096) -> bool:
        """Enter what was refused, as far as there is room; True if there is more to do.

        Where a pod has less than its share and there is none, the one that has most gives up some of what it has more.
        """
        self._table.version += 1
        return self._ledger.refill_all(self._pods.values(), blocks_max)

    def forget_lower(self, pod: Holder) -> None:
        """`pod` holds nothing below its own cache."""
        self._table.version += 1
        known = self._pods.get(pod)
        if known is not None:
            for tier in [tier for tier in known.tiers if tier != "gpu"]:
                self._clear_tier(pod, known, tier)

    def drop(self, pod: Holder, why: LossReason = "left") -> None:
        """Forget a pod: it is in no match from now on; its rows are freed by `sweep`."""
        known = self._pods.pop(pod, None)
        if known is None:
            return
        if known.changes is not None:
            known.changes.clear()
        self._ledger.lost(known, why)
        self._ledger.share = self._pages.pages_max * PAGE // max(1, len(self._pods))
        self._epoch += 1
        self._octets.clear()
        self._active &= ~known.masks[0]
        self._hybrid &= ~known.masks[0]
        self._windowed &= ~known.masks[0]
        self._layered &= ~known.masks[0]
        del self._pod_of_bit[known.bit]
        self._swept += [(known.bit, PLANES.index(tier), rows.rows()) for tier, rows in known.tiers.items()]
        foretold = np.fromiter(known.predicted, np.uint32, len(known.predicted))
        self._swept += [(known.bit, plane, foretold) for plane in (PREDICTED, PROMISED)]
        if known.groups.hybrid and "gpu" in known.tiers:
            self._swept += [(known.bit, plane, known.tiers["gpu"].rows()) for plane in (WINDOW, STATE)]
        self._swept.append((known.bit, -1, np.zeros(0, np.uint32)))  # then the bit may be used again

    def sweep(self, rows_max: int = 1000) -> bool:
        """Clear the bits of dropped pods in at most `rows_max` rows; True if there is more to do."""
        if self._swept:
            self._table.version += 1
        while self._swept and rows_max > 0:
            bit, plane, rows = self._swept.popleft()
            if plane < 0:
                self._bits.append(bit)
                continue
            self._table.unhold(rows[:rows_max].tolist(), 1 << (plane * self._width + bit))
            if len(rows) > rows_max:
                self._swept.appendleft((bit, plane, rows[rows_max:]))
            rows_max -= len(rows)
        return bool(self._swept)

    # --- inside ---

    def _clear_tier(self, pod: Holder, known: Account, tier: Tier) -> Applied:
        """`pod` holds nothing in `tier`; what others keep is counted as kept."""
        kept = sum(len(hashes) for name, hashes in known.tiers.items() if name != tier)
        if not kept:
            return self.clear(pod, why="cleared")
        removed = self._ledger.empty(known, tier)
        if tier == "gpu":
            known.orphans, known.refused = Orphans(self._orphans_max), Orphans(self._orphans_max)
        return Applied(removed=removed, kept=kept)

    def _expiring_at(self, expires: float, prediction: Prediction) -> Prediction:
        if prediction.rows:
            self._predictions += 1
            heappush(self._expiring, (expires, self._predictions, prediction))
        return prediction

    def _known(self, pod: Holder) -> Account:
        known = self._pods.get(pod)
        if known is None:
            while not self._bits:
                if not self._swept:
                    raise IndexerError(f"the index has room for {self._width} pods")
                self.sweep()
            bit = self._bits.pop()
            masks = tuple(1 << (plane * self._width + bit) for plane in range(PROMISED + 1))
            known = self._pods[pod] = Account(pod, bit, masks, Orphans(self._orphans_max), Orphans(self._orphans_max))
            self._ledger.share = self._pages.pages_max * PAGE // len(self._pods)
            self._pod_of_bit[known.bit] = pod
            self._active |= 1 << known.bit
            self._epoch += 1
            self._octets.clear()
        return known

    # --- hits ---

    def _hits(self, walk: Walk) -> dict[Holder, Hit]:
        hits: dict[Holder, Hit] = {}
        masks, width = self._sets.masks, self._width
        mixed = any(masks[number] >> width for _, number in walk.runs)
        for blocks, pods in walk.drops:
            if not blocks:
                continue
            if pods & self._layered:
                for pod in self._names(pods & self._layered):
                    hit = by_tier(walk.runs, self._sets.masks, self._pods[pod].masks, blocks)
                    if hit.blocks:
                        hits[pod] = hit
                pods &= ~self._layered
            names = self._names(pods)
            alike = self._alike(walk.runs, pods, blocks) if mixed else Hit(blocks, blocks)
            if alike is not None:
                hits.update(dict.fromkeys(names, alike))
            else:
                hits.update(
                    (pod, by_plane(walk.runs, self._sets.masks, self._pods[pod].masks, blocks)) for pod in names
                )
        return hits

    def _alike(self, runs: list[tuple[int, int]], pods: int, blocks: int) -> Hit | None:
        """The one hit of all these pods; None if they hold some block in different planes."""
        counts, masks, planes = [0, 0, 0, 0], self._sets.masks, range(len(PLANES))
        end = blocks
        for start, number in reversed(runs):
            if start >= blocks:
                continue
            mask = masks[number]
            for plane in planes:
                there = mask >> (plane * self._width) & pods
                if there == pods:
                    counts[plane] += end - start
                    break
                if there:
                    return None
            end = start
        gpu, predicted, cpu, disk = counts
        return Hit(blocks, gpu, predicted, cpu, disk)

    def _names(self, pods: int) -> list[Holder]:
        """The pods of a mask, looked up eight at a time."""
        names: list[Holder] = []
        for place, octet in enumerate(pods.to_bytes((pods.bit_length() + 7) // 8, "little")):
            if octet:
                eight = self._octets.get((place, octet))
                if eight is None:
                    bits = (8 * place + bit for bit in range(8) if octet >> bit & 1)
                    eight = self._octets[(place, octet)] = tuple(self._pod_of_bit[bit] for bit in bits)
                names += eight
        return names

    def _mind_groups(self, hits: dict[Holder, Hit], runs: list[tuple[int, int]]) -> None:
        """Shorten the hits of pods with further KV-cache groups to where each of these can go on, too."""
        for pod, hit in hits.items():
            known = self._pods[pod]
            groups, run = known.groups, hit.near if hit.lower else hit.blocks
            if not groups.hybrid or groups.windowed:
                continue
            places = self._places(known, runs, run)
            longest = places[-1][1] if places else 0
            hits[pod] = by_plane(runs, self._sets.masks, known.masks, longest)._replace(run=run, ends=tuple(places))

    def _look_for_windows(self, hits: dict[Holder, Hit], keys: Keys) -> None:
        """The hits of pods of which no group keeps every block: whatever comes before the last window."""
        numbers = self._pages.set_array[self._pages.find_all(keys)]
        borders = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        runs = [(start, int(numbers[start])) for start in ([0, *borders.tolist()] if len(keys) else [])]
        for pod in self._names(self._windowed & self._active):
            known = self._pods[pod]
            places = self._places(known, runs, len(keys))
            hits.pop(pod, None)
            if places:
                longest = places[-1][1]
                hit = by_plane(runs, self._sets.masks, known.masks, longest)
                hits[pod] = hit._replace(gpu=longest - hit.predicted, run=longest, ends=tuple(places))

    def _places(self, known: Account, runs: list[tuple[int, int]], run: int) -> list[tuple[int, int]]:
        """See `places_of`: of the first `run` blocks."""
        groups = known.groups
        kept, state = known.masks[WINDOW] | known.masks[PREDICTED], known.masks[STATE] | known.masks[PROMISED]
        windows = stretches(runs, self._sets.masks, kept, run) if groups.needed else None
        states = stretches(runs, self._sets.masks, state, run) if groups.states else None
        return places_of(run, windows, groups.needed, states)
