"""The endpoint that publishers connect to, over real sockets: who is heard as whom, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from itertools import chain as chained
from typing import Any

import msgspec
import pytest
import zmq

from indexer import wire
from indexer.blocks import KeySpace
from indexer.errors import WireError
from indexer.feed import DISPUTED, Feed
from indexer.index import PrefixIndex
from indexer.match import MISS
from router.config.fleet import StaticPod
from router.core.fleet import RankId
from router.errors import ConfigError
from router.events.bound_endpoint import BoundEndpoint, BoundLimits
from router.events.reader import FeedReader
from router.events.sockets import FeedLimits
from tests.fakes.limits import bound_limits, feed_limits
from tests.fakes.peers import until
from tests.fakes.processes import free_ports
from tests.fakes.publishers import SIZE, Publisher, chain, publisher, stored

ON_BOTH_LOOPS = True  # ZMQ's descriptor is read through the loop

LIMITS = feed_limits(replay_timeout_s=10.0, reconnect_max_s=0.2)
LOOK_S = 0.05  # as the router's housekeeping, but faster


@dataclass
class Room:
    """The side under test: the bound endpoint, and the readers of each pod."""

    bound: BoundEndpoint
    readers: dict[str, list[FeedReader]]
    index: PrefixIndex
    space: KeySpace

    def feed(self, pod: str, rank: int = 0) -> Feed:
        return self.readers[pod][rank].feed

    def held(self, pod: str, rank: int = 0) -> int:
        """Leading blocks of the made-up chain that the pod is believed to hold."""
        keys = self.space.chain(chain(200), SIZE)
        return self.index.match(keys).hits.get(RankId(pod, rank), MISS).blocks


def pod(name: str, **given: Any) -> StaticPod:
    """A pod without events of its own."""
    return StaticPod.model_validate({"name": name, "address": f"http://{name}:8000", **given})


@contextlib.asynccontextmanager
async def listening(
    *pods: StaticPod,
    port: int,
    host: str = "*",
    limits: FeedLimits = LIMITS,
    disputes: BoundLimits | None = None,
) -> AsyncIterator[Room]:
    """A bound endpoint with these pods."""
    space = KeySpace(7)
    index = PrefixIndex(space, 100_000)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ranks = max(each.data_parallel_size for each in pods)
    bound = BoundEndpoint(context, f"tcp://{host}:{port}", ranks, limits, disputes or bound_limits(), time.monotonic)
    bound.start()
    readers: dict[str, list[FeedReader]] = {}
    for each in pods:
        readers[each.name] = [
            FeedReader(context, Feed(index, RankId(each.name, rank), 10_000), None, each.replay, limits)
            for rank in range(each.data_parallel_size)
        ]
        bound.join(each, readers[each.name])
        for reader in readers[each.name]:
            reader.start()
    looking = asyncio.create_task(_look(bound, readers))
    try:
        yield Room(bound, readers, index, space)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        for name in readers:
            bound.leave(name)
        for reader in chained(*readers.values()):
            await reader.stop()
        bound.stop()
        context.destroy(linger=0)


async def _look(bound: BoundEndpoint, readers: dict[str, list[FeedReader]]) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        bound.look()
        for reader in chained(*readers.values()):
            reader.mend()


def place(port: int, host: str = "127.0.0.1") -> str:
    """Where publishers connect to."""
    return f"tcp://{host}:{port}"


@contextlib.asynccontextmanager
async def speaking(port: int, name: str, host: str = "127.0.0.1", **more: Any) -> AsyncIterator[Publisher]:
    """A publisher that is connected."""
    async with publisher(connects=place(port, host), name=name.encode(), **more) as speaker:
        await speaker.subscribed()
        yield speaker


async def test_two_publishers() -> None:
    """Each is heard as the pod that its topic names: by name, and by its address's host and port."""
    (port,), replays = free_ports(1), free_ports(4)
    pods = [
        pod("pod-0", replay=place(replays[1])),
        pod("other", address="http://10.0.0.7:8000", replay=place(replays[3])),
    ]
    async with (
        listening(*pods, port=port) as room,
        speaking(port, "kv@pod-0@acme/llama-tiny", ports=replays[:2]) as first,
        speaking(port, "kv@10.0.0.7:8000@acme/llama-tiny", ports=replays[2:]) as second,
    ):
        for _ in range(5):
            await first.publish()
        for _ in range(3):
            await second.publish()
        await until(lambda: (room.held("pod-0"), room.held("other")) == (5, 3))
        await until(lambda: room.feed("pod-0").state == room.feed("other").state == "exact")  # their replays have ended
        assert room.bound.unclaimed == 0


