"""The shared index as far as it goes without Redis: what is written, what answers mean, what a gateway needs.

The rest is in tests_redis/, against a real server: `make test-redis` (Debian: `apt-get install redis-server`).
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from indexer.events import AllBlocksCleared, BlockRemoved, BlockStored
from indexer.match import Hit
from router.config.index import RedisConfig
from router.config.settings import Config
from router.core.decision import Core
from router.core.fleet import RankId
from router.shared_index.mirror import WRITE_BLOCKS_MAX, Mirror, Write, named
from router.shared_index.redis_index import hit_of
from tests.fakes.cores import NOBODY, asked, core_of, counted, decide, held, joined_late, nothing, route, store

POD = RankId("pod-0", 0)


class Store:
    """What Redis would hold of one gateway's pods: name -> [key -> tiers, complete]."""

    def __init__(self) -> None:
        self.pods: dict[str, tuple[dict[int, int], bool]] = {}

    def write(self, writes: list[Write]) -> list[int]:
        results = []
        for write in writes:
            assert len(write.codes) <= WRITE_BLOCKS_MAX
            if write.pod not in self.pods:
                results.append(-1)
                continue
            blocks, complete = ({}, False) if write.anew else self.pods[write.pod]
            for key, code in write.codes.items():
                blocks[key] = blocks.get(key, 0) & ~(code >> 4) | code & 15
                if not blocks[key]:
                    del blocks[key]
            self.pods[write.pod] = (blocks, complete if write.complete is None else write.complete)
            results.append(0)
        return results


def mirrored(core: Core, queue_max: int = 100_000) -> tuple[Mirror, Store]:
    """A mirror of the core's index that owns pod-0, and what it writes to."""
    mirror, there = Mirror(core.index, core.fleet, queue_max, block_ttl_s=30.0), Store()
    mirror.own(POD)
    there.pods[named(POD)] = ({}, False)
    return mirror, there


def send(mirror: Mirror, there: Store, now: float = 0.0) -> list[Write]:
    """One go."""
    writes = mirror.collect(now)
    mirror.sent(writes, there.write(writes))
    return writes


def stored(first: int, count: int) -> BlockStored:
    """Single-token blocks, the engine hash is the token."""
    tokens = np.arange(first, first + count, dtype=np.uint32)
    return BlockStored(tokens.tolist(), None, tokens, 1)


def test_a_pod_is_copied_in_slices_while_it_changes() -> None:
    """What is there at first comes bit by bit, what happens meanwhile is not missed; complete only in the end."""
    core = core_of(1)
    core.index.apply(POD, stored(1, 4000))
    mirror, there = mirrored(core)
    goes = 0
    while not there.pods["pod-0/0"][1]:
        send(mirror, there)
        core.index.apply(POD, BlockRemoved([4000 - goes, 1 + goes]))
        core.index.apply(POD, stored(10_000 + 10 * goes, 5))
        goes += 1
    assert goes >= 4000 // (2 * WRITE_BLOCKS_MAX) and mirror.complete == 1
    send(mirror, there)
    assert len(there.pods["pod-0/0"][0]) == core.index.holding(POD).gpu == 4000 + 3 * goes
    assert all(len(write.codes) == 0 for write in send(mirror, there))


def test_a_copy_is_made_again_before_its_blocks_end() -> None:
    """What Redis lost comes back within a third of the TTL of a block; what did not change is not sent until then."""
    core = core_of(1)
    core.index.apply(POD, stored(1, 100))
    mirror, there = mirrored(core)
    for _ in range(3):
        send(mirror, there, now=1.0)
    there.pods["pod-0/0"] = ({}, True)
    assert not send(mirror, there, now=10.9)
    for _ in range(3):
        send(mirror, there, now=11.1)
    assert len(there.pods["pod-0/0"][0]) == 100


def test_a_clear_costs_one_write() -> None:
    """And what follows it is all that there is, at once complete."""
    core = core_of(1)
    core.index.apply(POD, stored(1, 3000))
    mirror, there = mirrored(core)
    send(mirror, there)
    core.index.apply(POD, AllBlocksCleared())
    core.index.apply(POD, stored(1, 700))
    writes = mirror.collect(0.0)
    assert [write.anew for write in writes[:3]] == [True, False, False] and [len(w.codes) for w in writes[:2]] == [
        0,
        500,
    ]
    mirror.sent(writes, there.write(writes))
    assert there.pods["pod-0/0"][1] and len(there.pods["pod-0/0"][0]) == 700


def test_a_full_queue_makes_the_copy_anew() -> None:
    """What was dropped is counted, nobody relies on the pod until it is whole again, and then it is right."""
    core = core_of(1)
    mirror, there = mirrored(core, queue_max=1024)
    for _ in range(3):
        send(mirror, there)
    assert there.pods["pod-0/0"] == ({}, True)
    core.index.apply(POD, stored(1, 2000))
    core.index.apply(POD, BlockRemoved(list(range(1500, 2001))))
    send(mirror, there)
    assert mirror.dropped >= 2000 and mirror.counts["rewritten"] == 1 and not there.pods["pod-0/0"][1]
    for _ in range(4):
        send(mirror, there)
    assert there.pods["pod-0/0"][1] and len(there.pods["pod-0/0"][0]) == 1499


def test_a_pod_that_others_took_is_left() -> None:
    """What is not ours any more is watched no more."""
    core = core_of(1)
    mirror, there = mirrored(core)
    there.pods.clear()
    send(mirror, there)
    assert not mirror.owned
    core.index.apply(POD, stored(1, 10))
    assert not send(mirror, there)


