"""Who goes first where there is no room."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from indexer.blocks import KeySpace
from indexer.eviction import EvictionLimits, EvictionPolicy, first_to_go
from indexer.prefixes import PrefixStore
from tests.fakes.limits import prefix_limits
from tests.fakes.stores import Bars, as_many, ids


@dataclass
class Piece:
    """Something that may go."""

    name: str
    hits: int = 1
    nbytes: int = 100


def limits(policy: EvictionPolicy, frequency: float = 0.0, size: float = 0.0, recency: float = 1.0,
           threshold: float = 1.0, batch: int = 2) -> EvictionLimits:  # fmt: skip
    return EvictionLimits(policy, frequency, size, recency, threshold, batch)


PIECES = [Piece("oldest", hits=90), Piece("large", nbytes=900), Piece("plain"), Piece("newest")]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (limits("lru", frequency=9.0, size=9.0), ["oldest", "large"]),
        (limits("weighted_lru"), ["oldest", "large"]),
        (limits("weighted_lru", frequency=1.0), ["large", "plain"]),
        (limits("weighted_lru", frequency=1.0, recency=0.0), ["large", "plain"]),
        (limits("weighted_lru", size=1.0, recency=0.1), ["large", "oldest"]),
        (limits("weighted_lru", frequency=1.0, batch=9), ["large", "plain", "oldest", "newest"]),
        (limits("lru", batch=1), ["oldest"]),
    ],
)
def test_who_goes_first(given: EvictionLimits, names: list[str]) -> None:
    """In the order of use, or the least worth of the oldest, by what counts."""
    assert [piece.name for piece in first_to_go(PIECES, given)][: len(names)] == names


def test_only_the_oldest_are_looked_at() -> None:
    """However many there are; nobody goes where nobody is."""
    many = [Piece(str(number), hits=1000 - number) for number in range(1000)]
    gone = first_to_go(many, limits("weighted_lru", frequency=1.0, recency=0.0, batch=3))
    assert [piece.name for piece in gone] == ["5", "4", "3"]
    assert not first_to_go([], limits("weighted_lru")) and not first_to_go([], limits("lru"))


def a_store(eviction: EvictionLimits, bytes_max: int = 40_000) -> tuple[PrefixStore, object]:
    store = PrefixStore(KeySpace(7), 11, lambda match: False, prefix_limits(bytes_max, eviction=eviction))
    return store, store.family("test", Bars(), as_many)


def known(store: PrefixStore, family: object, text: bytes) -> int:
    """How much of it was known; then all is."""
    found = store.find_longest_tokens(family, text)  # type: ignore[arg-type]
    before = found.known
    if found.whole is None:
        store.extend(found, found.ends(), ids(text[before:]))
    return before


@pytest.mark.parametrize("threshold", [1.0, 0.9, 0.5])
def test_the_store_begins_to_give_up_at_its_threshold(threshold: float) -> None:
    """And stays within it after every call."""
    store, family = a_store(limits("lru", threshold=threshold))
    for number in range(100):
        known(store, family, b"%08d|the text of somebody|which is not long" % number)
        assert store.nbytes <= threshold * 40_000
    assert store.stats().evictions["lru"] > 0 and store.nbytes > threshold * 40_000 - 3000


def test_what_is_asked_for_often_outlives_what_is_new() -> None:
    """By weights; in the order of use alone it is gone after as many others. What its ends were used counts for it."""
    for policy, kept in (("lru", False), ("weighted_lru", True)):
        store, family = a_store(limits(policy, frequency=4.0, batch=4))  # type: ignore[arg-type]
        usual = b"everybody's prompt|is asked for|again and again"
        for number in range(20):
            known(store, family, usual + b"|question %04d" % number)
        for number in range(300):
            known(store, family, b"%08d|the text of somebody|which is not long" % number)
        assert (known(store, family, usual) > 0) == kept
