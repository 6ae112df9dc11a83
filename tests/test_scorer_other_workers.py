"""What other workers have sent lives in the pods' caches, here too."""

from __future__ import annotations

from router.core.decision import Core
from router.core.demand import Demand
from router.core.fleet import Rank
from scorer.board import Board, row_of
from tests.fakes.cores import NOBODY, SERVED, VOID, asked, core_of, route

TURN = 4096  # tokens


class Host:
    """Workers of one host before one pod."""

    def __init__(self, count: int = 2) -> None:
        self.row = row_of(8, 64)
        self.memory = bytearray(count * self.row.itemsize)
        self.count = count
        self.cores = [self.start(number) for number in range(count)]

    def start(self, number: int) -> Core:
        """A worker, also in the place of one that died: whoever keeps them has wiped its row."""
        size = self.row.itemsize
        self.memory[number * size : (number + 1) * size] = bytes(size)
        return core_of(1, board=Board(memoryview(self.memory), self.count, number, self.row, look_s=0.0))

    def lives(self, now: float) -> list[int]:
        """Tokens that live in the pod's cache, as each worker has it."""
        for core in self.cores:
            assert core.others is not None
            core.others.listen(now)
        return [rank_of(core).lives.tokens(now) for core in self.cores]


def rank_of(core: Core) -> Rank:
    return core.fleet.pods["pod-0"].ranks[0]


def turn(core: Core, seed: int, number: int) -> Demand:
    """The prompt of a conversation's turn."""
    return asked(core, seed, number * TURN)


def test_turns_that_come_to_any_worker_are_of_one_conversation() -> None:
    """A context counts once, wherever its turns come to; all know that it is continued, and when it is over."""
    host = Host()
    here, there = host.cores
    first = route(here, turn(here, 1, 1), NOBODY, 0.0)
    assert host.lives(0.0) == [TURN, TURN]
    here.finish(first, SERVED, 1.0)
    second = route(there, turn(there, 1, 2), NOBODY, 2.0)
    assert second.chain is not None and second.chain.tokens == 2 * TURN
    assert host.lives(2.0) == [2 * TURN, 2 * TURN]
    there.finish(second, SERVED, 3.0)
    assert host.lives(3.0) == [2 * TURN, 2 * TURN]
    assert host.lives(70.0) == [0, 0]
    assert [round(core.chains.mix.continuing, 1) for core in host.cores] == [0.5, 0.5]


def test_what_a_pod_did_nothing_for_does_not_live() -> None:
    """It failed with another worker."""
    host = Host()
    failed = route(host.cores[0], turn(host.cores[0], 1, 1), NOBODY, 0.0)
    assert host.lives(0.0) == [TURN, TURN]
    host.cores[0].finish(failed, VOID, 1.0)
    assert host.lives(1.0) == [0, 0]


def test_a_worker_that_died_uses_nothing() -> None:
    """What it had in flight is over; it lives as long as any other that is."""
    host = Host()
    route(host.cores[0], turn(host.cores[0], 1, 1), NOBODY, 0.0)
    assert host.lives(100.0) == [TURN, TURN]
    host.cores[0] = host.start(0)
    assert host.lives(100.0)[1] == TURN
    route(host.cores[0], turn(host.cores[0], 2, 1), NOBODY, 100.0)
    assert host.lives(100.0)[1] == 2 * TURN
    assert host.lives(170.0)[1] == TURN


def test_whose_end_was_lost_is_over_some_time() -> None:
    """Of what comes from other hosts, the end may not come."""
    host = Host()
    route(host.cores[0], turn(host.cores[0], 1, 1), NOBODY, 0.0)
    assert [host.lives(now)[1] for now in (0.0, 600.0, 601.0, 650.0)] == [TURN] * 4
    assert host.lives(700.0) == [TURN, 0]


def test_a_pod_that_is_not_known_here_yet() -> None:
    """Nothing can be said of its cache; the conversation is known nevertheless."""
    host = Host()
    here, there = host.cores
    there.leave(there.fleet.pods["pod-0"])
    placed = route(here, turn(here, 1, 1), NOBODY, 0.0)
    assert there.others is not None
    there.others.listen(0.0)
    here.finish(placed, SERVED, 1.0)
    there.others.listen(1.0)
    blocks = turn(here, 1, 2).blocks
    assert blocks is not None
    known = there.chains.place(*blocks)
    assert known.continues and known.tokens == TURN
