"""Pods' KV-event feeds over ZMQ: frames go to their `Feed`, gaps are closed from the replay socket.

One `FeedReader` a data-parallel rank. Sockets are read where they become readable, all of them in slices that leave the
loop to requests; there is no task and no queue between a frame and the index: what is not read yet waits, bounded, in
ZMQ, and then at the pod.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import zmq

from indexer.feed import Feed
from indexer.filling import resumed
from indexer.snapshot import Remembered
from router.core.fleet import RankId
from router.events.replays import Places, Replay, ReplayEnd
from router.events.sockets import FeedLimits, Resolve, Subscription, addresses
from router.events.turns import Turns, shared

log = logging.getLogger("warmroute.feeds")

_TIMED = 64  # of so many batches, the time of one is taken
_AGAIN_MAX_S = 60.0  # between two replays of a history whose end did not come; each time twice as long


class FeedReader:
    """Keeps one `Feed` fed: subscribes, notices reconnects, replays."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        feed: Feed,
        events: str | None,
        replay: str | None,
        limits: FeedLimits,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve = addresses,
    ) -> None:
        """`events` and `replay`: the endpoints of this rank; without `events`, somebody else calls `frame`."""
        self.feed = feed
        self.credit = 0.0
        self.timed: Callable[[float], None] | None = None  # told how long a batch took, of some of them
        self._context = context
        self._events = events
        self._replay_endpoint = replay
        self._limits = limits
        self._clock = clock
        self._resolve = resolve
        self._turns = shared(context, Turns(limits.slice_s))
        self._places = shared(context, Places(limits.replays_max))
        self._again_s = limits.replay_timeout_s
        self._again_at = 0.0
        self._refused = False  # it was said that no socket can be had
        self._subscription: Subscription | None = None
        self._replaying: asyncio.Task[None] | None = None
        self._replay: Replay | None = None
        self._state = feed.state
        self.answered = False  # its publisher was connected to, or connects to us
        self.joined = asyncio.Event()  # the first replay has ended: the first state is loaded

    def start(self) -> None:
        """Subscribe; connecting goes on behind."""
        if self._events is None:
            self.connected()
        else:
            self._subscribe(self._events)

    async def stop(self) -> None:
        self._turns.forget(self)
        if self._replaying is not None:
            self._replaying.cancel()
            await asyncio.gather(self._replaying, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.close()
            self._subscription = None

    def mend(self) -> None:
        """Ask for what the feed wants again, if anything."""
        if self._subscription is None and self._events is not None:
            self._subscribe(self._events)
        if self.feed.behind and self._replaying is None and self._clock() > self._again_at:
            self.feed.suspect()
        start = self.feed.mend(self._clock())
        if start is not None:
            log.info("%s: its history is asked for again", self.feed.pod)
            self._replay_if(start)
        elif self.feed.state != self._state:
            self._say_state()

    def resume(self, remembered: Remembered | None) -> None:
        """The feed has waited for what is remembered of it: it has that now, or there is nothing."""
        start = resumed(self.feed, remembered, self.answered, self._clock())
        if start is None and self.feed.caught_up:
            self.joined.set()
        self._replay_if(start if self.answered else None)  # who is not there is asked once it is

    def go_on(self) -> None:
        """What the feed has kept for a moment may be believed."""
        if self.feed.unfinished:
            self._turns.wake(self)

    @property
    def replays(self) -> bool:
        """Can the pod be asked for what did not come?"""
        return self._replay_endpoint is not None

    def connected(self) -> None:
        """The publisher may be another one now, or may have said what did not come."""
        self.answered = True
        self._replay_if(self.feed.connected(self._clock()))

    def frame(self, message: list[bytes]) -> None:
        """`[topic, sequence number, payload]`."""
        if len(message) != 3 or len(message[1]) != 8:
            self.feed.spoiled()
            return
        number, now = int.from_bytes(message[1], "big"), self._clock()
        try:
            start = self.feed.frame(number, message[2], now)
        except Exception:  # a fault of ours: what was made of the batch is not known
            log.exception("%s: a batch could not be believed", self.feed.pod)
            self.feed.reread()
            return
        self.feed.lag_s = time.time() - self.feed.last_clock
        if self.timed is not None and not number % _TIMED:
            self.timed(self._clock() - now)
        self._replay_if(start)

    def step(self) -> bool:
        """Believe a piece of a large batch, in turns with all feeds."""
        try:
            more = self.feed.go_on(self._clock())
        except Exception:  # a fault of ours, as in `frame`
            log.exception("%s: a batch could not be believed", self.feed.pod)
            self.feed.reread()
            more = False
        if not more:
            self._replay_if(None)
        return more

    def _subscribe(self, endpoint: str) -> None:
        """Or not, where the machine's limits are reached: then the next look tries again."""
        try:
            self._subscription = Subscription(
                self._context, endpoint, self._limits, self.frame, self.connected, self._resolve
            )
        except zmq.ZMQError as error:
            if not self._refused:
                log.error("%s: its feed can't be read: %s", self.feed.pod, error)
            self._refused = True

    def _replay_if(self, start: int | None) -> None:
        if self.feed.unfinished:
            self._turns.wake(self)
        if start is not None:
            if self._replaying is not None:
                self._replaying.cancel()
                if self._replay is not None:  # at once: what it would still bring is not what is asked for
                    self._replay.close()
            self._replaying = asyncio.get_running_loop().create_task(self._read_anew(start))
        elif self.feed.state != self._state:
            self._say_state()

    async def _read_anew(self, start: int) -> None:
        """Have all batches from `start`, then close the gap."""
        try:
            complete = await self._ask(start) if self._replay_endpoint else False
        except Exception:  # a fault of ours: the feed goes on, and its history is asked for again
            log.exception("%s: replay failed", self.feed.pod)
            complete = False
        self._replaying = None
        self._replay_if(self.feed.replay_ended(complete, self._clock()))
        if self._replaying is not None:
            return
        self._again_s = self._limits.replay_timeout_s if complete else min(2 * self._again_s, _AGAIN_MAX_S)
        self._again_at = self._clock() + self._again_s
        self.joined.set()
        self._say_state()

    async def _ask(self, start: int) -> bool:
        """Ask again and again until a whole history has come; False: it does not come.

        A pod drops silently what it can't send at once, stretches in the middle, or all from some number on; its end
        marker may come nevertheless. Whatever closes a part of it was not in vain. So the end is asked for once more,
        until nothing new comes or a live batch follows: then there is nothing between.
        """
        feed, limits = self.feed, self._limits
        again, last, front, batches, size, vain = start, -1, start, 0, 0, 0
        left = limits.replay_retries
        while True:
            replay, end = await self._fetch(again, vain)
            if replay is not None:
                batches, size = batches + replay.batches, size + replay.bytes
                if batches > limits.replay_batches_max or size > limits.replay_bytes_max:
                    log.warning("%s: its replay does not end: %d batches, %d bytes", feed.pod, batches, size)
                    return False
                if replay.anew is not None:
                    again, last, front = replay.anew, -1, replay.anew
                    continue
            new = replay is not None and replay.last > last
            last = replay.last if replay is not None and new else last
            missing = feed.missing()
            if end == "complete" and missing is None and (not new or feed.caught_up):
                return True
            reached = missing if missing is not None else last + 1
            if new or reached > front:
                left = limits.replay_retries
            else:
                vain += 1
            front = max(front, reached)
            if not left:
                return end == "complete"
            left -= 1
            again = missing if missing is not None else max(again, last + 1)

    async def _fetch(self, start: int, attempt: int) -> tuple[Replay | None, ReplayEnd]:
        """One request for `start`; None: it could not be made."""
        feed, limits = self.feed, self._limits
        try:
            places = await self._resolve(self._replay_endpoint or "")
            async with self._places.place(feed.pod.pod if isinstance(feed.pod, RankId) else feed.pod):
                place = places[attempt % len(places)]
                replay = self._replay = Replay(self._context, place, self._turns, limits, self._believe, self._clock)
                return replay, await replay.run(start)
        except OSError as error:  # a ZMQError is none
            log.warning("%s: replay failed: its host is not known: %s", feed.pod, error.strerror or error)
        except zmq.ZMQError as error:
            log.warning("%s: replay failed: %s", feed.pod, error)
        await asyncio.sleep(limits.reconnect_max_s)
        return None, "silent"

    def _believe(self, number: int, payload: bytes) -> int | None:
        start = self.feed.replayed(number, payload, self._clock())
        if self.feed.unfinished:
            self._turns.wake(self)
        return start

    def _say_state(self) -> None:
        """Once for each change."""
        if self.feed.state != self._state:
            self._state = self.feed.state
            reasons = "; ".join(self.feed.reasons)
            log.info("%s: its feed is %s%s", self.feed.pod, self._state, f": {reasons}" if reasons else "")
