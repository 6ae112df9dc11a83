"""What pods report of their caches, as proof for or against what is believed of them."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from indexer.events import BlockStored
from indexer.feed import DOUBTED, UNPROVEN
from indexer.trust import PROOFS, WRONG_MIN
from router.config.settings import Config
from router.core.cards import Evidence
from router.core.decision import Core
from router.core.demand import Placement
from router.core.fleet import Pod
from router.endpoints.answers import decision_answer
from router.prompts.prompt import parse
from scorer.pick import scored
from tests.fakes.cores import (
    NOBODY,
    SERVED,
    SIZE,
    asked,
    core_of,
    counted,
    decide,
    joined_late,
    route,
    store,
    tokens_of,
)
from tests.fakes.peers import until
from tests.fakes.probes import Told, probed


def _served(core: Core, seed: int, count: int = 161, **more: Any) -> Placement:
    placed = route(core, asked(core, seed, count, **{"is_alone": True, **more}), NOBODY, 0.0)
    core.finish(placed, SERVED, 0.0)
    core.index.expire(1e6)
    return placed


def _counts(core: Core) -> dict[str, int]:
    feed = core.fleet.pods["pod-0"].ranks[0].feed
    assert feed is not None
    return {result: feed.counts.told().get(f"predictions {result}", 0) for result in ("equal", "over", "under")}


def test_reports_are_told_apart() -> None:
    """Right, too high, too low: of a pod that holds 160 tokens of a prompt."""
    core = core_of(1)
    store(core, "pod-0", 1)
    for reported in (160, 160, 0, 320):
        core.finish(_served(core, 1, 400), counted(400, reported), 0.0)
    assert _counts(core) == {"equal": 2, "over": 1, "under": 1}


def test_an_error_that_persists_degrades_the_feed() -> None:
    """And its history is asked for again, once; when the pod's reports are as foretold, it is exact."""
    core = core_of(1)
    store(core, "pod-0", 1)
    feed = core.fleet.pods["pod-0"].ranks[0].feed
    assert feed is not None and feed.state == "exact"
    for _ in range(WRONG_MIN):
        core.finish(_served(core, 1), counted(161, 0), 0.0)
    assert feed.state == "degraded" and feed.reasons == [DOUBTED]
    assert feed.mend(5.0) == 0 and feed.mend(5.0) is None
    assert decide(core, asked(core, 1, 161), NOBODY, 0.0).matched_tokens == 0, "nobody believes it"
    feed.replay_ended(True, 5.0)
    assert decide(core, asked(core, 1, 161), NOBODY, 0.0).matched_tokens == 0, "the pod has none"
    for _ in range(WRONG_MIN):
        core.finish(_served(core, 1), counted(161, 0), 0.0)
    assert feed.state == "exact" and feed.counts.resyncs == 1


def test_what_is_no_proof() -> None:
    """Several prompts or answers, other tokens than ours, our own guess that the pod will hold a block."""
    core = core_of(1)
    core.finish(_served(core, 1, is_alone=False), counted(161, 160), 0.0)
    core.finish(_served(core, 2), counted(162, 160), 0.0)
    first = route(core, asked(core, 3, 161, is_alone=True), NOBODY, 0.0)
    second = route(core, asked(core, 3, 161, is_alone=True), NOBODY, 0.0)
    assert second.decision.matched_tokens == 160
    core.finish(second, counted(161, 0), 0.0)
    assert _counts(core) == {"equal": 0, "over": 0, "under": 0}
    core.finish(first, counted(161, 0), 0.0)
    assert _counts(core) == {"equal": 1, "over": 0, "under": 0}


def _doubted(core: Core) -> None:
    """pod-0's feed says 160 tokens of prompt 1, and the pod says 0 again and again."""
    store(core, "pod-0", 1)
    for _ in range(WRONG_MIN):
        core.finish(_served(core, 1, pods=frozenset({"pod-0"})), counted(161, 0), 0.0)


def test_a_feed_that_is_wrong_is_no_reason_to_go_there() -> None:
    """Neither a promise nor a credit in the price; what the pod reports goes on to be held against it."""
    core = core_of(2)
    _doubted(core)
    decision = decide(core, asked(core, 1, 161), NOBODY, 0.0)
    assert [one.candidate.matched for one in scored(decision.pick)] == [0, 0]
    assert len({one.price for one in scored(decision.pick)}) == 1
    first = decision_answer(decision, 0.0)["pods"][0]
    assert (first["matched_blocks"], first["matched_tokens"]) == (0, 0)
    store(core, "pod-1", 1)
    assert decide(core, asked(core, 1, 161), NOBODY, 0.0).rank.pod.name == "pod-1"
    for _ in range(WRONG_MIN + PROOFS):
        core.finish(_served(core, 1, pods=frozenset({"pod-0"})), counted(161, 160), 0.0)
    again = decide(core, asked(core, 1, 161, pods=frozenset({"pod-0"})), NOBODY, 0.0)
    assert again.matched_tokens == 160, "proven again"


