"""The shared index against a real server: the in-memory index's own walks, owners, generations, bounds."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from indexer.blocks import KeySpace
from indexer.match import Hit
from router.config.index import RedisConfig
from router.config.settings import Config
from router.core.fleet import Fleet, RankId
from router.shared_index.mirror import Mirror, Write, named
from router.shared_index.redis_index import RedisError, SharedIndex, SharedLimits
from router.shared_index.sharing import Sharing
from tests.fakes.cores import core_of
from tests.fakes.index_walk import LONG, SHORT, Walk
from tests_redis.conftest import Server

PODS = tuple(RankId(pod, 0) for pod in "abcd")
SPACE = KeySpace(0x5EED)
PREFIX = "{test}:"
HOLD, UNHOLD = 1, 1 << 4  # codes for the GPU tier


@asynccontextmanager
async def index_of(server: Server, owner: str = "one", **limits: Any) -> AsyncIterator[SharedIndex]:
    """A gateway's way to the server."""
    index = SharedIndex(server.url, PREFIX, owner, replace(SharedLimits.of(RedisConfig()), **limits))
    await index.connect()
    try:
        yield index
    finally:
        await index.aclose()


def keys_of(*tokens: int) -> Any:
    """The keys of a chain of single-token blocks."""
    return SPACE.chain(np.array(tokens, np.uint32), 1)


def codes(keys: Iterable[int], code: int) -> dict[int, int]:
    """The same code for all."""
    return dict.fromkeys(map(int, keys), code)


# --- the walks of the in-memory index ---


class SharedWalk(Walk):
    """The same operations; all that the index confirms goes to Redis, and others ask there."""

    def __init__(self, seed: int, lengths: tuple[int, ...], **limits: Any) -> None:
        super().__init__(seed, lengths, **limits)
        self.mirror = Mirror(self.index, Fleet(), 1 << 20, 1800.0)
        self.dropped: list[RankId] = []
        self.compared = 0

    def own(self, pod: RankId) -> None:
        """The index watches the pod, so both it and the twin know it."""
        self.mirror.own(pod)
        self.twin.pod(pod)  # type: ignore[arg-type]

    def drop(self) -> None:
        before = set(self.index.pods)
        super().drop()
        self.dropped += before - set(self.index.pods)  # type: ignore[arg-type]

    def any_pod(self) -> Any:
        return self.rng.choices(PODS, (6, 3, 1, 1))[0]

    async def write(self, index: SharedIndex) -> None:
        """What was dropped is left and taken anew; then all changes."""
        if self.dropped:
            self.mirror.disown(self.dropped)
            assert all(await index.drop([named(pod) for pod in self.dropped]))
            assert all(await index.take([named(pod) for pod in self.dropped]))
            for pod in self.dropped:
                self.own(pod)
            self.dropped = []
        while True:
            writes = self.mirror.collect(0.0)
            results = await index.write(writes)
            assert set(results) <= {0}
            self.mirror.sent(writes, results)
            if self.mirror.complete == len(PODS):
                return

    async def compare(self, index: SharedIndex) -> None:
        """Some prompts are answered as the twin would, predictions left out."""
        predicted = {pod: twin.predicted for pod, twin in self.twin.pods.items()}
        for twin in self.twin.pods.values():
            twin.predicted = {}
        for chain in self.rng.sample(self.chains, min(2, len(self.chains))):
            hits = await index.match(SPACE.chain(self.tokens(chain), self.size), [named(pod) for pod in PODS])
            assert len(hits) == len(PODS)
            expected = self.expected(chain)
            assert hits == {named(pod): expected.get(pod, Hit(0, 0)) for pod in PODS}  # type: ignore[call-overload]
            self.compared += sum(hit.blocks > 0 for hit in hits.values())
        for pod, twin in self.twin.pods.items():
            twin.predicted = predicted[pod]


@pytest.mark.parametrize(("seed", "lengths", "steps"), [(n, SHORT, 150) for n in range(6)] + [(7, LONG, 40)])
async def test_answers_as_the_twin_of_the_index(
    server: Server, seed: int, lengths: tuple[int, ...], steps: int
) -> None:
    """After every one of many random operations, another gateway is told what the in-memory index's twin says."""
    walk = SharedWalk(seed, lengths, block_size=1 + seed % 2, orphans_max=2000)
    async with index_of(server, lease_s=3600.0) as writer, index_of(server, "two") as reader:  # nobody renews it
        assert all(await writer.take([named(pod) for pod in PODS]))
        for pod in PODS:
            walk.own(pod)
        for step in range(steps):
            walk.step()
            if step % 40 == 30:
                walk.do(walk.drop if step % 80 == 30 else walk.clear)
            await walk.write(writer)
            await walk.compare(reader)
        assert walk.compared > steps / 2
        assert len(server.client().keys(f"{PREFIX}b:*")) > 0


