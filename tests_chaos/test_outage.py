"""All pods at once: whoever asks is told so in time, the outage is not made worse, and it ends by itself."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import httpx
import pytest

from tests.fakes.processes import PLAIN, PodProcess, eventually, gateway, pods
from tests_chaos.figures import counted, in_flight, shown, table
from tests_chaos.load import CUT, LEFT, WHOLE, Load, chat
from tests_chaos.settings import PACE, SETTINGS
from tests_chaos.troubles import Span, Turn, carry_out

BEFORE_S, LASTS_S = 2.0, 6.0
RETRY_SHARE, RETRY_FLOOR = 0.2, 10  # as configured by default: of all requests, and in every 10 s
FLOOR_WINDOWS = 3  # of 10 s, in which this test surely ends
TOLD = {"502", "503", "504", "429"}


@pytest.mark.parametrize("cause", ["killed", "stopped", "answers 503"])
async def test_outage(tmp_path: Path, capsys: pytest.CaptureFixture[str], cause: str) -> None:
    """Every request is answered or told of the outage, retries stay in their budget, and then all is well again."""
    fleet = [PodProcess(f"pod-{number}", PACE) for number in range(3)]
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet], **SETTINGS) as served:
        load = Load(served.url, 3)

        spans: list[Span] = []

        async def outage() -> None:
            await asyncio.sleep(BEFORE_S)
            turns = [Turn(cause, number, LASTS_S) for number in range(len(fleet))]
            await carry_out(turns, fleet, spans, every_s=0)

        await load.during(outage)
        rows = table(load.told, spans)
        with capsys.disabled():
            print(f"\nall pods\n{shown(rows)}")
        assert {one.end for one in load.told if one.ended < spans[0].began} <= {WHOLE, LEFT}
        ends = {one.end for one in load.told}
        assert ends & TOLD
        assert ends <= TOLD | {WHOLE, LEFT, CUT}, [one for one in load.told if one.end not in TOLD][:3]
        given_up = counted(served, "warmroute_retries_total", "reason").total()
        retries = given_up - sum(one.end in TOLD for one in load.told)  # the last attempt of each is none
        assert retries <= RETRY_SHARE * load.sent + RETRY_FLOOR * FLOOR_WINDOWS
        await eventually(lambda: all(pod["fit"] for pod in served.get("/pods").json()["pods"]), 30)
        draw = random.Random(5)
        async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
            for _ in range(10):
                (await http.post("/v1/chat/completions", json=chat(draw, stream=False))).raise_for_status()
        await eventually(lambda: not in_flight(served, fleet))
        assert "Traceback" not in served.logged()
