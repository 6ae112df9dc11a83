"""What is asked of a pod beside requests: probes, its metrics, an examination. Small questions, whole answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

from router.config.upstream import UpstreamConfig
from router.upstream.failures import ResponseTimeout
from router.upstream.pod_keys import PodKey
from router.upstream.pool import Tls, Upstream, UpstreamLimits

_ANSWER_BYTES_MAX = 16 * 2**20  # metrics of many adapters are some hundred KB
_JSON = [(b"content-type", b"application/json")]


class PodAnswer(NamedTuple):
    """What the pod said."""

    status: int
    body: bytes

    @property
    def fine(self) -> bool:
        return 200 <= self.status < 300


class PodClient:
    """Asks one pod, on a connection or two of its own: requests, however many, keep no probe out."""

    def __init__(self, address: str, timeout_s: float, tls: Tls | None = None, key: PodKey | None = None) -> None:
        usual = UpstreamLimits.of(UpstreamConfig())
        limits = replace(usual, connect_timeout_s=timeout_s, idle_max=1, connections_max=2)
        self._upstream = Upstream(address, limits, tls, key)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def get(self, target: bytes) -> PodAnswer:
        """Raises `UpstreamError`, after `timeout_s` at the latest."""
        return await self._ask("GET", target, b"")

    async def post(self, target: bytes, body: bytes) -> PodAnswer:
        """The same with a body of JSON."""
        return await self._ask("POST", target, body)

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def _ask(self, method: str, target: bytes, body: bytes) -> PodAnswer:
        try:
            async with asyncio.timeout(self._timeout_s):
                headers = [*(_JSON if body else ()), *self._upstream.own_key()]
                response = await self._upstream.request(method, target, headers, body)
                try:
                    return PodAnswer(response.status, await response.read(_ANSWER_BYTES_MAX))
                finally:
                    response.close()
        except TimeoutError:
            raise ResponseTimeout(f"no answer within {self._timeout_s:g} s") from None
