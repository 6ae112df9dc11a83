"""The board of several workers: each sees what the others have in flight, until they are gone."""

from __future__ import annotations

import random
from array import array
from collections import Counter

import numpy as np
import pytest

from indexer.blocks import Keys, KeySpace
from scorer.board import FIELDS, Board, SharedLoad, row_of
from scorer.cost import PrefillRate
from scorer.hold import Held, Hold, HoldLimits, PodBounds
from scorer.load import PodLoad, Ticket

WORKERS = 3
ROW = row_of(ranks_max=4, sendings_max=64)


class Host:
    """Workers on one memory; each knows pods `a` and `b`. They look at every call."""

    def __init__(self, pods: str = "ab") -> None:
        self.memory = bytearray(WORKERS * ROW.itemsize)
        self.pods = pods
        self.boards: list[Board] = []
        self.loads: list[dict[str, SharedLoad]] = []
        for number in range(WORKERS):
            self.start(number)

    def start(self, number: int) -> None:
        """A worker in this row, also after one that died: whoever keeps them has wiped the row."""
        self.memory[number * ROW.itemsize : (number + 1) * ROW.itemsize] = bytes(ROW.itemsize)
        board = Board(memoryview(self.memory), WORKERS, number, ROW, look_s=0.0)
        names = random.Random(number).sample(self.pods, len(self.pods))  # not all find the pods in the same order
        loads = {name: board.join(name, name.encode(), PrefillRate(1000)) for name in names}
        if number < len(self.boards):
            self.boards[number], self.loads[number] = board, loads
        else:
            self.boards.append(board)
            self.loads.append(loads)

    def seen(self, number: int, now: float = 0.0) -> dict[str, tuple[int, int]]:
        """What a worker takes for the load of each pod."""
        self.boards[number].listen(now)
        return {name: (load.requests, load.prefill_tokens) for name, load in sorted(self.loads[number].items())}


def test_others_are_seen_at_the_next_look() -> None:
    """What one worker admits, the next decision of any other one counts, and no more once it is given back."""
    host = Host()
    ticket = host.loads[0]["a"].admit(500, 0.0)
    for number in range(WORKERS):
        assert host.seen(number) == {"a": (1, 500), "b": (0, 0)}
        assert host.loads[number]["a"].backlog_s(0.0) == pytest.approx(0.5)
    assert [board.in_flight for board in host.boards] == [0, 1, 1]
    assert [loads["a"].own_requests for loads in host.loads] == [1, 0, 0]
    ticket.load.first_byte(ticket, 0.2, True)
    assert host.seen(1) == {"a": (1, 0), "b": (0, 0)}
    assert ticket.load.release(ticket)
    assert not ticket.load.release(ticket)
    for number in range(WORKERS):
        assert host.seen(number) == {"a": (0, 0), "b": (0, 0)}
        assert host.loads[number]["a"].backlog_s(0.0) == 0.0


def test_one_queue_for_all() -> None:
    """The backlog that workers make together shrinks with the time as that of one queue, not as one of each."""
    host = Host()
    for number in range(WORKERS):
        host.boards[number].listen(0.0)
        host.loads[number]["a"].admit(1000, 0.0)
    for now, left in ((0.0, 3.0), (1.0, 2.0), (2.5, 0.5), (4.0, 0.0)):
        for number in range(WORKERS):
            host.boards[number].listen(now)
            assert host.loads[number]["a"].backlog_s(now) == pytest.approx(left)


def test_what_another_worker_waits_for_does_not_decay() -> None:
    """Streams that should have begun and have not: what is behind them stays, in all workers, until they begin."""
    host = Host()
    first = host.loads[0]["a"].admit(1000, 0.0, tells=True)
    second = host.loads[0]["a"].admit(500, 0.0, tells=True)
    host.boards[1].listen(60.0)
    assert host.loads[1]["a"].backlog_s(60.0) == pytest.approx(0.5)
    first.load.first_byte(first, 60.0, True)
    host.boards[1].listen(60.0)
    assert host.loads[1]["a"].backlog_s(60.1) == pytest.approx(0.4)
    second.load.first_byte(second, 61.0, True)
    host.boards[1].listen(61.0)
    assert host.loads[1]["a"].backlog_s(61.0) == 0.0


