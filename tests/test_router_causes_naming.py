"""Each token that was not delivered has one cause: by what was known at the decision, and by what is remembered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from indexer.events import AllBlocksCleared, BlockRemoved
from router.causes.memory import CauseMemory
from router.causes.names import Why
from router.causes.naming import Naming
from router.causes.prints import Print, print_of
from router.core.demand import Apart, Demand
from router.core.fleet import RankId
from router.core.token_states import Origin, TokenizerState
from router.server.long_answers import at_once
from tests.fakes.cores import MODEL, NOBODY, SIZE, asked, core_of, joined_late, route, store, tokens_of

HASHES = {block: 100 + block for block in range(40)}


@dataclass
class Bench:
    """A core with two pods, and what is remembered beside it."""

    core: Any = field(default_factory=lambda: core_of(2))
    memory: CauseMemory = field(default_factory=lambda: CauseMemory(1 << 12, 100))
    now: float = 10.0

    def serve(self, demand: Demand, cached: int | None = 0, made: Print | None = None, total: int | None = None) -> Why:
        """One request, decided now, of which the pod says that so many tokens were cached."""
        placement = route(self.core, demand, NOBODY, self.now)
        return self.end(placement, cached, made, total)

    def end(self, placement: Any, cached: int | None, made: Print | None = None, total: int | None = None) -> Why:
        decision = placement.decision
        demand = decision.demand.of(decision.rank)
        at_once(self.memory.lost(self.core.losses.take(), lambda _: (3, 500), self.now + 0.5))
        usage = (total or demand.tokens, cached)
        why = Naming(self.core.fleet, self.memory).explain(decision, usage, made)
        assert why.delivered + sum(one.tokens for one in why.missed) == why.tokens
        assert why.captured <= why.reachable <= why.tokens
        assert all(one.tokens > 0 and one.detail and one.kind for one in why.missed)
        keys = demand.keys.get(SIZE)
        if keys is not None:
            self.memory.served(demand, keys[why.known :], decision.rank.id, decision.at)
        self.now += 1.0
        return why


@pytest.fixture
def bench() -> Bench:
    return Bench()


def told(why: Why) -> dict[str, int]:
    """Tokens by cause."""
    tokens: Counter[str] = Counter()
    for one in why.missed:
        tokens[one.cause] += one.tokens
    return dict(tokens)


def expire(core: Any) -> None:
    """What was predicted is forgotten."""
    core.index.expire(1e9)


def test_nobody_has_asked(bench: Bench) -> None:
    """All that could ever be cached is seen for the first time; the rest is the end of the last block."""
    why = bench.serve(asked(bench.core, 1, 170))
    assert told(why) == {"first_seen": 160, "block_edge": 10}
    assert (why.reachable, why.captured, why.delivered) == (0, 0, 0)


def test_all_of_it_is_there(bench: Bench) -> None:
    """The last block is computed again, and that is all."""
    store(bench.core, "pod-0", 1)
    why = bench.serve(asked(bench.core, 1), 144)
    assert told(why) == {"block_edge": 16}
    assert (why.reachable, why.captured, why.delivered) == (144, 144, 144)


def test_shorter_than_a_block(bench: Bench) -> None:
    """There is no block to be reused, however often it is asked for."""
    for _ in range(2):
        why = bench.serve(asked(bench.core, 1, 9))
        assert told(why) == {"block_edge": 9} and "shorter than a block" in why.missed[0].detail


def test_evicted(bench: Bench) -> None:
    """Who gave it up, when, and how much was to do there."""
    store(bench.core, "pod-1", 1)
    assert told(bench.serve(asked(bench.core, 1), 144)) == {"block_edge": 16}
    bench.core.index.apply(RankId("pod-1", 0), BlockRemoved([100 + block for block in range(4, 10)]))
    expire(bench.core)
    why = bench.serve(asked(bench.core, 1), 64)
    assert told(why) == {"evicted": 80, "block_edge": 16}
    assert "pod-1: it was evicted" in why.missed[0].detail and "one of 6 blocks" in why.missed[0].detail
    assert "3 requests there and 500 tokens" in why.missed[0].detail


@pytest.mark.parametrize(
    ("how", "cause"),
    [("cleared", "evicted"), ("restarted", "pod_gone"), ("left", "pod_gone"), ("forgotten", "feed_not_exact")],
)
def test_all_of_a_pods_blocks_are_gone(bench: Bench, how: str, cause: str) -> None:
    """It said so, is another process, is no pod any more; or only its events are not believed."""
    index, rank = bench.core.index, bench.core.fleet.pods["pod-1"].ranks[0]
    store(bench.core, "pod-1", 1)
    bench.serve(asked(bench.core, 1), 144)
    if how == "cleared":
        index.apply(rank.id, AllBlocksCleared())
    elif how == "restarted":
        rank.feed.forget(anew=True)
    elif how == "left":
        bench.core.leave(rank.pod)
    else:
        rank.feed.unlearn()
    expire(bench.core)
    why = bench.serve(asked(bench.core, 1))
    assert told(why) == {cause: 144, "block_edge": 16} and "pod-1" in why.missed[0].detail


def test_given_up_after_the_decision(bench: Bench) -> None:
    """What was promised was there when it was: the blocks, and the process that held them."""
    for change, cause in (
        (lambda: bench.core.index.apply(RankId("pod-0", 0), BlockRemoved([100, 101])), "evicted"),
        (lambda: bench.core.fleet.pods["pod-0"].ranks[0].feed.forget(anew=True), "pod_gone"),
    ):
        bench.core.index.clear(RankId("pod-0", 0))
        bench.core.losses.take()
        store(bench.core, "pod-0", 1)
        placement = route(bench.core, asked(bench.core, 1), NOBODY, bench.now)
        change()
        why = bench.end(placement, 0)
        assert told(why) == {cause: 144, "block_edge": 16}
        assert "after the decision" in why.missed[0].detail and why.captured == 144


def test_another_pod_held_it(bench: Bench) -> None:
    """It had too much to do: what that would have cost, and what was given up, are told."""
    store(bench.core, "pod-0", 1)
    bench.core.fleet.pods["pod-0"].ranks[0].load.admit(50_000, bench.now)
    why = bench.serve(asked(bench.core, 1))
    assert told(why) == {"routed_away": 144, "block_edge": 16}
    assert (why.reachable, why.captured) == (144, 0)
    assert "pod-0 held 144 tokens, 144 more: price " in why.missed[0].detail
    assert "less loaded" in why.missed[0].kind


def test_held_in_a_slower_tier(bench: Bench) -> None:
    """In the pod's own cache it would have been worth going there; below it, it is not."""
    bench.core = core_of(2, index={"blocks_max": 10_000, "tier_weights": {"cpu": 0.1}})
    store(bench.core, "pod-0", 1)
    store(bench.core, "pod-0", 1, tier="cpu")
    bench.core.index.apply(RankId("pod-0", 0), BlockRemoved([100 + block for block in range(10)]))
    bench.core.losses.take()
    bench.core.fleet.pods["pod-0"].ranks[0].load.admit(130, bench.now)
    why = bench.serve(asked(bench.core, 1))
    assert set(told(why)) == {"tier", "block_edge"} or told(why) == {"tier": 160}, why
    assert "lower tier" in why.missed[0].detail


