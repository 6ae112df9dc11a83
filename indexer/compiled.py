"""The compiled way of believing events: what `Ledger` does block by block, in a few calls of machine code an event.

The tables are the same, so every other part of the index works on them as ever. What is rare (sliding windows, copies,
rows with several names, blocks that are told again) is left to the ledger's own way. Imported only where this way is
chosen: it needs numba.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import numpy as np
from numpy.typing import NDArray

from indexer import compiled_loops, compiled_scan
from indexer.blocks import Keys, KeySpace
from indexer.compiled_wire import Reader
from indexer.events import BlockRemoved, BlockStored, Tier
from indexer.index import PrefixIndex
from indexer.ledger import PLANES, PREDICTED, Account, Applied, Ledger, extras_of
from indexer.table import Table
from indexer.way import Way

_FEW = 3  # blocks; so few are done faster without a call
_BLOCKS_MIN = 256  # for which there is room from the start
_REHEARSED = 2048  # blocks; more than a pod's table has entries at first
_NO_TOKENS = np.zeros(0, np.uint32)

LOOPS = (compiled_scan.scan, compiled_loops.store, compiled_loops.name, compiled_loops.remove, compiled_loops.change)
"""What is called from outside of machine code."""


class CompiledLedger(Ledger):
    """See the module."""

    def __init__(self, space: KeySpace, table: Table) -> None:
        super().__init__(space, table)
        pages = table.pages
        self._pages = (pages.key_array, pages.next_array, pages.head_array, pages.mark_array)
        self._lay_out(_BLOCKS_MIN)

    def _store_content(self, account: Account, event: BlockStored, lora: str | None) -> Applied:
        blocks, size = len(event.hashes), event.block_size
        plain = size in compiled_loops.SIZES and event.tier in account.tiers and len(event.tokens) == blocks * size
        rare = event.again or account.windows is not None
        if blocks <= _FEW or not plain or rare or extras_of(event, lora) is not None:
            return super()._store_content(account, event, lora)
        root, parent = (self._space.root(size), 0) if event.parent is None else (0, event.parent)
        stored = self._store(account, event, event.tokens, size, root, parent, self._room(blocks))
        if stored < 0:  # the parent is in another tier, or not known
            return super()._store_content(account, event, lora)
        return Applied(stored, refused=blocks - stored)

    def _enter(self, account: Account, event: BlockStored, keys: list[int], parent: int) -> int:
        rare = event.again or account.windows is not None
        if len(keys) <= _FEW or len(keys) != len(event.hashes) or rare:
            return super()._enter(account, event, keys, parent)
        room = self._room(len(keys))
        room[:] = keys
        return self._store(account, event, _NO_TOKENS, 0, 0, parent, room)

    def _store(
        self, account: Account, event: BlockStored, tokens: NDArray[np.uint32], size: int, root: int, parent: int,
        keys: Keys,
    ) -> int:  # fmt: skip
        """See `compiled_loops.store`; how many blocks are stored."""
        hashes, pages, engine_hashes = account.tiers[event.tier], self._table.pages, _array(event.hashes)
        stored, named, known, runs = compiled_loops.store(
            tokens, size, np.uint64(root), np.uint64(parent), keys, self._pages, pages.pages_max,
            engine_hashes, hashes.arrays, pages.set_array, self._rows, self._before, self._starts,
        )  # fmt: skip
        if stored < 0:
            return -1
        rows = self._rows[:stored]
        while named < stored:
            hashes.grow()
            named, more = compiled_loops.name(named, engine_hashes, rows, hashes.arrays, self._before)
            known += more
        predicted = account.predicted
        mask, instead_of = account.masks[PLANES.index(event.tier)], account.masks[PREDICTED] if predicted else 0
        held = self._change(rows, runs, mask, instead_of)
        if known or held or predicted or account.changes is not None:
            listed = rows.tolist()
            renamed = hashes.renamed(event.hashes, listed, self._before.tolist()) if known else ([], [])
            self._named(account, event.tier, listed, held, *renamed, predicted)
        return int(stored)

    def _forget(self, account: Account, tier: Tier, engine_hashes: Sequence[int]) -> tuple[int, Sequence[int]]:
        hashes = account.tiers.get(tier)
        plain = hashes is not None and not hashes.aliases and hashes.copies.keys().isdisjoint(engine_hashes)
        if hashes is None or not plain or account.windows is not None or len(engine_hashes) <= _FEW:
            return super()._forget(account, tier, engine_hashes)
        self._room(len(engine_hashes))
        found, runs = compiled_loops.remove(
            _array(engine_hashes), hashes.arrays, self._table.pages.set_array, self._rows, self._before, self._starts
        )
        gone = self._before[:found]
        if account.changes is not None:
            account.changes.unhold(tier, self._keys_of(gone.tolist()))
        self._change(gone, runs, 0, account.masks[PLANES.index(tier)])
        if found == len(engine_hashes):
            return found, ()
        known = self._rows[: len(engine_hashes)].tolist()
        return found, [h for h, row in zip(engine_hashes, known, strict=True) if not row]

    def _change(self, rows: NDArray[np.uint32], runs: int, mask: int, instead_of: int) -> list[int]:
        """As `Table.hold`, of `rows` in which the holder set changes at `self._starts`; with mask 0 as `unhold`."""
        held: list[int] = []
        table, starts, news = self._table, self._borders, self._numbers
        sets, numbers = table.sets, table.pages.sets
        for run in range(runs):
            start, end = starts[run], starts[run + 1]
            old = numbers[rows[start]]
            before = sets.masks[old]
            after = before & ~instead_of | mask
            new = news[run] = old if after == before else sets.number(after)
            sets.move(old, new, end - start)
            if before & mask:
                held += rows[start:end].tolist()
        compiled_loops.change(
            runs, rows, self._starts, self._sets, table.pages.set_array, table.pages.stamp_array,
            table.pages.live_array, table.version, self._pages,
        )  # fmt: skip
        return held

    def _room(self, blocks: int) -> Keys:
        """Room for what the loops say of so many blocks, and for their keys."""
        if blocks > len(self._rows):
            self._lay_out(2 * blocks)
        return self._keys_room[:blocks]

    def _lay_out(self, blocks: int) -> None:
        self._keys_room = np.zeros(blocks, np.uint64)
        self._rows, self._before, self._sets = np.zeros((3, blocks), np.uint32)
        self._starts = np.zeros(blocks + 1, np.int64)
        self._numbers, self._borders = self._sets.data, self._starts.data  # the same memory, faster for single numbers


def way() -> Way:
    """The compiled way, with all that it needs compiled: that takes seconds, or some ms where it was kept.

    It has room of its own, so it is not to be shared between threads.
    """
    for loop in LOOPS:
        with suppress(RuntimeError):  # numba finds no folder that it may write to: nothing is kept for the next start
            loop.enable_caching()
    made = Way(Reader().decode, CompiledLedger)
    made.decode(msgspec.msgpack.encode([0.0, []]))
    index = PrefixIndex(KeySpace(0), _REHEARSED, 1, way=made)
    hashes, tokens = list(range(1, _REHEARSED + 1)), np.zeros(_REHEARSED * 16, np.uint32)
    for _ in range(2):  # at first there is no table; the second time it has to grow
        index.apply("", BlockStored(hashes, None, tokens, 16))
        index.apply("", BlockRemoved(hashes))
    return made


def _array(engine_hashes: Sequence[int]) -> NDArray[np.uint64]:
    return np.frombuffer(engine_hashes if isinstance(engine_hashes, array) else array("Q", engine_hashes), np.uint64)
