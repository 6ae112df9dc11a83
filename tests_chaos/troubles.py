"""What goes wrong with pods, by a seeded plan: each trouble is done to one pod, lasts, and is undone."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.fakes.processes import MODEL, PLAIN, PodProcess

EVERY_S = 3.5  # from the begin of one trouble to that of the next
LASTS_S = (1.5, 3.0)
LONG_S = 5.0  # so that it is still there when the next one comes, to another pod
LONG_SHARE = 0.3
STORM_CLIENTS = 6
QUEUE_FILLERS = 4  # connections that nobody accepts


@dataclass(frozen=True, slots=True)
class Turn:
    """One trouble of the plan."""

    cause: str
    pod: int
    lasts_s: float


@dataclass(slots=True)
class Span:
    """One trouble as it was, in monotonic seconds."""

    cause: str
    pod: str
    began: float
    ended: float = float("inf")


def plan(seed: int, pods: int) -> list[Turn]:
    """Every trouble once, in an order and on pods drawn from `seed`; never two in a row on one pod."""
    draw = random.Random(seed)
    turns: list[Turn] = []
    for cause in draw.sample(sorted(TROUBLES), len(TROUBLES)):
        pod = draw.choice([number for number in range(pods) if not turns or number != turns[-1].pod])
        lasts_s = LONG_S if draw.random() < LONG_SHARE else draw.uniform(*LASTS_S)
        turns.append(Turn(cause, pod, lasts_s))
    return turns


async def carry_out(
    turns: Sequence[Turn], fleet: Sequence[PodProcess], spans: list[Span], every_s: float = EVERY_S
) -> None:
    """Do it all; `spans` gets what was done, as it begins and ends. A pod has one trouble at a time: to come back takes
    one that was killed as long as the machine needs.
    """
    locks = [asyncio.Lock() for _ in fleet]
    async with asyncio.TaskGroup() as group:
        for turn in turns:
            group.create_task(_one(turn, fleet[turn.pod], spans, locks[turn.pod]))
            await asyncio.sleep(every_s)


async def _one(turn: Turn, pod: PodProcess, spans: list[Span], lock: asyncio.Lock) -> None:
    async with lock:
        span = Span(turn.cause, pod.name, time.monotonic())
        spans.append(span)
        async with TROUBLES[turn.cause](pod):
            await asyncio.sleep(turn.lasts_s)
        span.ended = time.monotonic()


def _faulty(**faults: Any) -> Callable[[PodProcess], AbstractAsyncContextManager[None]]:
    """One of the simulator's own faults."""

    @asynccontextmanager
    async def trouble(pod: PodProcess) -> AsyncIterator[None]:
        await asyncio.to_thread(pod.fault, **faults)
        yield
        await asyncio.to_thread(pod.fault, clear=True)

    return trouble


async def _come_back(pod: PodProcess) -> None:
    pod.start()
    await asyncio.to_thread(pod.wait)


@asynccontextmanager
async def _killed(pod: PodProcess) -> AsyncIterator[None]:
    """kill -9; then a new process on the same ports."""
    await asyncio.to_thread(pod.kill)
    yield
    await _come_back(pod)


@asynccontextmanager
async def _stopped(pod: PodProcess) -> AsyncIterator[None]:
    """SIGSTOP: connections stay open, and nobody answers; then SIGCONT."""
    assert pod.process is not None
    pod.process.send_signal(signal.SIGSTOP)
    yield
    pod.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def _full(pod: PodProcess) -> AsyncIterator[None]:
    """In the pod's place, a socket whose accept queue is full: connections to it are neither made nor refused."""
    await asyncio.to_thread(pod.kill)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", pod.ports[0]))
        listener.listen(0)
        for _ in range(QUEUE_FILLERS):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", pod.ports[0]))
        yield
    await _come_back(pod)


@asynccontextmanager
async def _flooded(pod: PodProcess) -> AsyncIterator[None]:
    """Far more events than the gateway's own requests make, each of them twice."""
    await asyncio.to_thread(pod.fault, duplicate=1.0)
    storm = [asyncio.create_task(_storm(pod, number)) for number in range(STORM_CLIENTS)]
    yield
    for task in storm:
        task.cancel()
    await asyncio.gather(*storm, return_exceptions=True)
    await asyncio.to_thread(pod.fault, clear=True)


async def _storm(pod: PodProcess, number: int) -> None:
    draw = random.Random(number)
    async with httpx.AsyncClient(base_url=pod.address, **PLAIN) as http:
        while True:
            ids = [draw.randrange(200, 5000) for _ in range(160)]
            await http.post("/v1/completions", json={"model": MODEL, "prompt": ids, "max_tokens": 40})


TROUBLES: dict[str, Callable[[PodProcess], AbstractAsyncContextManager[None]]] = {
    "killed": _killed,
    "stopped": _stopped,
    "accept queue full": _full,
    "slow": _faulty(slow=30.0),
    "cuts streams": _faulty(die_after_chunks=3),
    "closes": _faulty(refuse="close"),
    "answers 503": _faulty(refuse="503"),
    "hangs": _faulty(hang=True),
    "event flood": _flooded,
    "frames lost": _faulty(drop=0.3, reorder=0.2),
    "feed silent": _faulty(silent=True),
}
