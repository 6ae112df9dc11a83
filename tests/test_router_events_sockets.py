"""How a subscription finds its publisher: names are looked up beside the loop, addresses may change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import zmq

from indexer.blocks import KeySpace
from indexer.feed import Feed
from indexer.index import PrefixIndex
from router.events.reader import FeedReader
from router.events.sockets import Resolve, addresses, has_name
from tests.fakes.limits import feed_limits
from tests.fakes.peers import until
from tests.fakes.processes import free_ports
from tests.fakes.publishers import publisher

ON_BOTH_LOOPS = True  # ZMQ's descriptor is read through the loop

LIMITS = feed_limits(
    replay_timeout_s=0.3, replay_retries=1, reconnect_s=0.02, reconnect_max_s=0.05, connect_timeout_s=0.1
)  # fmt: skip


@contextlib.asynccontextmanager
async def reading(events: str, replay: str | None, resolve: Resolve = addresses) -> AsyncIterator[FeedReader]:
    """A reader of one feed."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    feed = Feed(PrefixIndex(KeySpace(1), 4096), "pod-0", 100)
    reader = FeedReader(context, feed, events, replay, LIMITS, resolve=resolve)
    reader.start()
    try:
        yield reader
    finally:
        await reader.stop()
        context.destroy(linger=0)


async def test_a_name() -> None:
    """Feed and replay are found by it."""
    async with publisher() as speaker:
        for _ in range(3):
            await speaker.publish(lost=True)
        named = [place.replace("127.0.0.1", "localhost") for place in (speaker.events, speaker.replay)]
        async with reading(*named) as reader:
            await speaker.subscribed()
            await until(lambda: reader.feed.counts.stored == 3)
            await speaker.publish()
            await until(lambda: reader.feed.counts.stored == 4)


async def test_a_name_with_several_addresses() -> None:
    """The publisher listens at one of them only: the next one is tried, for the replay as well."""
    async with publisher() as speaker:
        await speaker.publish(lost=True)

        async def resolve(endpoint: str) -> list[str]:
            port = endpoint.rpartition(":")[2]
            return [f"tcp://[::1]:{port}", f"tcp://127.0.0.1:{port}"]

        named = [place.replace("127.0.0.1", "pod") for place in (speaker.events, speaker.replay)]
        async with reading(*named, resolve) as reader:
            await speaker.subscribed()
            await until(lambda: reader.feed.counts.stored == 1)
            await speaker.publish()
            await until(lambda: reader.feed.counts.stored == 2)


async def test_a_pod_that_moved() -> None:
    """Its new process has another address under the same name, and the old address answers no more."""
    ports = free_ports(4)
    place: list[int] = [ports[0]]

    async def resolve(endpoint: str) -> list[str]:
        return [f"tcp://127.0.0.1:{place[0]}"]

    async with reading("tcp://pod:5557", None, resolve) as reader:
        async with publisher(ports[:2]) as first:
            await first.subscribed()
            await first.publish()
            await until(lambda: reader.feed.counts.stored == 1)
        place[0] = ports[2]
        async with publisher(ports[2:]) as second:
            await second.subscribed()
            await second.publish()
            await until(lambda: reader.feed.counts.stored == 2)


async def test_a_name_that_is_not_known_yet(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked for again; that it is not known is said once."""
    asked = 0
    async with publisher() as speaker:

        async def resolve(endpoint: str) -> list[str]:
            nonlocal asked
            asked += 1
            if asked < 4:
                raise OSError(-2, "Name or service not known")
            return [speaker.events]

        with caplog.at_level(logging.WARNING, "warmroute.feeds"):
            async with reading("tcp://pod:5557", None, resolve) as reader:
                await speaker.subscribed()
                await speaker.publish()
                await until(lambda: reader.feed.counts.stored == 1)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["tcp://pod:5557: its host is not known: Name or service not known"]


async def test_a_look_up_that_takes_long_holds_nobody_back() -> None:
    """One name is being looked up for ever; the feed beside it, on the same loop, is read."""

    async def resolve(endpoint: str) -> list[str]:
        await asyncio.sleep(3600)
        return []

    async with publisher() as speaker, reading("tcp://slow:5557", None, resolve) as slow:
        async with reading(speaker.events, speaker.replay) as reader:
            await speaker.subscribed()
            await speaker.publish()
            await until(lambda: reader.feed.counts.stored == 1)
        assert slow.feed.state == "blind"


async def test_addresses() -> None:
    """Of a name, IPv4 ones first; an address is itself; a name that nobody knows is an OSError."""
    assert (await addresses("tcp://localhost:5557"))[0] == "tcp://127.0.0.1:5557"
    for known in ("tcp://10.0.0.7:1", "tcp://[fd00::7]:1", "ipc:///run/events"):
        assert await addresses(known) == [known] and not has_name(known)
    assert has_name("tcp://vllm-0.vllm:5557")
    with pytest.raises(OSError, match="no name of a host"):
        await addresses("tcp://vllm-0..vllm:5557")


UNREAD = """
import sys
import zmq
from router.config.events import EventsConfig
from router.events.sockets import FeedLimits, subscriber
def taken():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
socket = subscriber(zmq.Context(), FeedLimits.of(EventsConfig()))
monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
socket.connect(sys.argv[1])
socket.recv_multipart()
before = taken()
print("ready", flush=True)
monitor.recv_multipart()
print(taken() - before, flush=True)
for number in range({batches}):
    assert socket.recv_multipart(zmq.NOBLOCK)[1] == number.to_bytes(8, "big")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is told by /proc")
def test_what_waits_takes_what_it_weighs() -> None:
    """Batches that nobody has read yet, when all of them are there: their publisher has left."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    batches, size = 900, 4100
    with context.socket(zmq.XPUB) as pub:
        pub.setsockopt(zmq.SNDHWM, 0)
        port = pub.bind_to_random_port("tcp://127.0.0.1")
        command = [sys.executable, "-c", UNREAD.format(batches=batches), f"tcp://127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            pub.recv()
            pub.send_multipart([b"kv", bytes(8), b"the first"])
            assert child.stdout.readline() == b"ready\n"
            for number in range(batches):
                pub.send_multipart([b"kv", number.to_bytes(8, "big"), bytes(size)])
            pub.close(linger=-1)
            taken_kib = int(child.stdout.readline())
    assert child.returncode == 0
    context.term()
    weight_kib = batches * size / 1024
    assert weight_kib / 2 < taken_kib < 1.5 * weight_kib