def test_a_first_byte_leaves_the_work_of_others() -> None:
    """It proves that what came before is done. What other workers have promised since is still to come."""
    host = Host()
    mine = host.loads[0]["a"].admit(1000, 0.0, tells=True)
    host.boards[1].listen(0.1)
    host.loads[1]["a"].admit(2000, 0.1, tells=True)
    host.boards[0].listen(0.9)
    mine.load.first_byte(mine, 1.0, True)
    for number in range(WORKERS):
        host.boards[number].listen(1.0)
        assert host.loads[number]["a"].backlog_s(1.0) == pytest.approx(2.0)
        assert host.loads[number]["a"].backlog_s(2.5) == pytest.approx(0.5)


def test_the_pod_computes_one_prompt_at_a_time() -> None:
    """The first streams of several workers: only what came first shrinks with the time, by what it costs; with its
    first byte it is the next one's turn."""
    host = Host()
    tickets = []
    for number in range(WORKERS):
        host.boards[number].listen(0.1 * number)
        tickets.append(host.loads[number]["a"].admit(1000, 0.1 * number, tells=True))
    for now, left in ((0.5, 2.5), (1.0, 2.0), (60.0, 2.0)):
        for number in range(WORKERS):
            host.boards[number].listen(now)
            assert host.loads[number]["a"].backlog_s(now) == pytest.approx(left)
    tickets[0].load.first_byte(tickets[0], 60.0, True)
    for now, left in ((60.0, 2.0), (60.5, 1.5), (61.0, 1.0), (70.0, 1.0)):
        for number in range(WORKERS):
            host.boards[number].listen(now)
            assert host.loads[number]["a"].backlog_s(now) == pytest.approx(left), (now, number)


def test_who_comes_first_may_be_heard_later() -> None:
    """Who looks seldom learns of a prompt that is computed long since: its time counts from its beginning."""
    host = Host()
    host.loads[0]["a"].admit(3000, 0.0, tells=True)
    host.loads[1]["a"].admit(1000, 1.0, tells=True)  # it does not know of the other
    host.boards[1].listen(2.0)
    assert host.loads[1]["a"].backlog_s(2.0) == pytest.approx(2.0)


class Waiting:
    """Who waits for pod `a` with one worker of a host."""

    def __init__(self, host: Host, number: int) -> None:
        self.hold = Hold(HoldLimits(0.5, 600.0, 100, PodBounds()))
        self.board, self.load = host.boards[number], host.loads[number]["a"]

    def put(self, cost_s: float, now: float, priority: int = 0) -> Held:
        held = self.hold.put(None, "", priority, cost_s, now)
        assert held is not None
        return held

    def serve(self, now: float, open_: bool = True) -> list[Held]:
        """Who goes now; nobody does while it is not `open_`."""
        gone: list[Held] = []

        def offer(held: Held) -> bool:
            if self.hold.must_wait(self.load, held.cost_s, False, held, now) or not open_:
                return False
            gone.append(held)
            return True

        self.board.listen(now)
        self.hold.serve([self.load], now, offer)
        return gone

    def is_shut(self, now: float) -> bool:
        """Must who comes now wait?"""
        self.board.listen(now)
        return self.hold.must_wait(self.load, 0.1, False, None, now)


def test_who_waits_with_another_worker_has_its_turn() -> None:
    """Who waits for a pod goes before those who come later elsewhere, and behind those who came earlier there; only as
    long as it says that it waits."""
    host = Host()
    first, second, third = (Waiting(host, number) for number in range(WORKERS))
    assert not third.is_shut(0.0)
    late, early = first.put(1.0, 0.0), second.put(0.5, 0.0)
    first.serve(0.1, open_=False)
    second.serve(0.1, open_=False)
    assert third.is_shut(0.2)
    assert first.serve(0.3) == [] and second.serve(0.3) == [early], "it has less to compute"
    assert first.serve(0.4, open_=False) == [] and third.is_shut(1.0)
    assert not third.is_shut(1.5), "it does not say any more that it waits"
    first.serve(1.5, open_=False)
    assert third.is_shut(1.5)
    first.hold.remove(late)
    assert not third.is_shut(1.5)


