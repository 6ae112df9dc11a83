"""Replays that are cut, endless, too large, or too many: over real sockets, with pods that behave as vLLM's do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace

import msgspec
import pytest
import zmq

from indexer.blocks import KeySpace
from indexer.feed import BEHIND, REPLAYING, Feed
from indexer.index import PrefixIndex
from router.events.reader import FeedReader
from router.events.replays import Places
from tests.fakes.limits import feed_limits
from tests.fakes.peers import until
from tests.fakes.processes import free_ports
from tests.fakes.publishers import PATIENT, SIZE, Listener, Publisher, chain, listening, publisher

ON_BOTH_LOOPS = True  # ZMQ's descriptor is read through the loop

LONG = 2413  # batches of a history, as of a pod that cut its replays


def held(listener: Listener, count: int = LONG) -> int:
    return listener.held(listener.space.chain(chain(count), SIZE))


def cut(speaker: Publisher, counts: list[int], end: bool) -> None:
    """Answers of a pod that drops all from some batch on: of so many, one after the other."""

    def answers(start: int) -> Iterable[list[bytes]]:
        asked = len(speaker.asked) - 1
        whole = list(speaker.whole(start))
        if asked >= len(counts):
            return whole
        return whole[: counts[asked]] + (whole[-1:] if end else [])

    speaker.answers = answers


@pytest.mark.parametrize("end", [True, False], ids=["with end marker", "without"])
async def test_a_history_that_is_cut_short(end: bool) -> None:
    """vLLM up to 0.32 drops the rest of long replays: it is asked for at once, until the end is proven."""
    async with publisher() as speaker:
        for _ in range(LONG):
            await speaker.publish(lost=True)
        cut(speaker, [1500, 500], end)
        async with listening(speaker, replace(PATIENT, replay_stall_s=0.2)) as listener:
            await listener.joined()
            assert (held(listener), listener.feed.state) == (LONG, "exact")
            assert speaker.asked == [0, 1500, 2000, LONG]
            assert listener.feed.counts.forgotten == 0


async def test_a_socket_that_drops() -> None:
    """A real ROUTER over its mark drops what it likes, the end marker too: all comes, piece by piece, and in order."""
    async with publisher(replay_hwm=50) as speaker:
        for _ in range(LONG):
            await speaker.publish(lost=True)
        async with listening(speaker, replace(PATIENT, replay_stall_s=0.2)) as listener:
            await listener.joined()
            assert speaker.asked[1] < LONG, "nothing was dropped: this proves nothing"
            assert (held(listener), listener.feed.state) == (LONG, "exact")
            assert speaker.asked == sorted(speaker.asked)
            await speaker.publish()
            await until(lambda: held(listener, LONG + 1) == LONG + 1)
            assert listener.feed.state == "exact"


async def test_nothing_of_a_cut_history_is_believed() -> None:
    """What was stored may have been removed since: as long as the rest is missing, no prompt is credited with it."""
    async with publisher() as speaker:
        for _ in range(50):
            await speaker.publish(lost=True)
        speaker.history.append(msgspec.msgpack.encode([speaker.born + 1, [["BlockRemoved", [1], "GPU"]], 0]))
        missing = asyncio.Event()

        def answers(start: int) -> Iterable[list[bytes]]:
            if len(speaker.asked) == 1:
                return list(speaker.whole(start))[:30]
            return speaker.whole(start) if missing.is_set() else []

        speaker.answers = answers
        async with listening(speaker, replace(PATIENT, replay_timeout_s=0.3, replay_stall_s=0.2)) as listener:
            await until(lambda: listener.feed.counts.stored == 30)
            assert (held(listener), listener.feed.reasons) == (0, [REPLAYING])
            await listener.joined()
            assert (held(listener), listener.feed.reasons) == (0, [BEHIND])
            missing.set()
            await speaker.subscribed()
            await speaker.publish(msgspec.msgpack.encode([speaker.born + 2, [["BlockRemoved", [50], "GPU"]], 0]))
            await until(lambda: listener.feed.state == "exact")
            assert (listener.feed.counts.stored, listener.feed.counts.removed) == (50, 2)
            assert held(listener) == 0, "its first block was removed"


async def test_a_history_without_its_end_is_asked_for_again() -> None:
    """The pod is silent: nothing live will ever prove the end, so it is asked again from time to time."""
    async with publisher() as speaker:
        for _ in range(10):
            await speaker.publish(lost=True)
        speaker.answers = lambda start: list(speaker.whole(start))[:-1]
        limits = feed_limits(replay_timeout_s=0.1, replay_stall_s=0.1, replay_retries=0)
        async with listening(speaker, limits) as listener:
            await listener.joined()
            assert listener.feed.reasons == [BEHIND]
            speaker.answers = None

            def exact() -> bool:
                listener.reader.mend()
                return listener.feed.state == "exact"

            await until(exact)
            assert held(listener) == 10


async def test_an_endless_replay() -> None:
    """It is ended by its bounds, nothing of it is kept, and the feed goes on."""
    async with publisher() as speaker:
        payload = msgspec.msgpack.encode([speaker.born, []])
        for limits in (feed_limits(replay_batches_max=500), feed_limits(replay_bytes_max=500 * len(payload))):
            speaker.answers = lambda start: (
                [b"", n.to_bytes(8, "big"), payload] for n in range(1 << 40, (1 << 40) + 5000)
            )
            async with listening(speaker, limits) as listener:
                await listener.joined()
                assert listener.feed.state == "degraded" and not listener.feed.replaying
            speaker.answers = None


async def test_more_than_may_wait() -> None:
    """Only so many bytes wait to be believed: the rest of the replay is asked for after them."""
    async with publisher() as speaker:
        for _ in range(300):
            await speaker.publish(lost=True)
        room = 100 * len(speaker.history[-1])
        async with listening(speaker, feed_limits(replay_waiting_max=room)) as listener:
            await listener.joined()
            assert (held(listener, 300), listener.feed.state) == (300, "exact")
            assert len(speaker.asked) > 2 and sorted(speaker.asked) == speaker.asked


async def test_a_batch_of_a_replay_that_is_too_large() -> None:
    """It is not received; what can't be had is lost, and its feed goes on behind it."""
    async with publisher() as speaker:
        for _ in range(4):
            await speaker.publish(lost=True)
        speaker.history.append(bytes(5001))
        limits = feed_limits(batch_bytes_max=5000, replay_timeout_s=0.2, replay_stall_s=0.1, replay_retries=1)
        async with listening(speaker, limits) as listener:
            await listener.joined()
            assert held(listener, 10) == 0 and listener.feed.state == "degraded"
            await speaker.subscribed()
            await speaker.publish()
            await until(lambda: listener.feed.counts.forgotten == 1 and not listener.feed.replaying)
            assert listener.feed.last_number == 5


