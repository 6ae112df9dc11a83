"""What pods were sent: the newest blocks of each, and no gaps."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np

from scorer.history import History, hash_blocks


def test_a_prompt_is_found_where_it_was_sent() -> None:
    """As far as it begins alike; nowhere else."""
    history = History()
    history.sent([1, 2, 3, 4], "a", 10)
    history.sent([1, 2, 9], "b", 10)
    assert history.matched([1, 2, 3, 7], ["a", "b", "c"]) == [3, 2, 0]
    assert history.matched([], ["a"]) == [0] and history.matched([5], ["a"]) == [0]
    history.forget("a")
    history.forget("nobody")
    assert history.matched([1, 2, 3], ["a", "b"]) == [0, 2]


def test_the_oldest_ends_go_first() -> None:
    """Of each pod by itself; a pod without room has nothing."""
    history = History()
    history.sent([1, 2, 3], "a", 4)
    history.sent([7, 8], "a", 4)
    assert history.matched([1, 2, 3], ["a"]) == [2] and history.matched([7, 8], ["a"]) == [2]
    history.sent([1, 2, 3], "a", 4)
    assert history.matched([7, 8], ["a"]) == [1]
    history.sent([1], "b", 0)
    assert history.matched([1], ["b"]) == [0]


def test_halving_finds_what_walking_does() -> None:
    """Whatever was sent: behind a block that is forgotten none is known."""
    rng, history, plain = random.Random(5), History(), OrderedDict[tuple[int, ...], None]()
    for _ in range(2000):
        prompt = tuple(rng.choice((0, 1)) for _ in range(rng.randint(1, 12)))
        blocks = [hash(prompt[: end + 1]) for end in range(len(prompt))]
        walked = 0
        while walked < len(prompt) and prompt[: walked + 1] in plain:
            walked += 1
        assert history.matched(blocks, ["a"]) == [walked]
        history.sent(blocks, "a", 40)
        for end in range(len(prompt), 0, -1):
            plain[prompt[:end]] = None
            plain.move_to_end(prompt[:end])
        while len(plain) > 40:
            plain.popitem(last=False)


def test_larger_blocks_are_known_by_their_last_ones() -> None:
    """A key stands for all before it; what is no whole block is none."""
    keys = np.arange(100, 110, dtype=np.uint64)
    assert hash_blocks(keys, 16, 64, 256) == [103, 107]
    assert hash_blocks(keys, 16, 64, 1) == [103]
    assert hash_blocks(keys, 64, 64, 3) == [100, 101, 102]
    assert hash_blocks(keys, 128, 64, 100) == keys.tolist()
    assert hash_blocks(keys[:3], 16, 64, 256) == []
