"""What goes to a pod before a request of which it is to compute much: the prompt's pieces (see `pieces`), one by one.

Nothing hangs on them. Where one fails, in whatever way, or does not show what was expected of it, the request goes at
once, as it came; where its client leaves, nothing more is sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import orjson

from indexer.blocks import Tokens, size_of
from router.core.demand import Placement
from router.core.token_states import Origin
from router.errors import Busy, RouterError
from router.metrics.families import Steps, counter, counters
from router.pieces import InPieces, Pieces
from router.proxy.usage import Usage, read_usage
from router.proxy.waiting_room import WaitingRoom
from router.server.asgi import Headers
from router.tokens.encoder import Encoder
from router.upstream.failures import UnsendableRequest, UpstreamError
from router.upstream.pool import Upstream
from scorer.hold import Held

_TARGET = b"/v1/completions"
_OF_GENERATIONS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"))
_ANSWER_BYTES_MAX = 1 << 20  # of one token, with what is told beside it
_ENCODING = frozenset((b"content-encoding",))  # of the client's body
_OURS = ((b"content-type", b"application/json"), (b"accept", b"application/json"), (b"accept-encoding", b"identity"))
_DROPPED_MAX = 2  # blocks that a pod may compute again of what it holds


class Preparations:
    """All of one gateway."""

    def __init__(
        self,
        pieces: Pieces,
        encoder: Encoder,
        waiting_room: WaitingRoom[Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pieces = pieces
        self.waiting_room = waiting_room
        self.clock = clock
        self.requests = 0
        self.results = Counter({"computed": 0, "failed": 0, "in_vain": 0})
        self.tokens = 0
        self._encoder = encoder

    def begin(self, guest: Prepared, placement: Placement, now: float) -> Preparation | None:
        """A request was placed: its first piece has its place. None: it needs no preparation, or there can't be one."""
        if guest.path not in _OF_GENERATIONS:
            return None
        one = self.pieces.begin(placement, now)
        if one is None:
            return None
        self.requests += 1
        return Preparation(self, guest, one)

    async def ids(self, path: str, body: bytes, origin: Origin | None, pod: str) -> Tokens | None:
        """The token ids of a body's prompt, as a pod reads it; None where they can't be had."""
        try:
            prompt = await self._encoder.parsed(path, body)
        except RouterError:
            return None
        if prompt.kind == "tokens":
            (ids,) = prompt.prompts
            return ids if isinstance(ids, np.ndarray) else None
        return None if origin is None else await self._encoder.ids_by(origin.state, prompt, pod)

    def collect(self) -> Steps:
        """Its families."""
        yield counter(
            "warmroute_pieced_requests_total",
            "Requests whose prompts went in pieces (`scoring.pieces`).",
            self.requests,
        )
        text = "Pieces of prompts: computed, failed, or computed of which the next one found nothing."
        yield counters("warmroute_pieces_total", text, "result", self.results)
        yield counter("warmroute_pieces_tokens_total", "Tokens that pods computed for pieces.", self.tokens)


class Prepared(Protocol):
    """A request that is to be prepared for, and its attempt at one pod."""

    @property
    def path(self) -> str: ...
    @property
    def flow(self) -> bytes: ...
    @property
    def priority(self) -> int: ...
    @property
    def priority_given(self) -> int | None:
        """As its body says it."""

    def freed(self) -> None:
        """Something was given back: somebody may wait for it."""


