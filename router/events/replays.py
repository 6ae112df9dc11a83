"""Replays: what a pod sends when it is asked for its history. How many at a time, and how much of one, is bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from typing import Literal, TypeAlias

import zmq

from router.events.sockets import FeedLimits, Readable, asker
from router.events.turns import Turns

_END = b"\xff" * 8  # the sequence number of a replay's end marker

ReplayEnd: TypeAlias = Literal["complete", "silent", "full", "restart"]


class Places:
    """At most `places` replays at a time. Those that wait have their turns pod by pod: a pod with many ranks that
    answer slowly, or never, does not keep others waiting for all of them."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def place(self, pod: Hashable) -> AsyncIterator[None]:
        """A place, held inside."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(pod)
        try:
            yield
        finally:
            self._give_back()

    async def _turn(self, pod: Hashable) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(pod, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            pod, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[pod] = turns  # behind all others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Replay:
    """One request, and what comes of it: read at once, as a pod drops silently what is not fetched in time; believed
    in turns with all feeds.

    `believe(number, payload)` says from where to ask anew, if the batch is another publisher's.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        place: str,
        turns: Turns,
        limits: FeedLimits,
        believe: Callable[[int, bytes], int | None],
        clock: Callable[[], float],
    ) -> None:
        """Raises `zmq.ZMQError`: there is no socket left, or the place is none."""
        self.credit = 0.0
        self.batches = 0  # so many came
        self.bytes = 0
        self.last = -1  # the highest number that came
        self.anew: int | None = None
        self._turns = turns
        self._limits = limits
        self._believe = believe
        self._clock = clock
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0
        self._heard = clock()
        self._end: asyncio.Future[ReplayEnd] = asyncio.get_running_loop().create_future()
        self._believed = asyncio.Event()
        self._socket = asker(context, limits)
        try:
            self._socket.connect(place)
        except zmq.ZMQError:
            self._socket.close(linger=0)
            raise
        self._readable = Readable(self._socket, turns, self._came, first=True)

    async def run(self, start: int) -> ReplayEnd:
        """Ask for all from `start`; returns how it ended, when all that came is believed."""
        try:
            self._socket.send_multipart([b"", start.to_bytes(8, "big")], zmq.NOBLOCK)
            end = await self._ended()
            self._readable.close()
            while self._waiting:
                self._believed.clear()
                await self._believed.wait()
            return "restart" if self.anew is not None else end
        finally:
            self.close()

    def close(self) -> None:
        """Nothing more is read or believed."""
        self._readable.close()
        self._turns.forget(self)

    def step(self) -> bool:
        """Believe one batch."""
        if not self._waiting:
            self._believed.set()
            return False
        number, payload = self._waiting.popleft()
        self._waiting_bytes -= len(payload)
        if not self._waiting:
            self._believed.set()
        self.anew = self._believe(number, payload)
        if self.anew is not None:
            self._waiting.clear()
            self._stop("restart")
        return True

    async def _ended(self) -> ReplayEnd:
        """Its end, or a silence: of a pod that has begun to answer, a short one says that it dropped the rest."""
        limits, until = self._limits, self._clock() + self._limits.replay_time_max_s
        while not self._end.done():
            silence_s = limits.replay_timeout_s if self.last < 0 else limits.replay_stall_s
            left = min(self._heard + silence_s, until) - self._clock()
            if left > 0:
                await asyncio.wait([self._end], timeout=min(left, limits.replay_stall_s))
            elif self._readable.is_silent or self._clock() > until:
                return "silent"
            else:  # it is we who were not reading
                self._heard = self._clock()
                self._readable.wake()
        return self._end.result()

    def _came(self, message: list[bytes]) -> None:
        """`["", topic?, sequence number, payload]`."""
        self._heard = self._clock()
        number = message[-2] if len(message) >= 2 else b""
        if number == _END:
            self._stop("complete")
        elif len(number) == 8:
            self._keep(int.from_bytes(number, "big"), message[-1])

    def _keep(self, number: int, payload: bytes) -> None:
        limits = self._limits
        self._waiting.append((number, payload))
        self._waiting_bytes += len(payload)
        self.last = max(self.last, number)
        self.batches += 1
        self.bytes += len(payload)
        self._turns.wake(self)
        if (
            self._waiting_bytes > limits.replay_waiting_max
            or self.bytes > limits.replay_bytes_max
            or self.batches > limits.replay_batches_max
        ):
            self._stop("full")

    def _stop(self, end: ReplayEnd) -> None:
        self._readable.close()
        if not self._end.done():
            self._end.set_result(end)
