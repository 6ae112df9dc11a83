"""What waits to be believed of large batches: its events in order, in pieces of few blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored, Event

LARGE = 2048
"""Blocks of a batch above which it is believed in pieces. A step of vLLM tells of about as many at most: it stores and
removes 16,384 tokens in blocks of 16."""
PIECE = 512
"""Blocks of a piece: less than a millisecond."""
_GATE: Iterator[Event] = iter(())
WAITING_MAX = 1 << 21
"""Blocks that may wait: as many as the largest frame that is received can tell of."""


def blocks_of(events: Sequence[Event]) -> int:
    """How many blocks a batch tells of."""
    blocks = 0
    for event in events:
        if event.__class__ is BlockStored or event.__class__ is BlockRemoved:  # quicker than `isinstance` of structs
            blocks += len(event.hashes)
    return blocks


class Backlog:
    """See the module. Something waits as long as there are `events`; while it is `closed`, all that comes does."""

    def __init__(self) -> None:
        self.blocks = 0
        self.closed = False
        self.events: deque[Iterator[Event]] = deque()  # each in its pieces

    def put(self, events: Sequence[Event]) -> None:
        """These come after all others."""
        self.blocks += blocks_of(events)
        self.events += [_pieces(event) for event in events]

    def next(self) -> Event | None:
        """The next piece; None: there is nothing more, for now."""
        while self.ready:
            event = next(self.events[0], None)
            if event is not None:
                self.blocks -= blocks_of([event])
                return event
            self.events.popleft()
        return None

    @property
    def ready(self) -> bool:
        """Something waits, and may be believed."""
        return not self.closed and bool(self.events)

    def close(self) -> None:
        """For a moment nothing is to be believed; until `open`, or until all of it is forgotten."""
        self.closed = True
        self.events.appendleft(_GATE)  # what comes finds that something waits

    def open(self) -> None:
        """What has waited may be believed."""
        self.closed = False
        if self.events and self.events[0] is _GATE:
            self.events.popleft()

    def clear(self) -> None:
        self.blocks = 0
        self.closed = False
        self.events.clear()


def _pieces(event: Event) -> Iterator[Event]:
    """The same in several events, each of which hangs on the one before."""
    if isinstance(event, AllBlocksCleared) or len(event.hashes) <= PIECE:
        yield event
    elif not isinstance(event, BlockStored):
        for first in range(0, len(event.hashes), PIECE):
            yield msgspec.structs.replace(event, hashes=event.hashes[first : first + PIECE])
    elif event.whole or not len(event.tokens):
        yield from _stores(event)
    else:  # of a group that keeps some blocks only, which are counted and no more
        yield event


def _stores(event: BlockStored) -> Iterator[Event]:
    size, extras, ahead = event.block_size, event.extras, event.ahead
    behind = len(ahead) // len(event.hashes) if ahead is not None else 0
    for first in range(0, len(event.hashes), PIECE):
        end = first + PIECE
        yield msgspec.structs.replace(
            event,
            hashes=event.hashes[first:end],
            parent=event.hashes[first - 1] if first and len(event.tokens) else event.parent,
            tokens=event.tokens[first * size : end * size],
            extras=None if extras is None else extras[first:end],
            ahead=None if ahead is None else ahead[first * behind : end * behind],
        )