# --- one promise each ---


async def test_a_block_leaves_with_its_last_holder(server: Server) -> None:
    """Nothing is kept of a block that nobody holds."""
    async with index_of(server) as index:
        await index.take(["a", "b"])
        keys = keys_of(1, 2, 3)
        await index.write([Write(pod, codes(keys, HOLD), complete=True) for pod in "ab"])
        await index.write([Write("a", codes(keys, UNHOLD))])
        assert await index.match(keys, ["a", "b"]) == {"a": Hit(0, 0), "b": Hit(3, 3)}
        await index.write([Write("b", codes(keys, UNHOLD))])
        assert server.client().keys(f"{PREFIX}b:*") == []


async def test_nobody_relies_on_what_is_not_whole(server: Server) -> None:
    """A pod that nobody writes, or that is not copied yet, is no answer: that differs from one that holds nothing."""
    async with index_of(server) as index:
        keys = keys_of(1, 2, 3)
        assert await index.match(keys, ["a"]) == {}
        await index.take(["a"])
        await index.write([Write("a", codes(keys, HOLD))])
        assert await index.match(keys, ["a"]) == {}
        await index.write([Write("a", {}, complete=True)])
        assert await index.match(keys, ["a"]) == {"a": Hit(3, 3)}
        assert await index.match(keys_of(4), ["a"]) == await index.match(keys[:0], ["a"]) == {"a": Hit(0, 0)}


async def test_a_new_generation_costs_one_script(server: Server) -> None:
    """A clear leaves all blocks where they are, and they mean nothing; the next write of a block leaves the old out."""
    async with index_of(server) as index:
        keys = keys_of(*range(1, 400))
        await index.take(["a", "b"])
        await index.write([Write(pod, codes(keys, HOLD), complete=True) for pod in "ab"])
        await index.write([Write("a", {}, anew=True, complete=True)])
        assert await index.match(keys, ["a", "b"]) == {"a": Hit(0, 0), "b": Hit(399, 399)}
        assert {len(value) for value in server.client().mget(server.client().keys(f"{PREFIX}b:*"))} == {10}
        await index.write([Write("a", codes(keys[:5], HOLD)), Write("b", codes(keys, HOLD))])
        assert (await index.match(keys, ["a"]))["a"] == Hit(5, 5)
        lengths = [len(server.client().get(f"{PREFIX}b:".encode() + int(key).to_bytes(8, "little"))) for key in keys]
        assert lengths == [10] * 5 + [5] * 394


async def test_one_owner_at_a_time(server: Server) -> None:
    """What another gateway owns can't be written; when it leaves, or is silent for a lease, others take over empty."""
    async with index_of(server, lease_s=0.5) as one, index_of(server, "two", lease_s=0.5) as two:
        keys = keys_of(1, 2)
        assert await one.take(["a", "b"]) == [True, True] and await two.take(["a", "c"]) == [False, True]
        assert await two.write([Write("a", codes(keys, HOLD)), Write("c", codes(keys, HOLD))]) == [-1, 0]
        assert await two.write([Write("a", codes(keys, HOLD), anew=True, complete=True)]) == [-1]
        assert await two.renew(["a", "c"]) == [False, True] and await two.drop(["a"]) == [False]
        await one.write([Write("a", codes(keys, HOLD), complete=True), Write("b", codes(keys, HOLD), complete=True)])
        assert await one.drop(["a"]) == [True]
        assert await two.take(["a"]) == [True] and await two.match(keys, ["a"]) == {}
        for _ in range(10):
            assert await two.renew(["a"]) == [True]
            await asyncio.sleep(0.1)
        assert await two.match(keys, ["a", "b"]) == {}, "b's owner is silent"
        assert await one.write([Write("b", codes(keys, HOLD))]) == [-1] and await one.renew(["b"]) == [False]
        assert await two.take(["b"]) == [True]
        for _ in range(40):  # slots whose lease has ended are forgotten a little later
            assert await two.renew(["a", "b"]) == [True, True]
            if server.client().zcard(f"{PREFIX}live") == 2:
                return
            await asyncio.sleep(0.1)
        raise AssertionError("dead slots are kept")


async def test_slots_are_never_used_twice(server: Server) -> None:
    """Not even when Redis has lost which one was the newest."""
    async with index_of(server) as index:
        keys = keys_of(1, 2)
        await index.take(["a"])
        await index.write([Write("a", codes(keys, HOLD), complete=True)])
        for name in ("slot", "live", "pod:a"):
            server.client().delete(PREFIX + name)
        await asyncio.sleep(1.1)  # slots are above the clock's seconds
        await index.take(["b", "a"])
        await index.write([Write("a", {}, complete=True), Write("b", {}, complete=True)])
        assert await index.match(keys, ["a", "b"]) == {"a": Hit(0, 0), "b": Hit(0, 0)}


