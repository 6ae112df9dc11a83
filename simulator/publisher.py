"""KV events over ZMQ as vLLM publishes them: a PUB socket, and a ROUTER socket that replays a bounded buffer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

import zmq
import zmq.asyncio

from simulator.faults import Faults, Frame, Wire

BUFFER_STEPS = 10_000
"""Batches kept for replay: vLLM's default `buffer_steps`."""
SEND_HWM = 100_000
"""vLLM's default `hwm` of the PUB socket. The replay socket keeps ZMQ's own 1,000, as vLLM's does."""
END_SEQ = b"\xff" * 8
SLICE_FRAMES = 200
"""Replayed frames between two looks at the rest of the loop."""


class Publisher:
    """One data-parallel rank's feed. Sequence numbers start at 0 and count batches."""

    def __init__(self, topic: str, replay_topic: bool, buffer_steps: int = BUFFER_STEPS) -> None:
        """`replay_topic`: whether replay answers carry the topic."""
        self.seq = 0
        self.endpoint = ""
        self.replay_endpoint = ""
        self._topic = topic.encode()
        self._replay_topic = replay_topic
        self._buffer: deque[Frame] = deque(maxlen=buffer_steps)
        self._faults = Faults()
        self._wire = Wire(self._faults)
        self._context = zmq.asyncio.Context()
        self._pub: zmq.Socket[bytes] = zmq.Socket(self._context, zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        self._task: asyncio.Task[None] | None = None

    def open(self, endpoint: str, replay_endpoint: str, connects: bool = False) -> None:
        """Bind both sockets (port `*` or 0: any); raises zmq.ZMQError when an address is taken.

        `connects`: `endpoint` is where somebody listens to many publishers.
        """
        self._pub.set_hwm(SEND_HWM)
        if connects:
            self._pub.connect(endpoint)
        else:
            self._pub.bind(endpoint)
        self._router.bind(replay_endpoint)
        self.endpoint = self._pub.getsockopt_string(zmq.LAST_ENDPOINT) if endpoint.endswith("*") else endpoint
        self.replay_endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def start(self) -> None:
        """Answer replay requests from now on."""
        self._task = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Close both sockets."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._pub.close(linger=0)
        self._router.close(linger=0)
        self._context.term()

    def misbehave(self, faults: Faults) -> None:
        """Change what goes wrong; the draws start again from the seed."""
        self._faults = faults
        self._wire = Wire(faults)

    def restart(self) -> None:
        """As a new process would: sequence numbers from 0, an empty buffer."""
        self.seq = 0
        self._buffer.clear()
        self._wire = Wire(self._faults)

    def publish(self, payload: bytes) -> None:
        """Send one batch."""
        frame = Frame(self.seq, payload)
        self.seq += 1
        self._buffer.append(frame)
        for out in self._wire.send(frame):
            self._pub.send_multipart((self._topic, out.seq.to_bytes(8, "big"), out.payload), zmq.NOBLOCK)

    async def _serve(self) -> None:
        while True:
            request = await self._router.recv_multipart()
            if len(request) == 3 and len(request[2]) == 8 and not self._faults.no_replay:
                await self._replay(request[0], int.from_bytes(request[2], "big"))

    async def _replay(self, client: bytes, start: int) -> None:
        faults = self._faults
        whole = [frame for frame in self._buffer if frame.seq >= start]
        frames = whole[: faults.replay_cut]
        for number, frame in enumerate(frames):
            await self._answer(client, (frame.seq.to_bytes(8, "big"), frame.payload))
            if number % SLICE_FRAMES == SLICE_FRAMES - 1:
                await asyncio.sleep(0)
        if len(frames) == len(whole) or faults.replay_cut_end:
            await self._answer(client, (END_SEQ, b""), end=True)

    async def _answer(self, client: bytes, parts: Sequence[bytes], end: bool = False) -> None:
        topic = () if not self._replay_topic else (b"" if end else self._topic,)
        await self._router.send_multipart((client, b"", *topic, *parts))
