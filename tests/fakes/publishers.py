"""Publishers of KV events on real ZMQ sockets, as vLLM's are, and a reader of theirs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from indexer.blocks import Keys, KeySpace
from indexer.feed import Feed
from indexer.index import PrefixIndex
from indexer.match import MISS
from router.events.reader import FeedReader
from router.events.sockets import FeedLimits
from tests.fakes.limits import feed_limits
from tests.fakes.processes import free_ports

POD = "pod-0"
SIZE = 4  # tokens a block
END = b"\xff" * 8
PATIENT = feed_limits(replay_timeout_s=10.0)
Answers = Callable[[int], Iterable[list[bytes]]]


def chain(count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The tokens of `count` blocks."""
    return np.arange(count * SIZE, dtype=np.uint32)


def stored(number: int, clock: float, rank: int = 0) -> bytes:
    """Batch `number` of a publisher that stores block after block of one chain."""
    tokens = chain(number + 1)[number * SIZE :].tolist()
    event = ["BlockStored", [number + 1], number or None, tokens, SIZE, None, "GPU"]
    return msgspec.msgpack.encode([clock, [event], rank])


@dataclass
class Publisher:
    """A pod's feed. What `lost` names is in the history and was never sent; `answers` makes a replay's answers, which
    go out as fast as vLLM's thread sends them: what is over the socket's mark is dropped, and nobody is told."""

    pub: zmq.asyncio.Socket
    router: zmq.asyncio.Socket
    events: str
    replay: str
    topic: bool = True
    name: bytes = b"kv@pod-0@m"
    rank: int = 0
    born: float = field(default_factory=time.time)
    history: list[bytes] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    answers: Answers | None = None

    async def publish(self, payload: bytes | None = None, lost: bool = False) -> None:
        """The next batch: `payload`, or one more block of the chain."""
        number = len(self.history)
        self.history.append(payload or stored(number, self.born + number * 1e-3, self.rank))
        if not lost:
            await self.send(number, self.history[number])

    async def send(self, number: int, payload: bytes) -> None:
        """One frame, whatever it says."""
        await self.pub.send_multipart([self.name, number.to_bytes(8, "big"), payload])

    async def subscribed(self) -> None:
        """Return when a subscriber is there: what is sent from now on arrives."""
        async with asyncio.timeout(10):
            while (await self.pub.recv())[:1] != b"\x01":
                pass

    def whole(self, start: int) -> Iterable[list[bytes]]:
        """The answers of a pod that is well."""
        topic = [self.name] if self.topic else []
        for number in range(start, len(self.history)):
            yield [*topic, number.to_bytes(8, "big"), self.history[number]]
        yield [*([b""] if self.topic else []), END, b""]

    @property
    def thread(self) -> zmq.Socket[bytes]:
        """The replay socket as a thread has it, which waits for nobody."""
        return zmq.Socket.shadow(self.router.underlying)

    async def serve(self) -> None:
        while True:
            client, _, start = await self.router.recv_multipart()
            self.asked.append(int.from_bytes(start, "big"))
            for answer in (self.answers or self.whole)(self.asked[-1]):
                self.thread.send_multipart([client, b"", *answer])


@contextlib.asynccontextmanager
async def publisher(
    ports: list[int] | None = None, connects: str | None = None, hwm: int = 1000, replay_hwm: int = 0, **options: Any
) -> AsyncIterator[Publisher]:
    """A publisher on its ports, or one that `connects`; XPUB is PUB that tells of its subscribers.

    `hwm`, `replay_hwm`: so many messages wait for a peer, the rest is dropped; 0: all of them wait.
    """
    events, replay = (f"tcp://127.0.0.1:{port}" for port in ports or free_ports(2))
    events = connects or events
    with zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as pub, context.socket(zmq.ROUTER) as router:
        pub.setsockopt(zmq.XPUB_VERBOSE, 1)
        for socket in (pub, router):
            socket.setsockopt(zmq.LINGER, 0)
        pub.setsockopt(zmq.SNDHWM, hwm)
        router.setsockopt(zmq.SNDHWM, replay_hwm)
        pub.setsockopt(zmq.IPV6, "[" in events)
        (pub.connect if connects else pub.bind)(events)
        router.bind(replay)
        speaker = Publisher(pub, router, events, replay, **options)
        serving = asyncio.create_task(speaker.serve())
        try:
            yield speaker
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@dataclass
class Listener:
    """The side under test: a reader, its feed and its index."""

    reader: FeedReader
    feed: Feed
    index: PrefixIndex
    space: KeySpace

    def held(self, keys: Keys | None = None) -> int:
        """Leading blocks of a chain (the made-up one) that the pod is believed to hold."""
        keys = self.space.chain(chain(200), SIZE) if keys is None else keys
        return self.index.match(keys).hits.get(POD, MISS).blocks

    async def joined(self) -> None:
        async with asyncio.timeout(10):
            await self.reader.joined.wait()


@contextlib.asynccontextmanager
async def listening(speaker: Publisher, limits: FeedLimits = PATIENT, replay: bool = True) -> AsyncIterator[Listener]:
    """A reader of that publisher."""
    space = KeySpace(7)
    index = PrefixIndex(space, 100_000)
    feed = Feed(index, POD, 10_000)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    reader = FeedReader(context, feed, speaker.events, speaker.replay if replay else None, limits)
    reader.start()
    try:
        yield Listener(reader, feed, index, space)
    finally:
        await reader.stop()
        context.destroy(linger=0)