def test_a_lower_tier_that_did_not_load(bench: Bench) -> None:
    """What the pod held below its own cache was promised, and not delivered."""
    store(bench.core, "pod-0", 1)
    store(bench.core, "pod-0", 1, tier="cpu")
    bench.core.index.apply(RankId("pod-0", 0), BlockRemoved([100 + block for block in range(4, 10)]))
    bench.core.losses.take()
    why = bench.serve(asked(bench.core, 1), 64)
    assert told(why)["tier"] >= 80 and "did not load" in why.missed[0].detail


def test_who_holds_it_may_not_be_asked(bench: Bench) -> None:
    """Who, and why not."""
    store(bench.core, "pod-1", 1)
    bench.core.fleet.pods["pod-1"].drain(True)
    why = bench.serve(asked(bench.core, 1))
    assert told(why) == {"pod_gone": 144, "block_edge": 16} and why.reachable == 144
    said = why.missed[0].detail
    assert said.startswith("pod-1 held 144 tokens, and could not be asked: ") and "it is being drained" in said


def test_events_said_what_was_not_so(bench: Bench) -> None:
    """The feed's state as it was, and its reasons."""
    store(bench.core, "pod-0", 1)
    feed = bench.core.fleet.pods["pod-0"].ranks[0].feed
    joined_late(feed)
    store(bench.core, "pod-0", 1)
    placement = route(bench.core, asked(bench.core, 1), NOBODY, bench.now)
    feed.replay_ended(True, bench.now)
    why = bench.end(placement, 32)
    assert told(why) == {"feed_not_exact": 112, "block_edge": 16}
    assert "events of pod-0 said" in why.missed[0].detail and "degraded" in why.missed[0].detail


