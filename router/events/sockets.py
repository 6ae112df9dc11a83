"""The SUB sockets of feeds: their limits, how they are read, and how one stays connected to its publisher.

ZMQ looks names up in the very thread that moves all sockets' bytes, so one slow look-up would hold back every feed; and
of a name that has addresses of both families it takes IPv6 ones only, where vLLM listens on IPv4 unless told otherwise.
So names are looked up here, beside the loop, and ZMQ is given addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias

import zmq
from zmq.utils.monitor import parse_monitor_message

from router.events.turns import Turns, shared

if TYPE_CHECKING:
    from router.config.events import EventsConfig

log = logging.getLogger("warmroute.feeds")

Resolve: TypeAlias = Callable[[str], Awaitable[list[str]]]

_PATIENT = 4  # where there is one address only, ZMQ itself mostly comes back to it
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_ZERO_COPY_RECV = 10  # of a context, in zmq_draft.h of libzmq 4.3: pyzmq has no name for it


@dataclass(slots=True, frozen=True)
class FeedLimits:
    """`slice_s`: longest stretch of applying events at once, of all feeds together.

    A replay is over when the pod is silent for `replay_timeout_s`, once it has begun to answer for `replay_stall_s`.
    A connection is dead when nothing answers for `heartbeat_timeout_s`, or as many keepalive probes.
    """

    receive_hwm: int
    batch_bytes_max: int
    slice_s: float
    replay_timeout_s: float
    replay_stall_s: float
    replay_time_max_s: float
    replay_retries: int
    replays_max: int
    replay_batches_max: int
    replay_bytes_max: int
    replay_waiting_max: int
    reconnect_s: float
    reconnect_max_s: float
    connect_timeout_s: float
    heartbeat_s: float
    heartbeat_timeout_s: float
    keepalive_idle_s: float
    keepalive_interval_s: float
    keepalive_probes: int

    @classmethod
    def of(cls, events: EventsConfig) -> Self:
        """As configured."""
        return cls(
            receive_hwm=events.receive_hwm,
            batch_bytes_max=events.batch_bytes_max,
            slice_s=events.slice_seconds,
            replay_timeout_s=events.replay_timeout,
            replay_stall_s=events.replay_stall,
            replay_time_max_s=events.replay_time_max,
            replay_retries=events.replay_retries,
            replays_max=events.replays_max,
            replay_batches_max=events.replay_batches_max,
            replay_bytes_max=events.replay_bytes_max,
            replay_waiting_max=events.replay_waiting_max,
            reconnect_s=events.reconnect_delay,
            reconnect_max_s=events.reconnect_delay_max,
            connect_timeout_s=events.connect_timeout,
            heartbeat_s=events.heartbeat_interval,
            heartbeat_timeout_s=events.heartbeat_timeout,
            keepalive_idle_s=events.keepalive_idle,
            keepalive_interval_s=events.keepalive_interval,
            keepalive_probes=events.keepalive_probes,
        )


class Readable:
    """Calls `on_message` for each message of a socket, in turns with others; ZMQ's descriptor only signals changes."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        turns: Turns,
        on_message: Callable[[list[bytes]], None],
        first: bool = False,
    ) -> None:
        """`first`: its messages can't wait for those of others."""
        self.credit = 0.0
        self._socket = socket
        self._turns = turns
        self._on_message = on_message
        self._first = first
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self.wake)
        self.wake()

    @property
    def is_silent(self) -> bool:
        """Is there nothing to read now?"""
        return self._socket.closed or not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN

    def close(self) -> None:
        if self._socket.closed:
            return
        self._loop.remove_reader(self._fd)
        self._turns.forget(self)
        self._socket.close(linger=0)

    def step(self) -> bool:
        """Read one message."""
        if self._socket.closed:
            return False
        try:
            message = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.ZMQError:  # nothing is there, or the context is gone
            return False
        self._on_message(message)
        return True

    def wake(self) -> None:
        """There may be messages. Whatever else is done with the socket takes ZMQ's signal away: then, too."""
        self._turns.wake(self, self._first)


