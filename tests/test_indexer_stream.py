"""The sequence of one feed, as scenarios: each a conversation between a publisher and a stream."""

from __future__ import annotations

import random

import pytest

from indexer.stream import Ready, Stream


def _stream(upto: int = 0, held_max: int = 100) -> Stream[int]:
    """A stream that has applied the batches before `upto`, each with its number as clock."""
    stream: Stream[int] = Stream(held_max, 1 << 20)
    for number in range(upto):
        assert stream.live(number, float(number), number) == Ready("in_order", apply=[number])
    return stream


def test_in_order() -> None:
    """Batches in order are applied one by one."""
    assert _stream(5).expected == 5


def test_duplicate() -> None:
    """A batch that was seen, with the clock that it had, changes nothing."""
    stream = _stream(5)
    assert stream.live(4, 4.0, 4) == Ready("duplicate")
    assert stream.live(2, 2.0, 2) == Ready("duplicate")


def test_gap_is_closed_by_replay() -> None:
    """A gap asks from the last applied batch; live batches wait and are applied after what was missing."""
    stream = _stream(3)
    assert stream.live(5, 5.0, 5) == Ready("gap", replay_from=2)
    assert stream.live(6, 6.0, 6).verdict == "held"
    assert stream.replayed(2, 2.0, 2).verdict == "duplicate"
    assert stream.replayed(3, 3.0, 3).apply == [3]
    assert stream.replayed(4, 4.0, 4).apply == [4, 5, 6]
    assert stream.replay_ended(True) == Ready("closed")
    assert not stream.truncated and stream.expected == 7


def test_gap_that_replay_cannot_close() -> None:
    """What is lost makes us forget, and go on with what is held."""
    stream = _stream(3)
    stream.live(5, 5.0, 5)
    stream.replayed(2, 2.0, 2)
    assert stream.replay_ended(True) == Ready("lost", forget=True, apply=[5])
    assert stream.truncated and stream.expected == 6


def test_gap_without_replay() -> None:
    """A replay that fails is a gap that stays open."""
    stream = _stream(3)
    stream.live(4, 4.0, 4)
    assert stream.replay_ended(False) == Ready("lost", forget=True, apply=[4])


def test_reordered_batch_fills_the_gap() -> None:
    """A batch that comes late but is missing is kept."""
    stream = _stream(3)
    stream.live(4, 4.0, 4)
    assert stream.live(3, 3.0, 3).verdict == "held"
    stream.replayed(2, 2.0, 2)
    assert stream.replay_ended(True) == Ready("closed", apply=[3, 4])


def test_restart_from_zero() -> None:
    """A number that was seen with a later clock is another publisher's."""
    stream = _stream(5)
    assert stream.live(0, 9.0, 100) == Ready("restart", forget=True, apply=[100])
    assert stream.live(1, 10.0, 101) == Ready("in_order", apply=[101])


def test_restart_whose_first_batches_were_missed() -> None:
    """A restarted publisher's history is asked from its beginning."""
    stream = _stream(5)
    assert stream.live(2, 9.0, 102) == Ready("restart", forget=True, replay_from=0)
    assert stream.replayed(0, 7.0, 100).apply == [100]
    assert stream.replayed(1, 8.0, 101).apply == [101, 102]


def test_restart_hidden_by_higher_numbers() -> None:
    """A new publisher that is already further than we were is told by the clock of the batch that we knew."""
    stream = _stream(3)
    assert stream.live(9, 29.0, 109) == Ready("gap", replay_from=2)
    assert stream.replayed(2, 22.0, 102) == Ready("restart", forget=True, replay_from=0)
    for number in range(9):
        stream.replayed(number, 20.0 + number, 100 + number)
    stream.live(10, 30.0, 110)
    assert stream.replay_ended(True) == Ready("closed", apply=[110]) and stream.expected == 11