async def test_a_gap_of_one_of_them() -> None:
    """What one lost is asked of its own replay; the other is not concerned."""
    (port,), replays = free_ports(1), free_ports(4)
    pods = [pod("pod-0", replay=place(replays[1])), pod("pod-1", replay=place(replays[3]))]
    async with (
        listening(*pods, port=port) as room,
        speaking(port, "kv@pod-0@m", ports=replays[:2]) as first,
        speaking(port, "kv@pod-1@m", ports=replays[2:]) as second,
    ):
        await until(lambda: not any(room.feed(each.name).replaying for each in pods))  # nothing was said yet
        for number in range(20):
            await first.publish(lost=number in (7, 8))
            await second.publish()
        await until(lambda: (room.held("pod-0"), room.held("pod-1")) == (20, 20))
        assert room.feed("pod-0").counts.gap == 1 and room.feed("pod-0").counts.missed == 2
        assert room.feed("pod-1").counts.gap == 0
        assert room.feed("pod-0").counts.forgotten == 0


async def test_a_gap_without_replay() -> None:
    """Without a replay a gap forgets that pod's blocks, and no other's; a new connection of others does not."""
    (port,) = free_ports(1)
    async with listening(pod("pod-0"), pod("pod-1"), port=port) as room, speaking(port, "kv@pod-0@m") as first:
        for _ in range(3):
            await first.publish()
        await until(lambda: room.held("pod-0") == 3)
        async with speaking(port, "kv@pod-1@m") as second:
            await second.publish()
            await until(lambda: room.held("pod-1") == 1)
            await asyncio.sleep(1)  # the silent ones would be asked now
            assert room.held("pod-0") == 3
            await first.publish(lost=True)
            await first.publish()
            await until(lambda: room.feed("pod-0").counts.forgotten == 1)
            assert (room.held("pod-0"), room.held("pod-1")) == (0, 1)
            assert room.feed("pod-0").state == "degraded"


async def test_a_restart() -> None:
    """A pod's new process connects anew and says nothing yet: it is asked, and nothing of the old one is believed."""
    (port,), replays = free_ports(1), free_ports(4)
    pods = [pod("pod-0", replay=place(replays[1])), pod("pod-1", replay=place(replays[3]))]
    async with listening(*pods, port=port) as room, speaking(port, "kv@pod-1@m", ports=replays[2:]) as other:
        await other.publish()
        async with speaking(port, "kv@pod-0@m", ports=replays[:2]) as first:
            for _ in range(6):
                await first.publish()
            await until(lambda: room.held("pod-0") == 6)
        async with speaking(port, "kv@pod-0@m", ports=replays[:2], born=first.born + 60) as second:
            await until(lambda: room.held("pod-0") == 0)
            await second.publish()
            await until(lambda: room.held("pod-0") == 1)
            await until(lambda: room.feed("pod-0").state == "exact")
            assert room.feed("pod-0").counts.restart == 1 and room.held("pod-1") == 1


async def test_a_connection_that_was_down() -> None:
    """What the same publisher said meanwhile is asked for when somebody has connected, without waiting for a frame."""
    (port,), replays = free_ports(1), free_ports(2)
    async with listening(pod("pod-0", replay=place(replays[1])), port=port) as room:
        async with speaking(port, "kv@pod-0@m", ports=replays) as first:
            for _ in range(5):
                await first.publish()
            await until(lambda: room.held("pod-0") == 5)
        history = [*first.history, *(stored(number, first.born + number * 1e-3) for number in range(5, 9))]
        async with speaking(port, "kv@pod-0@m", ports=replays, history=history, born=first.born):
            await until(lambda: room.held("pod-0") == 9)
            assert room.feed("pod-0").counts.forgotten == 0


async def test_a_router_that_was_down() -> None:
    """Pods stay and connect to whoever binds the endpoint next; what was said before is replayed."""
    (port,), replays = free_ports(1), free_ports(2)
    async with publisher(connects=place(port), ports=replays, name=b"kv@pod-0@m") as speaker:
        for _ in range(4):
            await speaker.publish()
        for _ in range(2):
            async with listening(pod("pod-0", replay=place(replays[1])), port=port) as room:
                await speaker.subscribed()
                await until(lambda: room.held("pod-0") == len(speaker.history))
                await speaker.publish()
                await until(lambda: room.held("pod-0") == len(speaker.history))
                await until(lambda: room.feed("pod-0").state == "exact")


