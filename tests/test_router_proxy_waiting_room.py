"""Waiting for room: bounds, fair turns, priorities, and that who leaves is out, at whatever moment."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config.keys import ShownKey
from router.core.demand import Demand
from router.core.fair_queue import FairQueue, Waiting
from router.errors import Busy, Full, NoFitPod, Saturated
from router.metrics.metrics import Metrics
from router.proxy.attempts import Attempt, Dispatch, Request, Routing
from router.proxy.waiting_room import ClaimRules, Claims, Grants, WaitingRoom, flow_of, priority_of
from router.tokens.understanding import Understood
from router.upstream.pool import Upstream
from scorer.hold import Held
from tests.fakes.cores import MODEL, NOBODY, SERVED, VOID, core_of, decide, route
from tests.fakes.limits import upstream_limits
from tests.fakes.peers import until
from tests.fakes.prefix_stats import no_stats

ALL = ClaimRules(headers=True, priority_min=0)
"""Everything is believed."""


def put(queue: FairQueue, item: object, flow: str = "a", priority: int = 0, tokens: int = 1000) -> Waiting | None:
    """Queue something for the one model."""
    return queue.put(item, flow.encode(), priority, tokens, MODEL)


def taker(taken: list[object], room: int) -> Callable[[Waiting], bool]:
    """Takes as many as there is room for."""
    left = [room]

    def grant(entry: Waiting) -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        taken.append(entry.item)
        return True

    return grant


def served(queue: FairQueue, room: int = 1_000_000) -> list[object]:
    """What is let in, in its order."""
    taken: list[object] = []
    queue.serve(taker(taken, room))
    return taken


def test_one_flow_is_first_come_first_served() -> None:
    """However large its requests are, and however few go at a time."""
    queue = FairQueue(100, 100)
    for number in range(20):
        put(queue, number, tokens=(number % 3) * 5000)
    assert [served(queue, 1) for _ in range(20)] == [[number] for number in range(20)]
    assert (queue.waiting, queue.flows, served(queue)) == (0, 0, [])


def test_bounds() -> None:
    """So many in all, so many of one flow, over all its priorities; who is refused leaves no trace."""
    queue = FairQueue(5, 3)
    assert [put(queue, n, "a", priority=n) is not None for n in range(4)] == [True, True, True, False]
    assert [put(queue, n, "b") is not None for n in range(3)] == [True, True, False]
    assert put(queue, 9, "c") is None
    assert (queue.waiting, queue.flows) == (5, 4)
    assert len(served(queue)) == 5
    assert not any((queue._flows, queue._of_flow, queue._of_group)) and not any(queue._levels.values())
    assert put(FairQueue(0, 5), 1) is None


def test_a_busy_flow_keeps_nobody_waiting() -> None:
    """Who has one request does not wait for the fifty of another that came before."""
    queue = FairQueue(100, 100)
    for number in range(50):
        put(queue, number, "busy")
    put(queue, "one", "quiet")
    assert "one" in served(queue, 3)


def test_who_was_alone_has_no_more_than_its_turn() -> None:
    """A flow that was served alone, and for which there was no room at the last look, begins no second turn at once."""
    for alone in range(1, 12):
        queue = FairQueue(100, 100)
        for number in range(40):
            put(queue, ("busy", number), "busy", tokens=1)
        assert len(served(queue, alone)) == alone
        put(queue, ("quiet", 0), "quiet", tokens=1)
        order = [flow for flow, _ in served(queue)]  # type: ignore[misc]
        assert order.index("quiet") <= 4, alone


def test_like_shares_of_tokens() -> None:
    """A flow of large requests gets as many tokens as one of small ones, and so fewer requests."""
    queue = FairQueue(1000, 500)
    for number in range(400):
        put(queue, ("small", 1000), "small", tokens=1000)
        if number < 100:
            put(queue, ("large", 4000), "large", tokens=4000)
    tokens: Counter[str] = Counter()
    for flow, size in [served(queue, 1)[0] for _ in range(200)]:  # type: ignore[misc]
        tokens[flow] += size
    assert tokens["large"] == pytest.approx(tokens["small"], rel=0.1)


def test_priorities() -> None:
    """Lower goes first, whatever came before; what is beyond the levels counts as the last of them."""
    queue = FairQueue(100, 100)
    for number, priority in enumerate((0, 5, -3, 10**9, 7, -(10**9), -8)):
        put(queue, number, str(number), priority)
    assert served(queue) == [5, 6, 2, 0, 1, 3, 4]


def test_a_full_model_does_not_hold_another() -> None:
    """Those who wait for pods that are full are passed by those who do not, and keep their places."""
    queue = FairQueue(100, 100)
    for number in range(6):
        queue.put(number, b"a" if number < 4 else b"b", 0, 1000, "full" if number % 2 == 0 else "free")
    assert queue.holds("full") and queue.holds("free") and not queue.holds("other")
    taken: list[object] = []

    def grant(entry: Waiting) -> bool:
        if entry.group == "full":
            return False
        taken.append(entry.item)
        return True

    queue.serve(grant)
    assert sorted(taken) == [1, 3, 5]  # type: ignore[type-var]
    assert [item for item in served(queue) if item != 4] == [0, 2]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("prs"), st.sampled_from("abc"), st.integers(-9, 9), st.integers(0, 20_000)),
        max_size=80,
    )
)
def test_any_story(story: list[tuple[str, str, int, int]]) -> None:
    """Whatever comes and goes: all are let in once or removed, counts are right, and nothing is kept of who is gone."""
    queue, waiting = FairQueue(12, 5), {}
    for number, (what, flow, priority, size) in enumerate(story):
        if what == "p":
            entry = put(queue, number, flow, priority, size)
            assert (entry is not None) == (
                len(waiting) < 12 and sum(w.flow == flow.encode() for w in waiting.values()) < 5
            )
            if entry is not None:
                waiting[number] = entry
        elif what == "r" and waiting:
            entry = waiting.pop(sorted(waiting)[size % len(waiting)])
            queue.remove(entry)
            queue.remove(entry)
        elif what == "s":
            best = min((entry.priority for entry in waiting.values()), default=None)
            for item in served(queue, size % 3):
                assert waiting.pop(item).priority == best  # type: ignore[call-overload]
                best = min((entry.priority for entry in waiting.values()), default=None)
        assert queue.waiting == len(waiting)
        assert queue.flows == len({(entry.flow, entry.priority) for entry in waiting.values()})
    assert sorted(served(queue)) == sorted(waiting)  # type: ignore[type-var]
    assert not any((queue._flows, queue._of_flow, queue._of_group))


class Visitor:
    """A guest of a house with a number of places."""

    def __init__(self, house: House, name: str, flow: bytes = b"", priority: int = 0) -> None:
        self.house = house
        self.name = name
        self.flow = flow
        self.priority = priority
        self.tokens = 100
        self.group: str | None = MODEL

    def enter(self, held: Held | None = None) -> str:
        if self.house.busy and (held is None or held.since > 0.0):
            raise Busy("busy")
        if self.house.refusal is not None:
            raise self.house.refusal
        if not self.house.places:
            raise Full("full")
        self.house.places -= 1
        return self.name

    def leave(self, taken: str) -> None:
        assert taken == self.name
        self.house.places += 1


class House:
    """What admission guards."""

    def __init__(self, queue_max: int = 10, wait_max_s: float = 30.0) -> None:
        self.places = 0
        self.refusal: Exception | None = None
        self.busy = False  # the pod that is best for everybody
        self.core = core_of(admission={"queue_max": queue_max, "flow_queue_max": max(1, queue_max)})
        self.queue = self.core.queue
        self.results: Counter[str] = Counter()
        self.admission: WaitingRoom[str] = WaitingRoom(self.core, wait_max_s, self.results)

    async def visit(self, name: str, **more: int) -> asyncio.Task[str]:
        """Somebody who waits."""
        before = self.queue.waiting
        task = asyncio.create_task(self.admission.wait(Visitor(self, name, **more), Full("full")))  # type: ignore[arg-type]
        await until(lambda: task.done() or self.queue.waiting > before)
        return task


async def test_whoever_leaves_lets_in() -> None:
    """As many as there are places, in their order."""
    house = House()
    tasks = [await house.visit(name) for name in "abc"]
    house.places = 2
    house.admission.serve()
    assert await asyncio.gather(*tasks[:2]) == ["a", "b"]
    assert (house.queue.waiting, house.places, tasks[2].done()) == (1, 0, False)
    house.places = 1
    assert await tasks[2] == "c"  # nobody said so: it is looked at now and then
    assert house.results == {"granted": 3}


async def test_who_waits_for_a_pod_goes_when_it_may() -> None:
    """Placed again with whatever is given back, or now and then; where too many wait, at once; gone with its client."""
    house = House(queue_max=2)
    house.busy, house.places = True, 9
    hold = house.core.hold
    tasks = [asyncio.create_task(house.admission.wait(Visitor(house, name), Busy("busy"))) for name in "abc"]
    await until(lambda: tasks[2].done())
    assert (hold.waiting, tasks[2].result(), house.places) == (2, "c", 8)
    house.admission.serve()
    assert hold.waiting == 2
    tasks[0].cancel()
    await until(lambda: hold.waiting == 1)
    house.busy = False
    assert await tasks[1] == "b"
    assert (hold.waiting, house.places, sum(house.results.values())) == (0, 7, 0)


async def test_who_has_its_turn_may_wait_for_one_pod() -> None:
    """There is room, but not at the pod that is best for it: others take it; in the end it takes any."""
    for waits, asked in ((30.0, False), (0.1, True)):
        house = House(wait_max_s=waits)
        task = await house.visit("a")
        house.busy, house.places = True, 1
        house.admission.serve()
        assert (house.queue.waiting, house.core.hold.waiting, house.places, task.done()) == (0, 1, 1, False)
        house.busy = asked
        assert await task == "a"
        house.admission.serve()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert house.core.hold.waiting == 0
        assert (house.places, house.results) == (0, {"granted": 1})


async def test_full_and_too_long() -> None:
    """No place in the queue: refused at once. No room in time: refused then, and out of the queue."""
    house = House(queue_max=1, wait_max_s=0.05)
    first = await house.visit("a")
    with pytest.raises(Saturated, match=r"^full$"):
        await house.admission.wait(Visitor(house, "b"), Full("full"))
    with pytest.raises(Saturated, match=r"within 0\.05 s"):
        await first
    assert (house.queue.waiting, house.results) == (0, {"full": 1, "timeout": 1})


def test_when_it_is_worth_to_come_again() -> None:
    """When those who wait will have had their turns, by how fast these come of late; not at once, not in an hour."""
    turns = Grants()
    assert turns.again_s(0, 1000.0) == turns.again_s(7, 0.0) == 1
    turns.begin(1000.0)
    assert turns.again_s(3, 1002.0) == 6, "none has come yet"
    for number in range(1, 100):
        turns.come(1000.0 + 0.5 * number)
    assert (turns.again_s(9, 1049.5), turns.again_s(1, 1049.5), turns.again_s(1000, 1049.5)) == (5, 1, 60)
    assert turns.again_s(9, 1051.5) == 18, "none has come for a while"
    turns.begin(9000.0)
    assert turns.again_s(9, 9000.0) == 5, "that nobody waited says nothing"


async def test_who_is_refused_is_told_when_to_come_again() -> None:
    """By the turns that have come meanwhile."""
    house = House(queue_max=40)
    for number in range(8):
        task = await house.visit(f"passes {number}")
        house.places += 1
        assert await task
    tasks = [await house.visit(f"waits {number}") for number in range(40)]
    with pytest.raises(Saturated) as refused:
        await house.admission.wait(Visitor(house, "late"), Full("full"))
    seconds = refused.value.retry_after_s
    assert seconds is not None and 1 < seconds <= 60
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))


async def test_who_leaves_is_out() -> None:
    """A guest that is cancelled frees its place in the queue, and is never let in."""
    house = House()
    first, second = await house.visit("a"), await house.visit("b")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert house.queue.waiting == 1
    house.places = 1
    assert await second == "b"
    assert house.results == {"gone": 1, "granted": 1}


async def test_who_leaves_as_its_turn_comes() -> None:
    """Let in and cancelled in the same moment: its place is given back, and goes to the next."""
    house = House()
    first, second = await house.visit("a"), await house.visit("b")
    house.places = 1
    house.admission.serve()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == "b"
    assert (house.places, house.queue.waiting) == (0, 0)


async def test_who_has_just_left_takes_no_place() -> None:
    """Cancelled, and before it can go room comes: that is for the next."""
    house = House()
    first, second = await house.visit("a"), await house.visit("b")
    first.cancel()
    house.places = 1
    house.admission.serve()
    assert await second == "b"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (house.places, house.queue.waiting, house.results) == (0, 0, {"gone": 1, "granted": 1})


async def nothing_new(urgent: bool) -> None:
    """A look at what the pods serve that finds nothing."""


async def test_nobody_overtakes() -> None:
    """While others wait for the same pods, who comes waits too, even if there is room; a retry does not."""
    core = core_of(2, breaker={"failures_in_row": 1})
    metrics = Metrics(core, no_stats)
    admission: WaitingRoom[Attempt] = WaitingRoom(core, 1.0, metrics.admissions)
    upstreams = {name: Upstream(pod.address, upstream_limits()) for name, pod in core.fleet.pods.items()}
    dispatch = Dispatch(core, metrics, upstreams, admission, nothing_new, False, True, None)
    meaning = Understood(Demand(MODEL, 100))
    routing = Routing(dispatch, meaning, None, Request(b"id", "/v1/completions", 0.0, Claims(ALL, ())))
    assert routing.route(NOBODY).pod
    waits = core.queue.put("somebody", b"", 0, 100, MODEL)
    assert waits is not None
    with pytest.raises(Full):
        routing.route(NOBODY)
    assert routing.route(frozenset(("pod-0",))).pod == "pod-1"
    core.queue.remove(waits)
    before = core.in_flight
    routing.leave(routing.enter())
    assert core.in_flight == before
    assert not any(pod.breaker.tripped for pod in core.fleet.pods.values()), "it was no failure"


async def test_what_else_goes_wrong_is_told() -> None:
    """A guest that can't be served by now learns why."""
    house = House()
    task = await house.visit("a")
    house.refusal = NoFitPod("none")
    house.admission.serve()
    with pytest.raises(NoFitPod):
        await task
    assert (house.queue.waiting, house.results) == (0, {"refused": 1})


