"""Prompts computed beforehand by idle pods: what their failures say of these."""

from __future__ import annotations

from typing import Any

import pytest

from router.config.fleet import HandoverConfig
from router.handover.idle_pods import IdlePods
from router.upstream.failures import ConnectFailed, PoolFull, UpstreamError
from tests.fakes.cores import MODEL, asked, core_of

PATH, BODY = "/v1/completions", b'{"model": "%b", "prompt": [1, 2, 3]}' % MODEL.encode()


class NoUpstream:
    """Every exchange fails in the same way."""

    def __init__(self, error: UpstreamError) -> None:
        self._error = error

    def own_key(self) -> list[tuple[bytes, bytes]]:
        return []

    async def request(self, *given: Any) -> Any:
        raise self._error


@pytest.mark.parametrize("error, opens", [(ConnectFailed("nobody listens"), True), (PoolFull("all are in use"), False)])
async def test_a_failure_counts_as_any_request_s(error: UpstreamError, opens: bool) -> None:
    """Who can't be reached is ejected in the end; that all of our connections are in use is no fault of the pod."""
    core = core_of(2)
    upstream: Any = NoUpstream(error)
    idle = IdlePods(core, {"pod-0": upstream}, HandoverConfig(), lambda: 0.0)
    for seed in range(20):
        placement = idle.place(asked(core, seed), frozenset(("pod-0",)))
        if placement is None:
            break
        end = await idle.compute(PATH, BODY, placement)
        assert not end.is_done and end.status is None
    assert core.fleet.pods["pod-0"].breaker.tripped is opens
    assert core.in_flight == 0