def test_the_feed_tells_nothing(bench: Bench) -> None:
    """It was computed before, and no event has told of it."""
    bench.serve(asked(bench.core, 1))
    expire(bench.core)
    why = bench.serve(asked(bench.core, 1))
    assert told(why) == {"feed_not_exact": 144, "block_edge": 16} and "no such blocks" in why.missed[0].detail


def test_expected_of_a_request_before(bench: Bench) -> None:
    """Two at once: the first had not computed it when the second came."""
    first = route(bench.core, asked(bench.core, 1), NOBODY, bench.now)
    second = route(bench.core, asked(bench.core, 1), NOBODY, bench.now)
    assert first.decision.rank is second.decision.rank
    why = bench.end(second, 0)
    assert told(why) == {"feed_not_exact": 144, "block_edge": 16} and "a request before" in why.missed[0].detail


def test_wrong_tokens(bench: Bench) -> None:
    """The pod counts others; pods have stored others; or they are not known at all."""
    why = bench.serve(asked(bench.core, 1, is_alone=True), 0, total=170)
    assert (
        told(why) == {"wrong_tokens": 160, "block_edge": 10} and "170 tokens, and here are 160" in why.missed[0].detail
    )
    state = TokenizerState()
    state.contradict("plain")
    origin = Origin(state, "plain", MODEL)
    bench.serve(asked(bench.core, 2, origin=origin))
    expire(bench.core)
    assert told(bench.serve(asked(bench.core, 2, origin=origin))) == {"wrong_tokens": 144, "block_edge": 16}
    why = bench.serve(Demand(MODEL, 90, reason="not tokenized: an image"), None)
    assert told(why) == {"wrong_tokens": 80, "block_edge": 10} and "an image" in why.missed[0].detail
    why = bench.serve(asked(bench.core, 3, further=50), 0, total=210)
    assert told(why) == {"wrong_tokens": 208, "block_edge": 2} and "several prompts" in why.missed[0].kind


def test_the_cache_is_not_read(bench: Bench) -> None:
    """The request asks for that, or the pod has no cache."""
    store(bench.core, "pod-0", 1)
    assert told(bench.serve(asked(bench.core, 1, reads_cache=False))) == {"no_cache_read": 160}
    for pod in bench.core.fleet.pods.values():
        pod.ranks[0].trust.told(caches=False)
    assert told(bench.serve(asked(bench.core, 1))) == {"no_cache_read": 160}