class Preparation:
    """Of one request. A guest of the waiting room between two pieces; `cached`: tokens of its prompt that were cached
    before any piece of it, as the pod says (None: it does not).
    """

    __slots__ = ("_begun", "_guest", "_one", "_owner", "cached")

    def __init__(self, owner: Preparations, guest: Prepared, one: InPieces) -> None:
        self._owner = owner
        self._guest = guest
        self._one = one
        self._begun = False  # a piece was computed
        self.cached: int | None = None

    async def run(
        self, upstream: Upstream, headers: Headers, body: bytes, ours: Headers, dropped: frozenset[bytes]
    ) -> None:
        """Have the pieces of a prompt computed, of a request with these `headers` and this `body`. `ours`: as of
        `Upstream.request`. Then the request itself has its place."""
        owner, one = self._owner, self._one
        pieces, rank = owner.pieces, one.placement.rank
        try:
            ids = await owner.ids(self._guest.path, body, one.demand.origin, rank.id.pod)
            if ids is not None and pieces.are_of(one, ids):
                while not one.whole:
                    number = one.placement.decision.pieces
                    named = [(name, b"%b-%d" % (value, number) if name == b"x-request-id" else value)
                             for name, value in ours]  # fmt: skip
                    fields = self._fields(ids[: one.end])
                    if not await self._ask(upstream, headers, fields, [*named, *_OURS], dropped | _ENCODING):
                        break
                    self._guest.freed()
                    await self._next()
            pieces.rest(one, owner.clock())
        finally:
            self.over()

    def over(self) -> None:
        """The request has ended, maybe before anything was sent for it."""
        self._owner.pieces.over(self._one)

    def counted(self, usage: Usage) -> Usage:
        """What the pod says of the request, without what it had cached because of its pieces."""
        return replace(usage, cached_tokens=self.cached) if self._begun else usage

    # What the waiting room asks of a guest

    @property
    def flow(self) -> bytes:
        return self._guest.flow

    @property
    def priority(self) -> int:
        return self._guest.priority

    @property
    def tokens(self) -> int:
        return self._one.demand.tokens - self._one.end

    @property
    def group(self) -> str | None:
        return self._one.demand.model

    def enter(self, held: Held | None = None) -> None:
        """See `Guest`."""
        self._owner.pieces.turn(self._one, held, self._owner.clock())

    def leave(self, taken: None) -> None:
        """See `Guest`: with the request, all that was taken for it is given back."""

    # Inside

    async def _next(self) -> None:
        try:
            self.enter()
        except Busy as busy:
            await self._owner.waiting_room.wait(self, busy)

    def _fields(self, ids: Tokens) -> dict[str, object]:
        demand = self._one.demand
        fields: dict[str, object] = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "stream": False}
        if demand.model is not None:
            fields["model"] = demand.model
        if demand.apart is not None and demand.apart.salt is not None:
            fields["cache_salt"] = demand.apart.salt
        if self._guest.priority_given is not None:
            fields["priority"] = self._guest.priority_given
        return fields

    async def _ask(
        self, upstream: Upstream, headers: Headers, fields: dict[str, object], ours: Headers, dropped: frozenset[bytes]
    ) -> bool:
        """One piece; False: no further one is to be sent."""
        owner, one = self._owner, self._one
        body = orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
        try:
            response = await upstream.request("POST", _TARGET, headers, body, ours, dropped)
            try:
                now = owner.clock()
                usage = read_usage(await response.read(_ANSWER_BYTES_MAX)) if response.status == 200 else None
            finally:
                response.close()
        except (UpstreamError, UnsendableRequest):
            usage = None
        if usage is None or usage.prompt_tokens != one.end:
            owner.results["failed"] += 1
            return False
        owner.pieces.computed(one, now)
        return self._judge(usage.cached_tokens)

    def _judge(self, cached: int | None) -> bool:
        """A piece was computed; False: what was computed for the one before was of no use to it."""
        owner, one, first = self._owner, self._one, not self._begun
        if first:
            self._begun, self.cached = True, cached
        elif cached is None and one.placement.pod.hides_zero and one.placement.pod.evidence.usage:
            cached = 0
        owner.tokens += one.end - (one.start if cached is None else cached)
        if not first and cached is not None and cached + _DROPPED_MAX * size_of(one.grain) < one.start:
            owner.results["in_vain"] += 1
            return False
        owner.results["computed"] += 1
        return True
