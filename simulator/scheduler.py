"""vLLM's scheduler without time: which tokens of which request the next step computes.

One step serves the running requests first (one token each, or the next chunk of a prompt) and then lets waiting ones
in, first come first served, within a budget of tokens. Blocks are taken and cached as soon as a step is scheduled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.blocks import Block, BlockPool
from simulator.events import Origin
from simulator.hashes import Chain
from simulator.reuse import Reuse


class Request:
    """One sequence from prompt to last token."""

    __slots__ = (
        "blocks", "cached_tokens", "chain", "computed", "full_report", "origin", "output", "preemptions",
        "prompt_tokens", "reads_cache", "stored", "token_ids",
    )  # fmt: skip

    def __init__(
        self,
        prompt: Sequence[int],
        output: Sequence[int],
        origin: Origin = Origin(),  # noqa: B008 -- frozen and empty
        reads_cache: bool = True,
        full_report: bool = False,
    ) -> None:
        """`output`: the tokens that the model will answer, at least one. `full_report`: announce reused blocks too."""
        if not prompt or not output:
            raise ValueError("a request needs at least one token of prompt and one of output")
        self.prompt_tokens = len(prompt)
        self.token_ids = list(prompt)
        self.output = output
        self.origin = origin
        self.reads_cache = reads_cache
        self.full_report = full_report
        self.blocks: list[Block] = []
        self.chain: Chain | None = None
        self.computed = 0
        self.stored = 0  # leading blocks that are cached
        self.cached_tokens: int | None = None
        self.preemptions = 0

    @property
    def generated(self) -> int:
        """Tokens answered so far."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def finished(self) -> bool:
        """Whether the last token has been answered."""
        return self.generated >= len(self.output)


@dataclass(slots=True)
class Work:
    """One step: how many tokens of each request are computed."""

    tokens: dict[Request, int] = field(default_factory=dict)

    @property
    def prefill(self) -> list[tuple[int, int]]:
        """(first position, tokens) of each piece of a prompt, preempted requests' recomputation included."""
        return [(r.computed, n) for r, n in self.tokens.items() if r.computed + 1 < len(r.token_ids)]

    @property
    def sequences(self) -> int:
        """Requests in the step."""
        return len(self.tokens)


@dataclass(slots=True)
class Counters:
    """What has been counted since the start, in tokens but for the two last."""

    queried: int = 0
    hit: int = 0
    prompt: int = 0
    generated: int = 0
    preemptions: int = 0
    finished: int = 0


