"""What is in flight: tickets are given back once, and an over-estimate of the backlog heals."""

from __future__ import annotations

import random

import pytest

from scorer.cost import PrefillRate
from scorer.load import PodLoad, Ticket


def _load(tokens_per_s: float = 1000.0) -> PodLoad:
    return PodLoad(PrefillRate(tokens_per_s))


def _idle(load: PodLoad) -> bool:
    return (load.requests, load.prefill_tokens) == (0, 0) and load.backlog_s(0.0) == 0.0


def test_a_ticket_is_given_back_once() -> None:
    """The second time says so and changes nothing."""
    load = _load()
    ticket, other = load.admit(500, 0.0), load.admit(300, 0.0)
    assert load.requests == 2 and load.prefill_tokens == 800
    assert load.release(ticket) is True and load.release(ticket) is False
    assert load.requests == 1 and load.prefill_tokens == 300
    load.first_byte(ticket, 9.0, measured=True)
    assert load.prefill_tokens == 300 and load.rate.samples == 0
    assert load.release(other) and _idle(load)


def test_the_backlog_is_what_was_promised() -> None:
    """Counted at decision time, one request behind the other."""
    load = _load()
    first = load.admit(500, 10.0)
    second = load.admit(250, 10.0)
    assert (first.alone, first.cost_s) == (True, 0.5)
    assert (second.alone, second.cost_s) == (False, 0.25)
    assert load.backlog_s(10.0) == pytest.approx(0.75)


def test_the_backlog_decays_with_time() -> None:
    """It shrinks by a second a second, to nothing, and never below; nobody needs to report anything."""
    load = _load()
    load.admit(2000, 10.0)
    assert load.backlog_s(10.5) == pytest.approx(1.5)
    assert load.backlog_s(11.9) == pytest.approx(0.1)
    assert load.backlog_s(12.0) == 0.0 and load.backlog_s(100.0) == 0.0
    load.admit(1000, 100.0)
    assert load.backlog_s(100.0) == pytest.approx(1.0), "what is over does not count again"


def test_a_first_byte_heals_an_over_estimate() -> None:
    """Prefill that is proven done is no backlog, however long it was thought to take; it stays a request."""
    load = _load()
    slow, small = load.admit(60_000, 0.0), load.admit(100, 0.0)
    assert load.backlog_s(1.0) == pytest.approx(59.1)
    load.first_byte(slow, 1.0, measured=False)
    assert load.backlog_s(1.0) == pytest.approx(0.1)
    assert load.requests == 2 and load.prefill_tokens == 100
    load.first_byte(small, 1.1, measured=False)
    assert load.backlog_s(1.1) == 0.0 and load.requests == 2
    load.first_byte(small, 1.2, measured=False)
    assert load.prefill_tokens == 0


def test_what_has_not_begun_does_not_decay() -> None:
    """As long as the first byte of a stream is overdue, what waits behind it is as much as it was."""
    load = _load()
    first, second = (load.admit(1000, 0.0, tells=True) for _ in range(2))
    third = load.admit(500, 0.0, tells=True)
    for now, left in ((0.0, 2.5), (0.4, 2.1), (1.0, 1.5), (60.0, 1.5)):
        assert load.backlog_s(now) == pytest.approx(left)
    load.first_byte(first, 60.0, measured=True)
    assert load.backlog_s(60.0) == pytest.approx(1.5) and load.backlog_s(60.5) == pytest.approx(1.0)
    assert load.backlog_s(99.0) == pytest.approx(0.5)
    assert load.release(second, 100.0) and load.backlog_s(100.0) == pytest.approx(0.5), "a client that gave up"
    load.first_byte(third, 100.1, measured=True)
    assert load.backlog_s(100.1) == 0.0 and load.prefill_tokens == 0


def test_an_early_first_byte_brings_the_rest_forward() -> None:
    """What is behind it starts now, not when it was thought to."""
    load = _load()
    first, _ = load.admit(4000, 0.0, tells=True), load.admit(1000, 0.0, tells=True)
    load.first_byte(first, 1.0, measured=True)
    assert load.backlog_s(1.0) == pytest.approx(1.0) and load.backlog_s(1.7) == pytest.approx(0.3)


