"""Prompts that continue each other: which were asked when, and how long it takes until one comes again.

A chain is what grows from turn to turn: a prompt that begins as the whole of one before it continues its chain, another
one begins a new chain, behind what it shares with others. Known are some keys of each prompt, as far apart as makes
them cheap.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from indexer.blocks import Keys
from scorer.mix import Mix
from scorer.reuse import Reuse

_APART_TOKENS = 256  # between two keys that are kept
_DEPTH_MAX = 8  # chains that one has grown out of, one after the other: then it stands for itself
_GROWTH, _GUESSED = 500.0, 4  # at first, as if so many turns had shown it
_TURN = 0.02  # what the newest turn counts for, at least
_USUAL = 0.6  # share of prompts that continue others, from which on that is what they do
_TURNS_MAX = 8.0  # that a prompt is taken to have before it


class Chain:
    """One of them. `tokens`: of its newest prompt; `end`: that one's last key that is kept; `name`: its first one's.

    `above`: which one it grew out of, behind so many `shared` leading tokens.
    """

    __slots__ = ("above", "depth", "end", "name", "shared", "tokens", "used_at")

    def __init__(self, name: int, now: float) -> None:
        self.name = name
        self.used_at = now
        self.tokens = 0
        self.end = 0
        self.above: Chain | None = None
        self.shared = 0
        self.depth = 0  # chains above it

    def grow_from(self, above: Chain | None, tokens: int) -> None:
        """It shares so many tokens with `above`, or with those that this one grew out of."""
        while above is not None and tokens <= above.shared:
            above = above.above
        if above is not None and above.depth < _DEPTH_MAX:
            self.above, self.shared, self.depth = above, tokens, above.depth + 1


class Place(NamedTuple):
    """Where a prompt stands among those before: it `continues` a chain, or shares so many leading `tokens` with it."""

    chain: Chain | None
    continues: bool
    tokens: int


@dataclass(slots=True, eq=False)
class Known:
    """What of a prompt was asked for before: its chain, which `continues` or is new, and so many leading `tokens`, up
    to the key `at` (0: none was known). `keys`: those that were entered."""

    chain: Chain
    continues: bool
    tokens: int
    at: int
    keys: list[int]


class Chains:
    """All that are remembered; of the keys, the `keys_max` newest."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._chains: OrderedDict[int, Chain] = OrderedDict()  # by keys of their prompts
        self.reuse = Reuse()
        self.mix = Mix()
        self.growth = _GROWTH  # tokens that a prompt has more than the one that it continues, of late
        self._turns = _GUESSED

    @property
    def continuing(self) -> float:
        """Share of prompts that continue others, of late; 0 as long as few are known."""
        return self.mix.continuing if self.mix.is_known else 0.0

    @property
    def are_usual(self) -> bool:
        """Most prompts continue others: what lives in a cache comes again, and it is worth to keep room for it."""
        return self.continuing >= _USUAL

    @property
    def ahead(self) -> float:
        """Tokens that a prompt is taken to grow by until it is not continued any more; 0 where most are not."""
        if self.mix.is_known and not self.are_usual:
            return 0.0
        return self.growth * min(_TURNS_MAX, self.mix.turns)

    def ask(self, keys: Keys, size: int, tokens: int, now: float) -> Known | None:
        """A prompt of so many tokens is sent to a pod, with keys of blocks of `size`; None: it is too short."""
        kept, apart = _kept(keys, size)
        if not kept:
            return None
        chain, number = self._longest(kept)
        if chain is None:
            return self._enter(None, 0, kept, 0, tokens, now)
        at = kept[number]
        first = number + 1 if chain.end == at else number
        return self._enter(chain, at, kept[first:], (number + 1) * apart * size, tokens, now)

    def hear(self, at: int, keys: list[int], known: int, tokens: int, now: float) -> Chain | None:
        """As `ask`, of a prompt that was sent from elsewhere: as that has it `Known`. None: it is too short."""
        chain = self._chains.get(at)
        if chain is None and not keys:
            return None
        return self._enter(chain, at, keys, known, tokens, now).chain

    def _enter(self, chain: Chain | None, at: int, keys: list[int], known: int, tokens: int, now: float) -> Known:
        new = tokens - known
        self.reuse.learn(0.0 if chain is None else now - chain.used_at, known, new if new > 0 else 0)
        continues = chain is not None and chain.end == at
        self.mix.learn(tokens, known, continues)
        if chain is None or not continues:
            above = chain
            chain = Chain(keys[-1] if keys else at, now)
            chain.grow_from(above, known)
        else:
            self._turns += 1
            self.growth += max(_TURN, 1.0 / self._turns) * (max(0, tokens - chain.tokens) - self.growth)
        chains = self._chains
        for key in keys:
            chains[key] = chain
        while len(chains) > self._keys_max:
            chains.popitem(last=False)
        chain.end, chain.tokens, chain.used_at = keys[-1] if keys else at, tokens, now
        return Known(chain, continues, known, at, keys)

    def place(self, keys: Keys, size: int) -> Place:
        """Of a prompt, before it was asked."""
        kept, apart = _kept(keys, size)
        chain, number = self._longest(kept)
        if chain is None:
            return Place(None, False, 0)
        return Place(chain, chain.end == kept[number], (number + 1) * apart * size)

    def name(self, keys: Keys, size: int) -> int:
        """By what a prompt's chain is known, from its first prompt on, before that was asked; 0: it is too short."""
        kept, _ = _kept(keys, size)
        if not kept:
            return 0
        chain, number = self._longest(kept)
        return chain.name if chain is not None and chain.end == kept[number] else kept[-1]

    def _longest(self, kept: list[int]) -> tuple[Chain | None, int]:
        """The chain of the longest beginning that is known, and the place of its key."""
        chains, number = self._chains, len(kept)
        chain = None
        while number and chain is None:
            number -= 1
            chain = chains.get(kept[number])
        return chain, number


def _kept(keys: Keys, size: int) -> tuple[list[int], int]:
    """Those of a prompt's keys that are kept, and how many blocks they are apart."""
    apart = _APART_TOKENS // size or 1
    kept: list[int] = keys[apart - 1 :: apart].tolist()
    return kept, apart
