"""One virtual pod: prefill in chunks, decode in batches, steps that take as long as what is in them. Pure.

A step has all running answers in it, and prompts in the order in which they came, as far as its tokens go. Nothing but
decode in it: many steps are taken as one, until something ends or comes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from router.plan.cache import NewBlocks, Taken
from router.plan.profiles import PodProfile

_AT_ONCE = 4  # steps that are taken as one while something waits for room
_STEP_TOKENS_LEFT = 512  # of a step, at least, for prefill: in estimates


class Cache(Protocol):
    """See `cache`."""

    @property
    def used_tokens(self) -> int: ...
    def held(self, blocks: Sequence[int]) -> int: ...
    def take(self, blocks: Sequence[int], tokens: int, answer: int) -> Taken | None: ...
    def give_back(self, blocks: Sequence[int], tokens: int, answer: int, said: Sequence[int] = ()) -> NewBlocks: ...


@dataclass(slots=True, eq=False)
class Job:
    """A request at a pod. `blocks`: the whole ones of its prompt; `said`: those behind them that its answer fills;
    `ticket`: the caller's own."""

    tokens: int
    answer: int
    blocks: Sequence[int]
    ticket: object
    said: Sequence[int] = ()
    cached: int = 0  # tokens, once it runs
    computed: int = 0  # tokens, those that were cached among them
    awaited: int = 0  # tokens expected to be cached, while it waits


class Watcher(Protocol):
    """Who is told what happens at the pod; `number` is the pod's."""

    def admitted(self, number: int, job: Job, taken: Taken) -> None: ...
    def began(self, number: int, job: Job) -> None: ...
    def ended(self, number: int, job: Job, stored: NewBlocks) -> None: ...


class Engine:
    """See the module. Who steps it calls `step` at `ends_at`, if `version` is still what it was when that was set."""

    def __init__(self, number: int, profile: PodProfile, cache: Cache, watcher: Watcher, slowness: float = 1.0) -> None:
        self.number = number
        self.cache = cache
        self.slowness = slowness
        self.busy = False
        self.ends_at = 0.0
        self.version = 0
        self.prefill_s = 0.0  # computed, since ever
        self._profile = profile
        self._watcher = watcher
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []
        self._first: list[Job] = []  # whose first token comes with this step
        self._decoding: list[tuple[int, int, Job]] = []  # a heap: the step at which it ends
        self._kv_read = 0.0
        self._steps = 0
        self._began_at = 0.0
        self._step_s = 0.0
        self._jump = 1  # steps that are taken as one
        self._jobs = 0

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + len(self._prefilling) + len(self._first) + len(self._decoding)

    def put(self, job: Job, now: float) -> bool:
        """A request comes; True: `ends_at` is another one now."""
        self._waiting.append(job)
        if not self.busy:
            return self._start(now)
        if self._jump == 1:
            return False
        done = max(1, math.ceil((now - self._began_at) / self._step_s))
        if done >= self._jump:
            return False
        self._jump = done
        return self._until(self._began_at + self._step_s * done)

    def step(self, now: float) -> bool:
        """The step is over; True: another one has begun."""
        decoding = self._decoding
        self._steps += self._jump
        self._kv_read += len(decoding) * self._jump
        while decoding and decoding[0][0] <= self._steps:
            job = heappop(decoding)[2]
            self._kv_read -= job.tokens + job.answer
            self._end(job)
        for job in self._first:
            self._watcher.began(self.number, job)
            if job.answer <= 1:
                self._end(job)
                continue
            self._kv_read += job.tokens + 1
            self._jobs += 1
            heappush(decoding, (self._steps + job.answer - 1, self._jobs, job))
        self._first = []
        self._kv_read = max(0.0, self._kv_read)
        return self._start(now)

    def expected_s(self, job: Job, now: float) -> float:
        """Seconds until the first token of a request that came now: all that is known here counts."""
        profile, answers = self._profile, len(self._decoding)
        left_s = 0.0
        if self.busy:
            left_s = self._step_s * 0.5 if self._jump > 1 else max(0.0, self.ends_at - now)
        work_s, tokens = 0.0, 0
        for other in self._prefilling:
            work_s += profile.prefill_s(other.computed, other.tokens)
            tokens += other.tokens - other.computed
        for other in (*self._waiting, job):
            work_s += profile.prefill_s(other.awaited, other.tokens)
            tokens += other.tokens - other.awaited
        steps = math.ceil(tokens / max(_STEP_TOKENS_LEFT, profile.step_tokens - answers))
        step_s = profile.decode_s(answers, self._kv_read)
        return left_s + (work_s + steps * step_s) * self.slowness + self._room_s(job, step_s)

    def _room_s(self, job: Job, step_s: float) -> float:
        """Until there is memory, roughly: answers that run end evenly."""
        needed = sum([other.tokens + other.answer for other in (*self._waiting, job)])
        used = self.cache.used_tokens
        lacking = needed - (self._profile.kv_tokens - used)
        return lacking / (used / max(1.0, 200 * step_s)) if lacking > 0 and used else 0.0

    def _end(self, job: Job) -> None:
        stored = self.cache.give_back(job.blocks, job.tokens, job.answer, job.said)
        self._watcher.ended(self.number, job, stored)

    def _until(self, ends_at: float) -> bool:
        self.ends_at = ends_at
        self.version += 1
        return True

    def _start(self, now: float) -> bool:
        """Begin a step, if there is anything to do."""
        profile, answers = self._profile, len(self._decoding)
        scheduled, work_s = answers, 0.0
        prefilling, self._prefilling = self._prefilling, []
        for job in prefilling:
            chunk, cost_s = self._compute(job, max(0, profile.step_tokens - scheduled))
            scheduled, work_s = scheduled + chunk, work_s + cost_s
        while self._waiting and scheduled < profile.step_tokens:
            if answers + len(self._prefilling) + len(self._first) >= profile.running_max:
                break
            job = self._waiting[0]
            taken = self.cache.take(job.blocks, job.tokens, job.answer)
            if taken is None:
                break
            self._waiting.popleft()
            job.cached = job.computed = taken.cached
            self._watcher.admitted(self.number, job, taken)
            chunk, cost_s = self._compute(job, profile.step_tokens - scheduled)
            scheduled, work_s = scheduled + chunk, work_s + cost_s
        self.busy = scheduled > 0
        if not self.busy:
            return False
        self.prefill_s += work_s
        self._began_at, self._jump = now, 1
        kv_read = self._kv_read
        if scheduled == answers and not self._prefilling and not self._first:
            jump = self._decoding[0][0] - self._steps
            self._jump = max(1, min(jump, _AT_ONCE) if self._waiting else jump)
            kv_read += answers * (self._jump - 1) * 0.5
        self._step_s = (profile.decode_s(answers, kv_read) + work_s) * self.slowness
        return self._until(now + self._step_s * self._jump)

    def _compute(self, job: Job, tokens_max: int) -> tuple[int, float]:
        """A chunk of a prompt: its tokens and seconds."""
        start = job.computed
        job.computed = min(job.tokens, start + tokens_max)
        (self._first if job.computed >= job.tokens else self._prefilling).append(job)
        return job.computed - start, self._profile.prefill_s(start, job.computed)
