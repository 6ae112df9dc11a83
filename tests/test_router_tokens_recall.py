"""Bodies seen before: the same bytes mean the same, until the fleet changes; and memory is bounded."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import orjson
import pytest

from indexer.mappings import Ending
from router.prompts.prompt import Prompt, parse
from router.tokens.recall import Recall
from router.tokens.understanding import Gathered, Understood


def _meaning(tokens: int = 4) -> Understood:
    return _meaning_of(Prompt("none", "m", {}, reason="-"), tokens)


def _meaning_of(prompt: Prompt, tokens: int) -> Understood:
    ending = Ending(np.arange(tokens, dtype=np.uint64), tokens)
    gathered = Gathered(tokens, keys={1: ending.keys}, endings={1: ending})
    return gathered.meaning(prompt)


def test_the_same_bytes_mean_the_same() -> None:
    """A body is known by its bytes and its path, and by nothing less."""
    recall, known = Recall(1, 1 << 20, 1 << 10), _meaning()
    recall.put("/a", b"body", known, 0)
    assert recall.get("/a", b"body", 0) is known
    assert recall.get("/b", b"body", 0) is None and recall.get("/a", b"Body", 0) is None


def test_a_changed_fleet_forgets() -> None:
    """What was learned of another fleet is not used, and not kept."""
    recall = Recall(1, 1 << 20, 1 << 10)
    recall.put("/a", b"body", _meaning(), 3)
    assert recall.get("/a", b"body", 4) is None
    assert len(recall) == 0 and recall.nbytes == 0


def test_memory_is_bounded_and_the_oldest_goes() -> None:
    """Entries weigh their bodies; what was asked for lately stays."""
    recall = Recall(1, 20_000, 4_096)
    bodies = [bytes([n]) * 1_000 for n in range(8)]
    for body in bodies:
        recall.put("/a", body, _meaning(), 0)
        recall.get("/a", bodies[0], 0)
    assert 0 < recall.nbytes <= 20_000
    assert recall.get("/a", bodies[0], 0) is not None and recall.get("/a", bodies[1], 0) is None


def test_what_versions_write_differently_weighs() -> None:
    """The keys of each of them are kept."""
    recall, known = Recall(1, 1 << 20, 1 << 10), _meaning(100)
    recall.put("/a", b"body", known, 0)
    alone = recall.nbytes
    both = known._replace(demand=replace(known.demand, by_version={"0.31.0": _meaning(50).demand}))
    recall.put("/a", b"body", both, 0)
    assert recall.nbytes == alone + 50 * 8


def test_large_bodies_are_not_kept() -> None:
    """A body over the bound costs nothing."""
    recall = Recall(1, 1 << 20, 100)
    recall.put("/a", b"x" * 101, _meaning(), 0)
    assert len(recall) == 0


def test_the_same_body_twice_is_weighed_once() -> None:
    """Putting a body again replaces what was known."""
    recall = Recall(1, 1 << 20, 100)
    recall.put("/a", b"x", _meaning(), 0)
    before = recall.nbytes
    recall.put("/a", b"x", _meaning(), 0)
    assert recall.nbytes == before and len(recall) == 1


@pytest.mark.parametrize("words", [1, 1000, 100_000])
@pytest.mark.parametrize("pods", [1, 200])
def test_what_is_kept_weighs_what_it_is_said_to(words: int, pods: int) -> None:
    """Nothing of a body is kept; what is, is counted: with tracemalloc over some entries."""
    recall, entries = Recall(1, 1 << 30, 1 << 30), 20
    body = orjson.dumps({
        "model": "m", "prompt": "word " * words, "metadata": [{"a": []}] * words,
        "cache_salt": "s" * words, "pods": [f"pod-{number}" for number in range(pods)],
    })  # fmt: skip
    recall.put("/score", b"first", _meaning(), 0)
    tracemalloc.start()
    try:
        for number in range(entries):
            known = _meaning_of(parse("/score", body), words)
            recall.put("/score", b"%d" % number, known, 0)
            del known
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken <= recall.nbytes < 3 * taken
