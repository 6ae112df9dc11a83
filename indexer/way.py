"""How events are believed: a way to read them, and one to write them. All ways have the same outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from indexer import wire
from indexer.events import Batch
from indexer.ledger import Ledger


class Way(NamedTuple):
    """`decode` is `wire.decode`, or gives what it gives."""

    decode: Callable[[bytes | memoryview], Batch]
    ledger: type[Ledger]


PLAIN = Way(wire.decode, Ledger)
"""Without anything compiled."""
