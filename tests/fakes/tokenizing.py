"""Pods that answer /tokenize as they are told, and who asks them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from indexer.blocks import KeySpace
from indexer.prefixes import PrefixStore
from router.core.fleet import Fleet, Pod, Rank, RankId
from router.tokens.given import GivenTokens
from router.tokens.remote import RemoteTokens, RemoteTokensLimits
from router.upstream.pool import Upstream
from scorer.cost import PrefillRate
from scorer.load import PodLoad
from tests.fakes.limits import prefix_limits, remote_tokens_limits, upstream_limits
from tests.fakes.peers import Call, Peer, peer

MODEL = "m"


class Says:
    """A pod that answers /tokenize with a number of ids, or as told."""

    def __init__(self, ids: list[int] | None = None, raw: bytes | None = None, status: int = 200) -> None:
        self.body = raw if raw is not None else json.dumps({"count": 1, "tokens": ids}).encode()
        self.status = status
        self.hangs = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, call: Call) -> None:
        await call.read_body()
        if self.hangs:
            await call.gone()
            return
        await self.gate.wait()
        head = b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (self.status, len(self.body))
        await call.send(head + self.body)


class Asking:
    """RemoteTokens over peers `pod-0`, `pod-1` …, which all serve MODEL. `now` is its clock."""

    def __init__(self, peers: list[Peer], limits: RemoteTokensLimits) -> None:
        self.space = KeySpace(1)
        self.store = PrefixStore(self.space, 2, lambda match: True, prefix_limits())
        self.fleet = Fleet()
        self.peers = peers
        self.now = 1.0
        for number, seen in enumerate(peers):
            pod = Pod(f"pod-{number}", seen.address, healthy=True, block_size=16)
            pod.ranks.append(Rank(RankId(pod.name, 0), pod, PodLoad(PrefillRate(1000)), None))
            self.fleet.join(pod)
            self.fleet.learned_models(pod, [{"id": MODEL}])
        patient = upstream_limits()
        self.upstreams = {f"pod-{number}": Upstream(seen.address, patient) for number, seen in enumerate(peers)}
        keys = GivenTokens(self.space, self.store)
        self.pods = RemoteTokens(self.fleet, self.upstreams, self.store, keys, limits, lambda: self.now)

    @property
    def calls(self) -> list[int]:
        return [len(seen.calls) for seen in self.peers]


@contextlib.asynccontextmanager
async def asking(*says: Says, **limits: Any) -> AsyncIterator[Asking]:
    """As many pods as there are `says`; nothing is under way afterwards."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(each)) for each in says]
        made = Asking(peers, remote_tokens_limits(**{"hedge_delay_s": 0.05, "deadline_s": 5.0, **limits}))
        try:
            yield made
        finally:
            made.pods.close()
            for upstream in made.upstreams.values():
                await upstream.aclose()