def test_reconnect_to_a_pod_that_restarted_and_is_silent() -> None:
    """An empty history cannot be that of the publisher we knew: its blocks are forgotten."""
    stream = _stream(3)
    assert stream.connected() == Ready("late", replay_from=2)
    assert stream.replay_ended(True) == Ready("restart", forget=True, replay_from=0)
    assert stream.replay_ended(True) == Ready("closed")


def test_the_first_batch_of_a_pod_that_restarted_comes_before_its_history() -> None:
    """That the new one has no other than this, its replay tells: all is forgotten once, not twice."""
    stream = _stream(3)
    stream.connected()
    assert stream.replay_ended(True).verdict == "restart"
    assert stream.live(0, 9.0, 100) == Ready("held")
    assert stream.replay_ended(True) == Ready("closed", apply=[100]) and stream.caught_up


def test_reconnect_to_the_same_publisher() -> None:
    """Nothing is forgotten when the last applied batch comes back as it was."""
    stream = _stream(3)
    stream.connected()
    stream.replayed(2, 2.0, 2)
    assert stream.replay_ended(True) == Ready("closed")


def test_late_join_with_truncated_history() -> None:
    """The oldest history is gone: what is left is applied, and the stream knows that it lacks something."""
    stream = _stream()
    assert stream.live(60, 60.0, 60) == Ready("late", replay_from=0)
    applied: list[int] = []
    for number in range(40, 60):
        applied += stream.replayed(number, float(number), number).apply
    assert applied == list(range(40, 61)) and stream.truncated and stream.caught_up
    assert stream.replay_ended(True) == Ready("closed")


def test_a_replay_that_is_faster() -> None:
    """A live batch that the replay has brought already is known, and proves that all is there."""
    stream = _stream()
    stream.connected()
    assert stream.replayed(0, 0.0, 0).apply == [0]
    assert stream.behind and stream.replaying
    assert stream.live(0, 0.0, 0) == Ready("duplicate")
    assert not stream.behind and not stream.replaying
    assert stream.replay_ended(True) == Ready("closed")


def test_restart_after_a_history_that_was_only_replayed() -> None:
    """No live batch was heard yet: a number that the replay brought, with a later clock, is another publisher's."""
    stream = _stream()
    stream.connected()
    for number in range(5):
        stream.replayed(number, float(number), number)
    stream.replay_ended(True)
    assert stream.live(0, 9.0, 100) == Ready("restart", forget=True, apply=[100])


def test_an_old_batch_during_a_replay() -> None:
    """Told twice while others are missing, it is not kept: it would be applied again, and again be believed."""
    stream = _stream(5)
    stream.live(7, 7.0, 7)
    assert stream.live(3, 3.0, 3) == Ready("duplicate")
    for number in range(4, 7):
        stream.replayed(number, float(number), number)
    assert stream.replay_ended(True) == Ready("closed") and stream.expected == 8


def test_what_another_publisher_may_have_said() -> None:
    """Connected anew, a replay's batches wait until the one that we know has proven whose they are."""
    stream = _stream(3)
    stream.connected()
    assert stream.replayed(3, 3.0, 3) == Ready("held")
    assert stream.replay_ended(True) == Ready("restart", forget=True, replay_from=0)


def test_reconnect_and_nobody_answers() -> None:
    """The replay failed, so whether it is the publisher that we knew is not known: what it said is forgotten."""
    stream = _stream(3)
    stream.connected()
    assert stream.replay_ended(False) == Ready("lost", forget=True)
    assert stream.truncated and not stream.behind, "what is forgotten can't be stale"


def test_a_history_without_its_end() -> None:
    """It may have been cut: it is behind until a live batch follows it, and a gap shows what was cut."""
    stream = _stream()
    stream.connected()
    for number in range(3):
        stream.replayed(number, float(number), number)
    assert stream.behind
    assert stream.replay_ended(False) == Ready("closed") and stream.behind
    assert stream.live(5, 5.0, 5) == Ready("gap", replay_from=2) and stream.behind
    for number in (2, 3, 4):
        stream.replayed(number, float(number), number)
    assert not stream.behind and not stream.replaying and stream.expected == 6


