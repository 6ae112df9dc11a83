"""A rolling restart, the short one (`make test-chaos` has the long one): pods, then the gateway, under load."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from tests.fakes.processes import GatewayProcess, PodProcess, gateway, pods
from tests_chaos.load import LEFT, WHOLE, Load
from tests_chaos.rolling import DRAIN, Service, replace, roll_pods

PACE = ("--time-scale", "0.3")


async def test_nothing_is_lost(tmp_path: Path) -> None:
    """Two pods and the gateway are replaced one by one: each request that a client stayed for has its whole answer."""
    fleet = [PodProcess("pod-0", PACE), PodProcess("pod-1", PACE)]
    service = Service()
    with pods(*fleet), contextlib.ExitStack() as stack:
        static = [pod.configured for pod in fleet]

        def start() -> contextlib.AbstractContextManager[GatewayProcess]:
            return gateway(tmp_path, static, gateway=DRAIN)

        served = await asyncio.to_thread(stack.enter_context, start())
        service.gateways.append(served)

        async def rolling() -> None:
            await roll_pods(fleet, [served])
            await replace(service, served, start, stack)
            told = len(load.told)
            while len(load.told) < told + 20:  # by the new one
                await asyncio.sleep(0.05)

        async with service.running():
            await service.ready(served)
            load = Load(service.url, 5)
            await load.during(rolling)
        lost = [one for one in load.told if one.end not in (WHOLE, LEFT)]
        assert not lost, lost[:3]
        assert load.sent == len(load.told) > 50
