"""Blocks that a pod stored where others were predicted: what it made of a prompt, beside what we thought it would.

Behind a known block there may be many continuations, so one alone proves nothing; see `router.core.token_proof`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from indexer.blocks import Tokens

ROOT = 0
"""The parent of every chain's first block, as a key."""

_PARENTS_MAX = 512  # of a pod: looked at within seconds
_OF_PARENT_MAX = 4


class Strangers:
    """Of one feed. Only blocks behind a parent where something is `expect`ed are noted, so decoding costs nothing."""

    __slots__ = ("_expected", "_seen")

    def __init__(self) -> None:
        self._expected: dict[int, None] = {}
        self._seen: dict[int, tuple[bytes, ...]] = {}

    def expect(self, parent: int) -> None:
        """Behind the block with this key (ROOT: at the start of a chain), blocks are predicted."""
        self._expected.pop(parent, None)
        self._expected[parent] = None
        if len(self._expected) > _PARENTS_MAX:
            del self._expected[next(iter(self._expected))]

    def look(
        self,
        tokens: Tokens,
        size: int,
        parent: int,
        keys: Sequence[int],
        rows: Sequence[int],
        predicted: Mapping[int, float],
    ) -> None:
        """Blocks of `size` tokens are stored, with these `keys` and `rows`, behind the key `parent`.

        Keys are chained: if the last of them was predicted, all were; none behind the first that was not can be.
        """
        if rows[-1] in predicted:
            self.expect(keys[len(rows) - 1])  # the rest of a prompt that comes in pieces
            return
        at = 0
        if rows[0] in predicted:
            at = next(number for number, row in enumerate(rows) if row not in predicted)
            parent = keys[at - 1]
        elif parent not in self._expected:
            return
        block = tokens[at * size : (at + 1) * size].tobytes()
        seen = self._seen.pop(parent, ())
        self._seen[parent] = (block, *(one for one in seen if one != block))[:_OF_PARENT_MAX]
        if len(self._seen) > _PARENTS_MAX:
            del self._seen[next(iter(self._seen))]

    def behind(self, parent: int) -> tuple[bytes, ...]:
        """The token ids (uint32, in memory order) of the blocks noted behind this key, newest first."""
        return self._seen.get(parent, ())