def test_who_yields_to_all_does_so_in_all_workers() -> None:
    """A priority counts before any work or time."""
    host = Host()
    first, second = Waiting(host, 0), Waiting(host, 1)
    first.put(1.0, 0.0, priority=9)
    urgent = second.put(50.0, 300.0)
    for each in (first, second):
        each.serve(300.0, open_=False)
    assert first.serve(300.3) == [] and second.serve(300.3) == [urgent]


def test_alone_is_alone_in_all_workers() -> None:
    """A pod's speed is learned from requests that found no other prefill there, whoever sent it."""
    host = Host()
    first = host.loads[0]["a"].admit(1000, 0.0)
    host.boards[1].listen(0.0)
    second = host.loads[1]["a"].admit(1000, 0.0)
    assert (first.alone, second.alone) == (True, False)


def test_looks_are_not_nearer_than_said() -> None:
    """Between two looks the figures stay as they were."""
    host = Host()
    board = Board(memoryview(host.memory), WORKERS, 2, ROW, look_s=0.002)
    load = board.join("a", b"a", PrefillRate(1000))
    board.listen(0.0)
    host.loads[0]["a"].admit(100, 0.0)
    board.listen(0.0019)
    assert load.requests == 0
    board.listen(0.002)
    assert load.requests == 1


def test_who_died_has_nothing_in_flight() -> None:
    """A row that was wiped counts no more; who takes the place begins with nothing, and sees the others."""
    host = Host()
    host.loads[0]["a"].admit(100, 0.0)
    host.loads[1]["b"].admit(200, 0.0)
    assert host.seen(2) == {"a": (1, 100), "b": (1, 200)}
    host.start(0)
    assert host.seen(2) == {"a": (0, 0), "b": (1, 200)}
    assert host.seen(0) == {"a": (0, 0), "b": (1, 200)}
    assert host.boards[2].in_flight == 1


def test_pods_come_and_go_in_any_order() -> None:
    """A pod's place may be taken by another; a pod that joins later here has what others had sent before."""
    host = Host()
    host.loads[0]["a"].admit(100, 0.0)
    assert host.seen(1)["a"] == (1, 100)
    host.boards[0].leave("a")
    late = host.loads[0]["a"]
    host.loads[0]["c"] = host.boards[0].join("c", b"c", PrefillRate(1000))
    host.loads[0]["c"].admit(300, 0.0)
    late.admit(7, 0.0)  # of who left: it writes over nobody's figures
    assert host.seen(1) == {"a": (0, 0), "b": (0, 0)}  # it does not know c yet
    host.loads[1]["c"] = host.boards[1].join("c", b"c", PrefillRate(1000))
    assert host.seen(1)["c"] == (1, 300)
    host.boards[1].leave("c")
    host.loads[1]["c"] = host.boards[1].join("c", b"c", PrefillRate(1000))
    assert host.seen(1)["c"] == (1, 300)


def test_more_ranks_than_cells() -> None:
    """Ranks beyond the bound are not told; those within are, and all are heard."""
    host = Host(pods="abcdef")
    for name in host.pods:
        host.loads[0][name].admit(10, 0.0)
    seen = host.seen(1)
    assert sum(requests for requests, _ in seen.values()) == 4
    assert [host.loads[0][name].requests for name in host.pods] == [1] * 6


