"""What prompts use, told among workers: in order, each once, and never half of one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from scorer.uses import (
    NumberedUse,
    UseBegan,
    UseEnded,
    UseNews,
    UseRing,
    Uses,
    packed,
    packed_bytes,
    unpacked,
    use_fields,
)

SIZE = 16  # uses in a ring
KEYS = 8 * SIZE


class Rows:
    """Workers on one memory."""

    def __init__(self, workers: int = 3) -> None:
        self.table = np.zeros(workers, np.dtype(use_fields(SIZE)))
        self.each = [Uses(self.table, number) for number in range(workers)]

    def start(self, number: int) -> None:
        """A worker in the place of one that died: whoever keeps them has wiped the row."""
        self.table[number] = np.zeros(1, self.table.dtype)[0]
        self.each[number] = Uses(self.table, number)

    def heard(self, number: int) -> list[UseNews]:
        return list(self.each[number].listen())


def use(number: int, keys: int = 2) -> UseBegan:
    """One whose figures are all its own."""
    first = 1000 * (number + 1)
    return UseBegan(float(number), first + (1 << 63), list(range(first, first + keys)), first + 1, first + 2, first + 3)


def test_all_others_hear_what_one_tells() -> None:
    """In its order, each thing once; who tells does not hear itself."""
    rows = Rows()
    first, second = rows.each[0].tell(use(1)), rows.each[0].tell(use(2, keys=0))
    rows.each[1].tell(use(3))
    ends = UseEnded(second, True), UseEnded(first, False)
    for each in ends:
        rows.each[0].tell(each)
    told: list[UseNews] = [(0, 0, use(1)), (0, 1, use(2, keys=0)), (0, 2, ends[0]), (0, 3, ends[1])]
    assert rows.heard(2) == [*told, (1, 0, use(3))]
    assert rows.heard(1) == told and rows.heard(0) == [(1, 0, use(3))]
    assert rows.heard(2) == []


def test_a_worker_that_comes_later_hears_what_is_still_there() -> None:
    """Of what is older than half a ring, nothing: it could be written over meanwhile."""
    rows = Rows()
    for number in range(3 * SIZE):
        rows.each[0].tell(use(number))
    rows.start(1)
    begins = 3 * SIZE - SIZE // 2
    assert rows.heard(1) == [(0, 0, None), *((0, number, use(number)) for number in range(begins, 3 * SIZE))]


def test_a_worker_that_was_started_anew() -> None:
    """What the one before it had in use is not known any more, and it is heard from its first on."""
    rows = Rows()
    rows.each[0].tell(use(1))
    rows.each[0].tell(use(2))
    rows.heard(1)
    rows.start(0)
    rows.each[0].tell(use(3))
    assert rows.heard(1) == [(0, 2, None), (0, 0, use(3))]


@pytest.mark.parametrize("keys", [KEYS // 2 - 1, KEYS // 2, KEYS])
def test_a_prompt_longer_than_the_ring(keys: int) -> None:
    """Its last keys are told, by which it is continued, behind the one that was known."""
    rows = Rows()
    long = use(1, keys)
    rows.each[0].tell(long)
    assert rows.heard(1) == [(0, 0, long._replace(keys=long.keys[1 - KEYS // 2 :]))]


def test_many_keys_at_once() -> None:
    """Uses whose keys may be written over are left out; what ends is told nevertheless."""
    rows = Rows()
    numbers = [rows.each[0].tell(use(number, KEYS // 4 - 1)) for number in range(4)]
    rows.each[0].tell(UseEnded(numbers[0], True))
    heard = [(0, number, use(number, KEYS // 4 - 1)) for number in (2, 3)]
    assert rows.heard(1) == [*heard, (0, 4, UseEnded(0, True))]


def test_any_order_of_telling_and_hearing() -> None:
    """Whatever one hears was told just so, once; all of it, if it is heard in time."""
    rng, rows = random.Random(7), Rows(2)
    told: list[UseNews] = []
    heard: list[UseNews] = []
    for number in range(2000):
        if rng.random() < 0.5:
            began = use(number, rng.randrange(5))
            rows.each[0].tell(began)
            told.append((0, number, began))
        else:
            ended = UseEnded(rng.randrange(2000), rng.random() < 0.5)
            rows.each[0].tell(ended)
            told.append((0, number, ended))
        if number % (SIZE // 2) == 0 or rng.random() < 0.2:
            heard += rows.heard(1)
    heard += rows.heard(1)
    assert heard == told


def test_as_bytes() -> None:
    """What is unpacked is what was packed, of very many keys the last; of anything else it is said that it is none."""
    uses: list[NumberedUse] = [(1 << 40, use(1)), (5, UseEnded(7, True)), (6, UseEnded(8, False)), (9, use(2, keys=0))]
    data = b"".join(map(packed, uses))
    assert list(unpacked(data)) == uses and unpacked(b"") == []
    assert len(data) == sum(packed_bytes(use) for _, use in uses)
    long = use(3, keys=1000)
    assert len(packed((1, long))) == packed_bytes(long)
    assert list(unpacked(packed((1, long)))) == [(1, long._replace(keys=long.keys[-120:]))]
    for at in (1, 37, 39, len(data) - 1):
        with pytest.raises(ValueError, match="no uses"):
            unpacked(data[:at])


def test_what_comes_from_elsewhere_has_holes() -> None:
    """What was lost on the way is nothing; what comes keeps its number, by which it ends. Who begins with 0 is new."""
    rows = Rows()
    ring = UseRing(rows.table, 0)
    ring.put(1000, use(1))
    assert rows.heard(1)[-1] == (0, 1000, use(1))
    ring.put(1003, UseEnded(1000, True))
    assert rows.heard(1) == [
        *((0, lost, UseEnded(-1, False)) for lost in (1001, 1002)),
        (0, 1003, UseEnded(1000, True)),
    ]
    ring.put(0, use(2))
    assert rows.heard(1) == [(0, 1004, None), (0, 0, use(2))]