async def test_many_feeds_of_one_context() -> None:
    """ZMQ gives a context 1,023 sockets unless told otherwise, and a feed takes three: 400 are read all the same."""
    async with publisher() as speaker:
        await speaker.publish(lost=True)
        index, context = PrefixIndex(KeySpace(7), 10_000), zmq.Context()
        readers = [
            FeedReader(context, Feed(index, number, 100), speaker.events, speaker.replay, feed_limits(replays_max=50))
            for number in range(400)
        ]
        for reader in readers:
            reader.start()
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*(reader.joined.wait() for reader in readers))
            assert {(reader.feed.state, reader.feed.counts.stored) for reader in readers} == {("exact", 1)}
        finally:
            await asyncio.gather(*(reader.stop() for reader in readers))
            context.destroy(linger=0)


async def test_a_machine_at_its_limit(caplog: pytest.LogCaptureFixture) -> None:
    """No socket is to be had: the feed says so, is blind, and is read as soon as there is one again."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 3)
    taken = [context.socket(zmq.PAIR) for _ in range(3)]
    async with publisher() as speaker:
        await speaker.publish(lost=True)
        reader = FeedReader(context, Feed(PrefixIndex(KeySpace(7), 4096), "pod-0", 100), speaker.events, None, PATIENT)
        reader.start()
        reader.mend()
        assert reader.feed.state == "blind"
        assert ["can't be read" in record.getMessage() for record in caplog.records] == [True]
        for socket in taken:
            socket.close()

        def heard() -> bool:
            reader.mend()
            return reader.answered

        await until(heard)
        await reader.stop()
    context.destroy(linger=0)


async def test_places() -> None:
    """Never more at a time than there are places; who waits has its turn pod by pod, in the order of coming."""
    places, order = Places(2), []
    inside = most = 0

    async def replay(pod: str, number: int) -> None:
        nonlocal inside, most
        async with places.place(pod):
            inside += 1
            most = max(most, inside)
            order.append(f"{pod}{number}")
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(replay("a", number) for number in range(6)), replay("b", 0), replay("c", 0))
    assert most == 2
    assert order == ["a0", "a1", "a2", "b0", "c0", "a3", "a4", "a5"]


async def test_places_of_those_that_left() -> None:
    """Cancelled while it waits, in its turn, or inside: its place is there for others."""
    places, entered = Places(1), asyncio.Event()

    async def stay() -> None:
        async with places.place("a"):
            entered.set()
            await asyncio.sleep(3600)

    inside = asyncio.create_task(stay())
    await entered.wait()
    waiting = [asyncio.create_task(stay()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    inside.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await inside
    for task in waiting:  # one of them has just been given its turn
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(10), places.place("b"):
        pass


async def test_no_place_is_taken_by_who_can_not_be_reached() -> None:
    """A replay that nobody answers ends, and those that waited have theirs."""
    dead = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    async with publisher() as speaker:
        await speaker.publish(lost=True)
        limits = feed_limits(replays_max=1, replay_timeout_s=0.1, replay_retries=1)
        index, context = PrefixIndex(KeySpace(7), 4096), zmq.Context()
        places = [dead, dead, dead, speaker.replay]
        readers = [FeedReader(context, Feed(index, n, 100), None, place, limits) for n, place in enumerate(places)]
        for reader in readers:
            reader.start()
        await until(lambda: all(reader.joined.is_set() for reader in readers))
        assert [reader.feed.state for reader in readers] == ["blind", "blind", "blind", "exact"]
        await asyncio.gather(*(reader.stop() for reader in readers))
        context.destroy(linger=0)
