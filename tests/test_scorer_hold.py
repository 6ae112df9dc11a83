"""Who waits for a pod, in which order they go, and who goes where meanwhile."""

from __future__ import annotations

from scorer.cost import PrefillRate
from scorer.hold import Held, Hold, HoldLimits, PodBounds, overdue
from scorer.load import PodLoad, Ticket

LIMITS = HoldLimits(0.5, 60.0, 100, PodBounds())


def a_load(measured: bool = True) -> PodLoad:
    """A pod that computes 1000 tokens a second, and was seen to if it was `measured`."""
    rate = PrefillRate(1000.0)
    for _ in range(8 if measured else 0):
        rate.learn(1000, 1.0)
    return PodLoad(rate)


def busy(load: PodLoad, seconds: float) -> Ticket:
    return load.admit(int(1000 * seconds), 0.0, tells=True)


class Gate:
    """Offers who waits the pod that each wants."""

    def __init__(self, hold: Hold, loads: list[PodLoad]) -> None:
        self.hold = hold
        self.loads = loads
        self.gone: list[object] = []
        self.tickets: list[Ticket] = []

    def put(
        self, name: str, load: PodLoad, cost_s: float, now: float, priority: int = 0, room: bool = True, flow: str = ""
    ) -> None:
        held = self.hold.put((name, load, cost_s, room), flow, priority, cost_s, now)
        assert held is not None

    def serve(self, now: float) -> list[object]:
        self.gone = []
        self.hold.serve(self.loads, now, lambda held: self.offer(held, now))
        return self.gone

    def offer(self, held: Held, now: float) -> bool:
        name, load, cost_s, room = held.item  # type: ignore[misc]
        if self.hold.must_wait(load, cost_s, not room, held, now):
            return False
        self.tickets.append(load.admit(int(1000 * cost_s), now, tells=True))
        self.gone.append(name)
        return True


def test_a_pod_is_promised_work_for_a_moment() -> None:
    """What is more waits. While speeds are only assumed, a pod is busy that owes a first byte, for no longer."""
    hold, load, guessed = Hold(LIMITS), a_load(), a_load(measured=False)
    assert not hold.must_wait(load, 9.0, False, None, 0.0)
    busy(load, 2.0)
    told = busy(guessed, 2.0)
    assert hold.must_wait(load, 0.1, False, None, 0.0)
    assert hold.must_wait(load, 0.1, False, None, 1.4)
    assert not hold.must_wait(load, 0.1, False, None, 1.7)
    assert hold.must_wait(guessed, 0.1, False, None, 0.0)
    guessed.first_byte(told, 0.1, False)
    guessed.admit(9000, 0.1)
    assert guessed.backlog_s(0.2) > 8.0
    assert not hold.must_wait(guessed, 0.1, False, None, 0.2)


def test_one_goes_when_the_pod_is_free_and_the_short_ones_first() -> None:
    """Who comes behind is planned, and waits for the next turn; who has waited for long is no longer behind."""
    hold, load = Hold(LIMITS), a_load()
    gate, ticket = Gate(hold, [load]), busy(load, 2.0)
    gate.put("long", load, 5.0, 0.0)
    gate.put("short", load, 0.8, 0.0)
    gate.put("urgent", load, 3.0, 0.0, priority=-1)
    assert gate.serve(0.1) == [] and hold.waiting == 3
    load.first_byte(ticket, 1.0, True)
    assert gate.serve(1.0) == ["urgent"] and hold.planned[load] > 5.0
    assert gate.serve(3.8) == ["short"]
    for ticket in gate.tickets:
        load.first_byte(ticket, 30.0, True)
    gate.put("later", load, 1.0, 30.0)
    assert gate.serve(30.0) == ["long"] and hold.waiting == 1


def test_who_can_go_elsewhere_does() -> None:
    """A busy pod keeps nobody waiting who is best placed at another."""
    hold, loads = Hold(LIMITS), [a_load(), a_load()]
    gate = Gate(hold, loads)
    busy(loads[0], 9.0)
    for number, load in enumerate(loads):
        gate.put(f"for {number}", load, 1.0, 0.0)
    assert gate.serve(0.1) == ["for 1"]
    assert hold.must_wait(loads[0], 1.0, False, None, 9.4), "somebody was here before"


