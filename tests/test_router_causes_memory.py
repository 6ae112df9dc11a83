"""What is remembered beside blocks: whose they were, what was to do there, who asked with which adapter or salt."""

from __future__ import annotations

from indexer.losses import GivenUp
from router.causes.ghosts import Fate
from router.causes.memory import CauseMemory, Names
from router.core.fleet import RankId
from router.server.long_answers import at_once
from tests.fakes.cores import asked, core_of

POD = RankId("pod-0", 0)


def test_names_have_numbers() -> None:
    """Each its own, found by it again; beyond the bound the oldest is forgotten, and its number nobody's."""
    names = Names(2)
    assert [names.number(name) for name in ("a", "b", "a")] == [1, 2, 1]
    assert (names.name(1), names.name(2), names.name(3), names.name(0)) == ("a", "b", None, None)
    assert names.number("c") == 3
    assert [names.name(number) for number in (1, 2, 3)] == [None, "b", "c"]
    assert names.number("a") == 4 and names.name(2) is None


def test_whose_blocks_were_lost() -> None:
    """The pod, and what it had to do then: as long as that is kept."""
    core, memory = core_of(1), CauseMemory(1 << 12, 10)
    keys = asked(core, 1).keys[16]
    at_once(
        memory.lost(
            [GivenUp(POD, "evicted", keys[:4].tolist()), GivenUp(POD, "evicted", keys[4:])], lambda _: (2, 300), 5.0
        )
    )
    (fate,) = memory.ghosts.look(keys, 9.0)
    assert (fate.blocks, fate.why, memory.pod_of(fate)) == (10, "evicted", POD)
    assert memory.load_of(fate) == (2, 300, 10)
    for number in range(200):
        at_once(memory.lost([GivenUp(POD, "left", [number + 1])], lambda _: (0, 0), 6.0))
    assert memory.load_of(fate) is None
    assert memory.load_of(Fate(1, 0.0, 0.0, None, 1, 0)) is None


def test_nothing_is_remembered() -> None:
    """0 and 0: calls are in vain, and nothing fails."""
    core, memory = core_of(1), CauseMemory(0, 0)
    demand = asked(core, 1)
    at_once(memory.lost([GivenUp(POD, "evicted", [1])], lambda _: (0, 0), 1.0))
    memory.served(demand, demand.keys[16], POD, 1.0)
    assert memory.ghosts.look(demand.keys[16], 9.0) == [] and memory.twin(demand, demand.keys[16], 16, 9.0) is None
