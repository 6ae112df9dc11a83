"""Sums of causes, and what is said of them."""

from __future__ import annotations

from router.causes.names import Missed, Why
from router.causes.sentences import added_summaries, misses_of

STAMP = "the system prompt begins with a timestamp"
CHANGED = Why(
    100, 20, 20, 20, (Missed("changed", 50, "at byte 3", STAMP), Missed("first_seen", 30, "x", "nobody asked"))
)
CACHED = Why(100, 96, 96, 96, (Missed("block_edge", 4, "y", "the last tokens fill no block"),))


def test_sums() -> None:
    """By cause and kind, most tokens first; a request counts once, whatever its details are."""
    twice = Why(
        10, 0, 0, 0, (Missed("evicted", 4, "one", "it was evicted"), Missed("evicted", 6, "two", "it was evicted"))
    )
    told = misses_of([CHANGED, CACHED, CHANGED, twice])
    assert (told["requests"], told["prompt_tokens"], told["delivered_tokens"]) == (4, 310, 136)
    assert (told["reachable_tokens"], told["captured_tokens"]) == (136, 136)
    assert [(one["cause"], one["tokens"], one["requests"]) for one in told["missed"]] == [
        ("changed", 100, 2), ("first_seen", 60, 2), ("evicted", 10, 1), ("block_edge", 4, 1),
    ]  # fmt: skip
    assert told["missed"][0]["sentence"] == f"32% of prompt tokens missed because {STAMP} (2 requests)."
    assert told["missed"][3]["sentence"].startswith("1% of prompt tokens missed because the last tokens")
    assert told["delivered_tokens"] + sum(one["tokens"] for one in told["missed"]) == told["prompt_tokens"]


def test_nothing_yet() -> None:
    """Before the first request."""
    assert misses_of([])["missed"] == [] and misses_of([])["prompt_tokens"] == 0


def test_several_workers() -> None:
    """What they tell together is what one would tell that had served all."""
    whys = [CHANGED, CACHED, CHANGED, CACHED, CACHED]
    assert added_summaries([misses_of(whys[:2]), misses_of(whys[2:]), misses_of([])]) == misses_of(whys)
