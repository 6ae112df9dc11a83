"""Pods compute prompts for us, each a few at a time, and only while they are idle."""

from __future__ import annotations

import logging
import time
from asyncio import timeout
from collections.abc import Callable, Mapping
from dataclasses import replace

from router.config.fleet import HandoverConfig
from router.core.decision import Core
from router.core.demand import Demand, End, Placement
from router.errors import RouterError
from router.handover.prefill_body import prefill_body
from router.upstream.failures import PoolFull, UnsendableRequest, UpstreamError
from router.upstream.pool import Upstream

log = logging.getLogger("warmroute.idle_pods")

_ANSWER_BYTES_MAX = 1 << 20  # of one token, with what is told beside it


class IdlePods:
    """See the module. `given`: how many, and who is idle."""

    def __init__(
        self,
        core: Core,
        upstreams: Mapping[str, Upstream],
        given: HandoverConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._upstreams = upstreams
        self._given = given
        self._clock = clock
        self._busy: dict[str, int] = {}  # prompts that each pod computes for us

    def names(self) -> frozenset[str]:
        """Pods that have no prompt to compute now, nor as many for us as they may."""
        now, given = self._clock(), self._given
        return frozenset(
            name
            for name, pod in self._core.fleet.pods.items()
            if pod.fit(now)
            and self._busy.get(name, 0) < given.per_pod
            and min(rank.load.backlog_s(now) for rank in pod.ranks) <= given.backlog_max
        )

    def place(self, demand: Demand, pods: frozenset[str]) -> Placement | None:
        """Pick one of `pods` as if it was a request; None where none of them may have it. To be computed then."""
        now, demand = self._clock(), replace(demand, pods=pods, tells_prefill=True)
        try:
            return self._core.route(demand, self._core.look_up(demand, None, now), frozenset(), now)
        except RouterError:
            return None

    async def compute(self, path: str, body: bytes, placement: Placement) -> End:
        """Have the pod compute the prompt of a request, and one token: how that ended."""
        pod, end = placement.pod.name, End("void")
        self._busy[pod] = self._busy.get(pod, 0) + 1
        try:
            async with timeout(self._given.prefill_timeout):
                end = await self._ask(path, body, placement)
        except (UpstreamError, UnsendableRequest, TimeoutError) as error:
            if isinstance(error, UpstreamError):
                end = End("full" if isinstance(error, PoolFull) else "failed")
            log.info("%s does not compute a prompt beforehand: %s", pod, error or type(error).__name__)
        finally:
            self._core.finish(placement, end, self._clock())
            self._busy[pod] -= 1
            if not self._busy[pod]:
                del self._busy[pod]
        return end

    async def _ask(self, path: str, body: bytes, placement: Placement) -> End:
        rank, shortened = placement.rank, prefill_body(path, body)
        if shortened is None:
            return End("void")
        upstream = self._upstreams[rank.id.pod]
        headers = [(b"content-type", b"application/json"), *upstream.own_key()]
        if len(rank.pod.ranks) > 1 and (number := rank.pod.global_rank(rank.id.rank)) is not None:
            headers.append((b"x-data-parallel-rank", b"%d" % number))
        response = await upstream.request("POST", path.encode(), headers, shortened)
        try:
            if response.status < 400:
                self._core.first_byte(placement, True, self._clock())
            await response.read(_ANSWER_BYTES_MAX)
            return End("served", response.status)
        finally:
            response.close()
