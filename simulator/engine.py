"""One data-parallel rank at work: runs the scheduler's steps in time, delivers tokens, publishes events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from simulator.blocks import BlockPool
from simulator.events import Dialect, Origin
from simulator.faults import Faults
from simulator.hashes import root_digest
from simulator.metrics import BOUNDS_TOKENS, Histogram
from simulator.offload import FarTier
from simulator.pace import Pace
from simulator.publisher import Publisher
from simulator.reuse import Group, Kind, Reuse
from simulator.scheduler import Request, Scheduler, Work

LAG_MAX_S = 0.25
"""A step that ends later than planned is made up for, but no more than this: a stalled machine does not race after."""
EMPTY_FIRST_SINCE = (0, 22)
"""Freed blocks without content are taken first: not in recordings of 0.20.2, seen in 0.28 and 0.32. The version
in which it came was not seen."""


class Interrupted(Exception):
    """The answer will not be finished: the pod restarted, or the client is gone."""


Rest: TypeAlias = Literal["asleep", "paused"]
Inbox: TypeAlias = "asyncio.Queue[tuple[int, int | Interrupted | None]]"
"""What happens to the requests of one client, by index: a token, None after the last one, or an interruption."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of one rank, and how it reuses its blocks. `groups`: kind and window of what is kept beside them.
    `offload_max`: blocks of the tier below (0: there is none), of which events tell the tokens if `describes_offload`.
    """

    block_size: int = 16
    blocks_max: int = 2_048
    sequences_max: int = 256
    batched_tokens_max: int = 2_048
    reuse: Reuse = field(default_factory=Reuse)
    groups: tuple[tuple[Kind, int], ...] = ()
    offload_max: int = 0
    describes_offload: bool = False


@dataclass(slots=True, eq=False)
class Ticket:
    """One submitted request. `each`: the inbox gets every token, not only the end."""

    request: Request
    inbox: Inbox
    index: int
    each: bool
    arrived_s: float
    scheduled_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None


@dataclass(slots=True)
class Latencies:
    """Histograms in seconds."""

    first_token: Histogram = field(default_factory=Histogram)
    between_tokens: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    request: Histogram = field(default_factory=Histogram)
    prefill: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Sizes:
    """Histograms in tokens, of finished requests."""

    prompt: Histogram = field(default_factory=lambda: Histogram(BOUNDS_TOKENS))
    computed: Histogram = field(default_factory=lambda: Histogram(BOUNDS_TOKENS))


class Engine:
    """A scheduler with a clock. `seed` None: engine hashes differ from those of every other process."""

    def __init__(self, limits: Limits, pace: Pace, dialect: Dialect, publisher: Publisher, rank: int,
                 seed: str | None = None) -> None:  # fmt: skip
        self.limits = limits
        self.rank = rank
        self.publisher = publisher
        self.latencies = Latencies()
        self.sizes = Sizes()
        self._pace = pace
        self._dialect = dialect
        self._seed = seed
        self._slow = 1.0
        self._tickets: dict[Request, Ticket] = {}
        self._aborted: list[Request] = []
        self._wake = asyncio.Event()
        self.resting: Rest | None = None
        self._generation = 0
        self.scheduler = self._new_scheduler()

    def _new_scheduler(self) -> Scheduler:
        limits, empty_first = self.limits, self._dialect.version >= EMPTY_FIRST_SINCE
        size, blocks_max = limits.block_size, limits.blocks_max
        given = enumerate(limits.groups, start=1)
        groups = [Group(number, kind, window, size, blocks_max) for number, (kind, window) in given]
        far = FarTier(limits.offload_max, limits.describes_offload, self.rank) if limits.offload_max else None
        pool = BlockPool(blocks_max, size, empty_first, limits.reuse.ahead, groups, far, limits.reuse.window)
        root = root_digest(secrets.token_hex(16) if self._seed is None else self._seed)
        return Scheduler(pool, root, limits.sequences_max, limits.batched_tokens_max, limits.reuse)

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return len(self._tickets)

    def submit(self, request: Request, now: float, inbox: Inbox, index: int = 0, each: bool = True) -> Ticket:
        """Queue a request at `now` (monotonic seconds)."""
        self.scheduler.add(request)
        ticket = Ticket(request, inbox, index, each, now)
        self._tickets[request] = ticket
        self._wake.set()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """The client is gone, or has all it wanted: idempotent."""
        if self._tickets.pop(ticket.request, None) is not None:
            self._aborted.append(ticket.request)
            self._wake.set()

    def cached_tokens(self, token_ids: list[int], origin: Origin) -> int:
        """How many tokens of a prompt are cached now, as a request would report it."""
        return self.scheduler.cached_tokens(token_ids, origin)

    def reset_prefix_cache(self, external: bool = False) -> bool:
        """Forget all blocks, of the tier below if `external`; False while requests run. The next step tells of it."""
        return self.scheduler.pool.clear(external)

    def rest(self, why: Rest | None) -> None:
        """Take no step until `rest(None)`. The cache is lost; that is told with the step after."""
        if why is not None:
            self.scheduler.pool.clear()
        self.resting = why
        self._wake.set()

    def misbehave(self, faults: Faults) -> None:
        """Change what goes wrong."""
        self._slow = faults.slow
        self.publisher.misbehave(faults)

    def restart(self) -> None:
        """As a crashed and restarted process: all requests die, the cache is empty, hashes and seq begin anew."""
        self._generation += 1
        self.resting = None
        tickets, self._tickets = self._tickets, {}
        self._aborted.clear()
        self.scheduler = self._new_scheduler()
        self.publisher.restart()
        for ticket in tickets.values():
            ticket.inbox.put_nowait((ticket.index, Interrupted("the engine restarted")))

    async def run(self, clock: Callable[[], float]) -> None:
        """Run steps for ever, each until its deadline; waits without cost while there is nothing to do."""
        deadline = clock()
        while True:
            self._drop_aborted()
            if self.resting or not self.scheduler.busy:
                self._wake.clear()
                await self._wake.wait()
                deadline = clock()
                continue
            generation = self._generation
            work = self.scheduler.schedule()
            self._note_start(work, clock())
            deadline = max(deadline, clock() - LAG_MAX_S) + self._pace.step_s(work) * self._slow
            await asyncio.sleep(max(0.0, deadline - clock()))
            if generation == self._generation:
                self._deliver(work, clock())

    def _drop_aborted(self) -> None:
        for request in self._aborted:
            self.scheduler.abort(request)
        self._aborted.clear()

    def _note_start(self, work: Work, now: float) -> None:
        for request in work.tokens:
            ticket = self._tickets.get(request)
            if ticket is not None and ticket.scheduled_s is None:
                ticket.scheduled_s = now
                self.latencies.queue.observe(now - ticket.arrived_s)

    def _deliver(self, work: Work, now: float) -> None:
        answers = self.scheduler.finish(work)
        self._publish()
        for request, token in answers:
            ticket = self._tickets.get(request)
            if ticket is None:
                continue
            self._time_token(ticket, now)
            if ticket.each:
                ticket.inbox.put_nowait((ticket.index, token))
            if request.finished:
                del self._tickets[request]
                self._time_request(ticket, now)
                ticket.inbox.put_nowait((ticket.index, None))

    def _time_request(self, ticket: Ticket, now: float) -> None:
        request = ticket.request
        self.latencies.request.observe(now - ticket.arrived_s)
        if ticket.first_s is not None and ticket.scheduled_s is not None:
            self.latencies.prefill.observe(ticket.first_s - ticket.scheduled_s)
        self.sizes.prompt.observe(request.prompt_tokens)
        self.sizes.computed.observe(request.prompt_tokens - (request.cached_tokens or 0))

    def _time_token(self, ticket: Ticket, now: float) -> None:
        if ticket.last_s is None:
            ticket.first_s = now
            self.latencies.first_token.observe(now - ticket.arrived_s)
        else:
            self.latencies.between_tokens.observe(now - ticket.last_s)
        ticket.last_s = now

    def _publish(self) -> None:
        events = self.scheduler.pool.take_events()
        if events:
            payload = self._dialect.encode(time.time(), events, self.limits.block_size, self.rank)
            self.publisher.publish(payload)
