"""The one endpoint that publishers connect to: frames of many pods on one socket, each to the feed of its pod and rank.

The topic tells the pod: it is the one that the pod was given, or `kv@<pod>@<model>` with the pod's name, or the
host:port of its address, in the middle; the payload tells the rank. Topics are believed: whoever reaches this endpoint
can speak for any pod. By accident nobody should: what names no pod is nobody's, and while two publishers seem to speak
under one topic, nothing is believed of that feed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import zmq

from indexer import wire
from indexer.errors import WireError
from router.config.fleet import StaticPod, middle_of
from router.errors import ConfigError
from router.events.reader import FeedReader
from router.events.sockets import FeedLimits, Readable, port_plus, subscriber
from router.events.turns import Turns, shared
from router.metrics.families import Steps, counter

if TYPE_CHECKING:
    from router.config.events import EventsConfig

log = logging.getLogger("warmroute.feeds")

_SETTLE_S = 0.2  # pods come back together: those that are silent are asked once after it
_TOPIC_SHOWN_MAX = 200


@dataclass(slots=True, frozen=True)
class BoundLimits:
    """See the configuration."""

    topics_named_max: int
    disputes_max: int
    dispute_s: float

    @classmethod
    def of(cls, events: EventsConfig) -> Self:
        """As configured."""
        return cls(events.topics_named_max, events.disputes_max, events.dispute_time)


@dataclass(slots=True, eq=False)
class _Voice:
    """One feed, as it is heard here. `restarts`: when its publisher seemed to start anew; `quiet_until`: disputed."""

    reader: FeedReader
    restarts: deque[float]
    counted: int = 0
    quiet_until: float = 0.0


@dataclass(slots=True, eq=False)
class _Speaker:
    """A pod. `first`: the number that its publishers give to its first rank; it need not be 0."""

    pod: StaticPod
    voices: list[_Voice]
    first: int | None = None

    def voice(self, rank: int) -> _Voice | None:
        """The feed of a rank, None if there is none. Nodes of one fleet have equally many ranks, one after another."""
        if self.first is None:
            given = self.pod.first_rank
            self.first = given if given is not None else rank - rank % len(self.voices)
        place = rank - self.first
        return self.voices[place] if 0 <= place < len(self.voices) else None


class BoundEndpoint:
    """See the module."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        ranks: int,
        limits: FeedLimits,
        bound_limits: BoundLimits,
        clock: Callable[[], float],
    ) -> None:
        """Binds; rank r of vLLM connects to the given port + r, so `ranks` ports. Raises `ConfigError`."""
        self.endpoint = endpoint
        self.unclaimed = 0  # frames of nobody
        self.topics: dict[str, None] = {}  # of those, named once each
        self._limits = limits
        self._bound_limits = bound_limits
        self._clock = clock
        self._pods: dict[str, _Speaker] = {}
        self._topics: dict[str, _Speaker] = {}  # of pods that were given one
        self._middles: dict[str, _Speaker] = {}  # of the topics of all others
        self._unasked: dict[_Voice, float] = {}  # since when it may be another publisher
        self._looking: asyncio.TimerHandle | None = None  # soon after a connection
        self._connected_at = 0.0  # the newest connection
        self._readables: list[Readable] = []
        self._ports = 0
        self._turns = shared(context, Turns(limits.slice_s))
        self._socket = subscriber(context, limits)
        try:
            self._bind(ranks)
        except ConfigError:
            self._socket.close(linger=0)
            raise

    def start(self) -> None:
        """Listen from now on."""
        monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._readables = [
            Readable(monitor, self._turns, self._connected),
            Readable(self._socket, self._turns, self._frame),
        ]

    def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for readable in reversed(self._readables):
            readable.close()
        self._socket.close(linger=0)

    def join(self, pod: StaticPod, readers: Sequence[FeedReader]) -> None:
        """Frames of this pod go to its readers, one a rank. Raises `ConfigError` if a rank's port can't be bound."""
        self._bind(len(readers))
        times = self._bound_limits.disputes_max
        speaker = _Speaker(pod, [_Voice(reader, deque(maxlen=times)) for reader in readers])
        self._pods[pod.name] = speaker
        self._claimed(pod).update(dict.fromkeys(pod.claims, speaker))

    def leave(self, name: str) -> None:
        speaker = self._pods.pop(name, None)
        if speaker is not None:
            for claim in speaker.pod.claims:
                del self._claimed(speaker.pod)[claim]
            for voice in speaker.voices:
                self._unasked.pop(voice, None)

    def look(self) -> None:
        """From time to time: ask those that could not be asked when somebody had connected."""
        for voice, since in list(self._unasked.items()):
            feed = voice.reader.feed
            if feed.replaying:
                continue  # it may have begun too early: again after it
            del self._unasked[voice]
            if (feed.last_heard or 0.0) < since:
                voice.reader.connected()

    def collect(self) -> Steps:
        """Its families."""
        text = "Frames at the bound endpoint that name no pod."
        yield counter("warmroute_event_frames_unclaimed_total", text, self.unclaimed)

    def _bind(self, ranks: int) -> None:
        while self._ports < ranks:
            place = port_plus(self.endpoint, self._ports)
            try:
                self._socket.bind(place)
            except zmq.ZMQError as error:
                raise ConfigError(f"events.bind: {place} can't be bound: {zmq.strerror(error.errno or 0)}") from None
            self._ports += 1

    def _claimed(self, pod: StaticPod) -> dict[str, _Speaker]:
        return self._middles if pod.topic is None else self._topics

    def _connected(self, message: list[bytes]) -> None:
        self._connected_at = self._clock()
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_SETTLE_S, self._ask_the_silent)

    def _ask_the_silent(self) -> None:
        """Whose connection was made anew is not told: all that are silent since may have been cut off."""
        self._looking = None
        for speaker in self._pods.values():
            for voice in speaker.voices:
                if voice.reader.replays:  # else it could only be forgotten
                    self._unasked[voice] = self._connected_at
        self.look()

    def _frame(self, message: list[bytes]) -> None:
        """`[topic, sequence number, payload]`, of whomever."""
        topic = message[0].decode("utf-8", "replace")
        speaker = self._topics.get(topic) or self._middles.get(middle_of(topic) or "")
        if speaker is None:
            self._nobodys(topic, "names no pod")
            return
        try:
            rank = wire.rank_of(message[-1]) or 0
        except WireError:  # it shows as a gap, in whatever rank it is
            speaker.voices[0].reader.feed.spoiled()
            return
        voice = speaker.voice(rank)
        if voice is None:
            self._nobodys(topic, f"has a frame of rank {rank}, which its pod has not")
        elif not voice.quiet_until:
            voice.reader.frame(message)
            if voice.reader.feed.counts.restart != voice.counted:
                self._restarted(voice)
        elif voice.quiet_until <= self._clock():
            voice.quiet_until = 0.0
            voice.reader.feed.reread()

    def _nobodys(self, topic: str, why: str) -> None:
        self.unclaimed += 1
        said = f"the topic {topic[:_TOPIC_SHOWN_MAX]!r} {why}"
        if said in self.topics or len(self.topics) > self._bound_limits.topics_named_max:
            return
        full = len(self.topics) == self._bound_limits.topics_named_max
        log.warning("%s: %s", self.endpoint, "no more topics of no pod are named" if full else said)
        self.topics["…" if full else said] = None

    def _restarted(self, voice: _Voice) -> None:
        """Two publishers under one topic look like one that starts anew again and again."""
        feed, now, times = voice.reader.feed, self._clock(), voice.restarts
        voice.counted = feed.counts.restart
        times.append(now)
        if len(times) == times.maxlen and now - times[0] < self._bound_limits.dispute_s:
            times.clear()
            voice.quiet_until = now + self._bound_limits.dispute_s
            feed.dispute()
            log.warning(
                "%s: its publisher seems to start anew again and again: do two use its topic? "
                "Nothing is believed of it for %g s", feed.pod, self._bound_limits.dispute_s,
            )  # fmt: skip
