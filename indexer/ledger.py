"""Events written into the table: what one pod says it stored and removed, block by block.

An `Account` is what is known of one pod; blocks go by its engine hashes. A store behind an unknown parent is an orphan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from indexer.blocks import Extras, Grain, KeySpace, ahead_of, cut, size_of
from indexer.changes import Changes
from indexer.engine import EngineMap
from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored, Event, Tier, extras_of
from indexer.groups import Groups
from indexer.losses import Losses, LossReason
from indexer.match import Holder
from indexer.orphans import Orphans
from indexer.pages import PAGE
from indexer.planes import PLANE_OF_ROLE, PLANES, PREDICTED, PROMISED, STATE, WINDOW
from indexer.removals import Removals
from indexer.strangers import ROOT, Strangers
from indexer.table import Table

CROWDED = 0.75
"""Share of the room beyond which a pod gets no more than its part of it: the rest is for those that have less."""
EVICTED_MAX = 1024
"""Blocks that one store may have another pod give up."""
LATELY_MAX = 4096
"""Blocks that are remembered after a pod's own cache gave them up: that a lower tier holds them may be told later."""


class Applied(msgspec.Struct, frozen=True, gc=False):
    """What one event changed, in blocks."""

    stored: int = 0
    removed: int = 0
    orphans: int = 0
    unknown: int = 0  # removals of blocks that we did not know
    ignored: int = 0  # of KV-cache groups that prefixes do not need, or without a way to their content
    refused: int = 0  # stores for which the index has no room
    hidden: int = 0  # in a lower tier, whose content can't be known
    kept: int = 0  # by other tiers than the one that was cleared

    def and_then(self, other: Applied) -> Applied:
        """What both changed."""
        astuple = msgspec.structs.astuple
        return Applied(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(slots=True)
class Account:
    """What is known of one pod. `masks`: its bit in every plane of the holder sets, the last being PROMISED."""

    pod: Holder
    bit: int
    masks: tuple[int, ...]
    orphans: Orphans
    refused: Orphans  # stores for which there was no room
    tiers: dict[Tier, EngineMap] = field(default_factory=dict)
    predicted: dict[int, float] = field(default_factory=dict)  # row -> when it expires
    groups: Groups = field(default_factory=Groups)
    changes: Changes | None = None  # for whoever copies this pod's blocks
    grain: Grain | None = None  # of the newest block of the pod's own cache
    special: bool = False  # some of its blocks hang on more than tokens: adapter, salt, image
    chunks: dict[Tier, int] = field(default_factory=dict)  # blocks that one hash of this tier stands for, where several
    lately: dict[int, int] = field(default_factory=dict)  # hash -> key of what its own cache gave up, see LATELY_MAX
    strangers: Strangers = field(default_factory=Strangers)
    removals: Removals = field(default_factory=Removals)  # from its own cache

    def find(self, engine_hash: int, first: EngineMap) -> int:
        """The row of a hash, in any tier; 0 if there is none."""
        row = first.find(engine_hash)
        if row or len(self.tiers) == 1:
            return row
        return next((r for m in self.tiers.values() if (r := m.find(engine_hash))), 0)

    @property
    def held(self) -> int:
        """Blocks in all tiers."""
        return sum(map(len, self.tiers.values()))

    def holds(self, event: Event) -> bool:
        """See `PrefixIndex.holds`."""
        hashes = self.tiers.get(event.tier)
        if hashes is None or isinstance(event, AllBlocksCleared):
            return hashes is not None
        return any(hashes.find(engine_hash) for engine_hash in event.hashes)

    def knows(self, engine_hashes: Sequence[int], first: EngineMap) -> bool:
        """Is something known, or was lately, of all these hashes?"""
        return all(engine_hash in self.lately or self.find(engine_hash, first) for engine_hash in engine_hashes)


class Ledger:
    """Writes events; whoever calls counts the table's version up before."""

    def __init__(self, space: KeySpace, table: Table, losses: Losses | None) -> None:
        self._space = space
        self._table = table
        self.share = table.pages.pages_max * PAGE  # blocks that each pod may have where room is short
        self.evictions = 0  # blocks that accounts gave up for others' sake
        self._losses = losses  # for whoever wants to know what pods' own caches give up
        self._crowded = int(table.pages.pages_max * CROWDED)  # pages

    def store(self, account: Account, event: BlockStored, lora: str | None) -> Applied:
        """`lora`: the adapter's name, where the event gives only its number."""
        is_content = account.groups.is_content(event)
        if account.groups.found:
            for first in account.groups.found:
                self._write(account, first, lora)
            account.groups.found = []
        if not is_content:
            return self._store_beside(account, event)
        applied, stored = self._write(account, event, lora)
        if account.orphans.blocks and stored:
            return self._adopt(account, stored, lora, applied)
        return applied

    def remove(self, account: Account, event: BlockRemoved) -> Applied:
        if not account.groups.is_indexed(event.group):
            return self._remove_beside(account, event)
        hashes = event.hashes if event.tier not in account.chunks else self._names_of_chunks(account, event)
        removed, unknown = self._forget(account, event.tier, hashes)
        if not unknown:
            return Applied(0, removed)
        waiting = sum(
            account.orphans.remove(event.tier, engine_hash) or account.refused.remove(event.tier, engine_hash)
            for engine_hash in unknown
        )
        return Applied(removed=removed, unknown=len(unknown) - waiting)

    def _write(self, account: Account, event: BlockStored, lora: str | None) -> tuple[Applied, Sequence[int]]:
        """Store one event: what that changed, and the hashes that are held now."""
        hashes = account.tiers.get(event.tier)
        if hashes is None:
            hashes = account.tiers[event.tier] = EngineMap(self._space.salt)
        if event.tier != "gpu":
            return self._store_lower(account, event, hashes, lora)
        row = 0
        if event.parent is not None:
            row = account.find(event.parent, hashes)
            if not row:
                account.orphans.add(event)
                return Applied(orphans=len(event.hashes)), ()
        stored = self._enter(account, event, hashes, row, lora)
        if stored == len(event.hashes):
            return Applied(stored), event.hashes
        self._refuse(account, event, stored, lora)
        return Applied(stored, refused=len(event.hashes) - stored), event.hashes[:stored]

    def _enter(self, account: Account, event: BlockStored, hashes: EngineMap, parent: int, lora: str | None) -> int:
        """The pod's own cache holds the blocks, behind the row `parent`; for how many of them there was room."""
        pages, predicted = self._table.pages, account.predicted
        if event.ahead is None:
            grain, blocks = event.block_size, cut(event.tokens, event.block_size)
        else:
            grain, blocks = event.grain, event.covered()
        account.grain, extras = grain, extras_of(event, lora)
        if extras is not None:
            account.special = True
        keys = self._space.follow(blocks, grain, pages.keys[parent] if parent else None, extras)
        room = self._room(hashes, len(keys))
        rows = pages.follow(keys if room == len(keys) else keys[:room], parent)
        if predicted and rows:
            before = pages.keys[parent] if parent else ROOT
            account.strangers.look(event.tokens, event.block_size, before, keys, rows, predicted)
        if len(account.tiers) > 1:
            self._correct(account, event.hashes, rows)
        self._name(account, event.tier, event.hashes, rows, predicted, event.again)
        return len(rows)

    def _room(self, hashes: EngineMap, blocks: int) -> int:
        """How many of so many blocks more a pod may name: of names as many as the index has rows, and where room is
        short, its share of it."""
        pages, held = self._table.pages, hashes.named
        spare, names = (self._crowded - pages.used) * PAGE, pages.pages_max * PAGE - held
        if blocks <= spare and blocks <= names:
            return blocks
        return max(0, min(blocks, names, max(self.share - held, spare)))

    def _refuse(self, account: Account, event: BlockStored, stored: int, lora: str | None) -> None:
        """Keep what found no room of a store, until there is some."""
        size, extras, ahead = event.block_size, event.extras, event.ahead
        rest = msgspec.structs.replace(
            event,
            hashes=event.hashes[stored:],
            parent=event.hashes[stored - 1] if stored else event.parent,
            tokens=event.tokens[stored * size :].copy(),
            lora_name=event.lora_name or lora,
            extras=None if extras is None else extras[stored:],
            ahead=None if ahead is None else ahead[stored * (len(ahead) // len(event.hashes)) :].copy(),
        )
        account.refused.add(rest)

    def refill(self, account: Account, blocks_max: int) -> int:
        """Enter what was refused, oldest first, as far as there is room; returns how many blocks, at most about
        `blocks_max`."""
        refused, pages, done = account.refused, self._table.pages, Applied()
        while refused.blocks and done.stored < blocks_max:
            parent, stores = refused.oldest()
            needed = sum(blocks // PAGE + 2 for blocks in stores)
            if pages.free < needed or self._room(account.tiers["gpu"], sum(stores)) < sum(stores):
                break
            events, gone = refused.adopt(parent)
            for event in events:
                applied, stored = self._write(account, event, None)
                done = self._adopt(account, stored, None, Applied(done.stored + applied.stored))
            for gone_tier, engine_hash in gone:
                self._forget(account, gone_tier, [engine_hash])
        return done.stored

    def refill_all(self, accounts: Collection[Account], blocks_max: int) -> bool:
        """See `PrefixIndex.refill`."""
        stored, hungry = 0, False
        for account in accounts:
            if account.refused.blocks and stored < blocks_max:
                stored += self.refill(account, blocks_max - stored)
                hungry = hungry or (account.refused.blocks > 0 and account.held < self.share)
        if not hungry or stored:
            return stored >= blocks_max
        return self.share_out(accounts, blocks_max) > 0

    def serve(self, account: Account, accounts: Collection[Account]) -> None:
        """Room for who has less than its share, at the cost of who has most, now."""
        self.share_out(accounts, EVICTED_MAX)
        self.refill(account, EVICTED_MAX)

    def share_out(self, accounts: Collection[Account], blocks_max: int) -> int:
        """Who has most gives up some of what it has more than its share; returns how many blocks."""
        most = max(accounts, key=lambda account: account.held)
        over = min(most.held - self.share, blocks_max)
        gone = self.evict(most, over) if over > 0 else 0
        self.evictions += gone
        return gone

    def empty(self, account: Account, tier: Tier) -> int:
        """The pod holds nothing in `tier`; returns how many blocks it held."""
        hashes = account.tiers.pop(tier, None)
        if hashes is not None:
            array = hashes.rows()
            rows, lost = array.tolist(), account.masks[PLANES.index(tier)]
            if account.changes is not None:
                account.changes.unhold(tier, self._table.pages.key_array[array].tolist())
            if tier == "gpu":
                self.lost(account, "cleared", array)
                lost |= account.masks[WINDOW] | account.masks[STATE]
            self._table.unhold(rows, lost)
        if tier == "gpu":
            self._table.unhold(list(account.predicted), account.masks[PREDICTED] | account.masks[PROMISED])
            account.predicted.clear()
            account.groups = account.groups.emptied()
        return 0 if hashes is None else len(hashes)

    def lost(self, account: Account, why: LossReason, rows: NDArray[np.uint32] | None = None) -> None:
        """All of a pod's own cache is lost: these rows, or all."""
        if rows is None and "gpu" in account.tiers:
            rows = account.tiers["gpu"].rows()
        if self._losses is not None and rows is not None:
            self._losses.note(account.pod, why, self._table.pages.key_array[rows])

    def evict(self, account: Account, blocks: int) -> int:
        """Give up what a pod named last in its own cache, for others' sake; returns how many blocks."""
        hashes = account.tiers.get("gpu")
        if hashes is None:
            return 0
        evicted = named = hashes.newest(blocks)
        while named:  # every copy of each
            self._forget(account, "gpu", named, "no room")
            named = [engine_hash for engine_hash in named if hashes.find(engine_hash)]
        account.refused.lost += len(evicted)
        return len(evicted)

    def _name(
        self,
        account: Account,
        tier: Tier,
        engine_hashes: Sequence[int],
        rows: list[int],
        predicted: dict[int, float],
        again: bool = False,
    ) -> None:
        """The pod holds these rows, which are all different, under these hashes; that confirms what was `predicted`."""
        copied, lost = account.tiers[tier].name(engine_hashes, rows, again)
        mask = account.masks[PLANES.index(tier)]
        held = self._table.hold(rows, mask, account.masks[PREDICTED] if predicted else 0)
        if predicted or held or lost or account.changes is not None:
            self._named(account, tier, rows, held, copied, lost, predicted)
        if account.groups.hybrid and tier == "gpu":
            self._keep(account, engine_hashes, rows)

    def _named(
        self,
        account: Account,
        tier: Tier,
        rows: list[int],
        held: list[int],
        copied: list[int],
        lost: list[int],
        predicted: dict[int, float],
    ) -> None:
        """What follows from `rows` having got names, of which some were `held` before; see `EngineMap.name`."""
        hashes = account.tiers[tier]
        if predicted:
            for row in rows:
                predicted.pop(row, None)
        if account.changes is not None:
            account.changes.hold(tier, self._keys_of(rows))
        if held:
            hashes.named_again(set(held).difference(copied))
        if lost:
            gone = [row for row in lost if hashes.unnamed(row)]
            if account.changes is not None:
                account.changes.unhold(tier, self._keys_of(gone))
            self._table.unhold(gone, account.masks[PLANES.index(tier)])

    def _adopt(self, account: Account, parents: Sequence[int], lora: str | None, applied: Applied) -> Applied:
        """Store what waited for `parents`, and what waited for that; then apply the removals that came meanwhile."""
        ready, gone = deque(parents), []
        while ready:
            events, removed = account.orphans.adopt(ready.popleft())
            gone += removed
            for event in events:
                done, stored = self._write(account, event, lora)
                applied = applied.and_then(done)
                ready.extend(stored)
        for tier, engine_hash in gone:
            self._forget(account, tier, [engine_hash])
        return applied

    def _forget(
        self, account: Account, tier: Tier, engine_hashes: Sequence[int], why: LossReason = "evicted"
    ) -> tuple[int, Sequence[int]]:
        """One copy less of each hash: how many were known, and those that were not."""
        hashes = account.tiers.get(tier)
        if hashes is None:
            return 0, engine_hashes
        if len(account.tiers) > 1 and tier == "gpu":
            self._remember(account, engine_hashes)
        gone, unknown = hashes.forget(engine_hashes)
        lost = account.masks[PLANES.index(tier)]
        if account.groups.hybrid and tier == "gpu":
            lost |= account.masks[WINDOW] | account.masks[STATE]
        if gone and self._losses is not None and tier == "gpu":
            self._losses.note(account.pod, why, self._keys_of(gone))
        if account.changes is not None:
            account.changes.unhold(tier, self._keys_of(gone))
        self._table.unhold(gone, lost)
        return len(engine_hashes) - len(unknown), unknown

    def _keys_of(self, rows: list[int]) -> list[int]:
        keys = self._table.pages.keys
        return [keys[row] for row in rows]

    # --- the tiers below the pod's own cache ---

    def _store_lower(
        self, account: Account, event: BlockStored, hashes: EngineMap, lora: str | None
    ) -> tuple[Applied, Sequence[int]]:
        """A lower tier keeps what the pod's own cache has computed, and often says less of it: vLLM leaves out salts
        and images, or everything but the hash. So what is known of a hash goes before what the event says, and a block
        that could hang on more than its tokens is not believed.

        One hash may stand for several blocks: the last of a chunk and those before.
        """
        grain = event.block_size if account.grain is None else account.grain
        size = size_of(grain)
        blocks, over = divmod(event.block_size, size) if event.block_size > size else (1, 0)
        if over:
            return Applied(hidden=len(event.hashes)), ()
        parent = account.find(event.parent, hashes) if event.parent is not None else 0
        told = len(event.tokens) > 0 and not ahead_of(grain) and (event.extras is not None or not account.special)
        if told and event.parent is not None and not parent and not account.knows(event.hashes, hashes):
            account.orphans.add(event)
            return Applied(orphans=len(event.hashes)), ()
        if blocks > 1:
            account.chunks[event.tier] = blocks
        extras, row, refused = extras_of(event, lora) if told else None, parent, 0
        stored: list[int] = []
        for place, engine_hash in enumerate(event.hashes):
            known = self._known(account, engine_hash, hashes)
            if not known and told and engine_hash not in account.lately:
                extra = None if extras is None else extras[place]
                known = self._made(account, event, place, size, extra, row)
            if not known and told:
                refused = len(event.hashes) - len(stored)
                break
            row = known
            if known:
                before = self._table.pages.behind(known, blocks)[:-1] if blocks > 1 else []
                names = [*self._keys_of(before), engine_hash]
                self._name(account, event.tier, names, [*before, known], {}, event.again)
                stored.append(engine_hash)
            else:
                refused += engine_hash in account.lately
        account.refused.lost += refused
        return Applied(len(stored), refused=refused, hidden=len(event.hashes) - len(stored) - refused), stored

    def _known(self, account: Account, engine_hash: int, hashes: EngineMap) -> int:
        """The row of a hash that is known, or was lately; 0 if it is not."""
        row = account.find(engine_hash, hashes)
        key = 0 if row else account.lately.get(engine_hash, 0)
        if key:
            row = self._table.pages.find(key) or next(iter(self._table.pages.follow([key], 0)), 0)
        return row

    def _made(
        self, account: Account, event: BlockStored, place: int, size: int, extra: Extras | None, behind: int
    ) -> int:
        """The row of the event's block `place` (of a chunk, the last one), by its tokens; 0 if there is no room."""
        pages, length = self._table.pages, event.block_size
        tokens, key = event.tokens[place * length : (place + 1) * length], pages.keys[behind] if behind else None
        extras = None if extra is None else [extra] * (length // size)
        keys = self._space.follow(cut(tokens, size), size, key, extras)
        made = pages.follow(keys, behind)
        if len(made) == len(keys):
            return made[-1]
        mask = account.masks[PLANES.index(event.tier)]  # held and given back: no row is left that nobody holds
        held = set(self._table.hold(made, mask))
        self._table.unhold([row for row in made if row not in held], mask)
        return 0

    def _correct(self, account: Account, engine_hashes: Sequence[int], rows: list[int]) -> None:
        """The pod's own cache tells all of a block: a lower tier that took its hash for other content errs."""
        for tier, hashes in account.tiers.items():
            if tier == "gpu":
                continue
            for engine_hash, row in zip(engine_hashes, rows, strict=False):
                while hashes.find(engine_hash) not in (0, row):
                    self._forget(account, tier, [engine_hash])

    def _remember(self, account: Account, engine_hashes: Sequence[int]) -> None:
        lately, keys, hashes = account.lately, self._table.pages.keys, account.tiers["gpu"]
        for engine_hash in engine_hashes:
            row = hashes.find(engine_hash)
            if row:
                lately.pop(engine_hash, None)
                lately[engine_hash] = keys[row]
        while len(lately) > LATELY_MAX:
            del lately[next(iter(lately))]

    def _names_of_chunks(self, account: Account, event: BlockRemoved) -> list[int]:
        """The hashes of whole chunks: those before the last block are named by their keys."""
        hashes, blocks, names = account.tiers[event.tier], account.chunks[event.tier], []
        for engine_hash in event.hashes:
            row = hashes.find(engine_hash)
            if row:
                names += self._keys_of(self._table.pages.behind(row, blocks)[:-1])
            names.append(engine_hash)
        return names

    # --- the groups beside the indexed one ---

    def _store_beside(self, account: Account, event: BlockStored) -> Applied:
        """Another group tells which blocks it keeps."""
        applied, groups = Applied(ignored=len(event.hashes)), account.groups
        role = groups.role(event.group)
        if role is None or event.group is None or event.tier != "gpu":
            return applied
        stale = groups.store(event.group, event.hashes, event.again)
        hashes, mask = account.tiers.get("gpu"), account.masks[PLANE_OF_ROLE[role]]
        if hashes is not None:
            self._table.unhold([row for h in stale if (row := hashes.find(h))], mask)
            inside = [row for h in event.hashes if groups.holds(role, h) and (row := hashes.find(h))]
            self._table.hold(inside, mask)
        return applied

    def _remove_beside(self, account: Account, event: BlockRemoved) -> Applied:
        groups, hashes = account.groups, account.tiers.get("gpu")
        role = groups.role(event.group)
        if role is not None and event.group is not None and event.tier == "gpu":
            gone = groups.remove(event.group, event.hashes)
            if hashes is not None:
                rows = [row for h in gone if (row := hashes.find(h))]
                self._table.unhold(rows, account.masks[PLANE_OF_ROLE[role]])
        return Applied(ignored=len(event.hashes))

    def _keep(self, account: Account, engine_hashes: Sequence[int], rows: list[int]) -> None:
        """The indexed group got these rows: other groups may keep them already."""
        groups = account.groups
        for role, plane in PLANE_OF_ROLE.items():
            if groups.needed if role == "window" else groups.states:
                inside = [r for h, r in zip(engine_hashes, rows, strict=False) if groups.holds(role, h)]
                self._table.hold(inside, account.masks[plane])
        self._table.unhold(rows, account.masks[PROMISED])