def test_nobody_waits_for_ever() -> None:
    """After the limit it goes, however busy its pod is; and more than so many do not wait at all."""
    hold, load = Hold(LIMITS._replace(waiting_max=1)), a_load()
    gate = Gate(hold, [load])
    busy(load, 600.0)
    gate.put("a", load, 1.0, 0.0)
    assert hold.put("b", "", 0, 1.0, 1.0) is None
    assert gate.serve(59.0) == [] and gate.serve(60.0) == ["a"] and hold.waiting == 0


def test_who_lacks_room_keeps_nobody_else_waiting() -> None:
    """It is planned for no pod, and says why it waits."""
    hold, load = Hold(LIMITS), a_load()
    gate = Gate(hold, [load])
    gate.put("cold", load, 0.1, 0.0, room=False)
    gate.put("warm", load, 0.2, 0.0)
    assert gate.serve(0.1) == ["warm"] and hold.waiting == 1
    assert hold.must_wait(a_load(), 9.0, True, None, 0.1)


def test_who_waits_for_room_asks_for_its_turn_in_time() -> None:
    """So that it has waited no longer when its prefill is done, and what the pod has to do before."""
    hold, load = Hold(LIMITS._replace(look_ahead_s=30.0)), a_load()
    held = hold.put("cold", "", 0, 5.0, 0.0)
    assert held is not None and hold.must_wait(load, 5.0, True, held, 45.0)
    load.admit(20_000, 45.0, tells=True)
    assert not hold.must_wait(load, 5.0, True, held, 45.0)
    assert hold.must_wait(a_load(), 5.0, True, held, 54.0)
    assert not hold.must_wait(a_load(), 5.0, True, held, 55.0)


def test_who_leaves_is_out() -> None:
    """Twice is once."""
    hold = Hold(LIMITS)
    held = hold.put("a", "", 0, 1.0, 0.0)
    assert held is not None and hold.waiting == 1
    hold.remove(held)
    hold.remove(held)
    assert hold.waiting == 0


def served_in_order(gate: Gate, load: PodLoad, count: int, now: float) -> list[object]:
    """Who goes, one after the other, as often as the pod is free again."""
    gone: list[object] = []
    while len(gone) < count:
        for ticket in gate.tickets:
            load.first_byte(ticket, now, True)
        gate.tickets.clear()
        went = gate.serve(now)
        assert len(went) == 1
        gone += went
    return gone


def test_a_flow_with_much_to_do_keeps_no_other_waiting() -> None:
    """Each has the same share of the work, whoever was here before; within a flow the order is what it always is."""
    hold, load = Hold(LIMITS), a_load()
    gate = Gate(hold, [load])
    gate.tickets.append(busy(load, 2.0))
    for number in range(20):
        gate.put(f"many {number}", load, 1.0 + number / 100, 0.0, flow="a")
    assert gate.serve(0.1) == []
    assert served_in_order(gate, load, 4, 2.0) == [f"many {number}" for number in range(4)]
    gate.put("few 1", load, 2.4, 2.0, flow="b")
    gate.put("few 0", load, 0.7, 2.0, flow="b")
    order = served_in_order(gate, load, 6, 2.0)
    assert order == ["few 0", "many 4", "many 5", "few 1", "many 6", "many 7"]


def test_who_asks_again_and_again_has_no_more_than_its_share() -> None:
    """A flow that waits for little at a time, but always, does not go first for ever."""
    hold, load = Hold(LIMITS), a_load()
    gate = Gate(hold, [load])
    gate.tickets.append(busy(load, 2.0))
    gate.put("long", load, 4.0, 0.0, flow="a")
    order: list[object] = []
    for number in range(12):
        gate.put(f"short {number}", load, 1.0, 0.0, flow="b")
        order += served_in_order(gate, load, 1, 2.0)
    assert order.index("long") in (3, 4)


def test_what_is_remembered_of_flows_is_bounded() -> None:
    """Those that wait for nothing are forgotten, though somebody waits all the time."""
    hold, free = Hold(LIMITS), a_load()
    gate, stuck = Gate(hold, [free]), a_load()
    gate.loads.append(stuck)
    busy(stuck, 900.0)
    gate.put("stuck", stuck, 9.0, 0.0)
    for number in range(1000):
        gate.put("passes", free, 0.001, 0.0, flow=f"flow {number}")
        served_in_order(gate, free, 1, 0.0)
    assert hold.waiting == 1 and hold.flows < 100


