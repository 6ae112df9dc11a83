"""A snapshot believed: one pod's blocks entered into the index, in slices between which all else goes on.

The pod is hidden until its stream has shown that the publisher is still the same (`Stream.resume`). Pages are laid as
they were, as far as their keys have no rows here yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from indexer.engine import EngineMap
from indexer.events import TIERS, Batch, Tier
from indexer.feed import Feed
from indexer.index import PrefixIndex
from indexer.learned import Role
from indexer.ledger import LATELY_MAX, Account
from indexer.match import Holder
from indexer.pages import PAGE
from indexer.planes import PLANE_OF_ROLE, PLANES, PREDICTED
from indexer.snapshot import Blocks, Remembered, Snapshot
from indexer.stream import Ready

_SLICE = 2048
"""Blocks entered in one go: one to two milliseconds."""


class Filling:
    """See the module. `entered`: blocks so far."""

    def __init__(self, index: PrefixIndex, snapshot: Snapshot) -> None:
        """`snapshot`: checked; its keys are of the index's seed."""
        self.entered = 0
        self._index = index
        self._snapshot = snapshot

    def steps(self, feed: Feed, remembered: Remembered) -> Generator[None, None, bool]:
        """Enter what is remembered of a feed that waits; False: it does not wait any more, and what was entered is
        forgotten by who has ended that."""
        index, pod = self._index, feed.pod
        if not feed._stream.waiting:
            return False
        feed._behind = True
        index.hide(pod, True)
        account = index._known(pod)
        for _ in self._enter(account, pod, remembered):
            yield
            if index._pods.get(pod) is not account or not feed._stream.waiting:
                return False
        return True

    def _enter(self, account: Account, pod: Holder, remembered: Remembered) -> Iterator[None]:
        known = remembered.known
        if known.groups is not None:
            account.groups.learn(known.groups)
            for kept in remembered.kept:
                for start in range(0, len(kept.hashes), _SLICE):
                    part = slice(start, start + _SLICE)
                    copies = zip(kept.hashes[part].tolist(), kept.counts[part].tolist(), strict=True)
                    account.groups.copies[kept.place].update(dict(copies))
                    yield
        account.special = account.special or known.special
        account.grain = known.grain
        account.chunks.update({tier: known.chunks[tier] for tier in TIERS if known.chunks.get(tier)})
        account.lately.update(known.lately[-LATELY_MAX:])
        account.orphans.lost += known.orphans_lost
        account.refused.lost += known.refused_lost
        for blocks in remembered.blocks:
            yield from self._tier(account, blocks, remembered)
        self._mark(account)

    def _tier(self, account: Account, blocks: Blocks, remembered: Remembered) -> Iterator[None]:
        index, tier = self._index, blocks.tier
        hashes = account.tiers[tier] = EngineMap(index._ledger._space.salt, len(blocks.hashes))
        for start in range(0, len(blocks.hashes), _SLICE):
            names, places = blocks.hashes[start : start + _SLICE], blocks.places[start : start + _SLICE]
            room = index._ledger._room(hashes, len(names))
            index._table.version += 1
            rows = self._rows(places[:room])
            found = rows != 0
            names, rows = names[:room][found], rows[found]
            account.refused.lost += len(places) - len(rows)
            hashes.extend(names, rows)
            self._hold(account, tier, names.tolist(), rows.tolist())
            self.entered += len(rows)
            yield
        for counted in remembered.copies:
            if TIERS[counted.place] == tier:
                copies = zip(counted.hashes.tolist(), counted.counts.tolist(), strict=True)
                hashes.copies.update({name: copy for name, copy in copies if copy and hashes.find(name)})
                yield

    def _hold(self, account: Account, tier: Tier, names: list[int], rows: list[int]) -> None:
        table, predicted = self._index._table, account.predicted
        differing = dict.fromkeys(rows)
        held = table.hold(list(differing), account.masks[PLANES.index(tier)], account.masks[PREDICTED])
        if held or len(differing) < len(rows):  # several hashes name one
            again = list((Counter(rows) - Counter(differing.keys())).elements())
            account.tiers[tier].named_again([*held, *again])
        if predicted:
            for row in rows:
                predicted.pop(row, None)
        if account.groups.hybrid and tier == "gpu":
            roles: tuple[Role, ...] = ("window", "state")
            for role in roles:
                if account.groups.needed if role == "window" else account.groups.states:
                    inside = [r for h, r in zip(names, rows, strict=True) if account.groups.holds(role, h)]
                    table.hold(inside, account.masks[PLANE_OF_ROLE[role]])

    def _mark(self, account: Account) -> None:
        """What matches have to mind of it."""
        index, bit = self._index, account.masks[0]
        index._hybrid |= bit if account.groups.hybrid else 0
        index._layered |= bit if any(tier != "gpu" for tier in account.tiers) else 0
        index._epoch += 1

    def _rows(self, places: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The rows of these blocks here, made where there are none; 0: there is no room."""
        pages, snapshot = self._index._pages, self._snapshot
        keys = snapshot.keys.reshape(-1)[places]
        rows = pages.find_all(keys)
        missing = places[rows == 0]
        if not len(missing):
            return rows
        records = missing // PAGE
        records = records[np.flatnonzero(np.diff(records, prepend=records[0] + np.uint32(1)))]
        records = np.array(list(dict.fromkeys(records.tolist())), np.uint32)
        laid = snapshot.keys[records]
        fresh = ~((pages.find_all(laid.reshape(-1)).reshape(-1, PAGE) != 0) & (laid != 0)).any(axis=1)
        whole = laid[fresh]
        used = whole[whole != 0]
        if len(set(used.tolist())) == len(used):
            pages.lay(whole, snapshot.befores[records[fresh]])
        rows = pages.find_all(keys)
        for at in np.flatnonzero(rows == 0).tolist():
            rows[at] = self._placed(int(places[at]))
        return rows

    def _placed(self, place: int) -> int:
        """A row for one block of a page that is here in part, or twice."""
        pages, keys = self._index._pages, self._snapshot.keys.reshape(-1)
        key, offset = int(keys[place]), place % PAGE
        row = pages.find(key)
        if row:
            return row
        before = int(keys[place - 1]) if offset else 0
        if not before:
            before = int(self._snapshot.befores[place // PAGE])
        return pages.place(key, pages.find(before) if before else 0)


def wait(feed: Feed) -> None:
    """A feed of which nothing was heard: what its pod sent before may be remembered, see `resumed`."""
    feed._stream.wait()


def waits(feed: Feed) -> bool:
    """Does it still?"""
    return feed._stream.waiting


def resumed(feed: Feed, remembered: Remembered | None, connected: bool, now: float) -> int | None:
    """A feed that waited has what was remembered, or there is nothing: from where a replay is to be asked now."""
    stream = feed._stream
    if not stream.waiting:
        return None
    ready: Ready[Batch]
    if remembered is None:
        ready = stream.resume(None, connected)
    else:
        known = remembered.known
        feed.grain, feed.rank = known.grain, known.global_rank
        feed._reasons.update(dict.fromkeys(known.reasons))
        if known.trust is not None:
            feed.trust.relearn(known.trust)
        feed._look_at_groups()
        feed._full_report_until = now  # whatever is replayed may tell again of blocks that were only reused
        ready = stream.resume((known.number, known.clock, known.truncated), connected)
    return feed._act(ready, now)
