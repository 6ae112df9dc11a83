"""Events written into the table: what one pod says it stored and removed, block by block.

An `Account` is what is known of one pod. Blocks are named by the pod's own engine hashes; a store that hangs on a
parent which is not known waits as an orphan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from indexer.blocks import Extras, KeySpace
from indexer.changes import Changes
from indexer.engine import EngineMap
from indexer.events import BlockRemoved, BlockStored, Tier
from indexer.groups import Groups, Role
from indexer.orphans import Orphans
from indexer.table import Table

PLANES = ("gpu", "predicted", "cpu", "disk")
"""In what way a pod may hold a block, the best first."""
PREDICTED = PLANES.index("predicted")
WINDOW, STATE = len(PLANES), len(PLANES) + 1
"""The planes behind them: the block is kept by all the pod's further KV-cache groups of this role, too."""
_PLANE_OF_ROLE: dict[Role, int] = {"window": WINDOW, "state": STATE}


class Applied(NamedTuple):
    """What one event changed, in blocks."""

    stored: int = 0
    removed: int = 0
    orphans: int = 0
    unknown: int = 0  # removals of blocks that we did not know
    ignored: int = 0  # of KV-cache groups that prefixes do not need, or without a way to their content
    refused: int = 0  # stores for which the index has no room


@dataclass(slots=True)
class Account:
    """What is known of one pod. `masks`: its bit in every plane of the holder sets, the last being STATE."""

    bit: int
    masks: tuple[int, ...]
    orphans: Orphans
    tiers: dict[Tier, EngineMap] = field(default_factory=dict)
    predicted: dict[int, float] = field(default_factory=dict)  # row -> when it expires
    groups: Groups = field(default_factory=Groups)
    changes: Changes | None = None  # for whoever copies this pod's blocks

    def find(self, engine_hash: int, first: EngineMap) -> int:
        """The row of a hash, in any tier; 0 if there is none."""
        row = first.find(engine_hash)
        if row or len(self.tiers) == 1:
            return row
        return next((r for m in self.tiers.values() if (r := m.find(engine_hash))), 0)