class Subscription:
    """A SUB socket that is connected to one publisher, again and again, wherever its host's name leads."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        limits: FeedLimits,
        on_message: Callable[[list[bytes]], None],
        on_connected: Callable[[], None],
        resolve: Resolve,
    ) -> None:
        """Raises `zmq.ZMQError`: there is no socket left, or the endpoint is none."""
        self._endpoint = endpoint
        self._patience_s = (limits.connect_timeout_s + limits.reconnect_max_s) * (1 if has_name(endpoint) else _PATIENT)
        self._on_connected = on_connected
        self._resolve = resolve
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._socket = subscriber(context, limits)
        try:
            monitor = self._socket.get_monitor_socket(_EVENTS)
        except zmq.ZMQError:
            self._socket.close(linger=0)
            raise
        turns = shared(context, Turns(limits.slice_s))
        self._readables = [Readable(monitor, turns, self._noticed), Readable(self._socket, turns, on_message)]
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        for readable in reversed(self._readables):
            readable.close()

    def _noticed(self, message: list[bytes]) -> None:
        if parse_monitor_message(message)["event"] == zmq.EVENT_DISCONNECTED:
            self._up.clear()
            self._down.set()
            return
        self._down.clear()
        self._up.set()
        self._on_connected()

    async def _follow(self) -> None:
        """Each address in turn; the one that is connected stays as long as it is, or soon is again.

        ZMQ itself never comes back to who broke the protocol, or sent more than it may: here it is tried again.
        """
        unknown = False
        while True:
            try:
                places, unknown = await self._resolve(self._endpoint), False
            except OSError as error:
                if not unknown:
                    log.warning("%s: its host is not known: %s", self._endpoint, error.strerror or error)
                places, unknown = [], True
            for place in places:
                await self._stay(place)
            if not places:
                await asyncio.sleep(self._patience_s)

    async def _stay(self, place: str) -> None:
        try:
            self._socket.connect(place)
        except zmq.ZMQError as error:
            log.warning("%s can't be connected to: %s", place, error)
            await asyncio.sleep(self._patience_s)
            return
        self._readables[1].wake()
        while await self._is_up():
            await self._down.wait()
        with contextlib.suppress(zmq.ZMQError):  # ZMQ has given it up already
            self._socket.disconnect(place)
        self._readables[1].wake()

    async def _is_up(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                return await self._up.wait()
        return False


def subscriber(context: zmq.Context[zmq.Socket[bytes]], limits: FeedLimits) -> zmq.Socket[bytes]:
    """A SUB socket to all topics, not connected yet."""
    made = _socket(context, zmq.SUB, limits)
    made.setsockopt(zmq.RCVHWM, limits.receive_hwm)
    made.subscribe(b"")  # the topic may hold any text
    return made


def asker(context: zmq.Context[zmq.Socket[bytes]], limits: FeedLimits) -> zmq.Socket[bytes]:
    """A DEALER for replays, not connected yet; without a mark, as a pod drops silently what is over it."""
    made = _socket(context, zmq.DEALER, limits)
    made.setsockopt(zmq.RCVHWM, 0)
    return made


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, limits: FeedLimits) -> zmq.Socket[bytes]:
    """One that finds out soon that nobody is there any more, or is again.

    What it has received is copied: by default each message that waits, however small, keeps the 17 KiB of memory into
    which it was read, so that a flood of events takes many times what it weighs, in pieces between what stays.
    """
    context.set(zmq.MAX_SOCKETS, context.get(zmq.SOCKET_LIMIT))  # counts with the first one; a feed takes three
    with contextlib.suppress(zmq.ZMQError):  # an older library
        context.set(_ZERO_COPY_RECV, 0)
    made = context.socket(kind)
    made.setsockopt(zmq.MAXMSGSIZE, limits.batch_bytes_max)  # whoever sends more is cut off
    made.setsockopt(zmq.IPV6, 1)
    made.setsockopt(zmq.TCP_KEEPALIVE, 1)
    made.setsockopt(zmq.TCP_KEEPALIVE_IDLE, round(limits.keepalive_idle_s))
    made.setsockopt(zmq.TCP_KEEPALIVE_INTVL, round(limits.keepalive_interval_s))
    made.setsockopt(zmq.TCP_KEEPALIVE_CNT, limits.keepalive_probes)
    made.setsockopt(zmq.RECONNECT_IVL, round(limits.reconnect_s * 1000))
    made.setsockopt(zmq.RECONNECT_IVL_MAX, round(limits.reconnect_max_s * 1000))
    made.setsockopt(zmq.CONNECT_TIMEOUT, round(limits.connect_timeout_s * 1000))
    made.setsockopt(zmq.HANDSHAKE_IVL, round(limits.connect_timeout_s * 1000))
    made.setsockopt(zmq.HEARTBEAT_IVL, round(limits.heartbeat_s * 1000))
    made.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(limits.heartbeat_timeout_s * 1000))
    made.setsockopt(zmq.HEARTBEAT_TTL, round(limits.heartbeat_timeout_s * 1000))
    return made


def has_name(endpoint: str) -> bool:
    """Is the endpoint's host a name, to be looked up?"""
    if not endpoint.startswith("tcp://"):
        return False
    try:
        ipaddress.ip_address(_host_of(endpoint))
    except ValueError:
        return True
    return False


async def addresses(endpoint: str) -> list[str]:
    """The endpoint once for each address of its host, IPv4 ones first; raises OSError if the name is not known."""
    if not has_name(endpoint):
        return [endpoint]
    port = endpoint.rpartition(":")[2]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(_host_of(endpoint), None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label of the name is empty or too long
        raise OSError(socket.EAI_NONAME, f"it is no name of a host: {error}") from error
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    hosts = [f"[{where[0]}]" if family == socket.AF_INET6 else where[0] for family, _, _, _, where in found]
    return [f"tcp://{host}:{port}" for host in dict.fromkeys(hosts)]


def port_plus(endpoint: str, number: int) -> str:
    """Publishers of further ranks are at the ports after the first."""
    if not number:
        return endpoint
    head, _, port = endpoint.rpartition(":")
    return f"{head}:{int(port) + number}"


def _host_of(endpoint: str) -> str:
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