def apart(core: Any, seed: int, adapter: str | None, salt: str | None) -> Demand:
    """A prompt with an adapter or a salt."""
    tokens = tokens_of(seed)
    plain = {SIZE: core.space.chain(tokens, SIZE)}
    if adapter is None and salt is None:
        return Demand(MODEL, len(tokens), keys=plain)
    keys = {SIZE: core.space.chain(tokens, SIZE, None, adapter, salt)}
    return Demand(MODEL, len(tokens), keys=keys, apart=Apart(adapter, salt, plain))


@pytest.mark.parametrize(
    ("first", "second", "cause"),
    [
        ((None, None), (None, "b"), "other_salt"),
        ((None, "a"), (None, "b"), "other_salt"),
        ((None, "a"), (None, None), "other_salt"),
        ((None, None), ("red", None), "other_adapter"),
        (("red", None), ("blue", None), "other_adapter"),
        (("red", None), (None, None), "other_adapter"),
        (("red", "a"), ("red", "b"), "other_salt"),
        (("red", "a"), ("blue", "a"), "other_adapter"),
    ],
)
def test_the_same_tokens_apart(bench: Bench, first: Any, second: Any, cause: str) -> None:
    """Blocks are not shared over adapters and salts; with the same ones again it is nobody's fault but the feed's."""
    assert told(bench.serve(apart(bench.core, 1, *first))) == {"first_seen": 144, "block_edge": 16}
    assert told(bench.serve(apart(bench.core, 1, *second))) == {cause: 144, "block_edge": 16}
    assert told(bench.serve(apart(bench.core, 2, *second))) == {"first_seen": 144, "block_edge": 16}


def test_changed(bench: Bench) -> None:
    """From where the chain differs to where the two would have been the same; what is behind that is new."""

    def fingerprint(first: str, tokens: int, last: str) -> Print:
        contents = (first, "the same words again " * 20, last)
        messages = [
            {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), contents, strict=True)
        ]
        found = print_of({"messages": messages}, tokens, hash)
        assert found is not None
        return found

    demand = asked(bench.core, 1)
    bench.serve(demand)
    bench.memory.prints.add(1, fingerprint("one question", 160, "b"))
    other = Demand(
        MODEL, 160, keys={SIZE: np.concatenate([demand.keys[SIZE][:1], demand.keys[SIZE][1:] + np.uint64(1)])}
    )
    why = bench.serve(other, 16, fingerprint("two questions", 160, "c" * 200))
    assert set(told(why)) == {"changed", "first_seen", "block_edge"}
    assert why.missed[0].detail == "edited: message 0 (user)" and told(why)["changed"] >= 80


def test_a_dropped_block(bench: Bench) -> None:
    """A drafter has the last block that is found computed again: that is no miss of anything new."""
    bench.core.fleet.pods["pod-0"].ranks[0].feed.told(drafter=True, caches=True)
    bench.core.fleet.pods["pod-1"].drain(True)
    store(bench.core, "pod-0", 1)
    demand = asked(bench.core, 1, 320)
    long = replace(
        demand, keys={SIZE: np.concatenate([asked(bench.core, 1).keys[SIZE], demand.keys[SIZE][10:] + np.uint64(1)])}
    )
    why = bench.serve(long, 144)
    assert (why.missed[0].cause, why.missed[0].tokens) == ("block_edge", 16)
    assert told(why)["first_seen"] == 320 - 160 - 32 and why.captured == 144


def test_a_pod_that_says_nothing_of_its_cache(bench: Bench) -> None:
    """What was promised is taken for delivered; who has told before means zero."""
    store(bench.core, "pod-0", 1)
    why = bench.serve(asked(bench.core, 1), None)
    assert why.delivered == why.captured == 144
    bench.core.fleet.pods["pod-0"].evidence.usage = True
    assert bench.serve(asked(bench.core, 1), None).delivered == 0


def test_more_than_was_known(bench: Bench) -> None:
    """What is delivered beyond all knowledge is not missed."""
    why = bench.serve(asked(bench.core, 1), 96)
    assert told(why) == {"first_seen": 48, "block_edge": 16} and (why.captured, why.delivered) == (0, 96)