class Scheduler:
    """The waiting queue, the running requests and the pool. `schedule`, let the time pass, `finish`."""

    def __init__(
        self,
        pool: BlockPool,
        root: bytes,
        sequences_max: int,
        batched_tokens_max: int,
        reuse: Reuse = Reuse(),  # noqa: B008 -- frozen
    ) -> None:
        self.pool = pool
        self.root = root
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.counters = Counters()
        self._reuse = reuse
        self._sequences_max = sequences_max
        self._batched_tokens_max = batched_tokens_max

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue a request; it must fit into the pool alone (ValueError)."""
        size = self.pool.block_size
        if -(-(request.prompt_tokens + len(request.output)) // size) > self.pool.usable:
            raise ValueError("the request does not fit into the cache")
        request.chain = self._chain(request)
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """Take a request out, between `finish` and `schedule`; unknown and finished ones are ignored."""
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self) -> Work:
        """Choose the next step's tokens and give them blocks."""
        work = Work()
        budget = self._batched_tokens_max
        preempted = False
        turn = 0
        while turn < len(self.running) and budget > 0:
            request = self.running[turn]
            count = min(len(request.token_ids) - request.computed, budget)
            if not self._make_room(request, count):
                preempted = True
                break
            work.tokens[request] = count
            budget -= count
            turn += 1
        if not preempted and turn == len(self.running):
            self._admit(work, budget)
        return work

    def finish(self, work: Work) -> list[tuple[Request, int]]:
        """The step is done: the new token of each request that got one. Finished requests leave."""
        answers = []
        for request, count in work.tokens.items():
            request.computed += count
            if request.computed < len(request.token_ids):
                continue
            token = request.output[request.generated]
            request.token_ids.append(token)
            answers.append((request, token))
            if request.generated == 1:
                self.counters.prompt += request.prompt_tokens
            self.counters.generated += 1
            if request.finished:
                self.running.remove(request)
                self._release(request)
                self.counters.finished += 1
            elif request.chain is not None:
                request.chain.extend(request.token_ids)
        return answers

    def cached_tokens(self, token_ids: Sequence[int], origin: Origin) -> int:
        """How many tokens of a prompt would be read from the cache now."""
        request = Request(token_ids, (0,), origin)
        return self._continued(request, len(self._hit(request))) * self.pool.block_size

    def _admit(self, work: Work, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self._sequences_max:
            request = self.waiting[0]
            reused = self._hit(request) if request.reads_cache else []
            cached = self._continued(request, len(reused)) * self.pool.block_size if request.reads_cache else 0
            computed = min(cached, len(request.token_ids) - 1)  # also where all of a prompt is loaded
            count = min(len(request.token_ids) - computed, budget)
            if not self._grow(request, computed, count, reused):
                return
            self.waiting.popleft()
            self.running.append(request)
            work.tokens[request] = count
            budget -= count
            if request.cached_tokens is None:
                request.cached_tokens = cached
                if request.reads_cache:
                    self.counters.queried += len(request.token_ids)
                    self.counters.hit += cached

    def _hit(self, request: Request) -> list[Block]:
        """The cached leading blocks; at least one token is left to compute."""
        digests = (request.chain or self._chain(request)).digests
        tokens, size = len(request.token_ids), self.pool.block_size
        limit = (tokens - self._reuse.look) // size
        while True:
            found = self.pool.match(digests, limit)
            limit = self.pool.ends(digests, self._reuse.usable(len(found), tokens, size))
            if limit >= len(found) or not self._reuse.window:
                return found[:limit]

    def _continued(self, request: Request, reused: int) -> int:
        """The leading blocks of which the pool has `reused` and the tier below those behind: maybe the whole prompt."""
        digests = (request.chain or self._chain(request)).digests
        whole = min(len(digests), len(request.token_ids) // self.pool.block_size)
        return self.pool.loadable(digests, reused, whole) if self._reuse.caches else reused

    def _chain(self, request: Request) -> Chain:
        origin = request.origin
        chain = Chain(self.root, self.pool.block_size, origin.lora_name, origin.salt, self._reuse.ahead)
        chain.extend(request.token_ids)
        return chain

    def _make_room(self, request: Request, count: int) -> bool:
        """Blocks for a running request, preempting the latest ones for it; False: it was preempted itself."""
        while not self._grow(request, request.computed, count, ()):
            victim = self.running.pop()
            self._release(victim)
            victim.preemptions += 1
            self.counters.preemptions += 1
            self.waiting.appendleft(victim)
            if victim is request:
                return False
        return True

    def _grow(self, request: Request, computed: int, count: int, reused: Sequence[Block]) -> bool:
        """Give a request blocks for `count` tokens after the `computed` ones and cache those that become full."""
        size = self.pool.block_size
        self.pool.leave_behind(request.blocks, computed)
        need = -(-(computed + count) // size) - len(request.blocks) - len(reused)
        if not self.pool.fits(max(need, 0), reused):
            return False
        self.pool.use(reused)
        request.blocks.extend(reused)
        if need > 0:
            request.blocks.extend(self.pool.take(need))
        request.computed = computed
        assert request.chain is not None
        request.stored = max(request.stored, len(reused))
        full = range(request.stored, min((computed + count) // size, len(request.chain.digests)))
        if reused and request.full_report:
            self.pool.announce(request.chain.digests, request.token_ids, range(len(reused)), request.origin)
        if full and self._reuse.caches:
            request.stored = full.stop
            self.pool.store(request.blocks, request.chain.digests, request.token_ids, full, request.origin)
        return True

    def _release(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks, request.stored = [], 0
