"""The gateway under steady load while its pods are killed, stopped, slowed and lied for: every request is counted."""

from __future__ import annotations

import asyncio
import collections
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import httpx
import orjson
import pytest

from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, gateway, pods
from tests_chaos.figures import (
    CALM,
    OPEN_FILES_SLACK,
    REST_S,
    Footprint,
    at_rest,
    counted,
    felt,
    footprint,
    in_flight,
    shown,
    table,
)  # fmt: skip
from tests_chaos.load import CUT, DROPPED, HUNG, LEFT, WHOLE, WRONG, Load, Told, chat
from tests_chaos.settings import PACE, SETTINGS
from tests_chaos.troubles import Span, carry_out, plan

SEEDS = (1, 2)
"""One round of all troubles each. After the first the gateway is warm: what it holds then it may hold at the end."""
STATUSES = {"429", "502", "503", "504"}  # what a client may be told
FELT = {
    "connect_failed", "connect_timeout", "response_timeout", "broken_response", "status_503", "gap", "duplicate"
}  # fmt: skip
"""What the gateway must have met, or the troubles were none."""
FAILED_SHARE_MAX = 0.005  # of all requests: error statuses; without retries it would be three times as many
CUT_SHARE_MAX = 0.03  # of all requests: streams whose pod ended under them
MEMORY_SLACK_BYTES = 4 * 2**20


async def exact_again(served: GatewayProcess, fleet: Sequence[PodProcess]) -> None:
    """All pods are fit, and their feeds without a gap. A lost frame shows when the next one comes: send some."""
    draw = random.Random(0)

    def wrong() -> list[str]:
        answer = served.get("/pods").json()["pods"]
        return [f"{pod['pod']}: {pod}" for pod in answer if not pod["fit"] or pod["ranks"][0]["state"] != "exact"]

    async with httpx.AsyncClient(**PLAIN) as http:
        for _ in range(int(REST_S)):
            for pod in fleet:
                ids = [draw.randrange(200, 5000) for _ in range(40)]
                body = {"model": MODEL, "prompt": ids, "max_tokens": 2}
                (await http.post(f"{pod.address}/v1/completions", json=body)).raise_for_status()
            if not await asyncio.to_thread(wrong):
                return
            await asyncio.sleep(1)
    raise AssertionError("\n".join(wrong()))


async def prediction_errors(served: GatewayProcess) -> list[tuple[int, int]]:
    """Of sequential chats, each asked twice: (predicted, actual) cached tokens where they differ."""
    draw, wrong = random.Random(99), []
    async with httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
        for _ in range(30):
            body = chat(draw, stream=False)
            for _ in range(2):
                answer = (await http.post("/v1/chat/completions", json=body)).raise_for_status()
                cached = (answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
                predicted = int(answer.headers["x-warmroute-matched-tokens"])
                if predicted != cached:
                    wrong.append((predicted, cached))
    return wrong


def check_ends(told: Sequence[Told], rows: dict[str, collections.Counter[str]]) -> None:
    """Nothing is lost, mixed up or left hanging; without trouble nothing fails; in trouble little does."""
    total = sum(rows.values(), collections.Counter[str]())
    lost = [one for one in told if one.end in (DROPPED, WRONG, HUNG)]
    assert not lost, lost[:3]
    failed = {end: count for end, count in total.items() if end not in (WHOLE, CUT, LEFT)}
    assert set(failed) <= STATUSES, [one for one in told if one.end in failed and one.end not in STATUSES][:3]
    assert set(rows.get(CALM, {})) <= {WHOLE, LEFT}, rows[CALM]
    for cause, row in rows.items():
        assert row[WHOLE], cause
    assert sum(failed.values()) <= FAILED_SHARE_MAX * total.total()
    assert total[CUT] <= CUT_SHARE_MAX * total.total()


def check_counts(told: Sequence[Told], counts: collections.Counter[str]) -> None:
    """The gateway has counted what its clients have seen; only of those that left it may know more or nothing."""
    left = sum(one.end == LEFT for one in told)
    for status, seen in collections.Counter(one.status for one in told if one.end != LEFT).items():
        assert status is not None
        assert seen <= counts[str(status)] <= seen + left, (status, seen, left, counts)
    assert len(told) - left <= counts.total() <= len(told), (counts, len(told), left)


def check_footprints(prints: Sequence[Footprint]) -> None:
    """Flat: what a further round of troubles adds is within the slack."""
    warm, last = prints[0], prints[-1]
    assert last.memory_bytes <= warm.memory_bytes + MEMORY_SLACK_BYTES, prints
    assert last.open_files <= warm.open_files + OPEN_FILES_SLACK, prints


async def test_chaos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rounds of all troubles under load: every request ends as it should, and all is as before afterwards."""
    fleet = [PodProcess(f"pod-{number}", PACE) for number in range(4)]
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet], **SETTINGS) as served:
        files = footprint(served).open_files
        told: list[Told] = []
        spans: list[Span] = []
        prints: list[Footprint] = []
        for seed in SEEDS:
            load, turns = Load(served.url, seed), plan(seed, len(fleet))
            await load.during(lambda turns=turns: carry_out(turns, fleet, spans))  # type: ignore[misc]
            assert load.sent == len(load.told)
            told += load.told
            prints.append(await at_rest(served, fleet, files))
        rows = table(told, spans)
        counts = counted(served, "warmroute_requests_total", "code")
        met = felt(served)
        with capsys.disabled():
            print(f"\n{shown(rows)}\nthe gateway's counts: {dict(sorted(counts.items()))}; {dict(sorted(met.items()))}")
            print("; ".join(f"{p.memory_bytes / 2**20:.1f} MiB, {p.open_files} files" for p in prints))
            (tmp_path / "told.json").write_bytes(orjson.dumps([told, spans]))
        assert set(met) >= FELT, FELT - set(met)
        check_ends(told, rows)
        check_counts(told, counts)
        check_footprints(prints)
        await exact_again(served, fleet)
        assert not await prediction_errors(served)
        assert not in_flight(served, fleet)
        assert "Traceback" not in served.logged()
        served.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(served.process.wait, 15) == 0