async def test_frames_of_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """They are counted, each topic is said once, and not without end."""
    (port,) = free_ports(1)
    limits = bound_limits(topics_named_max=3)
    async with (
        listening(pod("pod-0"), port=port, disputes=limits) as room,
        speaking(port, "kv@stranger@m") as stranger,
        speaking(port, "kv@pod-0@m") as first,
    ):
        with caplog.at_level(logging.WARNING, "warmroute.feeds"):
            for name in (b"kv@stranger@m", b"", b"\xff\xfe", b"kv@", b"pod-0", b"kv@pod-0", b"kv@pod-00@m"):
                stranger.name = name
                for _ in range(3):
                    await stranger.publish()
            await until(lambda: room.bound.unclaimed == 21)
            await first.publish()
            await until(lambda: room.held("pod-0") == 1)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 4 and "'kv@stranger@m' names no pod" in said[0] and "no more topics" in said[3]
        await until(lambda: room.feed("pod-0").state == "exact")
        (family,) = room.bound.collect()
        assert [value for _, value in family.samples] == [21]


async def test_a_topic_of_its_own() -> None:
    """A pod that was given a topic is told by it alone."""
    (port,) = free_ports(1)
    async with (
        listening(pod("pod-0", topic="events of zero"), port=port) as room,
        speaking(port, "events of zero") as first,
        speaking(port, "kv@pod-0@m") as stranger,
    ):
        await stranger.publish()
        await until(lambda: room.bound.unclaimed == 1)
        await first.publish()
        await until(lambda: room.held("pod-0") == 1)


async def test_ranks() -> None:
    """Rank r connects to the port + r, all under one topic; the payload tells the rank, and there are no others."""
    first = free_ports(3)[0]
    async with contextlib.AsyncExitStack() as stack:
        room = await stack.enter_async_context(listening(pod("pod-0", data_parallel_size=2), port=first))
        speakers = [
            await stack.enter_async_context(speaking(first + rank, "kv@pod-0@m", rank=rank)) for rank in range(2)
        ]
        for speaker, count in zip(speakers, (2, 4), strict=True):
            for _ in range(count):
                await speaker.publish()
        await until(lambda: [room.held("pod-0", rank) for rank in range(2)] == [2, 4])
        speakers[1].rank = 2
        await speakers[1].publish()
        await until(lambda: room.bound.unclaimed == 1)
        assert "rank 2" in next(iter(room.bound.topics))
        assert [room.held("pod-0", rank) for rank in range(2)] == [2, 4]


async def test_the_rank_of_a_pod_with_one() -> None:
    """A rank that is a server of its own keeps its number: the first one that is heard is the pod's, others are not."""
    (port,) = free_ports(1)
    async with (
        listening(pod("pod-0"), port=port) as room,
        speaking(port, "kv@pod-0@m", rank=5) as fifth,
        speaking(port, "kv@pod-0@m", rank=6) as sixth,
    ):
        await fifth.publish()
        await until(lambda: room.held("pod-0") == 1)
        for _ in range(3):
            await sixth.publish()
        await until(lambda: room.bound.unclaimed == 3)
        await fifth.publish()
        await until(lambda: room.held("pod-0") == 2)
        await until(lambda: room.feed("pod-0").state == "exact")


async def test_two_under_one_topic(caplog: pytest.LogCaptureFixture) -> None:
    """One of them would speak for the other: after a few turns nothing is believed; later its own history is."""
    (port,), replays = free_ports(1), free_ports(2)
    limits = bound_limits(dispute_s=1.0)
    async with contextlib.AsyncExitStack() as stack:
        zero = pod("pod-0", replay=place(replays[1]))
        room = await stack.enter_async_context(listening(zero, port=port, disputes=limits))
        right = await stack.enter_async_context(speaking(port, "kv@pod-0@m", ports=replays))
        async with speaking(port, "kv@pod-0@m") as wrong:
            feed = room.feed("pod-0")

            async def disputed() -> None:
                while DISPUTED not in feed.reasons:
                    for each in (right, wrong):
                        clock = time.time()
                        await each.publish(stored(len(each.history), clock))
                        await asyncio.sleep(0.01)

            await asyncio.wait_for(disputed(), 10)
            assert (room.held("pod-0"), feed.state) == (0, "degraded") and feed.truncated
            assert "do two use its topic" in caplog.text
            await right.publish(stored(len(right.history), time.time()))
            await asyncio.sleep(0.2)
            assert room.held("pod-0") == 0
        await asyncio.sleep(limits.dispute_s)
        await right.publish(stored(len(right.history), time.time()))
        await until(lambda: room.held("pod-0") == len(right.history))
        await until(lambda: feed.state == "exact")


async def test_spoiled_frames() -> None:
    """What is no batch is counted, and shows as a gap: nothing ends for it."""
    (port,), replays = free_ports(1), free_ports(2)
    async with (
        listening(pod("pod-0", replay=place(replays[1])), port=port) as room,
        speaking(port, "kv@pod-0@m", ports=replays) as first,
    ):
        for message in (
            [b"kv@pod-0@m"],
            [b"kv@pod-0@m", b"short", b"\x93\x00\x90\x00"],
            [b"kv@pod-0@m", b"\0" * 8, b"\xc1"],
        ):
            await first.pub.send_multipart(message)
        await until(lambda: room.feed("pod-0").counts.decode_errors == 3)
        await first.publish(lost=True)
        await first.publish()
        await until(lambda: room.held("pod-0") == 2)