def test_predicted_blocks_are_proof_where_the_pod_was_quiet() -> None:
    """What was to be computed before is computed, if nothing else was on its way."""
    core = core_of(1)
    for cached in (0, 160):
        placed = route(core, asked(core, 3, 161, is_alone=True), NOBODY, 0.0)
        core.finish(placed, SERVED, 0.0)
        assert placed.decision.matched_tokens == cached
        core.finish(placed, counted(161, cached), 0.0)
    assert _counts(core) == {"equal": 2, "over": 0, "under": 0}


def test_a_pod_that_caches_nothing_gets_no_credit() -> None:
    """As it says, or as its reports do; with a feed and without."""
    for feeds in (True, False):
        core = core_of(1, feeds=feeds)
        rank = core.fleet.pods["pod-0"].ranks[0]
        core.finish(route(core, asked(core, 1), NOBODY, 0.0), SERVED, 0.0)
        assert decide(core, asked(core, 1), NOBODY, 0.0).matched_tokens == 144
        rank.trust.told(caches=False)
        assert decide(core, asked(core, 1), NOBODY, 0.0).matched_tokens == 0
        rank.trust.told(caches=True)
        for _ in range(WRONG_MIN):
            placed = route(core, asked(core, 1, is_alone=True), NOBODY, 0.0)
            core.finish(placed, SERVED, 0.0)
            core.finish(placed, counted(160, 0), 0.0)
        assert decide(core, asked(core, 1), NOBODY, 0.0).matched_tokens == 0


def test_a_drafter_that_computes_the_last_block_again() -> None:
    """What is promised is what will be cached, and the price knows it."""
    core = core_of(1)
    store(core, "pod-0", 1)
    feed = core.fleet.pods["pod-0"].ranks[0].feed
    assert feed is not None
    feed.told(drafter=True, caches=True)
    assert feed.reasons == [UNPROVEN]
    for _ in range(4):
        placed = _served(core, 1)
        assert placed.decision.matched_tokens == 144
        core.finish(placed, counted(161, 144), 0.0)
    assert feed.state == "exact"


def test_silence_is_zero_only_of_old_versions_that_report() -> None:
    """Up to 0.23 a zero is left out; of a pod that never reports, and of newer ones, silence is no number."""
    core = core_of(1)
    pod = core.fleet.pods["pod-0"]
    for version, reports, expected in (
        (None, False, 0),
        ("0.20.2", True, 2),
        ("0.23.1rc1", True, 2),
        ("0.24.0", True, 1),
    ):
        pod.version, pod.evidence = version, Evidence()
        before = sum(_counts(core).values())
        if reports:
            core.finish(_served(core, 1), counted(161, 0), 0.0)
        core.finish(_served(core, 1), counted(161, None), 0.0)
        assert sum(_counts(core).values()) - before == expected, version


def test_unknown_history_is_proven_harmless() -> None:
    """A feed that was joined late is exact when enough hits in a row are as foretold; until then, own picks count."""
    core = core_of(1)
    rank = core.fleet.pods["pod-0"].ranks[0]
    feed = rank.feed
    assert feed is not None
    joined_late(feed)
    assert feed.state == "degraded" and not rank.tells
    core.finish(route(core, asked(core, 9), NOBODY, 0.0), SERVED, 0.0)
    core.index.expire(Config().index.predicted_ttl + 1)
    assert decide(core, asked(core, 9), NOBODY, 0.0).matched_tokens == 144, "nobody else would tell of it"
    store(core, "pod-0", 1)
    for _ in range(PROOFS):
        core.finish(_served(core, 1), counted(161, 160), 0.0)
    assert feed.state == "exact" and rank.tells


def test_counters_prove_a_stretch_that_was_all_ours() -> None:
    """Where responses tell nothing: only if the pod looked up exactly the tokens that were sent to it."""
    evidence = Evidence()
    assert evidence.source == "none" and evidence.looked(1000, 400) is None
    assert evidence.source == "counters"
    evidence.unreported(100, 32)
    assert evidence.looked(1100, 432) == (32, 32)
    assert evidence.looked(1100, 432) is None, "nothing was sent"
    evidence.unreported(100, 32)
    assert evidence.looked(1300, 500) is None, "others sent something, too"
    evidence.unreported(100, 32)
    assert evidence.looked(100, 16) is None, "it was started anew"
    evidence.unreported(100, 32)
    assert evidence.looked(None, None) is None and evidence.source == "none"


@pytest.mark.parametrize(
    ("more", "alone"),
    [
        (b"", True), (b',"n":1,"best_of":1,"prompt_logprobs":null', True), (b',"n":2', False), (b',"best_of":3', False),
        (b',"prompt_logprobs":0', False), (b',"use_beam_search":true', False),
        (b',"echo":true', True), (b',"echo":true,"logprobs":0', False), (b',"logprobs":3', True),
    ],
)  # fmt: skip
def test_usage_of_one_prompt(more: bytes, alone: bool) -> None:
    """Siblings hit each other, and prompt_logprobs reads no cache."""
    assert parse("/v1/completions", b'{"model":"m","prompt":"a"' + more + b"}").is_alone == alone
    assert not parse("/v1/completions", b'{"model":"m","prompt":["a","b"]' + more + b"}").is_alone