@pytest.mark.parametrize("seed", range(20))
def test_all_agree(seed: int) -> None:
    """Whatever workers do in whatever order, deaths included, each sees the sum as soon as it looks."""
    rng = random.Random(seed)
    host = Host()
    tickets: list[tuple[int, str, Ticket]] = []
    for step in range(300):
        number, name = rng.randrange(WORKERS), rng.choice("ab")
        chance = rng.random()
        if chance < 0.45:
            tickets.append((number, name, host.loads[number][name].admit(rng.randrange(1, 3000), step * 0.01)))
        elif chance < 0.9 and tickets:
            place = rng.randrange(len(tickets))
            ticket = tickets[place][2]
            if rng.random() < 0.5:
                ticket.load.first_byte(ticket, step * 0.01, True)
            else:
                ticket.load.release(tickets.pop(place)[2])
        elif chance > 0.97:
            host.start(number)
            tickets = [each for each in tickets if each[0] != number]
        requests, tokens = Counter(name for _, name, _ in tickets), Counter[str]()
        for _, name, ticket in tickets:
            tokens[name] += ticket.tokens if ticket.in_prefill else 0
        looks = rng.randrange(WORKERS)
        assert host.seen(looks, step * 0.01) == {name: (requests[name], tokens[name]) for name in "ab"}
        for name, load in host.loads[looks].items():
            backlog_s = load.backlog_s(step * 0.01)
            assert backlog_s > -1e-9 and (tokens[name] or backlog_s < 1e-9)
        own = sum(each[0] == looks for each in tickets)
        assert host.boards[looks].in_flight == len(tickets) - own


def test_without_others_nothing_changes() -> None:
    """Alone on a board, a load is what it is without one."""
    board = Board(memoryview(bytearray(ROW.itemsize)), 1, 0, ROW)
    shared, plain = board.join("a", b"a", PrefillRate(1000)), PodLoad(PrefillRate(1000))
    for load in (shared, plain):
        board.listen(0.0)
        load.admit(100, 0.0)
    assert (shared.requests, shared.backlog_s(0.05)) == (plain.requests, plain.backlog_s(0.05))
    assert shared.own_requests == plain.own_requests == 1


# --- sendings ---

SPACE = KeySpace(3)


def keys_of(seed: int, blocks: int, tail: int = 0) -> Keys:
    """Keys of a prompt of so many blocks; the last `tail` of them are its own."""
    tokens = np.arange(blocks * 4, dtype=np.uint32)
    if tail:
        tokens[-tail * 4 :] += 1000 * seed
    return SPACE.chain(tokens, 4)


def sent(host: Host, number: int, keys: Keys) -> tuple[int, object] | None:
    """What a worker is told of a prompt."""
    host.boards[number].listen(0.0)
    found = host.boards[number].sent(keys, 0.0)
    return None if found is None else (found.blocks, found.rank)


@pytest.mark.parametrize("blocks", [1, 15, 16, 17, 40, 160])
def test_the_same_prompt_is_known_whole(blocks: int) -> None:
    """A prompt that another worker has just sent is known to all its length, once, and to all others."""
    host = Host()
    keys = keys_of(1, blocks)
    host.boards[0].tell("b", keys, 0, 5.0)
    for number in (1, 2):
        assert sent(host, number, keys) == (blocks, "b")
    assert sent(host, 0, keys) is None


def test_a_common_beginning_is_known() -> None:
    """Prompts that differ in their ends: what they have in common is known but for less than a stride."""
    host = Host()
    host.boards[0].tell("a", keys_of(1, 100, tail=10), 0, 5.0)
    assert sent(host, 1, keys_of(2, 100, tail=10)) == (80, "a")
    assert sent(host, 1, keys_of(3, 100, tail=100)) is None
    assert sent(host, 1, keys_of(1, 0)) is None


def test_only_what_is_new_is_told() -> None:
    """Blocks that the pod held before are known from its events."""
    host = Host()
    host.boards[0].tell("a", keys_of(1, 100), 90, 5.0)
    assert sent(host, 1, keys_of(1, 80)) is None
    assert sent(host, 1, keys_of(1, 99)) == (96, "a")


def test_sendings_end() -> None:
    """Not believed longer than was said, nor of a rank that is not known here, and only the newest are kept."""
    host = Host()
    keys = keys_of(1, 16)
    host.boards[0].tell("a", keys, 0, 5.0)
    host.boards[1].listen(0.0)
    assert host.boards[1].sent(keys, 6.0) is None
    host.boards[2].leave("a")
    assert sent(host, 2, keys) is None
    for seed in range(100):
        host.boards[0].tell("b", keys_of(seed, 16, tail=16), 0, 5.0)
    found = [bool(sent(host, 1, keys_of(seed, 16, tail=16))) for seed in range(100)]
    assert found == [False] * 68 + [True] * 32  # half of a ring that was written more than once since the last look