def test_a_first_byte_proves_all_before_it() -> None:
    """Prompts are computed in order: answers that come whole, and were asked for before, are past their prefill."""
    load = _load()
    load.admit(8000, 0.0)
    stream = load.admit(1000, 0.0, tells=True)
    load.admit(500, 0.0)
    assert load.backlog_s(2.0) == pytest.approx(7.5)
    load.first_byte(stream, 2.0, measured=True)
    assert load.backlog_s(2.0) == pytest.approx(0.5) and load.backlog_s(2.5) == 0.0


def test_a_whole_answer_proves_as_much_at_its_end() -> None:
    """All before it was computed some time ago: less may wait, never more."""
    load = _load()
    whole, _ = load.admit(8000, 0.0), load.admit(500, 0.0)
    load.first_byte(whole, 2.0, measured=False)
    assert load.backlog_s(2.0) == pytest.approx(0.5)
    late, _ = load.admit(1000, 10.0), load.admit(500, 10.0)
    load.first_byte(late, 50.0, measured=False)
    assert load.backlog_s(50.0) == 0.0


def test_the_pod_says_what_waits() -> None:
    """Of answers that tell nothing before their end the pod's own count tells; others' requests are like ours."""
    load = _load()
    for at in range(4):
        load.admit(1000, float(at))
    assert load.backlog_s(100.0) == 0.0
    load.stated(2, 100.0)
    assert load.backlog_s(100.0) == pytest.approx(2.0) and load.backlog_s(101.5) == pytest.approx(0.5)
    load.stated(6, 200.0)
    assert load.backlog_s(200.0) == pytest.approx(6.0)
    load.stated(0, 201.0)
    assert load.backlog_s(201.0) == 0.0
    load.admit(1000, 300.0)
    load.stated(1, 299.9)
    assert load.backlog_s(302.0) == 0.0, "it was not there when the pod counted"


def test_a_queue_is_not_learned_as_a_speed() -> None:
    """Who found a backlog measures what it waited for; who found none is measured, whatever else is in flight."""
    load = _load()
    load.admit(1000, 0.0, tells=True)
    waited = load.admit(1000, 0.0, tells=True)
    load.first_byte(waited, 5.0, measured=True)
    assert load.rate.samples == 0
    load = _load()
    load.admit(1000, 0.0)  # it decodes for long
    free = load.admit(1000, 30.0, tells=True)
    load.first_byte(free, 33.0, measured=True)
    assert load.rate.samples == 1 and load.rate.token_s > 1 / 1000


def test_a_request_that_ends_in_prefill_is_no_backlog() -> None:
    """A client that goes away, a pod that fails: its promise goes with it."""
    load = _load()
    gone = load.admit(5000, 0.0)
    load.admit(1000, 0.0)
    load.release(gone)
    assert load.backlog_s(0.0) == pytest.approx(1.0)


def test_what_waits_behind_a_request_that_ended_comes_earlier() -> None:
    """What is done by a time is done so much earlier, of streams too that wait for answers that come whole."""
    load = _load()
    load.admit(1000, 0.0)
    gone = load.admit(5000, 0.0)
    load.admit(1000, 0.0)
    load.release(gone, 0.5)
    assert load.backlog_s(0.5) == pytest.approx(1.5)
    for ends in (PodLoad.release, lambda load, ticket, now: load.first_byte(ticket, now, False)):
        load = _load()
        whole, _ = load.admit(8000, 0.0), load.admit(1000, 0.0, tells=True)
        assert load.backlog_s(2.0) == pytest.approx(7.0)
        ends(load, whole, 2.0)
        for now, left in ((2.0, 1.0), (2.4, 0.6), (3.5, 0.0)):
            assert load.backlog_s(now) == pytest.approx(left)
    load = _load()
    first, _, last = load.admit(1000, 0.0), load.admit(2000, 0.0, tells=True), load.admit(4000, 0.0)
    load.first_byte(first, 1.0, False)
    load.release(last, 1.5)
    assert load.backlog_s(1.5) == pytest.approx(1.5), "the stream that has begun is computed since it has"


def test_a_stream_waits_for_what_the_pod_says_it_has_to_do() -> None:
    """Others' requests at the pod are before it, as long as they take."""
    load = _load()
    load.first_byte(load.admit(1000, 0.0), 0.5, measured=False)
    load.stated(5, 1.0)
    load.admit(1000, 1.0, tells=True)
    load.release(load.admit(4000, 1.0), 1.0)  # what came after it brings it no nearer
    assert load.backlog_s(1.0) == pytest.approx(6.0) and load.backlog_s(4.0) == pytest.approx(3.0)