def test_a_history_with_its_end() -> None:
    """All is there, and nothing was said meanwhile."""
    stream = _stream()
    stream.connected()
    stream.replayed(0, 0.0, 0)
    stream.replay_ended(True)
    assert not stream.behind


def test_a_single_batch_without_its_end() -> None:
    """It is behind as well as a longer history is."""
    stream = _stream()
    stream.connected()
    stream.replayed(0, 0.0, 0)
    stream.replay_ended(False)
    assert stream.behind


def test_nothing_was_said_yet() -> None:
    """So nothing is known to be missing, to be stale, or to be on its way; nor is there anything to forget."""
    stream = _stream()
    stream.forgotten()
    assert not (stream.behind or stream.truncated or stream.replaying or stream.caught_up)


def test_clocks_are_no_numbers() -> None:
    """By a pod's wall clock, a batch that comes out of order is what was missing, or known, as at any other time."""
    stream, clock = _stream(), 1_800_000_000.0
    for number in (0, 1):
        assert stream.live(number, clock + number, number).verdict == "in_order"
    assert stream.live(4, clock + 4, 4) == Ready("gap", replay_from=1)
    assert stream.live(2, clock + 2, 2) == Ready("held")
    assert stream.live(1, clock + 1, 1) == Ready("duplicate")
    stream.replayed(1, clock + 1, 1)
    assert stream.replayed(2, clock + 2, 2).apply == [2]
    assert stream.replayed(3, clock + 3, 3).apply == [3, 4]


def test_a_number_that_waits_said_again_later() -> None:
    """By its clock it is another publisher's, though the first one was never applied."""
    stream = _stream(3)
    stream.live(9, 9.0, 9)
    assert stream.live(9, 29.0, 109) == Ready("restart", forget=True, replay_from=0)


def test_a_late_batch_after_a_gap_was_given_up() -> None:
    """Nobody closes that gap any more: what was missing there is not kept for the next one."""
    stream: Stream[int] = Stream(100, held_bytes_max=10)
    stream.live(0, 0.0, 0)
    stream.live(2, 2.0, 2, size=11)
    assert stream.replay_ended(False).apply == []
    assert stream.live(1, 1.0, 1) == Ready("duplicate")


def test_what_is_left_of_another_publishers_replay() -> None:
    """The pod was started anew while its history was read: the old one's last batch is no news of the new one."""
    stream = _stream(1)
    stream.connected()
    assert stream.live(0, 9.0, 100) == Ready("restart", forget=True, apply=[100])
    assert stream.replayed(0, 0.0, 0) == Ready("duplicate")


def test_a_history_that_was_asked_for_anew_and_does_not_come() -> None:
    """What is known stays known: it is in doubt, and nothing better came."""
    stream = _stream(3)
    stream.resync()
    assert stream.replay_ended(False) == Ready("closed")
    assert not (stream.truncated or stream.behind or stream.replaying)


def test_a_history_that_was_asked_for_anew_and_is_empty() -> None:
    """All that was known is forgotten, and what came meanwhile is believed."""
    stream = _stream(3)
    assert stream.resync() == Ready("late", replay_from=0)
    stream.live(3, 3.0, 3)
    assert stream.replay_ended(True) == Ready("replayed", forget=True, apply=[3])


def test_all_is_forgotten() -> None:
    """Somebody wants it so: history is missing until it is read again."""
    stream = _stream(3)
    stream.forgotten()
    assert stream.truncated
    stream.forgotten()
    assert stream.truncated
    stream.cleared()
    assert not stream.truncated


def test_held_bytes_are_bounded() -> None:
    """As their number is, and what is applied no longer counts."""
    stream: Stream[int] = Stream(100, held_bytes_max=100)
    stream.live(0, 0.0, 0)
    for _ in range(3):
        first = stream.expected + 1
        for number in range(first, first + 4):
            stream.live(number, float(number), number, size=30)
        assert stream.replay_ended(False).apply == [first + 1, first + 2, first + 3]
    assert stream.dropped == 3


