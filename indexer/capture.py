"""A snapshot in the making: feed after feed, each as of one batch, in slices between which all else goes on.

While a feed is captured, what comes of it waits (`Backlog.closed`): a few milliseconds for each 100,000 blocks. What
else may change its blocks meanwhile, as giving some up for others' sake, only leaves blocks out that are held, but what
makes all of it doubtful (a restart, a reading anew) opens the backlog again, and then nothing of the feed is taken.
Predicted blocks, orphans and what found no room are left out: the last two are told as lost.

This, `filling` and the index are one thing in three files: they know each other's insides.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from indexer import snapshot
from indexer.blocks import Keys
from indexer.events import TIERS, Tier
from indexer.feed import KEPT, Feed
from indexer.index import PrefixIndex
from indexer.ledger import Account
from indexer.pages import PAGE
from indexer.snapshot import Blocks, CopyCounts, FeedKnown, Identity, Laid

_SLICE = 8192
"""Entries looked at in one go: about a millisecond."""
_BYTES, _PAGE_BYTES, _BLOCK_BYTES = 4096, 72, 9.5  # of a snapshot: heads; each page; each block that a pod holds


class Capture:
    """See the module. What is made goes into `frames`, (kind, payload) in order; whoever calls takes it out."""

    def __init__(self, index: PrefixIndex, chosen: NDArray[np.bool_] | None = None) -> None:
        """`chosen`: the pages to take, where it can't be all."""
        self.frames: list[tuple[int, bytes]] = []
        self.feeds = 0
        self.blocks = 0
        self._index = index
        self._chosen = chosen
        pages = index._pages.pages_max + 1
        self._recorded: NDArray[np.uint32] = np.zeros(pages, np.uint32)  # of each page: its newest record + 1
        self._versions: NDArray[np.uint64] = np.zeros(pages, np.uint64)  # and its stamp then
        self._records = 0

    def steps(self, feed: Feed, who: Identity) -> Generator[None, None, bool]:
        """Capture one feed; False: it can't be told, as what is known of it is in doubt, or became so meanwhile."""
        account, backlog = self._index._pods.get(feed.pod), feed._backlog
        if account is None or not _is_sure(feed):
            return False
        begun, blocks = len(self.frames), self.blocks
        backlog.close()
        try:
            known = self._known(feed, account, who)
            self.frames.append((snapshot.FEED, b""))
            for tier, hashes in list(account.tiers.items()):
                for _ in self._tier(account, tier):
                    yield
                    if not backlog.closed or account.tiers.get(tier) is not hashes:
                        self._leave_out(begun, blocks)
                        return False
            for place, group in account.groups.copies.items():
                for counted in _counted(place, iter(group.items())):
                    self.frames.append((snapshot.KEPT, snapshot.counted_bytes(counted)))
                    yield
                    if not backlog.closed:
                        self._leave_out(begun, blocks)
                        return False
        except RuntimeError:  # copies were given up while they were looked at
            self._leave_out(begun, blocks)
            return False
        finally:
            backlog.open()
        at = next(at for at in range(begun, len(self.frames)) if self.frames[at][0] == snapshot.FEED)
        self.frames[at] = (snapshot.FEED, snapshot.encoded(known))
        self.feeds += 1
        return True

    def _leave_out(self, begun: int, blocks: int) -> None:
        """The feed is in doubt; pages stay, as others may be told by them."""
        self.frames[begun:] = [frame for frame in self.frames[begun:] if frame[0] == snapshot.PAGES]
        self.blocks = blocks

    def _known(self, feed: Feed, account: Account, who: Identity) -> FeedKnown:
        number, clock = feed._stream.as_of
        return FeedKnown(
            who,
            number,
            clock,
            feed._stream.truncated or self._chosen is not None,  # what is not chosen is history that is missing
            grain=feed.grain,
            global_rank=feed.rank,
            reasons=list(feed._reasons),
            tiers=list(account.tiers),
            special=account.special,
            orphans_lost=account.orphans.blocks + account.orphans.lost,
            refused_lost=account.refused.blocks + account.refused.lost,
            chunks=dict(account.chunks),
            lately=list(account.lately.items()),
            groups=account.groups.known if account.groups.hybrid or account.groups.indexed is not None else None,
            trust=feed.trust.learned,
        )

    def _tier(self, account: Account, tier: Tier) -> Iterator[None]:
        hashes = account.tiers[tier]
        for start in range(1, hashes.entries, _SLICE):
            rows = hashes.row_array[start : min(start + _SLICE, hashes.entries)]
            named = rows != 0
            if self._chosen is not None:
                named &= self._chosen[rows // PAGE]
            rows = rows[named]
            if len(rows):
                names = hashes.hash_array[start : start + len(named)][named]
                self._record(rows // PAGE)
                places = (self._recorded[rows // PAGE] - np.uint32(1)) * np.uint32(PAGE) + rows % PAGE
                self.frames.append((snapshot.BLOCKS, snapshot.blocks_bytes(Blocks(tier, names, places))))
                self.blocks += len(rows)
            yield
        for counted in _counted(TIERS.index(tier), iter(hashes.copies.items())):
            self.frames.append((snapshot.COPIES, snapshot.counted_bytes(counted)))
            yield

    def _record(self, pages: NDArray[np.uint32]) -> None:
        """Have records of these pages, as they are now."""
        table = self._index._pages
        old = pages[(self._recorded[pages] == 0) | (self._versions[pages] < table.stamp_array[pages])]
        if not len(old):
            return
        numbers = np.arange(len(old), dtype=np.uint32)
        self._recorded[old] = numbers  # of equal ones, one is left
        new = old[self._recorded[old] == numbers]
        self._recorded[new] = self._records + 1 + np.arange(len(new), dtype=np.uint32)
        self._versions[new] = table.stamp_array[new]
        self._records += len(new)
        keys = table.key_array[: (table.pages_max + 1) * PAGE].reshape(-1, PAGE)[new]
        self.frames.append((snapshot.PAGES, snapshot.laid_bytes(Laid(keys, table.before_array[new]))))


def size_of_all(index: PrefixIndex) -> int:
    """About how many bytes a snapshot of all has."""
    pages, blocks = index._pages.used, sum(account.held for account in index._pods.values())
    return _BYTES + pages * _PAGE_BYTES + round(blocks * _BLOCK_BYTES)


def chosen_pages(
    index: PrefixIndex, used: Iterable[Keys], bytes_max: int
) -> Generator[None, None, NDArray[np.bool_] | None]:
    """The pages of which a snapshot has about so many bytes: those of the keys in `used`, in their order, then those
    that have changed last. None: all of them."""
    pages, size = index._pages, size_of_all(index)
    if size <= bytes_max:
        return None
    left = int(pages.used * max(0, bytes_max - _BYTES) / (size - _BYTES))
    chosen = np.zeros(pages.pages_max + 1, np.bool_)
    for keys in used:
        rows = pages.find_all(keys[:_SLICE])
        found = rows[rows != 0] // PAGE
        before = int(chosen[found].sum())
        new = list(dict.fromkeys(found[~chosen[found]].tolist())) if before < len(found) else []
        chosen[new[:left]] = True
        left -= len(new)
        yield
        if left <= 0:
            return chosen
    low, high = 0, index._table.version
    while low < high:  # the stamp above which there are as many others as there is room for
        middle = (low + high) // 2
        others = (pages.stamp_array > np.uint64(middle)) & (pages.live_array > 0) & ~chosen
        low, high = (low, middle) if int(others.sum()) <= left else (middle + 1, high)
        yield
    chosen |= (pages.stamp_array > np.uint64(low)) & (pages.live_array > 0)
    return chosen


def _is_sure(feed: Feed) -> bool:
    """May others be told what is known of it? Where it is the same publisher's, is for them to find out."""
    return (
        not feed._backlog.events
        and feed._stream.as_of[0] >= 0
        and feed._stream.sure
        and not (feed._disputed or feed._unread or feed.trust.doubted)
        and KEPT not in feed._reasons
    )


def _counted(place: int, copies: Iterator[tuple[int, int]]) -> Iterator[CopyCounts]:
    """(hash, count) in slices; raises RuntimeError if they change meanwhile."""
    while part := list(islice(copies, _SLICE)):
        hashes, counts = zip(*part, strict=True)
        yield CopyCounts(place, np.array(hashes, np.uint64), np.array(counts, np.uint32))
