"""A run: requests, gateways and pods, and a clock that goes from one thing that happens to the next."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TypeAlias

from router.plan.cache import BlockCache, NewBlocks, Pool, PooledCache, Taken
from router.plan.engine import Engine, Job
from router.plan.figures import Answered, Figures, figures
from router.plan.gateway import SentOn, VirtualGateway, tokens_of
from router.plan.profiles import PodPlan
from router.plan.publisher import Stretch
from router.plan.replay import Rerun
from router.plan.traces import Arrivals, Numbers, Sessions, Turn

_WARM = 0.2  # of the time, which is not counted
_LOOK_S = 0.05  # between two looks while somebody waits
_DRAIN_S = 600.0  # after the last request came
_SHORTEST_S = 1e-3  # a run
_WATCHED = 2_000  # things that happen between two looks of who watches
_STREAM_SLO_S, _SESSION_SLO_S = 1 / 4000, 1e-4


@dataclass(slots=True, eq=False)
class _Asked:
    """A request on its way."""

    turn: Turn
    arrived: float
    user: Iterator[Turn] | None
    gateway: VirtualGateway | None = None
    sent: SentOn | None = None
    job: Job | None = None  # the first of its pieces, where there are some
    began: float | None = None
    ended: float | None = None


_Call: TypeAlias = Callable[[float], None]


class World:
    """See the module. Without gateways, requests go where they are served first, before pods that share a cache."""

    def __init__(self, pods: PodPlan, size: int, gateways: Sequence[VirtualGateway], seed: int) -> None:
        """`size`: tokens a block."""
        self.now = 0.0
        self._size = size
        self._gateways = gateways
        self._rng = random.Random(seed)
        self._agenda: list[tuple[float, int, _Call]] = []
        self._count = 0
        self._asked: list[_Asked] = []
        self._looks: set[VirtualGateway] = set()
        self._front_s = pods.profile.front_s
        self.watch: Callable[[float], None] | None = None
        """Is told the time now and then."""
        profile = pods.profile._replace(kv_tokens=pods.kv_tokens)
        pool = None if gateways else Pool(pods.pods * pods.kv_tokens // size)
        self._engines = [
            Engine(
                number,
                profile,
                BlockCache(pods.kv_tokens, size) if pool is None else PooledCache(pods.kv_tokens, size, pool),
                self,
                pods.slowness(number),
            )
            for number in range(pods.pods)
        ]

    def at(self, time: float, call: _Call) -> None:
        """Do it then."""
        self._count += 1
        heappush(self._agenda, (time, self._count, call))

    def play(self, arrivals: Arrivals) -> Figures:
        """All of a trace. Raises `BadRecording` if nothing of it counts, as do the others."""
        for time, turn in arrivals.turns:
            self._come_at(time, turn, None)
        last = max(_SHORTEST_S, arrivals.turns[-1][0])
        self._run(last + _DRAIN_S)
        return self._figures(self._asked, last * _WARM, last, _STREAM_SLO_S)

    def replay(self, replay: Rerun) -> Figures:
        """Requests of which some wait for the answers to others."""
        for time, turns in replay.chains:
            user = iter(turns)
            self._come_at(time, next(user), user)
        self._run(replay.length_s + _DRAIN_S)
        counted = [asked for asked in self._asked if asked.turn.session >= replay.counted_from]
        since = min([asked.arrived for asked in counted], default=0.0)
        return self._figures(counted, since, self._asked[-1].arrived, _STREAM_SLO_S)

    def serve(self, sessions: Sessions, users: int, horizon: float) -> Figures:
        """Users, for so many seconds."""
        numbers = Numbers()
        for _ in range(users):
            rng = random.Random(self._rng.random())
            user = sessions.user(numbers, rng)
            self._come_at(sessions.begins_s(rng), next(user), user)
        self._run(horizon)
        return self._figures(self._asked, horizon * _WARM, horizon, _SESSION_SLO_S)

    # What engines tell

    def admitted(self, number: int, job: Job, taken: Taken) -> None:
        self._changed(number, job.blocks, taken.stored, taken.removed)

    def began(self, number: int, job: Job) -> None:
        asked = job.ticket
        assert isinstance(asked, _Asked)
        if job.tokens < asked.turn.tokens:
            return
        asked.began = self.now
        if asked.gateway is not None and asked.sent is not None:
            asked.gateway.began(asked.sent.placement, self.now)
            self._freed(asked.gateway)

    def ended(self, number: int, job: Job, stored: NewBlocks) -> None:
        self._changed(number, [*job.blocks, *job.said] if stored else (), stored, ())
        asked = job.ticket
        assert isinstance(asked, _Asked)
        if job.tokens < asked.turn.tokens:
            self.at(self.now, lambda _: self._go_on(asked))
            return
        asked.ended = self.now
        if asked.gateway is not None and asked.sent is not None:
            asked.gateway.ended(asked.sent.placement, job.tokens, job.cached, self.now)
            self._freed(asked.gateway)
        if asked.user is not None:
            turn = next(asked.user, None)
            if turn is not None:
                self._come_at(self.now + turn.think_s, turn, asked.user)

    # Inside

    def _changed(self, number: int, blocks: Sequence[int], stored: NewBlocks, removed: Sequence[int]) -> None:
        """Gateways hear of it."""
        if not stored and not removed:
            return
        stretches = [
            Stretch(blocks[start:end], blocks[start - 1] if start else None, tokens, self._size)
            for start, end in stored
            for tokens in (tokens_of(blocks[start:end], self._size),)
        ]
        for gateway in self._gateways:
            gateway.changed(number, stretches, removed, self.now)

    def _freed(self, gateway: VirtualGateway) -> None:
        """A pod may take more, once its step has begun."""
        if gateway.core.hold.waiting:
            self.at(self.now, lambda _: self._serve(gateway))

    def _run(self, until: float) -> None:
        agenda = self._agenda
        while agenda and agenda[0][0] <= until:
            self.now, count, call = heappop(agenda)
            call(self.now)
            if self.watch is not None and count % _WATCHED == 0:
                self.watch(self.now)

    def _come_at(self, time: float, turn: Turn, user: Iterator[Turn] | None) -> None:
        self.at(time, lambda now: self._come(_Asked(turn, now, user)))

    def _come(self, asked: _Asked) -> None:
        self._asked.append(asked)
        if not self._gateways:
            self._send(asked, self._soonest(asked.turn))
            return
        gateway = asked.gateway = self._gateways[0] if len(self._gateways) == 1 else self._rng.choice(self._gateways)
        sent = gateway.send(asked.turn, asked, self.now)
        if sent is not None:
            self._go(sent)
        else:
            self._look_later(gateway)

    def _go(self, sent: SentOn) -> None:
        asked = sent.item
        assert isinstance(asked, _Asked)
        asked.sent = sent
        self._send(asked, sent.pod)

    def _go_on(self, asked: _Asked) -> None:
        """A piece of its prompt was computed."""
        assert asked.gateway is not None and asked.sent is not None
        sent = asked.gateway.go_on(asked.sent, self.now)
        if sent is not None:
            self._go(sent)
        self._serve(asked.gateway)
        if asked.gateway.core.hold.waiting:
            self._look_later(asked.gateway)

    def _look_later(self, gateway: VirtualGateway) -> None:
        """Somebody waits: look from time to time."""
        if gateway not in self._looks:
            self._looks.add(gateway)
            self.at(self.now + _LOOK_S, lambda _: self._look(gateway))

    def _look(self, gateway: VirtualGateway) -> None:
        self._looks.discard(gateway)
        self._serve(gateway)
        if gateway.core.hold.waiting:
            self._look_later(gateway)

    def _serve(self, gateway: VirtualGateway) -> None:
        for sent in gateway.serve(self.now):
            self._go(sent)

    def _send(self, asked: _Asked, number: int) -> None:
        turn, engine, piece = asked.turn, self._engines[number], None if asked.sent is None else asked.sent.tokens
        job = Job(turn.tokens, turn.answer, self._whole(turn), asked, turn.said)
        if piece is not None:
            job = Job(piece, 1, turn.blocks[: piece // self._size], asked)
        asked.job = asked.job or job
        if not self._gateways:
            job.awaited = self._cached(engine, turn)
        if self._front_s:
            self.at(self.now + self._front_s, lambda now: self._put(engine, job, now))
        else:
            self._put(engine, job, self.now)

    def _put(self, engine: Engine, job: Job, now: float) -> None:
        if engine.put(job, now):
            self._step_later(engine)

    def _step_later(self, engine: Engine) -> None:
        version = engine.version
        self.at(engine.ends_at, lambda now: self._step(engine, version, now))

    def _step(self, engine: Engine, version: int, now: float) -> None:
        if engine.version == version and engine.busy and engine.step(now):
            self._step_later(engine)

    def _soonest(self, turn: Turn) -> int:
        job = Job(turn.tokens, turn.answer, (), None, awaited=self._cached(self._engines[0], turn))
        return min(range(len(self._engines)), key=lambda number: self._engines[number].expected_s(job, self.now))

    def _whole(self, turn: Turn) -> Sequence[int]:
        return turn.blocks[: turn.tokens // self._size]

    def _cached(self, engine: Engine, turn: Turn) -> int:
        return engine.cache.held(turn.blocks[: (turn.tokens - 1) // self._size]) * self._size

    def _figures(self, asked: Sequence[_Asked], since: float, until: float, slo_s: float) -> Figures:
        outcomes = [self._outcome(each) for each in asked]
        return figures(outcomes, [engine.prefill_s for engine in self._engines], since, until, slo_s)

    def _outcome(self, asked: _Asked) -> Answered:
        until = self.now if asked.began is None else asked.began
        cached = asked.job.cached if asked.job is not None else 0
        return Answered(
            asked.arrived, until - asked.arrived, asked.began is not None, asked.ended, asked.turn.tokens, cached
        )