def test_missing_names_the_first_hole_that_can_be_asked_for() -> None:
    """A replay that lost something in the middle is asked again from there."""
    stream = _stream()
    stream.connected()
    for number in (0, 1, 2, 5, 6):
        stream.replayed(number, float(number), number)
    assert stream.missing() == 3


def test_what_waits_for_a_proof_is_not_missing() -> None:
    """Connected anew, a replay's batches wait, and only a hole among them can be asked for."""
    stream = _stream(3)
    stream.connected()
    for number in (3, 4):
        stream.replayed(number, float(number), number)
        assert stream.missing() is None
    stream.replayed(6, 6.0, 6)
    assert stream.missing() == 5


def test_a_history_that_was_empty_when_it_was_asked_for() -> None:
    """What has come meanwhile says that there is one now; where it begins, nothing is missing before."""
    stream = _stream()
    stream.live(60, 60.0, 60)
    assert stream.missing() == 0
    assert stream.replayed(58, 58.0, 58).apply == [58]
    assert stream.missing() == 59 and stream.truncated


def test_a_new_publisher_whose_history_was_empty_and_of_whom_something_was_lost_then() -> None:
    """What it said first came by itself, and nothing was before it: only the hole is asked for, and all is known."""
    stream = _stream()
    assert stream.connected().replay_from == 0
    for number in (0, 1, 2, 5, 6):
        assert stream.live(number, float(number), number).verdict == "held"
    assert stream.missing() == 3
    ready = stream.replayed(3, 3.0, 3)
    assert (ready.verdict, ready.apply) == ("replayed", [0, 1, 2, 3])
    assert stream.replayed(4, 4.0, 4).apply == [4, 5, 6]
    assert not stream.truncated and not stream.replaying and stream.caught_up


@pytest.mark.parametrize("number, verdict", [(1, "duplicate"), (5, "held")])
def test_what_a_new_publisher_said_first_is_known_whatever_its_history_brings(number: int, verdict: str) -> None:
    """Something in the middle of it, or something further on."""
    stream = _stream()
    stream.connected()
    for said in (0, 1, 2):
        stream.live(said, float(said), said)
    ready = stream.replayed(number, float(number), number)
    assert (ready.verdict, ready.apply) == (verdict, [0, 1, 2])
    assert stream.missing() == (3 if number == 5 else None) and not stream.truncated


def test_held_is_bounded() -> None:
    """What does not fit is lost as if it had never come."""
    stream = _stream(1, held_max=3)
    for number in range(2, 10):
        stream.live(number, float(number), number)
    ready = stream.replay_ended(False)
    assert ready.apply == [7, 8, 9] and ready.forget


def _publish(clock: float, stream: Stream[int], history: list[float], believed: list[int], lost: bool) -> None:
    """One more batch, perhaps lost; every replay that is asked for is answered in full."""
    history.append(clock)
    number = len(history) - 1
    if lost:
        return
    ready = stream.live(number, history[number], number)
    while True:
        if ready.forget:
            believed.clear()
        believed += ready.apply
        if ready.replay_from is None:
            if not stream.replaying:
                return
            ready = stream.replay_ended(True)
            continue
        start = ready.replay_from
        for n in range(start, len(history)):
            ready = stream.replayed(n, history[n], n)
            if ready.forget or ready.replay_from is not None:
                break
            believed += ready.apply
        else:
            ready = stream.replay_ended(True)


def test_any_loss_is_repaired_by_a_whole_history() -> None:
    """Under random losses and restarts, once a batch arrives, all of the current publisher's history is believed."""
    for seed in range(60):
        rng = random.Random(seed)
        stream, history, believed = Stream[int](1000, 1 << 20), [], []  # type: ignore[var-annotated]
        for step in range(120):
            if rng.random() < 0.03:
                history = []
            _publish(float(step), stream, history, believed, lost=rng.random() < 0.2)
        _publish(120.0, stream, history, believed, lost=False)
        assert believed == list(range(len(history))), f"seed {seed}"


