"""Rows of the fleet: a value for each column, and why a pod is not as it should be."""

from __future__ import annotations

from typing import Any

from router.core.decision import Core
from router.page.rows import FEED_COLUMNS, POD_COLUMNS, add_served, fleet_rows
from router.server.long_answers import at_once
from tests.fakes.cores import NOBODY, asked, core_of, route, store


def rows(core: Core, now: float = 1.0) -> list[dict[str, Any]]:
    return [dict(zip((*POD_COLUMNS, *FEED_COLUMNS), row, strict=True)) for row in at_once(fleet_rows(core, now))]


def test_each_rank_has_a_row() -> None:
    """In the fleet's order, with what it holds and has in flight."""
    core = core_of(pods=2, ranks=2)
    store(core, "pod-1", 1)
    route(core, asked(core, 1), NOBODY, 1.0)
    told = rows(core)
    assert [(row["pod"], row["rank"]) for row in told] == [("pod-0", 0), ("pod-0", 1), ("pod-1", 0), ("pod-1", 1)]
    assert [row["gpu"] for row in told] == [0, 0, 10, 0] and [row["requests"] for row in told] == [0, 0, 1, 0]
    assert {row["rule"] for row in told} == {"all whole blocks"}


def test_why() -> None:
    """A pod that takes no requests says why, and so does a feed that is not exact; of none there are no figures."""
    core = core_of(pods=1, feeds=False)
    pod = core.fleet.pods["pod-0"]
    pod.answers = True
    [row] = rows(core)
    assert (row["fit"], row["state"], row["reasons"], row["gaps"]) == (
        True,
        "blind",
        ["the pod has no event feed"],
        None,
    )
    pod.drain(True)
    [row] = rows(core)
    assert not row["fit"] and row["reasons"][0] == "it is being drained"


def test_what_was_served() -> None:
    """Is added to each row: shares and times of who has served, nothing of others."""
    told = at_once(fleet_rows(core_of(pods=2), 1.0))
    add_served(told, {"pod-1/0": [200, 50, 0.3, 3]})
    assert [row[-2:] for row in told] == [[None, None], [0.25, 0.1]]
