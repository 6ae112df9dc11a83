"""Feeds over real ZMQ sockets: a publisher as vLLM's is, the recorded frames, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from indexer.blocks import KeySpace
from indexer.feed import BEHIND, Feed
from indexer.index import PrefixIndex
from indexer.match import MISS
from tests.fakes.limits import feed_limits
from tests.fakes.peers import until
from tests.fakes.processes import free_ports
from tests.fakes.publishers import (
    POD,
    Listener,
    Publisher,
    listening,
    publisher,
    stored,
)

ON_BOTH_LOOPS = True  # ZMQ's descriptor is read through the loop

VECTORS = Path(__file__).parent / "vectors"
QUICK = feed_limits(replay_timeout_s=0.3, replay_retries=1)


# --- the recordings


def recorded(version: str, file: str) -> list[dict[str, Any]]:
    """The lines of a recording."""
    return [orjson.loads(line) for line in (VECTORS / version / file).read_bytes().splitlines()]


def parts_of(line: dict[str, Any], name: str = "parts") -> list[bytes]:
    """The frames of a recorded message."""
    return [base64.b64decode(part) for part in line[name]]


def believed(index: PrefixIndex, space: KeySpace, version: str, size: int) -> list[int]:
    """Of each recorded prompt, the leading blocks that the pod holds."""
    requests = recorded(version, "requests.jsonl")
    prompts = [prompt["token_ids"] for request in requests for prompt in request["prompts"] or ()]
    keys = [space.chain(np.array(ids, dtype=np.uint32), size) for ids in prompts]
    return [index.match(each).hits.get(POD, MISS).blocks for each in keys]


@pytest.mark.parametrize("version", sorted(path.parent.name for path in VECTORS.glob("*/replay.jsonl")))
async def test_recorded_frames(version: str) -> None:
    """Joined late, some live, a gap that vLLM's own recorded answers close: as if every frame had come in order."""
    frames = [parts_of(line) for line in recorded(version, "frames.jsonl")]
    request, *replies = recorded(version, "replay.jsonl")
    answers = [parts_of(line) for line in replies]
    start = request["start_seq"]
    space = KeySpace(7)
    reference = PrefixIndex(space, 100_000)
    direct = Feed(reference, POD, 10_000)
    for _, number, payload in frames:
        direct.frame(int.from_bytes(number, "big"), payload, 0.0)
    async with publisher(topic=len(answers[0]) == 4) as speaker:
        speaker.history = [payload for _, _, payload in frames[: start // 2]]
        async with listening(speaker) as listener:
            await speaker.subscribed()
            await listener.joined()
            assert listener.feed.state == "exact"
            for _, _, payload in frames[start // 2 : start + 1]:
                await speaker.publish(payload)
            await until(lambda: listener.feed.last_number == start)
            speaker.answers = lambda asked: [answer[1:] for answer in answers]
            speaker.history = [payload for _, _, payload in frames]
            await speaker.pub.send_multipart(frames[-1])
            await until(lambda: listener.feed.counts.gap == 1 and listener.feed.state == "exact")
            assert speaker.asked == [0, start // 2, start]
            assert start == int.from_bytes(parts_of(request, "request_parts")[1], "big")
            assert listener.feed.counts.decode_errors == listener.feed.counts.forgotten == 0
            assert listener.index.holding(POD) == reference.holding(POD)
            size = direct.block_size or 0
            ours = believed(listener.index, space, version, size)
            assert ours == believed(reference, space, version, size)
            assert sum(map(bool, ours)) > 5


# --- joining


@pytest.mark.parametrize("topic", [True, False], ids=["since-0.26", "before-0.26"])
async def test_late_join(topic: bool) -> None:
    """What was published before is asked for; both shapes of answers are understood; then it goes on live."""
    async with publisher(topic=topic) as speaker:
        for _ in range(50):
            await speaker.publish(lost=True)
        async with listening(speaker) as listener:
            await listener.joined()
            await speaker.subscribed()
            assert (listener.held(), listener.feed.state) == (50, "exact")
            await speaker.publish()
            await until(lambda: listener.held() == 51)
            assert speaker.asked == [0, 50], "the end is proven by asking once more"


async def test_history_that_is_cut() -> None:
    """The oldest batches have fallen out of the replay: what is left is believed as far as it goes, and it says so."""
    async with publisher() as speaker:
        speaker.answers = lambda start: list(speaker.whole(max(start, 5)))
        for _ in range(8):
            await speaker.publish(lost=True)
        async with listening(speaker) as listener:
            await listener.joined()
            assert (listener.held(), listener.feed.state) == (0, "degraded")
            assert any("history" in reason for reason in listener.feed.reasons)
            await speaker.subscribed()
            await speaker.publish(msgspec.msgpack.encode([time.time(), [["AllBlocksCleared"]], 0]))
            await until(lambda: listener.feed.state == "exact")


async def test_nothing_published() -> None:
    """An idle pod: its empty replay is proof enough."""
    async with publisher() as speaker, listening(speaker) as listener:
        await listener.joined()
        assert (listener.held(), listener.feed.state) == (0, "exact")


async def test_no_replay_socket() -> None:
    """Without one: what comes from the first batch on is exact; joined late, it is degraded; a gap forgets."""
    async with publisher() as speaker, listening(speaker, replay=False) as listener:
        await speaker.subscribed()
        await listener.joined()
        for _ in range(3):
            await speaker.publish()
        await until(lambda: listener.held() == 3)
        assert listener.feed.state == "exact"
        await speaker.publish(lost=True)
        await speaker.publish()
        await until(lambda: listener.feed.counts.forgotten == 1)
        assert (listener.held(), listener.feed.state) == (0, "degraded")


# --- gaps


async def test_gap() -> None:
    """Lost frames are asked for from the last applied one on; frames that come meanwhile are kept."""
    async with publisher() as speaker, listening(speaker) as listener:
        await speaker.subscribed()
        await listener.joined()
        for number in range(40):
            await speaker.publish(lost=number in (10, 11, 12, 30))
        await until(lambda: listener.held() == 40)
        assert listener.feed.state == "exact" and listener.feed.counts.forgotten == 0
        assert speaker.asked[:2] == [0, 9]


async def test_swapped_frames() -> None:
    """Two frames in the wrong order: the late one comes by itself and by the replay, and nothing is lost."""
    async with publisher() as speaker, listening(speaker) as listener:
        await speaker.subscribed()
        await listener.joined()
        for number in range(0, 20, 2):
            await speaker.publish(lost=True)
            await speaker.publish(lost=True)
            for swapped in (number + 1, number):
                await speaker.send(swapped, speaker.history[swapped])
        await until(lambda: listener.held() == 20)
        await until(lambda: listener.feed.state == "exact")
        assert listener.feed.counts.forgotten == 0


async def test_replay_with_holes() -> None:
    """Pods drop silently what they can't send at once: the first hole is asked for again."""
    async with publisher() as speaker:
        for _ in range(30):
            await speaker.publish(lost=True)

        def holes(start: int) -> Iterable[list[bytes]]:
            answers = list(speaker.whole(start))
            return answers[:5] + answers[9:] if len(speaker.asked) == 1 else answers

        speaker.answers = holes
        async with listening(speaker) as listener:
            await listener.joined()
            assert (listener.held(), listener.feed.state) == (30, "exact")
            assert speaker.asked == [0, 5]


async def test_hole_that_stays() -> None:
    """What no replay brings is lost: the blocks are forgotten, not guessed."""
    async with publisher() as speaker:
        for _ in range(30):
            await speaker.publish(lost=True)
        hole = (7).to_bytes(8, "big")
        speaker.answers = lambda start: [answer for answer in speaker.whole(start) if hole not in answer]
        async with listening(speaker, QUICK) as listener:
            await listener.joined()
            assert (listener.held(), listener.feed.state) == (0, "degraded")
            assert len(speaker.asked) == 1 + QUICK.replay_retries


async def test_no_end_marker() -> None:
    """A replay without its end may have been cut: nothing of it is believed until a live batch follows it."""
    async with publisher() as speaker:
        for _ in range(10):
            await speaker.publish(lost=True)
        speaker.answers = lambda start: list(speaker.whole(start))[:-1]
        async with listening(speaker, QUICK) as listener:
            await listener.joined()
            assert (listener.held(), listener.feed.state, listener.feed.reasons) == (0, "degraded", [BEHIND])
            assert listener.feed.counts.replay_failed == 1
            await speaker.subscribed()
            await speaker.publish()
            await until(lambda: listener.held() == 11)


async def test_silent_replay() -> None:
    """A replay socket that never answers: given up after the named time and number of tries."""
    async with publisher() as speaker:
        for _ in range(4):
            await speaker.publish(lost=True)
        speaker.answers = lambda start: []
        async with listening(speaker, QUICK) as listener:
            await speaker.subscribed()
            await speaker.publish()
            await listener.joined()
            assert speaker.asked == [0, 0]
            assert (listener.held(), listener.feed.state) == (0, "degraded")


# --- connections


@contextlib.asynccontextmanager
async def cut_off(ports: list[int], count: int) -> AsyncIterator[tuple[Publisher, Listener]]:
    """A publisher that has said `count` batches and is gone, and who listened to it."""
    async with contextlib.AsyncExitStack() as stack:
        speaker = await stack.enter_async_context(publisher(ports))
        async with listening(speaker) as listener:
            await speaker.subscribed()
            await listener.joined()
            for _ in range(count):
                await speaker.publish()
            await until(lambda: listener.held() == count)
            await stack.aclose()
            yield speaker, listener


async def test_reconnect_to_the_same_publisher() -> None:
    """What was missed while the connection was down is asked for as soon as it is up, without waiting for a frame."""
    ports = free_ports(2)
    async with cut_off(ports, 5) as (first, listener):
        history = [*first.history, *(stored(number, first.born + number * 1e-3) for number in range(5, 9))]
        async with publisher(ports, history=history, born=first.born) as second:
            await until(lambda: listener.held() == 9)
            await until(lambda: second.asked == [4, 9])
            assert listener.feed.counts.forgotten == 0
            await second.subscribed()
            await second.publish()
            await until(lambda: listener.held() == 10)
            assert listener.feed.state == "exact"


async def test_reconnect_to_another_publisher() -> None:
    """A pod that came back: its feed starts from 0, and nothing of the old one's blocks is believed any more."""
    ports = free_ports(2)
    async with cut_off(ports, 9) as (first, listener):
        born = first.born + 60
        for history in ([], [stored(number, born + number) for number in range(3)]):
            async with publisher(ports, history=list(history), born=born) as second:
                await until(lambda: listener.held() == len(history))  # noqa: B023 - awaited here
                await until(lambda: listener.feed.state == "exact")
                assert listener.feed.counts.restart >= 1
                await second.subscribed()
                await second.publish()
                await until(lambda: listener.held() == len(history) + 1)  # noqa: B023


async def test_restart_seen_in_the_frames() -> None:
    """A publisher that starts again on a connection that stays (a proxy between): told by number and clock."""
    async with publisher() as speaker, listening(speaker) as listener:
        await speaker.subscribed()
        await listener.joined()
        for _ in range(6):
            await speaker.publish()
        await until(lambda: listener.held() == 6)
        speaker.history, speaker.born = [], speaker.born + 60
        await speaker.publish()
        await until(lambda: listener.held() == 1)
        assert listener.feed.counts.restart == 1 and listener.feed.state == "exact"


async def test_garbage() -> None:
    """Frames that are none: counted; what is behind a number that can't be read is asked for, and the feed lives on."""
    async with publisher() as speaker, listening(speaker, feed_limits(batch_bytes_max=5000)) as listener:
        await speaker.subscribed()
        await listener.joined()
        for message in ([b"x"], [b"", b"short", b""], [b"a", b"\0" * 8, b"b", b"c"]):
            await speaker.pub.send_multipart(message)
        await until(lambda: listener.feed.counts.decode_errors == 3)
        await speaker.send(0, b"x" * 5001)
        await speaker.subscribed()  # it was cut off
        await speaker.publish(lost=True)
        await speaker.send(0, b"\xc1 spoiled on the way")
        await until(lambda: listener.held() == 1)
        assert listener.feed.state == "degraded" and listener.feed.reasons
        await speaker.publish()
        await until(lambda: listener.held() == 2)


# --- large batches


@pytest.mark.parametrize("way", ["live", "replayed"])
async def test_a_large_batch_leaves_the_loop_to_others(way: str) -> None:
    """It is believed in pieces with others' turns between; frames that come meanwhile are behind it."""
    blocks = 20_000
    tokens = np.arange(blocks * 4, dtype=np.uint32)
    event = ["BlockStored", list(range(1, blocks + 1)), None, tokens.tolist(), 4, None, "GPU"]
    async with publisher() as speaker:
        large = msgspec.msgpack.encode([speaker.born, [event], 0])
        gone = msgspec.msgpack.encode([speaker.born + 1, [["BlockRemoved", [blocks], "GPU"]], 0])
        if way == "replayed":
            await speaker.publish(large, lost=True)
        async with listening(speaker) as listener:
            await speaker.subscribed()
            if way == "live":
                await listener.joined()
                await speaker.publish(large)
            await speaker.publish(gone)
            keys, seen = listener.space.chain(tokens, 4), set()

            def all_believed() -> bool:
                seen.add(listener.held(keys))
                assert listener.feed.state != "exact" or not listener.feed.unfinished
                return listener.feed.state == "exact" and listener.feed.counts.removed == 1

            async with asyncio.timeout(20):
                while not all_believed():
                    await asyncio.sleep(0)
            assert listener.held(keys) == blocks - 1
            assert len(seen) > 3 or way == "replayed", "others had no turn"
