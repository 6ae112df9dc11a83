"""`controller.kubernetes.io/pod-deletion-cost` kept up to date: of a Deployment that shrinks, the cheapest go.

Pods are written seldom, and only where the cost has changed much: each write is one more change for all who watch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

import httpx

from router.core.decision import Core
from router.discovery.kubernetes_api import Api
from router.handover.estates import cheapest
from router.handover.recent import Recent
from router.server.long_answers import in_turns

log = logging.getLogger("warmroute.handover")

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
_COST_MAX = 2**31 - 1  # Kubernetes takes 32 bits
_CHANGE = 0.1  # of the cost that was written: less is not worth a write
_PATIENCE_S = 10.0


class DeletionCosts:
    """Of all pods of Kubernetes, each Pod with what all servers in it cost."""

    def __init__(
        self, core: Core, recent: Recent, api: Api, objects: Callable[[], Mapping[str, str]], interval_s: float
    ) -> None:
        """`objects`: the Pod object of each pod that is known by Kubernetes."""
        self._core = core
        self._recent = recent
        self._api = api
        self._objects = objects
        self._interval_s = interval_s
        self._written: dict[str, int] = {}
        self._said: str | None = None

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            costs = await self._costs()
            try:
                await self._write(costs)
                self._said = None
            except (httpx.HTTPError, OSError) as error:
                said = " ".join(str(error).split()) or type(error).__name__
                if said != self._said:
                    log.warning("%s is not written: %s", ANNOTATION, said)
                self._said = said

    async def _costs(self) -> dict[str, int]:
        _, losses = await in_turns(cheapest(self._core, self._recent, 1, time.monotonic()))
        costs: dict[str, float] = {}
        objects = self._objects()
        for loss in losses:
            name = objects.get(loss.pod)
            if name is not None:
                costs[name] = costs.get(name, 0.0) + loss.cost_tokens
        return {name: min(round(cost), _COST_MAX) for name, cost in costs.items()}

    async def _write(self, costs: Mapping[str, int]) -> None:
        """Raises `httpx.HTTPError` where the API server says no."""
        self._written = {name: cost for name, cost in self._written.items() if name in costs}
        changed = {name: cost for name, cost in costs.items() if self._differs(name, cost)}
        if not changed:
            return
        headers = {**self._api.headers(), "content-type": "application/merge-patch+json"}
        async with httpx.AsyncClient(
            base_url=self._api.url, headers=headers, verify=self._api.context(), timeout=_PATIENCE_S, trust_env=False
        ) as client:
            for name, cost in changed.items():
                patch = {"metadata": {"annotations": {ANNOTATION: str(cost)}}}
                path = f"/api/v1/namespaces/{self._api.namespace}/pods/{name}"
                answer = await client.patch(path, json=patch)
                if answer.status_code == 403:
                    hint = f"a Role in {self._api.namespace} has to allow patch of pods to the gateway's account"
                    raise httpx.HTTPError(f"{self._api.url} says 403: {hint}")
                if answer.status_code != 404:  # it may be gone
                    answer.raise_for_status()
                self._written[name] = cost

    def _differs(self, name: str, cost: int) -> bool:
        before = self._written.get(name)
        return before is None or abs(cost - before) > _CHANGE * max(before, 1)