def _waiting(*held: tuple[int, float]) -> Stream[int]:
    """A new stream that waits for what is known elsewhere; these batches came meanwhile, with their clocks."""
    stream = _stream()
    stream.wait()
    for number, clock in held:
        assert stream.live(number, clock, number) == Ready("held")
    return stream


def test_what_comes_while_others_are_asked_waits() -> None:
    """Nobody asks the pod meanwhile, and nothing is believed."""
    stream = _waiting((7, 7.0))
    assert stream.connected() == Ready("held") and stream.as_of == (-1, 0.0)
    assert stream.waiting and stream.replaying and stream.behind and stream.sure


def test_nobody_else_knows_anything() -> None:
    """Then the pod itself is asked for all, as soon as it is there."""
    stream = _waiting()
    assert stream.resume(None, connected=False) == Ready("held")
    assert not (stream.waiting or stream.replaying or stream.behind)
    assert stream.connected() == Ready("late", replay_from=0)
    stream = _waiting((1, 1.0))
    assert stream.resume(None, connected=True) == Ready("late", replay_from=0)
    assert stream.replaying and stream.behind
    assert stream.replayed(0, 0.0, 0).apply == [0, 1]
    assert stream.caught_up and not stream.replaying


@pytest.mark.parametrize("truncated", [False, True])
def test_known_elsewhere_up_to_a_batch_that_came(truncated: bool) -> None:
    """The very batch proves whose history it is: what came behind it follows, and nobody is asked."""
    stream = _waiting((2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0))
    assert stream.resume((3, 3.0, truncated), connected=True) == Ready("closed", apply=[4, 5])
    assert stream.as_of == (5, 5.0) and stream.truncated is truncated and stream.caught_up
    assert not (stream.replaying or stream.behind or stream.waiting)
    assert stream.replay_ended(True) == Ready("closed"), "nothing older is held"


def test_known_elsewhere_and_then_a_gap() -> None:
    """What lies between is asked for, from the batch that is known."""
    stream = _waiting((3, 3.0), (6, 6.0))
    assert stream.resume((3, 3.0, False), connected=True) == Ready("closed", replay_from=3)
    assert stream.replayed(3, 3.0, 3) == Ready("duplicate")
    assert stream.replayed(4, 4.0, 4).apply == [4] and stream.replayed(5, 5.0, 5).apply == [5, 6]
    assert not stream.replaying


def test_known_elsewhere_and_not_proven_yet() -> None:
    """The publisher's own replay proves it, by the batch up to which it is known; or shows that it is another one."""
    for clock, verdict in ((3.0, "duplicate"), (2.5, "restart")):
        stream = _waiting((5, 5.0))
        assert stream.resume((3, 3.0, False), connected=True) == Ready("late", replay_from=3)
        assert stream.replayed(3, clock, 3).verdict == verdict
    stream = _waiting((4, 3.0))
    assert stream.resume((3, 3.0, False), connected=True) == Ready("late", replay_from=3)
    assert stream.replayed(3, 3.0, 3).verdict == "duplicate" and stream.replay_ended(True).apply == [4]


@pytest.mark.parametrize("held", [(3, 9.0), (2, 9.0), (5, 1.0)])
def test_known_elsewhere_of_another_publisher(held: tuple[int, float]) -> None:
    """Numbers and clocks that do not rise together are not one publisher's: what is known is to be forgotten."""
    stream = _waiting(held)
    assert stream.resume((3, 3.0, False), connected=True) == Ready("restart", forget=True, replay_from=0)
    assert stream.as_of[0] == -1


def test_begun_anew_while_others_were_asked() -> None:
    """What they know is its predecessor's."""
    stream = _waiting((5, 5.0))
    assert stream.live(0, 9.0, 0).verdict == "restart" and not stream.waiting
    assert stream.resume((3, 3.0, False), connected=True) == Ready("held") and stream.as_of == (0, 9.0)