def test_speeds_are_known_after_eight_samples() -> None:
    """From then on a pod is busy that has as much to do as it may, also where nobody owes a first byte."""
    for samples in (7, 8):
        load = PodLoad(PrefillRate(1000.0))
        for _ in range(samples):
            load.rate.learn(1000, 1.0)
        load.admit(500, 0.0)
        left_s = load.backlog_s(0.0)
        assert Hold(LIMITS._replace(look_ahead_s=left_s)).must_wait(load, 0.1, False, None, 0.0) is (samples == 8)
        assert not Hold(LIMITS._replace(look_ahead_s=left_s + 0.2)).must_wait(load, 0.1, False, None, 0.0)


def test_who_has_waited_is_before_those_that_cost_a_little_less() -> None:
    """Ten seconds make up for three seconds of prefill."""
    for came, order in ((10.0, ["short", "long"]), (16.0, ["long", "short"])):
        hold, load = Hold(LIMITS), a_load()
        gate = Gate(hold, [load])
        gate.tickets.append(load.admit(30_000, 0.0, tells=True))
        gate.put("long", load, 5.0, 0.0)
        gate.put("short", load, 1.0, came)
        assert served_in_order(gate, load, 2, 20.0) == order


def test_few_are_placed_at_once() -> None:
    """Who places them goes on with the others in a moment: the hold says that there are more."""
    loads = [a_load() for _ in range(10)]
    hold = Hold(LIMITS)
    gate = Gate(hold, loads)
    for number, load in enumerate(loads):
        gate.put(f"{number}", load, 1.0, 0.0)
    for gone, more in ((3, True), (6, True), (9, True), (10, False)):
        assert hold.serve(loads, 0.1, lambda held: gate.offer(held, 0.1)) is more
        assert len(gate.gone) == gone


def test_short_ones_go_together() -> None:
    """As many as the pod is promised for a moment; and who has waited for room for too long goes without."""
    hold, load, full = Hold(LIMITS), a_load(), a_load()
    gate = Gate(hold, [load, full])
    before = busy(load, 9.0)
    for number in range(3):
        gate.put(f"{number}", load, 0.2, 0.0)
    assert gate.serve(0.1) == []
    load.first_byte(before, 0.15, False)
    assert gate.serve(0.15) == ["0", "1"]
    for ticket in gate.tickets:
        load.first_byte(ticket, 0.2, False)
    gate.put("cold", full, 1.0, 0.0, room=False)
    assert gate.serve(0.2) == ["2"] and gate.serve(30.0) == [] and gate.serve(60.0) == ["cold"]


def test_who_takes_long_finds_the_pod_idle() -> None:
    """Who comes with more than a pod is promised would share the steps of who is there, and delay its first token: it
    waits for that one's, while short ones go with it. An idle pod takes whoever comes."""
    hold, load = Hold(LIMITS), a_load()
    before = busy(load, 0.2)
    assert [hold.must_wait(load, cost_s, False, None, 0.0) for cost_s in (0.29, 0.31, 9.0)] == [False, True, True]
    gate = Gate(hold, [load])
    gate.put("long", load, 9.0, 0.0)
    assert gate.serve(0.1) == []
    load.first_byte(before, 0.15, False)
    assert gate.serve(0.15) == ["long"]


def test_who_waits_for_a_pod_that_has_left_is_placed_anew() -> None:
    """At once, wherever it is best then."""
    hold, load, other = Hold(LIMITS), a_load(), a_load()
    gate = Gate(hold, [load, other])
    gate.tickets += [busy(load, 9.0), busy(other, 9.0)]
    gate.put("waits", load, 1.0, 0.0)
    assert gate.serve(0.1) == []
    gate.loads.remove(load)
    seen: list[Held] = []
    hold.serve(gate.loads, 0.11, lambda held: seen.append(held) or False)
    assert [held.item for held in seen] == [held.item for held in hold]


def test_whose_prefill_has_changed_has_another_place() -> None:
    """By much: what a context costs that is cached by now. A little leaves it where it is."""
    for first_s, now_s, order in ((5.0, 1.0, ["a", "b"]), (3.1, 2.9, ["b", "a"])):
        hold, load = Hold(LIMITS), a_load()
        gate = Gate(hold, [load])
        gate.tickets.append(busy(load, 9.0))
        changed = hold.put(("a", load, now_s, True), "", 0, first_s, 0.0)
        gate.put("b", load, 3.0, 0.0)
        assert gate.serve(0.1) == [] and changed is not None and changed.cost_s == now_s
        assert served_in_order(gate, load, 2, 9.0) == order