def test_whose_request_it_is() -> None:
    """The header, else a key; nothing: all of those are one."""
    key, other = (b"authorization", b"Bearer k"), (b"x-api-key", b"k2")
    assert flow_of([key, (b"x-warmroute-flow", b"team"), other]) == b"team"
    assert flow_of([other, key]) == b"Bearer k"
    assert flow_of([(b"x-warmroute-flow", b""), other]) == b"k2"
    assert flow_of([(b"accept", b"*")]) == b""


def test_its_session() -> None:
    """As one of some headers names it, of a bounded length; an empty name is none."""
    rules = ALL._replace(session_headers=(b"x-warmroute-session", b"x-session-id"))
    headers = [(b"x-session-id", b""), (b"x-session-id", b"a" * 1000), (b"x-warmroute-session", b"later")]
    assert Claims(rules, headers).session() == "a" * 256
    assert Claims(rules, headers[2:]).session() == "later"
    assert Claims(ALL, headers).session() is None


def test_what_is_not_believed() -> None:
    """The key that was shown is the flow, or the address where none is asked for; nobody is too urgent."""
    said = [(b"x-warmroute-flow", b"mine"), (b"authorization", b"Bearer invented"), (b"x-warmroute-priority", b"-8")]
    rules = ClaimRules(headers=False, priority_min=-1)
    shown, unknown = Claims(rules, said, ShownKey(b"digest"), "10.0.0.1"), Claims(rules, said, None, "10.0.0.1")
    assert (shown.flow(), shown.urgency()) == (b"digest", -1)
    assert unknown.flow() == b"10.0.0.1"
    assert Claims(rules, (), None, "", 5).urgency() == 5
    assert Claims(rules, (), None, "", -5).urgency() == -1
    bounds = [Claims(rules, said, ShownKey(b"", bound)).urgency() for bound in (None, -8, -4, 0, 7)]
    assert bounds == [-1, -8, -4, 0, 7], "a key may have a bound of its own"
    assert Claims(ALL, said, ShownKey(b"", 0)).urgency() == 0
    believed = Claims(ALL, said, ShownKey(b"digest"), "10.0.0.1")
    assert (believed.flow(), believed.urgency()) == (b"mine", -8)


