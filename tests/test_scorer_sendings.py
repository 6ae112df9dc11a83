"""What workers tell each other of prompts that they have just sent: heard once, newest first, and bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.blocks import Keys
from scorer.sendings import Sendings, ring_fields

SIZE = 8


def _table(workers: int = 3) -> NDArray[Any]:
    return np.zeros(workers, ring_fields(SIZE))


def _prompt(number: int, blocks: int = 16) -> Keys:
    """A prompt of which one block is told."""
    return np.arange(number * 1000, number * 1000 + blocks, dtype=np.uint64)


def _tell(worker: Sendings, *numbers: int) -> None:
    for number in numbers:
        worker.tell(_prompt(number), 0, float(number), 5.0)


def _found(worker: Sendings, *numbers: int) -> list[int]:
    """Which of these a worker has heard of, and has not used yet."""
    return [number for number in numbers if worker.find(_prompt(number)) == (16, float(number), 5.0)]


def test_what_was_told_is_used_once() -> None:
    """By its own events the pod is known to hold it soon; told again by nobody, it does not come back."""
    table = _table()
    one, other = Sendings(table, 0), Sendings(table, 1)
    _tell(one, 1)
    assert _found(other, 1) == [], "it has not listened"
    other.listen()
    assert _found(other, 1) == [1] and _found(other, 1) == []
    other.listen()
    assert _found(other, 1) == []
    _tell(one, 2)
    other.listen()
    assert _found(other, 1, 2) == [2]
    one.listen()
    assert _found(one, 1, 2) == [], "what it told itself is no news"
    assert table["told"].tolist() == [2, 0, 0]


@pytest.mark.parametrize(("blocks", "start", "found"), [(10, 10, None), (10, 9, 10), (32, 16, 32), (32, 32, None)])
def test_only_what_is_new_is_told(blocks: int, start: int, found: int | None) -> None:
    """Blocks that the pod held already are known by its events."""
    table = _table()
    one, other = Sendings(table, 0), Sendings(table, 1)
    one.tell(_prompt(1, blocks), start, 1.0, 5.0)
    other.listen()
    heard = other.find(_prompt(1, blocks))
    assert (heard and heard[0]) == found


def test_what_is_heard_is_bounded() -> None:
    """The oldest goes first; as many are kept as a ring has."""
    table = _table()
    one, other, listener = (Sendings(table, number) for number in range(3))
    _tell(one, 1, 2, 3, 4)
    listener.listen()
    _tell(other, 5, 6, 7, 8)
    listener.listen()
    _tell(one, 9, 10)
    listener.listen()
    assert _found(listener, *range(1, 11)) == list(range(3, 11))


def test_who_has_not_listened_for_long_hears_the_newest() -> None:
    """What is older may just be written over."""
    table = _table()
    one, other = Sendings(table, 0), Sendings(table, 1)
    _tell(one, *range(1, 22))
    other.listen()
    assert _found(other, *range(1, 22)) == [18, 19, 20, 21]


def test_a_worker_that_was_started_anew_counts_from_the_start() -> None:
    """All that it tells is heard."""
    table = _table()
    other = Sendings(table, 1)
    _tell(Sendings(table, 0), 1, 2, 3)
    other.listen()
    table[0] = 0
    _tell(Sendings(table, 0), 4, 5)
    other.listen()
    assert _found(other, 1, 2, 3, 4, 5) == [1, 2, 3, 4, 5]


def _alike(blocks: int, of: Keys) -> Keys:
    """A prompt that begins as another one does, for so many blocks."""
    return np.concatenate((of[:blocks], _prompt(77, 50)))


@pytest.mark.parametrize(
    ("start", "same", "found"),
    [
        (0, 40, 32), (0, 32, 32), (0, 31, 16), (0, 16, 16), (0, 15, None),
        (16, 32, 32), (16, 31, None), (20, 40, 32), (20, 31, None), (33, 40, None),
    ],
)  # fmt: skip
def test_prompts_that_begin_alike(start: int, same: int, found: int | None) -> None:
    """Each sixteenth block from a prompt's start is told, as far as it is new: who shares it finds the longest."""
    table = _table()
    one, other = Sendings(table, 0), Sendings(table, 1)
    told = _prompt(1, 40)
    one.tell(told, start, 1.0, 5.0)
    other.listen()
    heard = other.find(_alike(same, told))
    assert heard == (None if found is None else (found, 1.0, 5.0))


def test_a_prompt_without_blocks() -> None:
    """Begins as none does."""
    table = _table()
    one, other = Sendings(table, 0), Sendings(table, 1)
    _tell(one, 1)
    other.listen()
    assert other.find(_prompt(1, 0)) is None and _found(other, 1) == [1]
