"""Rolling restarts of pods and of gateways under steady load: nothing that was accepted is lost."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.fakes.processes import GatewayProcess, PodProcess, gateway, pods
from tests_chaos.figures import shown, table
from tests_chaos.load import LEFT, WHOLE, Load
from tests_chaos.rolling import DRAIN, Service, replace, roll_pods
from tests_chaos.settings import PACE, SETTINGS

ROUNDS = 2
GATEWAYS = 2


async def test_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three pods and two gateways, each replaced twice: every request that a client sent and stayed for is answered."""
    fleet = [PodProcess(f"pod-{number}", PACE) for number in range(3)]
    served: list[GatewayProcess] = []
    with pods(*fleet), contextlib.ExitStack() as stack:
        static = [pod.configured for pod in fleet]

        def start() -> contextlib.AbstractContextManager[GatewayProcess]:
            return gateway(tmp_path, static, gateway=DRAIN, **SETTINGS)

        service = Service()
        served += [await asyncio.to_thread(stack.enter_context, start()) for _ in range(GATEWAYS)]
        service.gateways += served

        async def rolling() -> None:
            for _ in range(ROUNDS):
                await roll_pods(fleet, served)
                for number in range(GATEWAYS):
                    served[number] = await replace(service, served[number], start, stack)

        async with service.running():
            for each in served:
                await service.ready(each)
            load = Load(service.url, 11)
            await load.during(rolling)
        with capsys.disabled():
            print(f"\n{shown(table(load.told, []))}")
        assert load.sent == len(load.told)
        lost = [one for one in load.told if one.end not in (WHOLE, LEFT)]
        assert not lost, lost[:3]
        assert sum(one.end == WHOLE for one in load.told) > 100