async def test_a_frame_that_is_too_large() -> None:
    """It is not even received: its publisher is cut off and comes back, and what was lost is a gap."""
    (port,), replays = free_ports(1), free_ports(2)
    async with (
        listening(pod("pod-0", replay=place(replays[1])), port=port) as room,
        speaking(port, "kv@pod-0@m", ports=replays) as first,
    ):
        await first.publish()
        await until(lambda: room.held("pod-0") == 1)
        await first.pub.send_multipart([b"kv@pod-0@m", b"\0" * 8, bytes(LIMITS.batch_bytes_max + 1)])
        await first.subscribed()
        await first.publish()
        await until(lambda: room.held("pod-0") == 2)


async def test_more_than_waits_its_turn() -> None:
    """Far more than waits unread: what ZMQ drops above its marks is counted as missed, and asked for."""
    (port,), replays = free_ports(1), free_ports(2)
    async with (
        listening(pod("pod-0", replay=place(replays[1])), port=port, limits=replace(LIMITS, receive_hwm=2)) as room,
        speaking(port, "kv@pod-0@m", ports=replays, hwm=2) as first,
    ):
        await first.publish()
        await until(lambda: room.held("pod-0") == 1)
        await asyncio.sleep(0.3)  # a silent one would have been asked by now, which would hide what is lost
        for number in range(1, 121):
            first.history.append(padded(number, first.born + number))
            first.pub.send_multipart([first.name, number.to_bytes(8, "big"), first.history[number]])
        await until(lambda: room.held("pod-0") > 1)
        async with asyncio.timeout(20):
            while room.held("pod-0") < len(first.history):  # what was lost last shows with the next frame
                await first.publish(stored(len(first.history), first.born + len(first.history)))
                await asyncio.sleep(0.5)
        feed = room.feed("pod-0")
        assert feed.counts.gap > 0 and feed.counts.missed > 0
        assert feed.counts.forgotten == 0


def padded(number: int, clock: float) -> bytes:
    """A batch of half a megabyte."""
    ts, events, rank = msgspec.msgpack.decode(stored(number, clock))
    return msgspec.msgpack.encode([ts, [*events, ["Padding", bytes(1 << 19)]], rank])


@pytest.mark.parametrize("host", ["[::1]", "[::]", "*"])
async def test_ipv6(host: str) -> None:
    """Bound to IPv6; the wildcards take IPv4 as well."""
    (port,) = free_ports(1)
    async with listening(pod("pod-0"), port=port, host=host) as room:
        for number, peer in enumerate(["[::1]"] if host == "[::1]" else ["[::1]", "127.0.0.1"], 1):
            async with speaking(port, "kv@pod-0@m", host=peer, born=number * 1e3) as first:
                await first.publish()
                await until(lambda: room.feed("pod-0").counts.stored == number)  # noqa: B023


async def test_a_port_that_is_taken() -> None:
    """A plain error that names the endpoint."""
    (port,) = free_ports(1)
    async with listening(pod("pod-0"), port=port) as room:
        message = f"events.bind: {re.escape(room.bound.endpoint)} can't be bound: Address already in use"
        with zmq.Context() as context, pytest.raises(ConfigError, match=message):
            BoundEndpoint(context, room.bound.endpoint, 1, LIMITS, bound_limits(), time.monotonic)


async def test_a_pod_that_left() -> None:
    """Its frames are nobody's from then on."""
    (port,) = free_ports(1)
    async with listening(pod("pod-0"), port=port) as room, speaking(port, "kv@pod-0@m") as first:
        await first.publish()
        await until(lambda: room.held("pod-0") == 1)
        room.bound.leave("pod-0")
        await first.publish()
        await until(lambda: room.bound.unclaimed == 1)


def test_the_rank_of_a_payload() -> None:
    """Read without the events; None of versions that do not tell it."""
    payload: Callable[..., bytes] = lambda *parts: msgspec.msgpack.encode(list(parts))  # noqa: E731
    assert wire.rank_of(payload(1.0, [["AllBlocksCleared"]], 3)) == 3
    assert wire.rank_of(payload(1.0, [])) is None and wire.rank_of(payload(1.0, [], None)) is None
    for bad in (b"", b"\xc1", payload(1.0), payload(1.0, [], -1), payload(1.0, [], "0"), payload("x", [], 0)):
        with pytest.raises(WireError):
            wire.rank_of(bad)
