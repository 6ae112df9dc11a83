"""What one gateway has in flight, known in another: over datagrams that may be lost, doubled, made up or sent again."""

from __future__ import annotations

import os
import random
from itertools import pairwise

import numpy as np

from indexer.blocks import KeySpace
from router.state.datagrams import BYTES_MAX, Teller, heard
from scorer.board import Board, row_of
from scorer.cost import PrefillRate
from scorer.guests import Guests, OwnRow
from scorer.load import PodLoad, Ticket
from scorer.uses import Use, UseBegan, UseEnded, Uses
from tests.fakes.cores import tokens_of

KEY, ROW = b"k" * 32, row_of(128, 1024)
SPEED = 1000.0


class Side:
    """One gateway of one worker with room for two guests."""

    def __init__(self, name: int, ranks: int = 3) -> None:
        memory = memoryview(bytearray(3 * ROW.itemsize))
        self.board = Board(memory, 1, 0, ROW, look_s=0.0, guests=2)
        self.teller = Teller(KEY, name, 0, 1)
        self.uses = Uses(np.frombuffer(memory, ROW), 0)
        self.row, self.guests = OwnRow(memory, 0, ROW), Guests(memory, 1, ROW)
        self.loads: list[PodLoad] = [
            self.board.join(rank, f"pod-{rank}/0".encode(), PrefillRate(SPEED)) for rank in range(ranks)
        ]

    def tells(self, now: float) -> list[bytes]:
        """Its datagrams."""
        return list(self.teller.datagrams(self.row, now))

    def tells_use(self, use: Use) -> None:
        """Somebody's prompt goes to a pod, or is over."""
        self.uses.tell(use)

    def hears(self, datagrams: list[bytes], now: float) -> None:
        """What reaches it, in whatever order."""
        for data in datagrams:
            said = heard(KEY, data)
            assert said is not None
            self.guests.hear((said.gateway, said.worker), said.news, now)
        self.board.listen(now)


def test_what_is_in_flight_there_counts_here() -> None:
    """By requests, tokens, and seconds; clocks need not agree."""
    here, there = Side(1), Side(2)
    tickets = [there.loads[1].admit(500, 7000.0) for _ in range(2)]
    here.hears(there.tells(7000.0), 10.0)
    assert [load.requests for load in here.loads] == [0, 2, 0] and here.loads[1].prefill_tokens == 1000
    assert abs(here.loads[1].backlog_s(10.0) - 1.0) < 0.01
    assert here.loads[1].own_requests == 0 and here.board.in_flight == 0, "it is not this gateway's"
    for ticket in tickets:
        ticket.load.release(ticket, 7001.0)
    here.hears(there.tells(7001.0), 11.0)
    assert here.loads[1].requests == here.loads[1].prefill_tokens == 0 and here.loads[1].backlog_s(11.0) == 0.0


def test_lost_and_doubled_datagrams_are_made_good() -> None:
    """Whatever is lost: a moment later both know the same."""
    rng = random.Random(1)
    here, there = Side(1, ranks=100), Side(2, ranks=100)
    tickets: list[Ticket] = []
    now = 0.0
    for _ in range(200):
        now += 0.02
        if rng.random() < 0.7 or not tickets:
            tickets.append(there.loads[rng.randrange(100)].admit(rng.randrange(1, 900), now))
        else:
            ticket = tickets.pop(rng.randrange(len(tickets)))
            ticket.load.release(ticket, now)
        arrived = [data for data in there.tells(now) if rng.random() < 0.5]
        here.hears(arrived * rng.choice((1, 2)), now)
    for _ in range(5):
        here.hears(there.tells(now), now)
    assert [load.requests for load in here.loads] == [load.requests for load in there.loads]
    assert [load.prefill_tokens for load in here.loads] == [load.prefill_tokens for load in there.loads]