async def test_what_is_beyond_the_bound_is_refused(server: Server) -> None:
    """The first blocks stay; room that becomes free is taken again; other pods have their own."""
    async with index_of(server, blocks_max=10) as index:
        keys = keys_of(*range(1, 21))
        await index.take(["a", "b"])
        for pod in "ab":
            assert await index.write([Write(pod, codes(keys, HOLD), complete=True)]) == [10]
        assert await index.match(keys, ["a", "b"]) == {"a": Hit(10, 10), "b": Hit(10, 10)}
        assert await index.write([Write("a", codes(keys[15:], UNHOLD) | codes(keys[:3], UNHOLD))]) == [0]
        assert await index.write([Write("a", codes(keys, HOLD))]) == [10]
        assert len(await index.match(keys, ["a"])) == 1 and server.client().hget(f"{PREFIX}pod:a", "blocks") == b"10"


async def test_everything_ends_by_itself(server: Server) -> None:
    """Blocks, pods and slots have a TTL; only the seed stays."""
    async with index_of(server, lease_s=0.5, block_ttl_s=1.0) as index:
        await index.seed(5)
        await index.take(["a"])
        await index.write([Write("a", codes(keys_of(1, 2), HOLD), complete=True)])
        redis = server.client()
        assert 0 < redis.pttl(redis.keys(f"{PREFIX}b:*")[0]) <= 1000 and 0 < redis.pttl(f"{PREFIX}pod:a") <= 500
        await asyncio.sleep(1.2)
        assert set(redis.keys("*")) == {f"{PREFIX}{name}".encode() for name in ("seed", "slot", "live")}


async def test_one_seed_for_all(server: Server) -> None:
    """The first gateway's; all 64 bits of it."""
    async with index_of(server) as one, index_of(server, "two") as two:
        assert await one.seed(2**64 - 1) == 2**64 - 1 == await two.seed(7)
        server.client().set(f"{PREFIX}seed", 2**70)
        with pytest.raises(RedisError):
            await one.seed(7)


async def test_writes_may_be_repeated(server: Server) -> None:
    """A batch whose answers were lost is sent again, and changes nothing more."""
    async with index_of(server) as index:
        keys = keys_of(*range(1, 30))
        await index.take(["a"])
        writes = [
            Write("a", codes(keys[:20], HOLD), anew=True, complete=True),
            Write("a", codes(keys[15:20], UNHOLD) | codes(keys[20:], HOLD)),
        ]
        for _ in range(3):
            assert await index.write(writes) == [0, 0]
            assert await index.match(keys, ["a"]) == {"a": Hit(15, 15)}
            assert server.client().hget(f"{PREFIX}pod:a", "blocks") == b"24"


async def test_scripts_that_were_flushed_are_there_again(server: Server) -> None:
    """It fails once, and works when it is tried again."""
    async with index_of(server) as index:
        server.client().script_flush()
        with pytest.raises(RedisError):
            await index.take(["a"])
        assert await index.take(["a"]) == [True]


async def test_a_gateway_can_always_leave(server: Server) -> None:
    """Wherever it is just now in talking to the server; and its pods are free at once."""
    for number in range(60):
        config = Config.model_validate({"index": {"redis": {"url": server.url, "key_prefix": PREFIX}}})
        sharing = Sharing(config.index.redis, core_of(2), str(number), lambda: None, time.monotonic)
        await sharing.start()
        await asyncio.sleep(random.random() * 0.02)
        async with asyncio.timeout(5):
            await sharing.stop()
        assert server.client().keys(f"{PREFIX}pod:*") == []


@pytest.mark.parametrize("stop", [Server.kill, Server.freeze], ids=["killed", "frozen"])
async def test_a_server_that_is_away_is_an_error_in_time(server: Server, stop: Callable[[Server], None]) -> None:
    """Nothing hangs: a question ends with its deadline, a write with the timeout; then all works again."""
    async with index_of(server, timeout_s=0.3) as index:
        await index.take(["a"])
        await index.write([Write("a", codes(keys_of(1), HOLD), complete=True)])
        stop(server)
        for _ in range(40):  # more than there are connections
            with pytest.raises((RedisError, OSError)):
                async with asyncio.timeout(0.01):
                    await index.match(keys_of(1), ["a"])
        with pytest.raises((RedisError, OSError)):
            async with asyncio.timeout(5):
                await index.write([Write("a", codes(keys_of(2), HOLD))])
        if stop is Server.kill:
            server.start()
            await index.connect()
            assert await index.match(keys_of(1), ["a"]) == {}
        else:
            server.thaw()
            await index.renew(["a"])
            assert (await index.match(keys_of(1, 3), ["a"]))["a"] == Hit(1, 1)
