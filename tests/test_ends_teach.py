"""What the ends of requests teach the core: whose breaker opens or closes, who starts slowly, which reports prove."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from indexer.events import BlockStored
from router.core.decision import Core
from router.core.demand import BreakerChange, Demand, End
from router.core.fleet import Pod, Rank, RankId
from router.core.token_states import Origin, TokenizerState
from router.errors import Busy
from router.prompts.prompt import parse
from router.tokens.understanding import shape_of
from scorer.cost import PrefillRate
from scorer.load import PodLoad
from scorer.pick import scored
from tests.fakes.cores import (
    MODEL,
    NOBODY,
    SERVED,
    SIZE,
    VOID,
    asked,
    core_of,
    counted,
    decide,
    one_agent,
    route,
    store,
    tokens_of,
)


def ends(core: Core, end: End, times: int, now: float = 0.0) -> list[BreakerChange | None]:
    """So many requests at pod-0 end so."""
    here = frozenset({"pod-0"})
    return [core.finish(route(core, asked(core, seed, pods=here), NOBODY, now), end, now) for seed in range(times)]


def test_which_ends_open_a_breaker() -> None:
    """Having too much to do is no failure. An error of its own is half of one: the request may be the cause."""
    limits = {"failures_in_row": 3, "requests_min": 10, "failure_share": 0.5}
    for end, opens_after in (
        (End("refused", 429), None),
        (End("served", 429), None),
        (End("served", 404), None),
        (End("void"), None),
        (End("full"), None),
        (End("served", 500), 10),
        (End("served", 502), 3),
        (End("refused", 503), 3),
        (End("failed"), 3),
        (End("cut", 200), 3),
        (End("cut", 500), 3),
    ):
        core = core_of(3, breaker=limits)
        opened = [change is not None and change.open for change in ends(core, end, 12)]
        assert (opened.index(True) + 1 if True in opened else None) == opens_after, end


def tripped(core: Core) -> Pod:
    """A pod whose requests have failed, some time ago."""
    for at in range(3):
        core.finish(route(core, asked(core, at), frozenset({"pod-1", "pod-2"}), 0.0), End("failed"), 0.0)
    pod = core.fleet.pods["pod-0"]
    assert pod.breaker.tripped
    return pod


def test_a_first_byte_closes_a_breaker() -> None:
    """A stream may go on for minutes: who served its beginning is back at once, and its end is no second proof."""
    core = core_of(3, breaker={"failures_in_row": 3, "requests_min": 100}, scoring={"slow_start": 10})
    pod = tripped(core)
    placed = route(core, asked(core, 7, pods=frozenset({"pod-0"})), NOBODY, 500.0)
    assert core.first_byte(placed, True, 501.0) == BreakerChange("pod-0", False, "a request was served")
    assert not pod.breaker.tripped and pod.slow_until == 511.0
    assert core.finish(placed, SERVED, 502.0) is None and pod.slow_until == 511.0


def test_an_answer_that_comes_whole_closes_a_breaker() -> None:
    """And is told, as it has no first byte that says so."""
    core = core_of(3, breaker={"failures_in_row": 3, "requests_min": 100})
    pod = tripped(core)
    placed = route(core, asked(core, 7, pods=frozenset({"pod-0"})), NOBODY, 500.0)
    assert core.finish(placed, SERVED, 501.0) == BreakerChange("pod-0", False, "a request was served")
    assert not pod.breaker.tripped


def test_a_refusal_that_is_passed_on_closes_no_breaker() -> None:
    """No other pod was there, so the client gets it: its first byte is no proof."""
    core = core_of(3, breaker={"failures_in_row": 3, "requests_min": 100})
    pod = tripped(core)
    placed = route(core, asked(core, 7, pods=frozenset({"pod-0"})), NOBODY, 500.0)
    core.finish(placed, End("disputed", 401), 501.0)
    assert core.first_byte(placed, False, 501.1) is None and pod.breaker.tripped


def test_a_first_byte_is_no_end() -> None:
    """Of a pod that fails behind it, again and again."""
    core = core_of(3, breaker={"failures_in_row": 3, "requests_min": 100})
    for seed in range(3):
        placed = route(core, asked(core, seed, pods=frozenset({"pod-0"})), NOBODY, 0.0)
        assert core.first_byte(placed, True, 0.1) is None
        core.finish(placed, End("cut", 200), 0.2)
    assert core.fleet.pods["pod-0"].breaker.tripped


def prices(core: Core, now: float) -> dict[str, float]:
    """Of a prompt that nobody has, by pod."""
    decision = decide(core, asked(core, 9), NOBODY, now)
    return {decision.ranks[one.candidate.number].id.pod: one.price for one in scored(decision.pick)}


def joins(core: Core, name: str, samples: int = 0) -> Rank:
    """A pod that comes later, whose speed was seen so often."""
    pod = Pod(name, f"http://{name}", healthy=True, block_size=SIZE)
    load = PodLoad(PrefillRate(1000))
    for _ in range(samples):
        load.rate.learn(1000, 1.0)
    pod.ranks.append(Rank(RankId(name, 0), pod, load, None))
    core.fleet.join(pod)
    core.fleet.learned_models(pod, [{"id": MODEL}])
    return pod.ranks[0]


def test_who_joins_starts_slowly() -> None:
    """Its price falls to what it is worth, once."""
    core = core_of(1, scoring={"slow_start": 10, "slow_start_factor": 3.0})
    decide(core, asked(core, 1), NOBODY, 0.0)
    joins(core, "late")
    dearer = {}
    for now in (100.0, 105.0, 109.0, 110.0, 111.0):
        price = prices(core, now)
        dearer[now] = price["late"] / price["pod-0"]
    assert list(dearer.values()) == pytest.approx([3.0, 2.0, 1.2, 1.0, 1.0])


def test_whose_speed_is_not_known_is_tried_at_once() -> None:
    """With one request, among pods whose speeds are known."""
    core = core_of(0, scoring={"slow_start": 10, "slow_start_factor": 3.0})
    joins(core, "old", samples=20)
    decide(core, asked(core, 1), NOBODY, 0.0)
    joins(core, "known", samples=20)
    new = joins(core, "new")
    price = prices(core, 100.0)
    assert price["known"] / price["old"] == pytest.approx(3.0) and price["new"] / price["old"] == pytest.approx(1.0)
    ticket = new.load.admit(0, 100.0)
    price = prices(core, 100.0)
    assert price["new"] / price["old"] > 2.9
    new.load.release(ticket, 100.0)
    assert prices(core, 100.0)["new"] / price["old"] == pytest.approx(1.0)


def test_an_adapter_is_loaded_where_it_was_used() -> None:
    """Elsewhere its load is waited for; and what is in use keeps its slot until its requests have ended."""
    core = core_of(2, scoring={"adapter_load": 5.0})
    for pod in core.fleet.pods.values():
        core.fleet.learned_models(pod, [{"id": MODEL}, *({"id": name, "parent": MODEL} for name in ("a", "b"))])
    placed = route(core, Demand("a", 100), NOBODY, 0.0)
    core.first_byte(placed, True, 0.1)
    backlogs = {c.number: c.backlog_s for c in decide(core, Demand("a", 100), NOBODY, 9.0).pick.candidates}
    assert backlogs == {n: 0.0 if rank is placed.rank else 5.0 for n, rank in enumerate(core.fleet.ranks)}
    assert [c.backlog_s for c in decide(core, Demand(MODEL, 100), NOBODY, 9.0).pick.candidates] == [0.0, 0.0]
    placed.rank.adapters.told((), 1)
    assert not placed.rank.adapters.takes("b")
    core.finish(placed, SERVED, 9.0)
    assert placed.rank.adapters.takes("b")


def test_sessions_that_live_are_known_by_name() -> None:
    """As the client names them, beside the body or in it; in use until their requests have ended."""
    core = core_of(1)
    for named, demand in (("beside", Demand(MODEL, 8, session="in")), (None, Demand(MODEL, 8, session="in"))):
        placed = core.route(demand, core.look_up(demand, None, 0.0), NOBODY, 0.0, session=named)
        session = placed.session
        assert session is not None and session.name == (named or "in") and session.in_flight == 1
        core.finish(placed, SERVED, 1.0)
        assert session.in_flight == 0
    nameless = route(core, Demand(MODEL, 8), NOBODY, 2.0)
    assert nameless.session is None and [each.name for each in core.sessions.newest()] == ["in", "beside"]


def test_another_policy_beside() -> None:
    """What it would have picked is kept, for each decision that was acted on, whatever is known of the prompt."""
    core = core_of(2, scoring={"shadow": "session"})
    shadow = core.shadow
    assert shadow is not None
    demands = [Demand(MODEL, 50), asked(core, 1), Demand(MODEL, 50, session="a")]
    for number, demand in enumerate(demands):
        assert decide(core, demand, NOBODY, 0.0).shadow is None
        assert route(core, demand, NOBODY, 0.0).decision.shadow in (0, 1)
        assert shadow.picks == number + 1


def test_policies_that_go_by_what_they_sent_remember_it() -> None:
    """Where their own history says that a prompt was, it goes again, though everyone has as much to do."""
    core = core_of(4, scoring={"policy": "approximate"})
    for seed in range(8):
        went = [route(core, asked(core, seed, 640), NOBODY, 0.0) for _ in range(2)]
        for placed in went:
            core.finish(placed, End("void"), 0.0)
        assert went[0].pod is went[1].pod and core.decisions[-1].reason == "was sent the longest prefix"


def test_who_waits_stands_behind_what_is_planned_before_it() -> None:
    """And only there."""
    core = core_of(2, admission={"look_ahead": 0.5})
    loads = list(core.loads)
    core.hold.planned[loads[0]] = 20.0
    waits = core.hold.put(None, "", 0, 0.1, 0.0)
    demand = asked(core, 1)
    placed = core.route(demand, core.look_up(demand, None, 0.0), NOBODY, 0.0, held=waits)
    assert placed.rank.load is loads[1]
    assert [candidate.backlog_s for candidate in placed.decision.pick.candidates] == [20.0, 0.0]


def test_what_lives_needs_room_to_grow() -> None:
    """A new context waits where there is none beside what lives; nobody waits for an empty cache."""
    core, pod = one_agent()
    left = 40_000 - core.working_set(60.0)[0]
    growth = round(core.chains.growth)
    assert 0 < 3 * growth < left, "of the agent's context, and of the new one"
    with pytest.raises(Busy):
        route(core, asked(core, 3, left - growth, tells_prefill=True), NOBODY, 60.0)
    core.finish(route(core, asked(core, 3, left - 3 * growth, tells_prefill=True), NOBODY, 60.0), SERVED, 61.0)
    assert route(core, asked(core, 2, 50_000, tells_prefill=True), NOBODY, 900.0).pod is pod


def test_who_asks_for_a_full_report_is_answered_with_no_copies() -> None:
    """As long as such a request is on its way, and for the grace that its events have; others change nothing."""
    core = core_of(1)
    rank = core.fleet.pods["pod-0"].ranks[0]
    feed = rank.feed
    assert feed is not None
    batches = 0

    def left_of_two(seed: int, now: float) -> int:
        """Blocks that the pod holds after it has told twice of a store, and once that it has removed it."""
        nonlocal batches
        hashes = [100 * seed + block for block in range(10)]
        stored = ["BlockStored", hashes, None, tokens_of(seed).tolist(), SIZE]
        for event in (stored, stored, ["BlockRemoved", hashes]):
            feed.frame(batches, msgspec.msgpack.encode([now, [event]]), now)
            batches += 1
        return core.index.holding(rank.id).gpu

    core.finish(route(core, asked(core, 1), NOBODY, 0.0), SERVED, 1.0)
    placed = route(core, asked(core, 2, asks_full_report=True), NOBODY, 2.0)
    assert left_of_two(3, 2.0) == 0
    core.finish(placed, SERVED, 3.0)
    assert left_of_two(4, 3.0) == 0
    assert left_of_two(5, 99.0) == 10


def test_pods_that_report_nothing_are_counted_for_their_counters() -> None:
    """What was asked of them and foretold; an old one that reports leaves out what is 0."""
    core = core_of(1)
    store(core, "pod-0", 1)
    pod = core.fleet.pods["pod-0"]
    demand = asked(core, 1, 161, is_alone=True)
    core.finish(route(core, demand, NOBODY, 0.0), counted(161, None), 0.0)
    assert (pod.evidence.usage, pod.evidence.asked_tokens, pod.evidence.predicted_tokens) == (False, 161, 160)
    core.finish(route(core, demand, NOBODY, 0.0), counted(161, 160), 0.0)
    assert pod.evidence.usage and pod.evidence.asked_tokens == 161
    core.finish(route(core, demand, NOBODY, 0.0), counted(161, None), 0.0)
    assert pod.hides_zero and pod.evidence.usage and pod.evidence.asked_tokens == 161
    pod.version = "0.28.0"
    core.finish(route(core, demand, NOBODY, 0.0), counted(161, None), 0.0)
    assert not pod.hides_zero and not pod.evidence.usage and pod.evidence.asked_tokens == 322


def test_less_than_foretold_is_no_error_before_events_had_their_time() -> None:
    """Of a full pod: another report that comes meanwhile judges nothing of it."""
    core = core_of(2)
    pod = core.fleet.pods["pod-0"]
    pod.blocks = 10
    feed = pod.ranks[0].feed
    assert feed is not None
    store(core, "pod-0", 1)
    demand, here = asked(core, 1, 161, is_alone=True), frozenset({"pod-1"})
    core.finish(route(core, demand, here, 1.0), counted(161, 0), 1.0)
    core.finish(route(core, demand, here, 1.1), counted(161, 160), 1.1)
    assert feed.counts.told().get("predictions over", 0) == 0
    core.index.apply(pod.ranks[0].id, BlockStored([5000], None, np.full(SIZE, 7, np.uint32), SIZE))
    core.finish(route(core, demand, here, 90.0), counted(161, 160), 90.0)
    assert feed.counts.told().get("predictions over", 0) == 1


@pytest.mark.parametrize("gone", [True, False])
def test_what_a_pod_gave_up_meanwhile_is_no_error(gone: bool) -> None:
    """Its events say so, between the decision and its own look; less than foretold without that is one."""
    core = core_of(1)
    feed = core.fleet.pods["pod-0"].ranks[0].feed
    assert feed is not None
    hashes = list(range(10))
    stored = ["BlockStored", hashes, None, tokens_of(1).tolist(), SIZE]
    feed.frame(0, msgspec.msgpack.encode([1.0, [stored]]), 1.0)
    placed = route(core, asked(core, 1, 161, is_alone=True), NOBODY, 2.0)
    assert placed.promised == 160
    if gone:
        feed.frame(1, msgspec.msgpack.encode([3.0, [["BlockRemoved", hashes]]]), 3.0)
    core.finish(placed, counted(161, 0), 4.0)
    assert feed.counts.predictions_over == (not gone)


def test_what_another_request_was_to_compute_may_not_be_there_yet() -> None:
    """Where both were sent together, that the pod had nothing cached is no error."""
    core = core_of(1)
    feed = core.fleet.pods["pod-0"].ranks[0].feed
    assert feed is not None
    demand = asked(core, 1, 161, is_alone=True)
    first, second = (route(core, demand, NOBODY, 1.0) for _ in range(2))
    assert second.promised == 160
    core.finish(second, counted(161, 0), 2.0)
    assert feed.counts.predictions_over == feed.counts.predictions_equal == 0
    core.finish(first, counted(161, 0), 2.0)
    assert feed.counts.predictions_equal == 1 and feed.counts.predictions_over == 0
    core.finish(route(core, demand, NOBODY, 3.0), counted(161, 0), 3.5)
    assert feed.counts.predictions_over == 1, "now it should have been"


def test_an_answer_that_broke_off_proves_no_tokens() -> None:
    """Though it had begun: the pod may hold what it has computed before, not what it was asked for."""
    core, state = core_of(1), TokenizerState()
    store(core, "pod-0", 1)
    shape = shape_of(parse("/v1/chat/completions", b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'))
    for now, end, confirmed in ((0.0, VOID, 0), (100.0, SERVED, 1)):
        placed = route(core, asked(core, 1, origin=Origin(state, shape, MODEL, None, None)), NOBODY, now)
        core.first_byte(placed, False, now + 0.1)
        core.finish(placed, end, now + 0.2)
        assert core.proof.judge(now + 50.0) == [] and state.confirmed == confirmed


def test_a_report_of_blocks_that_have_another_size_by_now() -> None:
    """It waited for events of the pod, which was started anew meanwhile: it says nothing of what is known now."""
    core = core_of(1)
    pod = core.fleet.pods["pod-0"]
    pod.blocks = 10
    feed = pod.ranks[0].feed
    assert feed is not None
    store(core, "pod-0", 1)
    core.finish(route(core, asked(core, 1, 161, is_alone=True), NOBODY, 1.0), counted(161, 0), 1.0)
    pod.block_size = 2 * SIZE
    keys = {2 * SIZE: core.space.chain(tokens_of(2, 161), 2 * SIZE)}
    other = Demand(MODEL, 161, keys=keys, is_alone=True)
    core.finish(route(core, other, NOBODY, 90.0), counted(161, 0), 90.0)
    assert (feed.counts.predictions_over, feed.counts.predictions_equal) == (0, 1)