def test_what_is_asked_for_anew_is_in_doubt() -> None:
    """Until it has come, or does not."""
    stream = _stream(3)
    assert stream.sure
    stream.resync()
    assert not stream.sure
    stream.replay_ended(False)
    assert stream.sure


def test_what_was_forgotten_is_missed() -> None:
    """From the first batch on; before it there is nothing to be missed."""
    for upto in (0, 1, 2):
        stream = _stream(upto)
        stream.forgotten()
        assert stream.truncated == (upto > 0)


def test_held_to_the_byte() -> None:
    """As many bytes as may wait do."""
    for size, dropped in ((5, 0), (6, 1)):
        stream: Stream[int] = Stream(100, held_bytes_max=10)
        stream.live(0, 0.0, 0)
        stream.live(2, 2.0, 2, 5)
        stream.live(3, 3.0, 3, size)
        assert stream.dropped == dropped


def test_a_new_publisher_is_caught_up_with() -> None:
    """A live batch of it has told how far it is: once a replay has brought what was before, nothing is waited for."""
    stream = _stream(5)
    assert stream.live(3, 10.0, 13) == Ready("restart", forget=True, replay_from=0)
    for number in range(2):
        assert stream.replayed(number, 8.0 + number, number + 10).apply == [number + 10]
    assert stream.replaying and not stream.caught_up
    assert stream.replayed(2, 9.5, 12).apply == [12, 13]
    assert stream.caught_up and not stream.replaying


def test_history_that_is_read_again() -> None:
    """With its first batch all is forgotten; what came live meanwhile is applied behind it, and ends the replay."""
    stream = _stream(3)
    assert stream.resync() == Ready("late", replay_from=0)
    assert stream.live(3, 7.5, 3).verdict == "held"
    assert stream.replayed(0, 0.0, 0) == Ready("replayed", forget=True, apply=[0])
    assert stream.replayed(1, 1.0, 1) == Ready("replayed", apply=[1])
    assert stream.replaying and stream.sure
    assert stream.replayed(2, 2.0, 2) == Ready("replayed", apply=[2, 3])
    assert not stream.replaying and stream.caught_up


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_known_from_elsewhere_is_not_caught_up(number: int) -> None:
    """Nothing came yet from the publisher itself."""
    stream: Stream[int] = Stream(100, 1 << 20)
    stream.wait()
    stream.resume((number, 1.0, False), False)
    assert stream.as_of == (number, 1.0) and not stream.caught_up


def test_a_late_batch_says_nothing_of_what_a_replay_has_brought_beyond() -> None:
    """All up to it is there; what lies between is still missing."""
    stream = _stream()
    stream.connected()
    for number in (0, 1, 2, 5):
        stream.replayed(number, float(number), number)
    assert stream.live(2, 2.0, 2) == Ready("duplicate")
    assert stream.replaying and stream.behind and stream.missing() == 3


def test_what_a_replay_brings_from_before_it_was_asked() -> None:
    """Older batches, of which the clocks are not known any more, tell nothing of who has sent them."""
    stream = _stream(3)
    stream.connected()
    assert stream.replayed(1, 1.0, 1) == Ready("duplicate")
    assert stream.replayed(2, 2.0, 2) == Ready("duplicate") and stream.replay_ended(True) == Ready("closed")


def test_a_history_with_a_hole_and_without_its_end() -> None:
    """What is behind the hole is believed no more than a history without its end is."""
    stream = _stream()
    stream.connected()
    stream.replayed(0, 0.0, 0)
    stream.replayed(3, 3.0, 3)
    assert stream.replay_ended(False) == Ready("lost", forget=True, apply=[3])
    assert stream.behind and stream.truncated
    assert stream.live(4, 4.0, 4) == Ready("in_order", apply=[4]) and not stream.behind


def test_a_stream_is_seen_in_logs() -> None:
    """What it waits for, and how much it keeps meanwhile."""
    stream = _stream(5)
    assert repr(stream) == "<Stream in order, expects 5, holds 0>"
    stream.live(7, 7.0, 7)
    assert repr(stream) == "<Stream replaying, expects 5, holds 1>"
