"""Long prompts in pieces: each has its own place in its pod's line, and nothing is foretold of what is not sent yet."""

from __future__ import annotations

from typing import Any, cast

import pytest

from indexer.events import BlockStored
from router.core.decision import Core
from router.core.demand import Demand
from router.core.fleet import RankId
from router.errors import Busy
from router.metrics.metrics import Metrics
from router.pieces import InPieces, Pieces
from router.proxy.attempts import Attempt, Dispatch, Request, Routing
from router.proxy.preparation import Preparations
from router.proxy.waiting_room import ClaimRules, Claims, WaitingRoom
from router.tokens.encoder import Encoder
from router.tokens.understanding import Understood
from router.upstream.pool import Upstream
from scorer.hold import Held
from tests.fakes.cores import NOBODY, SERVED, SIZE, VOID, asked, core_of, counted, held, route, tokens_of
from tests.fakes.limits import upstream_limits
from tests.fakes.prefix_stats import no_stats

PIECE = 1024
LONG = 5 * PIECE + 100
ENABLED = {"pieces": {"enabled": True, "tokens": PIECE}}
_TALKS = 70  # prompts, after which it is known what is usual


def stored(core: Core, pod: str, seed: int, start: int, end: int) -> None:
    """The pod says that it has computed these tokens of a prompt."""
    hashes = [seed * 10_000 + block for block in range(start // SIZE, end // SIZE)]
    parent = seed * 10_000 + start // SIZE - 1 if start else None
    core.index.apply(RankId(pod, 0), BlockStored(hashes, parent, tokens_of(seed, end)[start:], SIZE, "gpu"))


def talked(pods: int = 2, continues: bool = True, **sections: Any) -> Core:
    """A core that knows what is usual, and its pods' speeds: most prompts continue others, or none does."""
    given = {"index": {"blocks_max": 50_000}, "scoring": ENABLED, "admission": {"look_ahead": 0.02}}
    core, now = core_of(pods, **given, **sections), 0.0
    for number in range(_TALKS):
        now += 10.0
        seed, length = (900, 512 + 256 * (number % 8)) if continues else (901 + number, 512)
        placement = route(core, asked(core, seed, length, tells_prefill=True), NOBODY, now)
        core.first_byte(placement, True, now + 0.1)
        core.finish(placement, SERVED, now + 0.2)
    assert core.chains.are_usual is continues
    return core


def cold(core: Core, seed: int = 1, length: int = LONG, **more: Any) -> Demand:
    """A long prompt of which nothing is held."""
    return asked(core, seed, length, is_alone=True, **more)


def begun(core: Core, pieces: Pieces, now: float = 1000.0, **more: Any) -> InPieces:
    """A long prompt whose first piece is at its pod."""
    one = pieces.begin(route(core, cold(core, **more), NOBODY, now), now)
    assert one is not None
    return one


def at_rest(core: Core) -> None:
    """Nothing is in flight, and nothing is to come."""
    assert [(rank.load.requests, rank.load.prefill_tokens) for rank in core.fleet.ranks] == [(0, 0)] * 2
    assert (core.in_flight, core.hold.rests) == (0, {})


def test_each_piece_has_its_own_place() -> None:
    """A piece is what the pod has to compute, no more; in the end the request finds them, and foretells as much."""
    core = talked()
    pieces, now = Pieces(core), 1000.0
    one = begun(core, pieces)
    placement, load, pod = one.placement, one.placement.rank.load, one.placement.rank.id.pod
    ends = []
    while not one.whole:
        ends.append(one.end)
        assert (load.requests, load.prefill_tokens) == (1, PIECE)
        assert held(core, pod, 1, LONG) == one.end // SIZE, "what is not sent yet is foretold to nobody"
        assert core.hold.rests[load] > 0.0
        stored(core, pod, 1, one.start, one.end)
        now += 1.0
        pieces.computed(one, now)
        assert load.prefill_tokens == 0
        pieces.turn(one, None, now)
    assert ends == [PIECE, 2 * PIECE, 3 * PIECE, 4 * PIECE]
    assert (placement.decision.pieces, placement.promised, load.prefill_tokens) == (4, 4 * PIECE, LONG - 4 * PIECE)
    stored(core, pod, 1, 4 * PIECE, LONG)
    core.first_byte(placement, True, now + 1.0)
    core.finish(placement, counted(LONG, 4 * PIECE), now + 2.0)
    assert placement.rank.feed is not None
    counts = placement.rank.feed.counts
    assert (counts.predictions_equal, counts.predictions_over, counts.predictions_under) == (1, 0, 0)
    assert (core.in_flight, core.hold.rests, held(core, pod, 1, LONG)) == (0, {}, LONG // SIZE)


def test_speeds_are_learned_of_pieces() -> None:
    """Each piece is measured as the prefill of so many tokens that it is."""
    core = talked()
    pieces = Pieces(core)
    one, now = begun(core, pieces), 1000.0
    rate = one.placement.rank.load.rate
    samples = rate.fleet.samples
    while not one.whole:
        stored(core, one.placement.rank.id.pod, 1, one.start, one.end)
        now += PIECE / 4000
        pieces.computed(one, now)
        pieces.turn(one, None, now)
    assert rate.fleet.samples == samples + 4


def test_who_is_short_goes_between() -> None:
    """Between two pieces the pod is free for others; who would take long waits until all of them are there."""
    core = talked(1)
    pieces = Pieces(core)
    one = begun(core, pieces)
    load = one.placement.rank.load
    with pytest.raises(Busy):
        route(core, asked(core, 2, 64, tells_prefill=True), NOBODY, 1000.0)
    pieces.computed(one, 1001.0)
    short = route(core, asked(core, 2, 64, tells_prefill=True), NOBODY, 1001.0)
    with pytest.raises(Busy):
        route(core, cold(core, 3), NOBODY, 1001.0)
    core.finish(short, SERVED, 1001.1)
    with pytest.raises(Busy):
        route(core, cold(core, 3), NOBODY, 1001.2)
    pieces.rest(one, 1001.2)
    core.finish(one.placement, SERVED, 1009.0)
    assert not load.requests
    assert pieces.begin(route(core, cold(core, 3), NOBODY, 1009.0), 1009.0) is not None


def test_a_piece_waits_for_its_turn() -> None:
    """Who came between goes on; the next piece is held until the pod can soon begin with it."""
    core = talked(1)
    pieces = Pieces(core)
    one = begun(core, pieces)
    pieces.computed(one, 1001.0)
    between = route(core, asked(core, 2, PIECE, tells_prefill=True), NOBODY, 1001.0)
    with pytest.raises(Busy) as busy:
        pieces.turn(one, None, 1001.0)
    waits = core.hold.put("it", b"", 0, busy.value.cost_s, 1001.0)
    assert waits is not None

    def offer(entry: Held) -> bool:
        try:
            pieces.turn(one, entry, 1001.01)
        except Busy:
            return False
        return True

    core.serve_held(1001.01, offer)
    assert core.hold.waiting == 1 and waits.load is between.rank.load
    core.first_byte(between, True, 1001.01)
    core.serve_held(1001.01, offer)
    assert (core.hold.waiting, one.end) == (0, 2 * PIECE)


@pytest.mark.parametrize("piece_is_there", [True, False], ids=["at the pod", "between two"])
def test_its_client_leaves(piece_is_there: bool) -> None:
    """All is given back, once, wherever it was."""
    core = talked()
    pieces = Pieces(core)
    one = begun(core, pieces)
    if not piece_is_there:
        pieces.computed(one, 1000.5)
    pieces.over(one)
    core.finish(one.placement, VOID, 1001.0)
    core.finish(one.placement, VOID, 1002.0)
    at_rest(core)
    next_one = begun(core, pieces, 1003.0, seed=2)
    pieces.over(one)
    assert list(core.hold.rests) == [next_one.placement.rank.load], "what is another's stays"


def test_the_rest_goes_whole() -> None:
    """Where a piece has failed, all that is left is the pod's to do now."""
    core = talked()
    pieces = Pieces(core)
    one = begun(core, pieces)
    pieces.rest(one, 1001.0)
    load = one.placement.rank.load
    assert (one.whole, one.end, load.requests, load.prefill_tokens) == (True, LONG, 1, LONG - one.start)
    core.finish(one.placement, SERVED, 1009.0)
    at_rest(core)


@pytest.mark.parametrize(
    "more",
    [
        {"reads_cache": False},
        {"asks_full_report": True},
        {"reason": "its images are not known"},
        {"length": PIECE * 3 // 2},
    ],
    ids=["reads no cache", "full report", "not known", "short"],
)
def test_what_goes_whole(more: dict[str, Any]) -> None:
    """A prompt that finds nothing of its pieces, of which the tokens are not known, or that has few."""
    core = talked()
    assert Pieces(core).begin(route(core, cold(core, **more), NOBODY, 1000.0), 1000.0) is None


def test_where_all_go_whole() -> None:
    """Where prompts do not continue others, where pods tell nothing, and while many long ones wait."""
    core = talked(continues=False)
    assert Pieces(core).begin(route(core, cold(core), NOBODY, 1000.0), 1000.0) is None
    core = talked(feeds=False)
    assert Pieces(core).begin(route(core, cold(core), NOBODY, 1000.0), 1000.0) is None
    core = talked()
    for number in range(2):
        core.hold.put(number, b"", 0, 9.0, 980.0)
    pieces = Pieces(core)
    one = pieces.begin(route(core, cold(core, 1), NOBODY, 985.0), 985.0)
    assert one is not None
    pieces.rest(one, 985.0)
    assert pieces.begin(route(core, cold(core, 2), NOBODY, 995.0), 995.0) is None


def test_whose_tokens_they_are() -> None:
    """Other ids than those that were decided by are not sent."""
    core = talked()
    pieces = Pieces(core)
    one = begun(core, pieces)
    assert pieces.are_of(one, tokens_of(1, LONG))
    assert not pieces.are_of(one, tokens_of(1, LONG - 1))
    assert not pieces.are_of(one, tokens_of(2, LONG))


async def test_who_leaves_as_its_turn_comes() -> None:
    """A request that was placed, and whose client had left by then, keeps no other from the pod."""
    core = talked()
    metrics = Metrics(core, no_stats)
    room: WaitingRoom[Attempt] = WaitingRoom(core, 1.0, metrics.admissions)
    upstreams = {name: Upstream(pod.address, upstream_limits()) for name, pod in core.fleet.pods.items()}
    preparations = Preparations(Pieces(core), cast(Encoder, None), room, lambda: 1000.0)
    dispatch = Dispatch(core, metrics, upstreams, room, nothing_new, False, True, None, preparations)
    claims = Claims(ClaimRules(True, 0), ())
    routing = Routing(dispatch, Understood(cold(core)), None, Request(b"id", "/v1/completions", 0.0, claims))
    attempt = routing.enter()
    assert attempt.preparation is not None and core.hold.rests
    routing.leave(attempt)
    at_rest(core)
    routing = Routing(dispatch, Understood(cold(core, 2)), None, Request(b"id", "/v1/completions", 0.0, claims))
    assert routing.route(frozenset(("pod-1",))).preparation is None, "a retry goes whole"


async def nothing_new(urgent: bool) -> None:
    """A look at what the pods serve that finds nothing."""