def test_why_somebody_waits_is_told() -> None:
    """For room it waits wherever that will be, unless its pod is busy besides."""
    hold, free, full = Hold(LIMITS), a_load(), a_load()
    busy(full, 9.0)
    held = hold.put("a", "", 0, 1.0, 0.0)
    assert held is not None
    room, work = "what lives in the pod's cache leaves no room", "the pod is busy"
    for load, lacks_room, where, why in ((full, False, full, work), (free, True, None, room), (full, True, full, room)):
        assert hold.must_wait(load, 1.0, lacks_room, held, 0.1)
        assert (held.load, held.reason, held.placed_at) == (where, why, 0.1)


def test_whose_pod_stays_busy_is_offered_now_and_then() -> None:
    """As is who waits for room: something better may have come. The more wait, the more seldom."""
    for count, early, late in ((2, 0.34, 0.36), (200, 0.59, 0.61)):
        hold, loads = Hold(LIMITS._replace(waiting_max=200)), [a_load(), a_load()]
        gate, offered = Gate(hold, loads), [0]
        busy(loads[0], 50.0)
        for number in range(count):
            gate.put(f"{number}", loads[number % 2], 1.0, 0.0, room=number % 2 == 0)

        def offer(held: Held, now: float, gate: Gate = gate, offered: list[int] = offered) -> bool:
            offered[0] += 1
            return gate.offer(held, now)

        for now, times in ((0.1, 1), (0.2, 1), (early, 1), (late, 2)):
            while hold.serve(loads, now, lambda held, now=now, offer=offer: offer(held, now)):  # type: ignore[misc]
                pass
            assert offered[0] == times * count and gate.gone == []


def test_who_waits_for_a_full_pod_is_not_asked_again_and_again() -> None:
    """But in rounds, and as soon as somebody ends there."""
    hold, load = Hold(LIMITS._replace(pods=PodBounds(requests=1))), a_load()
    gate = Gate(hold, [load])
    ticket = load.admit(10, 0.0, tells=True)
    load.first_byte(ticket, 0.01, True)
    gate.put("a", load, 0.1, 1.0)
    assert gate.serve(1.0) == [] and hold.must_wait(load, 0.1, False, None, 1.0)
    asked: list[Held] = []
    assert not hold.serve([load], 1.1, lambda held: bool(asked.append(held))) and not asked
    load.release(ticket, 1.1)
    assert gate.serve(1.2) == ["a"]


def test_who_finds_no_place_to_wait_goes() -> None:
    """However busy its pod is, and whatever it costs there; nothing of it is kept."""
    hold, load = Hold(HoldLimits(0.5, 60.0, 1, PodBounds())), a_load()
    busy(load, 9.0)
    assert hold.put("first", "", 0, 1.0, 0.0) is not None and hold.put("second", "", 0, 1.0, 0.0) is None
    assert not hold.must_wait(load, 5.0, True, overdue(), 0.0)
    assert (hold.waiting, hold.flows) == (1, 1)


def test_flows_are_forgotten_when_nobody_waits() -> None:
    """There is nobody left to whom they had been unfair."""
    hold, load = Hold(LIMITS), a_load()
    gate = Gate(hold, [load])
    for number in range(10):
        gate.put("a", load, 1.0, 0.0, flow=f"flow {number}")
        served_in_order(gate, load, 1, 0.0)
        assert hold.flows == 1


def test_who_asked_for_nothing_saves_nothing_up() -> None:
    """A flow that comes again begins where the others are, however little it had before."""
    hold, load = Hold(LIMITS), a_load()
    gate = Gate(hold, [load])
    gate.tickets.append(busy(load, 2.0))
    for number in range(20):
        gate.put(f"a{number}", load, 1.0 + number / 100, 0.0, flow="a")
    gate.put("b", load, 0.8, 0.0, flow="b")
    assert served_in_order(gate, load, 8, 2.0)[0] == "b"
    for number in range(3):
        gate.put(f"b{number}", load, 1.0 + number / 100, 2.0, flow="b")
    assert {str(name)[0] for name in served_in_order(gate, load, 2, 2.0)} == {"a", "b"}