def test_only_streams_teach_the_speed() -> None:
    """A whole answer's first byte comes after its decoding, which says nothing of prefill."""
    load = _load()
    before = load.rate.token_s
    load.first_byte(load.admit(1000, 0.0), 9.0, measured=False)
    assert load.rate.token_s == before
    load.first_byte(load.admit(1000, 100.0), 109.0, measured=True)
    assert load.rate.token_s > before


def test_nothing_is_left_after_any_order_of_ends() -> None:
    """Whatever happened to them, when all tickets are back the pod is idle, and counts never went below zero."""
    for seed in range(30):
        rng, load, now = random.Random(seed), _load((10.0, 1e3, 3e4)[seed % 3]), 0.0
        out: list[Ticket] = []
        for _ in range(200):
            now += rng.random() * 0.2
            act = rng.choice(("admit", "first", "release", "again"))
            if act == "admit" or not out:
                out.append(load.admit(rng.choice((0, 1, 70, 4000)), now, tells=rng.random() < 0.5))
            elif act == "first":
                load.first_byte(rng.choice(out), now, measured=rng.random() < 0.5)
            else:
                ticket = rng.choice(out) if act == "again" else out.pop(rng.randrange(len(out)))
                if act == "again":
                    out.remove(ticket)
                assert load.release(ticket, now) and not load.release(ticket, now)
            assert load.requests == len(out) and load.backlog_s(now) >= 0.0
            assert load.prefill_tokens == sum(ticket.tokens for ticket in out if ticket.in_prefill)
        for ticket in out:
            load.release(ticket)
        assert _idle(load)


def test_a_late_first_byte_moves_what_follows() -> None:
    """A prefill that took longer than it was thought to: what waits behind it starts only now."""
    load = _load()
    late, _ = load.admit(1000, 0.0), load.admit(1000, 0.0)
    load.first_byte(late, 5.0, measured=True)
    assert load.backlog_s(5.0) == pytest.approx(1.0)


def test_an_early_first_byte_says_that_all_before_is_done() -> None:
    """Prefills come one after the other: what was taken before the one that is done does not count again."""
    load = _load()
    _, early, _ = load.admit(1000, 0.0), load.admit(10_000, 0.0), load.admit(1000, 0.0)
    load.first_byte(early, 0.5, measured=False)
    assert load.backlog_s(0.5) == pytest.approx(1.0)


def test_what_waits_at_the_pod_is_no_less_than_what_was_promised() -> None:
    """A look at the pod's queue raises the backlog, and never lowers it; without known costs it is none."""
    load = _load()
    for tokens in (2000, 1000):
        load.admit(tokens, 0.0)
    load.stated(1, 0.5)
    assert load.backlog_s(0.5) == pytest.approx(2.5)
    unknown = _load()
    unknown.stated(3, 0.0)
    assert unknown.backlog_s(0.0) == 0.0


def test_others_requests_leave_nobody_alone() -> None:
    """What waits at the pod and is not ours is taken to be like ours: who comes then does not teach a speed."""
    load = _load()
    load.first_byte(load.admit(1000, 0.0), 0.5, measured=False)
    load.stated(2, 0.6)
    assert load.backlog_s(0.6) == pytest.approx(2.0)
    assert not load.admit(100, 0.6).alone


def test_a_pod_that_is_never_idle_shows_that_it_is_faster() -> None:
    """Four times as fast as believed, and far: the next prompt is always there before the first token of the last. What
    was done in some seconds can't have taken longer. Who is as fast as believed, or was sent guesses, shows nothing.
    """
    for each_s, guessed, least, most in ((0.25, False, 3000, 5000), (1.0, False, 600, 1400), (0.25, True, 999, 1001)):
        load, waiting, now = _load(), [], 0.0
        for number in range(200):
            waiting.append(load.admit(1000, now, tells=True))
            waiting[-1].guessed = guessed
            now += each_s
            if number:
                load.first_byte(waiting.pop(0), now, measured=True)
        assert least < load.rate.tokens_per_s < most, (each_s, guessed)