async def test_a_pod_that_was_started_anew() -> None:
    """Its metrics tell: what it reported before is forgotten, and its feed is asked whether it is still the same."""
    told = Told()
    told.answers["/metrics"] = (200, b"process_start_time_seconds 1000.5\n")
    silent = {"events": "tcp://127.0.0.1:9", "replay": "tcp://127.0.0.1:10"}
    async with probed(told, **silent) as (core, _, _):
        pod: Pod = core.fleet.pods["a"]
        await until(lambda: pod.engine.get("started") == 1000.5)
        pod.evidence.usage = True
        told.answers["/metrics"] = (200, b"process_start_time_seconds 2000.5\n")
        await until(lambda: pod.engine.get("started") == 2000.5)
        feed = pod.ranks[0].feed
        assert feed is not None and not pod.evidence.usage
        await until(lambda: feed.replaying)


async def test_counters_are_looked_at_where_responses_tell_nothing() -> None:
    """Two scrapes with just our request between them are one report."""
    told = Told()
    counters = b"vllm:prefix_cache_queries_total 1000\nvllm:prefix_cache_hits_total 160\n"
    told.answers["/metrics"] = (200, counters)
    async with probed(told, events="tcp://127.0.0.1:9") as (core, _, _):
        pod = core.fleet.pods["a"]
        await until(lambda: pod.evidence.queries == 1000)
        event = BlockStored(list(range(10)), None, tokens_of(1), SIZE)
        core.index.apply(pod.ranks[0].id, event)
        pod.evidence.unreported(161, 160)
        told.answers["/metrics"] = (200, b"vllm:prefix_cache_queries_total 1161\nvllm:prefix_cache_hits_total 320\n")
        feed = pod.ranks[0].feed
        assert feed is not None
        await until(lambda: feed.counts.predictions_equal == 1)


def _pressed(core: Core, now: float, in_time: bool, told: bool) -> None:
    """A request finds nothing of 160 tokens that its pod had when it was sent there. `told`: the pod says that it has
    removed them, and stored them again; `in_time`: before the answer ends."""
    feed = core.fleet.pods["pod-0"].ranks[0].feed
    assert feed is not None
    placed = route(core, asked(core, 1, 161, is_alone=True), NOBODY, now)
    if not in_time:
        core.finish(placed, counted(161, 0), now)
    number = feed.last_number + 1
    other = BlockStored([2000 + number], None, np.full(SIZE, 7, np.uint32), SIZE)
    gone = BLOCKS.hashes if told else [1999 + number]
    feed.frame(number, batch(now, [["BlockRemoved", list(gone)], as_told(BLOCKS), as_told(other)]), now)
    if in_time:
        core.finish(placed, counted(161, 0), now)


def batch(clock: float, events: list[object]) -> bytes:
    """As a pod publishes it."""
    return msgspec.msgpack.encode([clock, events])


def as_told(event: BlockStored) -> list[object]:
    """As it is in a batch."""
    return ["BlockStored", list(event.hashes), event.parent, event.tokens.tolist(), event.block_size]


BLOCKS = BlockStored([1000 + block for block in range(10)], None, tokens_of(1), SIZE)


def test_a_report_that_waits_says_nothing_once_prompts_are_read_otherwise() -> None:
    """A pod that was started anew meanwhile, with blocks of another size: what it was asked has no such blocks."""
    core = core_of(2)
    pod = core.fleet.pods["pod-0"]
    feed, pod.blocks = pod.ranks[0].feed, 10
    assert feed is not None
    feed.frame(0, batch(0.0, [as_told(BLOCKS)]), 0.0)
    other = frozenset({"pod-1"})
    core.finish(route(core, asked(core, 1, 161, is_alone=True), other, 1.0), counted(161, 0), 1.0)
    feed.grain = 2 * SIZE
    store(core, "pod-1", 1)
    at_other = route(core, asked(core, 1, 161, is_alone=True), frozenset({"pod-0"}), 90.0)
    core.finish(at_other, counted(161, 160), 90.0)
    assert _counts(core) == {"equal": 0, "over": 0, "under": 0}


@pytest.mark.parametrize("in_time", [True, False])
@pytest.mark.parametrize("told", [True, False])
def test_what_was_given_up_before_a_request_began_is_no_error(told: bool, in_time: bool) -> None:
    """A pod that is full gives up what a waiting request was sent there for, and says so, maybe a moment late: its feed
    is right. Where it gives up other blocks and says nothing of these, it is wrong."""
    core = core_of(1)
    pod = core.fleet.pods["pod-0"]
    feed, pod.blocks = pod.ranks[0].feed, 10
    assert feed is not None
    feed.frame(0, batch(0.0, [as_told(BLOCKS)]), 0.0)
    for now in range(1, 2 * WRONG_MIN):
        _pressed(core, float(now), in_time, told)
    core.finish(_served(core, 2), counted(161, 0), 100.0)
    assert feed.state == ("exact" if told else "degraded")
