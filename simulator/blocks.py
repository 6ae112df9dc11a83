"""The block pool: which physical block holds what, who uses it, and which is evicted next.

vLLM's rules: only full blocks are cached; equal content is not de-duplicated; a block that nobody uses stays cached
in the free queue until it is taken for something else, oldest first; one block is the null block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from simulator.events import SPEC_KIND, Cleared, Event, Origin, Removed, Stored
from simulator.offload import FarTier
from simulator.reuse import Group


class Block:
    """One physical block; `digest` is None while its content is not cached."""

    __slots__ = ("digest", "number", "refs")

    def __init__(self, number: int) -> None:
        self.number = number
        self.refs = 0
        self.digest: bytes | None = None


NULL = Block(0)
"""Stands for what a window does not reach: nobody reads it."""


class BlockPool:
    """`blocks_max` physical blocks of which one is reserved; events of what happened pile up until taken."""

    def __init__(
        self,
        blocks_max: int,
        block_size: int,
        empty_first: bool = True,
        ahead: int = 0,
        groups: Sequence[Group] = (),
        far: FarTier | None = None,
        window: int = 0,
    ) -> None:
        """`empty_first`: a freed block without cached content is taken again before all others. `ahead`: tokens behind
        a block that its digest covers; `groups`: what is kept beside these blocks; `far`: the tier below; `window`:
        tokens that every layer looks back at most, 0: some look back at all."""
        if blocks_max < 2:
            raise ValueError("a pool needs at least two blocks: one is the null block")
        self.block_size = block_size
        self._empty_first = empty_first
        self.usable = blocks_max - 1
        self._free = OrderedDict((number, Block(number)) for number in range(1, blocks_max))
        self._cached: dict[bytes, dict[int, Block]] = {}
        self._events: list[Event] = []
        self._ahead = ahead
        self._groups = groups
        self._far = far
        self._window = window
        self._needed = -(-(window - 1) // block_size)

    @property
    def free(self) -> int:
        """Blocks that nobody uses, cached ones included."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks in use by requests."""
        return self.usable - len(self._free)

    @property
    def cached(self) -> int:
        """Distinct cached contents."""
        return len(self._cached)

    def match(self, digests: Iterable[bytes], blocks_max: int | None = None) -> list[Block]:
        """The leading blocks that are cached, of each content the copy that was stored first; where windows are all
        there is, at most `blocks_max`, with null blocks for those that no window reaches."""
        if self._window:
            return self._in_windows(list(digests)[:blocks_max])
        found = []
        for digest in digests:
            copies = self._cached.get(digest)
            if copies is None:
                break
            found.append(next(iter(copies.values())))
        return found

    def _in_windows(self, digests: Sequence[bytes]) -> list[Block]:
        """From the right, the first blocks without a gap that fill a window; else those from the start on."""
        blocks, run = [NULL] * len(digests), 0
        for number in range(len(digests) - 1, -1, -1):
            copies = self._cached.get(digests[number])
            run = run + 1 if copies is not None else 0
            blocks[number] = next(iter(copies.values())) if copies is not None else NULL
            if run and run >= self._needed:
                return [NULL] * number + blocks[number : number + run]
        return blocks[:run]

    def leave_behind(self, blocks: list[Block], computed: int) -> None:
        """A request goes on from `computed` tokens: what no window reaches any more is free to be evicted."""
        end = max(0, computed - self._window + 1) // self.block_size if self._window else 0
        self.release([block for block in blocks[:end] if block is not NULL])
        blocks[:end] = [NULL] * min(end, len(blocks))

    def ends(self, digests: Sequence[bytes], blocks: int) -> int:
        """The most blocks, of at most so many, after which every group can go on."""
        while True:
            least = min((group.ends(digests, blocks) for group in self._groups), default=blocks)
            if least == blocks:
                return blocks
            blocks = least

    def loadable(self, digests: Sequence[bytes], start: int, end: int) -> int:
        """Where the blocks end that the tier below has from `start` on without a gap, at most at `end`."""
        return start if self._far is None else self._far.run(digests, start, end)

    def fits(self, new: int, reused: Sequence[Block]) -> bool:
        """Whether `new` blocks can be taken once `reused` are in use."""
        return new + sum(block.refs == 0 for block in reused if block is not NULL) <= len(self._free)

    def use(self, blocks: Iterable[Block]) -> None:
        """Share cached blocks with one more request."""
        for block in blocks:
            if block is NULL:
                continue
            if block.refs == 0:
                del self._free[block.number]
            block.refs += 1

    def take(self, count: int) -> list[Block]:
        """The `count` blocks that were free for longest, evicted where cached; ask `fits` first."""
        return [self._take() for _ in range(count)]

    def _take(self) -> Block:
        _, block = self._free.popitem(last=False)
        if block.digest is not None:
            copies = self._cached[block.digest]
            del copies[block.number]
            if not copies:
                del self._cached[block.digest]
            self._events.append(Removed(block.digest))
            block.digest = None
        block.refs = 1
        return block

    def store(
        self, blocks: Sequence[Block], chain: Sequence[bytes], token_ids: Sequence[int], span: range, origin: Origin
    ) -> None:
        """The blocks of a sequence that `span` numbers are full: cache them (all that it has is given)."""
        for number in span:
            block, digest = blocks[number], chain[number]
            block.digest = digest
            self._cached.setdefault(digest, {})[block.number] = block
        self.announce(chain, token_ids, span, origin)
        for group in self._groups:
            self._events += group.store(chain, token_ids, span, origin)
        if self._far is not None:
            self._far.use(chain)
            self._far.store(chain, token_ids, span, self.block_size)

    def announce(self, chain: Sequence[bytes], token_ids: Sequence[int], span: range, origin: Origin) -> None:
        """Say that the blocks of a sequence that `span` numbers are cached, without storing them."""
        first, end = span.start, span.stop
        parent = chain[first - 1] if first else None
        size = self.block_size
        tokens = tuple(token_ids[first * size : end * size])
        behind = [tuple(token_ids[(n + 1) * size : (n + 1) * size + self._ahead]) for n in span] if self._ahead else []
        kind, window = ("sliding_window", self._window) if self._window else (SPEC_KIND, None)
        stored = Stored(tuple(chain[first:end]), parent, tokens, first, origin, tuple(behind), 0, kind, window)
        self._events.append(stored)

    def release(self, blocks: Sequence[Block]) -> None:
        """A request gives its blocks back; its last block will be evicted first."""
        for block in reversed(blocks):
            if block is NULL:
                continue
            block.refs -= 1
            if block.refs == 0:
                self._free[block.number] = block
                if self._empty_first and block.digest is None:
                    self._free.move_to_end(block.number, last=False)

    def clear(self, far: bool = False) -> bool:
        """Forget all content (of the tier below only if `far`); False, and nothing happens, while a request uses a
        block."""
        if self.used:
            return False
        for copies in self._cached.values():
            for block in copies.values():
                block.digest = None
        self._cached.clear()
        for group in self._groups:
            group.clear()
        if self._far is not None and far:
            self._far.clear()
        self._events.append(Cleared())
        return True

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events if self._far is None else [*events, *self._far.take_events()]