@pytest.mark.parametrize(
    ("header", "body", "expected"),
    [
        (b"-2", 5, -2),
        (b"batch", -5, 7),
        (b"Batch", 5, 7),
        (None, 5, 5),
        (b"x", 5, 0),
        (b"9" * 5000, 5, 5),
        (None, "5", 0),
        (None, None, 0),
        (None, 1e9, 0),
    ],
)
def test_its_priority(header: bytes | None, body: object, expected: int) -> None:
    """The header, else the body's; what is no whole number is 0. `batch` yields to all others."""
    headers = [] if header is None else [(b"x-warmroute-priority", header)]
    assert priority_of(headers, body) == expected


@pytest.mark.parametrize(
    ("section", "bounds", "taken"),
    [
        ("gateway", {"requests_max": 3}, 3),
        ("admission", {"pod_requests_max": 2}, 4),
        ("admission", {"pod_prefill_tokens_max": 150}, 4),
        ("admission", {"prefill_tokens_max": 250}, 3),
        ("admission", {}, 50),
    ],
)
def test_bounds_of_the_core(section: str, bounds: dict[str, int], taken: int) -> None:
    """New requests are taken up to each bound, over two pods; a retry is not held up by any; /score does not mind."""
    core = core_of(2, **{section: bounds})
    placed = []
    with pytest.raises(Full) if taken < 50 else pytest.MonkeyPatch.context():
        while len(placed) < 50:
            placed.append(route(core, Demand(MODEL, 100), NOBODY, 0.0))
    assert len(placed) == taken
    assert decide(core, Demand(MODEL, 100), NOBODY, 0.0)
    core.finish(route(core, Demand(MODEL, 100), frozenset(("pod-0",)), 0.0), VOID, 0.0)
    core.finish(placed[0], SERVED, 0.0)
    assert route(core, Demand(MODEL, 100), NOBODY, 0.0).pod is placed[0].pod or taken == 50