def test_a_new_worker_tells_from_the_start() -> None:
    """The ring of who died is not told again, and that of who came after is heard."""
    host = Host()
    host.boards[0].tell("a", keys_of(1, 16), 0, 5.0)
    host.boards[0].tell("a", keys_of(2, 16, tail=16), 0, 5.0)
    host.boards[1].listen(0.0)
    host.start(0)
    host.boards[0].tell("b", keys_of(3, 16, tail=16), 0, 5.0)
    assert sent(host, 1, keys_of(3, 16, tail=16)) == (16, "b")


def test_rounding_leaves_nothing() -> None:
    """Seconds of work that come and go in unlike parts: where nothing is left, it is nothing, and told as nothing."""
    cell = array("d", [0.0] * FIELDS)
    load = SharedLoad(PrefillRate(1000), memoryview(cell))
    told = [
        [1.0, requests, tokens, s, s, 0.0, 0.0, 0.0]
        for requests, tokens, s in ((0, 0, 0), (1, 100, 0.1), (2, 300, 0.3))
    ]
    for _ in range(3):
        for before, after in zip(told, [*told[1:], told[0]], strict=True):
            load.hear(1, before, after, 0.0)
        assert load.backlog_s(0.0) == 0.0
    ticket = load.admit(500, 0.0)
    assert (load.own_requests, load.own_prefill_tokens) == (1, 500)
    assert cell[1:4].tolist() == [1.0, 500.0, 0.5]
    load.release(ticket)
    assert cell[1:4].tolist() == [0.0, 0.0, 0.0]


def test_cells_are_used_again() -> None:
    """However many pods come and go, the next one is told; one for which there is no room is not, and may leave."""
    host = Host("abcd")
    board = host.boards[0]
    for number in range(6):
        board.leave("d")
        board.join("d", b"d", PrefillRate(1000))
        board.join(f"e{number}", b"e%d" % number, PrefillRate(1000)).admit(10, 0.0)
        board.join("f", b"f", PrefillRate(1000)).admit(5, 0.0)  # all cells are in use
        board.leave("f")
        board.leave(f"e{number}")
    board.leave("d")
    board.join("d", b"d", PrefillRate(1000)).admit(70, 0.0)
    assert host.seen(1)["d"] == (1, 70)


def test_another_pod_in_the_cell_of_one_that_left() -> None:
    """Between two looks a pod left with what it had, and another one has its cell, and as much: both are told right."""
    host = Host("a")
    for number in range(WORKERS):
        host.loads[number]["c"] = host.boards[number].join("c", b"c", PrefillRate(1000))
    host.loads[0]["a"].admit(100, 0.0)
    host.loads[0]["a"].admit(100, 0.0)
    host.loads[2]["a"].admit(1000, 0.0)
    assert host.seen(1) == {"a": (3, 1200), "c": (0, 0)}
    host.boards[0].leave("a")
    host.boards[0].leave("c")
    for name in ("a", "c"):  # cells are given out again, the last one first
        host.loads[0][name] = host.boards[0].join(name, name.encode(), PrefillRate(1000))
    host.loads[0]["a"].admit(30, 0.0)
    host.loads[0]["c"].admit(40, 0.0)
    assert host.seen(1) == {"a": (2, 1030), "c": (1, 40)}
    assert [host.loads[1][name].backlog_s(0.0) for name in "ac"] == pytest.approx([1.0, 0.04])
    assert host.boards[1].in_flight == 3


def test_sendings_expire() -> None:
    """At their time, not after it; and none goes to a pod that is unknown here."""
    host = Host()
    keys = KeySpace(1).chain(np.arange(64, dtype=np.uint32), 1)
    for now, found in ((4.9, True), (5.0, False)):
        host.boards[0].tell("a", keys, 0, 5.0)
        host.boards[1].listen(0.0)
        sent = host.boards[1].sent(keys, now)
        assert (sent is not None) == found
    host.boards[0].tell("a", keys, 0, 5.0)
    host.boards[1].listen(0.0)
    host.boards[1].leave("a")
    assert host.boards[1].sent(keys, 0.0) is None
