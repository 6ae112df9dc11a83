"""How requests ended: kept for operators, counted by why so much of them was not cached, and told in the log.

A request costs no more than to be put down here. All else is done a moment later, in slices, when what its pod's events
say of it has come: so `settled` is waited for by whoever wants to show all of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass

import orjson
import xxhash

from indexer.match import Holder
from router.causes.memory import CauseMemory
from router.causes.names import Why
from router.causes.naming import Naming, rank_named
from router.causes.prints import Print, print_of
from router.causes.request_log import RequestLog
from router.causes.tracing import Tracing, tracing_of
from router.config.settings import Config
from router.core.decision import Core
from router.core.demand import Placement, Story
from router.errors import RouterError
from router.metrics.metrics import Metrics
from router.server.long_answers import in_turns

log = logging.getLogger("warmroute.requests")

_EVENTS_S = 0.15  # most events of a request have come so long after its end
_BURST_S = 0.02  # of comparing, in one go
_WAITING_BYTES_MAX = 32 << 20  # bodies that wait to be looked at
_ERROR = 400


@dataclass(slots=True, eq=False)
class EndedStory:
    """One request that is over. `placement`: of its last attempt; `body`: if it may be looked at."""

    story: Story
    model: str | None
    placement: Placement | None = None
    body: bytes | None = None
    refusal: RouterError | None = None


class Journal:
    """See the module. On one loop."""

    def __init__(self, core: Core, metrics: Metrics, config: Config) -> None:
        given = config.decisions
        self._core = core
        self._metrics = metrics
        self._memory = CauseMemory(given.remembered_blocks, given.remembered_prompts)
        self._naming = Naming(core.fleet, self._memory)
        self._compared_max = given.compared_max if given.remembered_prompts else -1
        self._share = given.comparing_share
        self._allowed_s = 0.0  # of comparing
        self._turned_at = time.monotonic()
        self._seed = core.space.seed
        self._ended: deque[EndedStory] = deque()
        self._waiting_bytes = 0
        self._log = RequestLog(config.log)
        self.tracing: Tracing | None = tracing_of(config.tracing)
        self.errors: deque[tuple[EndedStory, float]] = deque(maxlen=given.errors_kept)
        """The last requests that ended in an error, and when (monotonic)."""
        self.error_counts: Counter[str] = Counter()
        """All of them, by the word for it, or the status."""

    def ended(self, story: Story, model: str | None, placement: Placement | None, body: bytes | None,
              refusal: RouterError | None) -> None:  # fmt: skip
        """A request is over. `refusal`: our own answer to it, if that was it."""
        story.ended_at = time.monotonic()
        if refusal is not None:
            story.status, story.error = refusal.status, refusal.word
        if body is not None:
            if self._waiting_bytes + len(body) > _WAITING_BYTES_MAX:
                body = None
            else:
                self._waiting_bytes += len(body)
        ended = EndedStory(story, model, placement, body, refusal)
        self._ended.append(ended)
        if story.error is not None or story.status is None or story.status >= _ERROR:
            self.errors.append((EndedStory(story, model, placement, None, refusal), story.ended_at))
            self.error_counts[story.error or str(story.status)] += 1

    async def settled(self) -> None:
        """All requests that are over by now are looked at."""
        last = self._ended[-1].story.ended_at if self._ended else None
        while self._ended and last is not None and (self._ended[0].story.ended_at or 0.0) <= last:
            await asyncio.sleep(max(0.0, (self._ended[0].story.ended_at or 0.0) + _EVENTS_S - time.monotonic()))
            await in_turns(self.go_on(time.monotonic()))

    def go_on(self, now: float, all_of_them: bool = False) -> Generator[None, None, None]:
        """Look at the requests whose time has come, in steps; `all_of_them`: at once."""
        self._allowed_s = min(_BURST_S, self._allowed_s + self._share * (now - self._turned_at))
        self._turned_at = now
        if self._core.losses is not None and self._core.losses.blocks:
            yield from self._memory.lost(self._core.losses.take(), self._load, now)
        while self._ended and (all_of_them or (self._ended[0].story.ended_at or 0.0) + _EVENTS_S <= now):
            ended = self._ended.popleft()
            self._waiting_bytes -= len(ended.body or b"")
            try:
                self._tell(ended)
            except Exception:  # a fault of ours: whoever keeps the house goes on
                log.exception("%s: what became of it can't be told", ended.story.id.decode("latin-1"))
            yield
        self._log.flush()

    def _tell(self, ended: EndedStory) -> None:
        """All there is to tell of it."""
        if ended.placement is not None:
            self._look_at(ended, ended.placement)
        self._log.tell(ended.story, ended.model, ended.placement, ended.body, ended.refusal)
        if self.tracing is not None:
            self.tracing.tell(ended.story, ended.model, ended.placement, ended.refusal)

    def _load(self, pod: Holder) -> tuple[int, int]:
        rank = rank_named(self._core.fleet, pod)
        return (0, 0) if rank is None else (rank.load.requests, rank.load.prefill_tokens)

    def _look_at(self, ended: EndedStory, placement: Placement) -> None:
        """Why so much of its prompt was not cached; and remember it."""
        story, decision = ended.story, placement.decision
        if story.error is not None or story.status is None or story.status >= _ERROR or not decision.demand.tokens:
            return
        demand, rank = decision.demand.of(decision.rank), decision.rank
        keys = demand.keys.get(rank.grain or 0)
        made = None
        if keys is not None and len(keys) and decision.hits[decision.pick.best.number].blocks < len(keys):
            made = self._print(int(keys[-1]), ended.body, demand.tokens)
        why = story.why = self._naming.explain(decision, story.usage, made)
        self._count(why)
        if keys is not None:
            if why.known < len(keys):
                self._memory.served(demand, keys[why.known :], rank.id, decision.at)
            if made is not None:
                self._memory.prints.add(int(keys[-1]), made)

    def _count(self, why: Why) -> None:
        metrics = self._metrics
        metrics.reachable_tokens += why.reachable
        metrics.captured_tokens += why.captured
        for missed in why.missed:
            metrics.missed_tokens[missed.cause] += missed.tokens

    def _print(self, name: int, body: bytes | None, tokens: int) -> Print | None:
        """The fingerprint of a prompt, if there is time to make it and it is a new one."""
        prints = self._memory.prints
        if name in prints:
            prints.used(name)
            return None
        if body is None or len(body) > self._compared_max or self._allowed_s <= 0.0:
            return None
        began = time.perf_counter()
        try:
            fields = orjson.loads(body)
            made = print_of(fields, tokens, self._digest) if isinstance(fields, dict) else None
        except (ValueError, TypeError):  # a form, or nothing that has the shape of a prompt
            made = None
        self._allowed_s -= time.perf_counter() - began
        return made

    def _digest(self, text: bytes) -> int:
        return xxhash.xxh3_64_intdigest(text, self._seed)


def why_of(story: Story | None) -> Why | None:
    """What was found out of a request; None: nothing yet, or it was not answered."""
    why = None if story is None else story.why
    return why if isinstance(why, Why) else None
