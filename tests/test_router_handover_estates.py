"""What only one pod holds, and what its loss costs: prompts that continue each other, are shared, are cold."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.events import BlockStored
from router.core.decision import Core
from router.core.demand import Demand
from router.core.fleet import RankId
from router.handover.estates import Loss, Lost, cheapest, estates, held_now, lost_with, tokens_held
from router.handover.recent import Recent
from router.server.long_answers import at_once
from tests.fakes.cores import MODEL, SIZE, asked, core_of, store, tokens_of


def seen(*demands: Demand, times: int = 1) -> Recent:
    """All of these were asked for, at 0, 1 …"""
    recent = Recent(10**6, 10**6, 1e9)
    for now in range(times):
        for demand in demands:
            recent.note("/v1/completions", b"{}", demand, float(now))
    return recent


def cost(core: Core, recent: Recent, count: int = 1) -> tuple[list[str], dict[str, Loss]]:
    picked, each = at_once(cheapest(core, recent, count, 10.0))
    return [loss.pod for loss in picked], {loss.pod: loss for loss in each}


def prompt(core: Core, seed: int, count: int = 160, **more: Any) -> Demand:
    return asked(core, seed, count, is_alone=True, **more)


def test_lost_with() -> None:
    """What the one who has most has more than all others, those gone left out."""
    tokens = {"a": 160, "b": 96, "c": 96}
    assert lost_with(tokens, ()) == Lost("a", 96, 160)
    assert lost_with(tokens, ("b", "c")) == Lost("a", 0, 160)
    assert lost_with(tokens, ("a",)) is None, "two have the same"
    assert lost_with({}, ()) is lost_with({"a": 9}, ("a",)) is None


def test_the_longest_stands_for_what_it_continues() -> None:
    """Turns of one conversation are one legacy, as heavy as all of them; a branch has its own tokens only."""
    core = core_of()
    store(core, "pod-0", 1, 320)
    side = np.concatenate([tokens_of(1, 96), tokens_of(7, 64)])
    core.index.apply(RankId("pod-0", 0), BlockStored(list(range(900, 910)), None, side, SIZE, "gpu"))
    branch = Demand(MODEL, 160, keys={SIZE: core.space.chain(side, SIZE)}, is_alone=True)
    recent = seen(prompt(core, 1, 320), prompt(core, 1, 160), prompt(core, 1, 48), branch)
    each = at_once(estates(at_once(held_now(core, recent, 0.0)), ()))
    (estate,) = each.values()
    assert [(one.own_tokens, round(one.weight)) for one in estate.dearest()] == [(320, 4), (64, 1)]
    assert (estate.tokens, round(estate.cost_tokens)) == (384, 320 * 4 + 64)


def test_who_is_cheapest() -> None:
    """What somebody else holds, too, costs nothing; what was asked for often costs most."""
    core = core_of(4)
    for pod, seed in (("pod-0", 1), ("pod-1", 1), ("pod-2", 2), ("pod-3", 3)):
        store(core, pod, seed)
    recent = seen(prompt(core, 1), prompt(core, 2))
    for now, seed in ((1.0, 1), (2.0, 3), (3.0, 3), (4.0, 3)):
        recent.note("/v1/completions", b"{}", prompt(core, seed), now)
    picked, each = cost(core, recent, 4)
    assert picked == ["pod-0", "pod-2", "pod-1", "pod-3"]
    assert {pod: round(loss.cost_tokens) for pod, loss in each.items()} == {
        "pod-0": 0, "pod-1": 0, "pod-2": 160, "pod-3": 480
    }  # fmt: skip
    assert each["pod-2"].cost_s == 0.16 and each["pod-2"].alone_tokens == 160
    assert cost(core, recent, 2)[0] == ["pod-0", "pod-2"], "with pod-0 gone, pod-1 is the last to hold its prompt"


def test_who_is_on_the_way_out() -> None:
    """A pod that leaves keeps nothing, and is not named."""
    core = core_of(3)
    for pod in ("pod-0", "pod-1"):
        store(core, pod, 1)
    core.fleet.pods["pod-0"].drain(True)
    picked, each = cost(core, seen(prompt(core, 1)), 3)
    assert picked == ["pod-2", "pod-1"] and each["pod-1"].alone_tokens == 160


def test_nothing_is_known() -> None:
    """Without requests, who holds less goes first; models that nobody serves are nobody's."""
    core = core_of(2)
    store(core, "pod-0", 1)
    assert cost(core, seen())[0] == ["pod-1"]
    assert tokens_held(core, Demand("gone", 1, keys={SIZE: core.space.chain(tokens_of(1), SIZE)}), 0.0) == {}
