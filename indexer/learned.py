"""What reports have shown of a pod, as a value that is saved and sent.

Apart from `indexer.trust`, which may be machine code: msgspec reads a record's fields from annotations that mypyc does
not keep.
"""

from __future__ import annotations

import msgspec


class Learned(msgspec.Struct, frozen=True):
    """What reports have shown of a pod, as it is told elsewhere. Rules as (drop, look, unit)."""

    rule: tuple[int, int, int]
    guess: tuple[int, int, int]
    sure: bool
    proven: bool
    disproofs: int
    proofs: int