def test_where_prompts_were_sent() -> None:
    """A burst of prompts with one beginning goes to one pod from all gateways: keys are the same in all of them."""
    here, there = Side(1), Side(2)
    keys = KeySpace(5).chain(tokens_of(1, 640), 16)
    there.board.tell(2, keys, 0, 100.0 + 5.0)
    here.hears(there.tells(100.0), 3.0)
    sent = here.board.sent(keys, 3.0)
    assert sent is not None and (sent.rank, sent.blocks) == (2, 40) and 7.9 < sent.expires < 8.1


def test_what_prompts_use_there_is_known_here() -> None:
    """All that was told, however many datagrams it takes; what is lost is lost, and what is longer is cut."""
    here, there = Side(1), Side(2)
    said = [UseBegan(7.0, number, [number + 1, number + 2], 512, 1024, 512) for number in range(50)]
    for use in said:
        there.tells_use(use)
    there.tells_use(UseEnded(3, True))
    first, *rest = there.tells(100.0)
    here.hears([first, *rest], 3.0)
    heard_here = [use for _, _, use in here.board.uses()]
    assert heard_here == [*said, UseEnded(3, True)] and len(rest) >= 1
    there.tells_use(said[0])
    there.tells(101.0)  # it does not arrive
    there.tells_use(UseBegan(7.0, 1, list(range(10_000)), 0, 160_000, 160_000))
    here.hears(there.tells(102.0), 5.0)
    lost, last = [use for _, _, use in here.board.uses()]
    assert lost == UseEnded(-1, False) and isinstance(last, UseBegan) and last.keys == list(range(9_880, 10_000))


def test_who_falls_silent_has_nothing_in_flight() -> None:
    """Its row is wiped, and free for another."""
    here, there, third, fourth = (Side(name) for name in range(1, 5))
    for side in (there, third, fourth):
        side.loads[0].admit(100, 0.0)
    here.hears(there.tells(0.0) + third.tells(0.0), 0.0)
    said = heard(KEY, fourth.tells(0.0)[0])
    assert said is not None and not here.guests.hear("fourth", said.news, 0.0), "there is no row left"
    assert here.loads[0].requests == 2 and len(here.guests) == 2
    here.hears(third.tells(1.0), 1.0)
    assert here.guests.silent(1.5, 1.0) == [(2, 0)]
    here.guests.wipe((2, 0))
    here.board.listen(2.0)
    assert here.loads[0].requests == 1 and here.guests.hear("fourth", said.news, 2.0)


def test_garbage_is_nobodys() -> None:
    """Bytes by chance, cut, changed, made longer, or sealed by another key."""
    there = Side(2)
    there.loads[0].admit(100, 0.0)
    data = there.tells(0.0)[0]
    assert len(data) <= BYTES_MAX and heard(KEY, data) is not None
    assert heard(b"x" * 32, data) is None
    for at in range(len(data)):
        assert heard(KEY, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None
        assert heard(KEY, data[:at]) is None
    for size in (0, 1, 16, 100, BYTES_MAX, 65_000):
        assert heard(KEY, os.urandom(size)) is None and heard(KEY, data + bytes(size + 1)) is None


def test_numbers_rise() -> None:
    """So what is sent again is known as old, also over a worker's end."""
    there = Side(2)
    orders = [said.order for _ in range(3) for data in there.tells(0.0) if (said := heard(KEY, data)) is not None]
    assert all(one < other for one, other in pairwise(orders))
    again = heard(KEY, next(Teller(KEY, 2, 0, 2).datagrams(there.row, 0.0)))
    assert again is not None and again.order > orders[-1]


def test_many_ranks_are_told_in_a_few_datagrams() -> None:
    """What has changed goes first."""
    here, there = Side(1, ranks=128), Side(2, ranks=128)
    for load in there.loads:
        load.admit(10, 0.0)
    datagrams = there.tells(0.0)
    assert 2 <= len(datagrams) <= 5
    here.hears(datagrams, 0.0)
    assert all(load.requests == 1 for load in here.loads)
    there.loads[127].admit(10, 0.1)
    here.hears(there.tells(0.1)[:1], 0.1)
    assert here.loads[127].requests == 2