class Ledger:
    """Writes events; whoever calls counts the table's version up before."""

    def __init__(self, space: KeySpace, table: Table) -> None:
        self._space = space
        self._table = table

    def store(self, account: Account, event: BlockStored, lora: str | None) -> Applied:
        """`lora`: the adapter's name, where the event gives only its number."""
        if not account.groups.is_content(event):
            return self._store_beside(account, event)
        if not len(event.tokens):
            return self._store_known(account, event)
        applied = self._store_content(account, event, lora)
        if account.orphans.blocks and applied.stored:
            return self._adopt(account, event.hashes[: applied.stored], lora, applied)
        return applied

    def remove(self, account: Account, event: BlockRemoved) -> Applied:
        if not account.groups.is_indexed(event.group):
            return self._remove_beside(account, event)
        removed, unknown = self._forget(account, event.tier, event.hashes)
        if not unknown:
            return Applied(0, removed)
        waiting = sum(account.orphans.remove(event.tier, engine_hash) for engine_hash in unknown)
        return Applied(removed=removed, unknown=len(unknown) - waiting)

    def _store_content(self, account: Account, event: BlockStored, lora: str | None) -> Applied:
        hashes = account.tiers.get(event.tier)
        if hashes is None:
            hashes = account.tiers[event.tier] = EngineMap()
        row = 0
        if event.parent is not None:
            row = account.find(event.parent, hashes)
            if not row:
                account.orphans.add(event)
                return Applied(orphans=len(event.hashes))
        stored = self._enter(account, event, self._keys(event, row, lora), row)
        return Applied(stored, refused=len(event.hashes) - stored)

    def _enter(self, account: Account, event: BlockStored, keys: list[int], parent: int) -> int:
        """The pod holds the blocks with these keys, behind the row `parent`; for how many of them there was room."""
        rows = self._table.pages.follow(keys, parent)
        self._name(account, event.tier, event.hashes, rows, account.predicted, event.again)
        return len(rows)

    def _keys(self, event: BlockStored, parent: int, lora: str | None) -> list[int]:
        key = self._table.pages.keys[parent] if parent else None
        return self._space.follow(event.covered(), event.grain, key, extras_of(event, lora))

    def _store_known(self, account: Account, event: BlockStored) -> Applied:
        """Blocks stored without tokens (an offload tier): their content is known if another tier holds them."""
        hashes = account.tiers.setdefault(event.tier, EngineMap())
        known = [(h, row) for h in event.hashes if (row := account.find(h, hashes))]
        for engine_hash, row in known:
            self._name(account, event.tier, [engine_hash], [row], {})
        return Applied(stored=len(known), ignored=len(event.hashes) - len(known))

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
                done = self._store_content(account, event, lora)
                applied = Applied(*(a + b for a, b in zip(applied, done, strict=True)))
                ready.extend(event.hashes[: done.stored])
        for tier, engine_hash in gone:
            self._forget(account, tier, [engine_hash])
        return applied

    def _forget(self, account: Account, tier: Tier, engine_hashes: Sequence[int]) -> tuple[int, Sequence[int]]:
        """One copy less of each hash: how many were known, and those that were not."""
        hashes = account.tiers.get(tier)
        if hashes is None:
            return 0, engine_hashes
        gone, unknown = hashes.forget(engine_hashes)
        lost = account.masks[PLANES.index(tier)]
        if account.groups.hybrid and tier == "gpu":
            lost |= account.masks[WINDOW] | account.masks[STATE]
        if account.changes is not None:
            account.changes.unhold(tier, self._keys_of(gone))
        self._table.unhold(gone, lost)
        return len(engine_hashes) - len(unknown), unknown

    def _keys_of(self, rows: list[int]) -> list[int]:
        keys = self._table.pages.keys
        return [keys[row] for row in rows]

    # --- the groups beside the indexed one ---

    def _store_beside(self, account: Account, event: BlockStored) -> Applied:
        """Another group tells which blocks it keeps."""
        applied, groups = Applied(ignored=len(event.hashes)), account.groups
        role = groups.role(event.group)
        if role is None or event.group is None or event.tier != "gpu":
            return applied
        stale = groups.store(event.group, event.hashes, event.again)
        hashes, mask = account.tiers.get("gpu"), account.masks[_PLANE_OF_ROLE[role]]
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
                self._table.unhold(rows, account.masks[_PLANE_OF_ROLE[role]])
        return Applied(ignored=len(event.hashes))

    def _keep(self, account: Account, engine_hashes: Sequence[int], rows: list[int]) -> None:
        """The indexed group got these rows: other groups may keep them already."""
        groups = account.groups
        for role, plane in _PLANE_OF_ROLE.items():
            if groups.needed if role == "window" else groups.states:
                inside = [r for h, r in zip(engine_hashes, rows, strict=False) if groups.holds(role, h)]
                self._table.hold(inside, account.masks[plane])


def extras_of(event: BlockStored, adapter: str | None) -> list[Extras | None] | None:
    """What goes into each block's key beside its tokens; None: nothing. `adapter`: its name, where the event has none.

    vLLM lists the LoRA name, if there is one, before the rest; versions before 0.17 list nothing.
    """
    lora: object = event.lora_name or adapter
    if lora is None and event.lora_id:
        lora = ("lora_id", event.lora_id)
    if lora is None and not (event.extras and any(event.extras)):
        return None
    extras = []
    for listed in event.extras or [None] * len(event.hashes):
        rest = listed or []
        extras.append([lora, *(rest[1:] if lora is not None and rest[:1] == [lora] else rest)])
    return [extra if len(extra) > 1 or extra[0] is not None else None for extra in extras]