def test_only_what_is_known_exactly_is_wanted() -> None:
    """A blind or degraded pod is not written; one that ceases to be exact is left, except while a gap is closed."""
    core = core_of(3)
    pod, other, _ = core.fleet.ranks
    mirror = Mirror(core.index, core.fleet, 1000, 30.0)
    assert other.feed is not None and pod.feed is not None
    joined_late(other.feed)
    assert sorted(mirror.sort()[0]) == [POD, RankId("pod-2", 0)]
    mirror.own(POD)
    assert mirror.sort() == ([RankId("pod-2", 0)], [POD], [])
    assert pod.feed.connected(1.0) is not None and pod.feed.state == "degraded"
    assert mirror.sort()[1:] == ([POD], [])
    pod.feed.replay_ended(False, 2.0)
    joined_late(pod.feed)
    assert mirror.sort()[1:] == ([], [POD])


def test_hybrid_pods_are_not_shared() -> None:
    """Their hits hang on more than who holds a block."""
    core = core_of(1)
    event = BlockStored([1], None, np.array([1], np.uint32), 1, group=1, kind="sliding_window", window=8)
    mirror = Mirror(core.index, core.fleet, 1000, 30.0)
    assert mirror.sort()[0] == [POD]
    core.index.apply(POD, event)
    assert mirror.sort()[0] == []


@pytest.mark.parametrize(
    ("runs", "hit"),
    [
        ([0], Hit(0, 0)),
        ([0, 1, 5], Hit(5, 5)),
        ([0, 3, 2, 6, 4, 4, 9], Hit(9, 2, 0, 2, 5, near=2, lower=((0, 9),))),
        ([0, 1, 2, 2, 4, 1, 6], Hit(4, 2, 0, 2, 0, near=2, lower=((2, 4),))),
    ],
)
def test_answers_are_hits(runs: list[int], hit: Hit) -> None:
    """Each block counts once, in the best tier that holds it; the own cache behind a lower tier does not."""
    assert hit_of(runs) == hit


# --- the decision ---


def told(pod: str, blocks: int) -> dict[RankId, Hit]:
    """Another gateway knows that `pod` holds so many blocks of the prompt."""
    return {RankId(pod, 0): Hit(blocks, blocks)}


def test_what_others_know_decides() -> None:
    """A pod of which more is known elsewhere is picked; where more is known here, that counts."""
    core = core_of()
    decision = decide(core, asked(core, 1), NOBODY, 0.0, told("pod-1", 6))
    assert (decision.rank.id.pod, decision.matched_tokens) == ("pod-1", 96)
    store(core, "pod-1", 2)
    assert decide(core, asked(core, 2), NOBODY, 0.0, told("pod-1", 6)).matched_tokens == 144


def test_a_prediction_joins_what_is_known_here() -> None:
    """What only others know is predicted, too: so the next request for the same finds all of it here."""
    core = core_of()
    placed = route(core, asked(core, 1), NOBODY, 0.0, told("pod-1", 6))
    assert placed.decision.rank.id.pod == "pod-1" and held(core, "pod-1", 1) == 10
    assert route(core, asked(core, 1), NOBODY, 0.0, told("pod-1", 6)).decision.matched_tokens == 144


def test_what_others_know_proves_nothing_of_the_own_feed() -> None:
    """A feed is judged by what it said itself: otherwise it would soon count as proven, and nobody be asked."""
    core = core_of(1)
    (rank,) = core.fleet.ranks
    assert rank.feed is not None
    placed = route(core, asked(core, 1, is_alone=True), NOBODY, 0.0, told("pod-0", 6))
    core.finish(placed, counted(160, 96), 0.0)
    assert rank.feed.counts.told() == {"replay complete": 1, "predictions under": 1}


# --- configuration ---


def test_the_url_is_checked_and_kept_secret() -> None:
    """A password in it is in no message and in no dump."""
    url = "redis://user:s3cret@redis:6379/1"
    config = Config.model_validate({"index": {"redis": {"url": url}}})
    assert "s3cret" not in repr(config) and config.index.redis.url is not None
    assert config.index.redis.url.get_secret_value() == url
    with pytest.raises(ValueError, match="should be like redis"):
        RedisConfig.model_validate({"url": "http://user:s3cret@redis"})
    with pytest.raises(ValueError, match="not more than lease"):
        RedisConfig.model_validate({"lease": 20, "block_ttl": 15})


_WITHOUT = """
import sys
sys.modules["redis"] = None  # as if it were not installed
from router.config.settings import Config
from router.errors import ConfigError
from router.service import Service
async def main():
    assert Service(Config()).sharing is None
    assert not [name for name in sys.modules if name.startswith("router.shared_index.")], "imported"
    try:
        Service(Config.model_validate({"index": {"redis": {"url": "redis://nowhere"}}}))
    except ConfigError as error:
        assert "warmroute[redis]" in str(error), error
    else:
        raise AssertionError("nothing was said")
import asyncio
asyncio.run(main())
"""


def test_a_gateway_without_it_needs_nothing_of_it() -> None:
    """Without `index.redis` nothing of it is imported; with it, and without the extra, one plain line says so."""
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_reread_feed_starts_over() -> None:
    """When all keys have changed, what was applied is forgotten, and its history is asked for."""
    core = core_of(1)
    (rank,) = core.fleet.ranks
    feed = rank.feed
    assert feed is not None
    store(core, "pod-0", 1)
    feed.frame(0, nothing(1.0), 1.0)
    feed.reread()
    assert held(core, "pod-0", 1) == 0 and feed.state == "degraded" and feed.truncated
    assert feed.mend(1.0) == 0 and feed.mend(2.0) is None
