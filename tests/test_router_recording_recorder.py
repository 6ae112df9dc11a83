"""Requests through the whole gateway, written down: what is in the lines, and what never is."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from router.config.settings import RecordConfig
from router.core.demand import Demand
from router.metrics.families import labels_of
from router.plan.recording import read_recording
from router.plan.traces import Arrivals, read_trace
from router.recording.recorder import Ended, Recorder
from tests.fakes.cores import asked, core_of
from tests.fakes.houses import STREAM, TOKENIZED, house, says
from tests.fakes.peers import Call

SECRET = "the launch code is 0000 "
USAGE = {"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}}


async def streams(call: Call) -> None:
    """A pod that streams, and tells what it used."""
    body = b'data: {"choices":[{"text":"a"}]}\n\ndata: {"usage":%b}\n\ndata: [DONE]\n\n' % json.dumps(USAGE).encode()
    await call.send(STREAM + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_what_a_request_was_like(tmp_path: Path) -> None:
    """When it came, its lengths, its blocks (shared ones equal), its pod, its times; no text, no token, no header."""
    path = tmp_path / "requests.jsonl"
    text = SECRET * 40
    async with house(streams, record={"path": str(path)}, **TOKENIZED) as here:
        for end in ("", "And now?", "And now?"):
            body = {"prompt": text + end, "stream": True}
            assert (await here.ask(body, x_request_id="visible-1", authorization="Bearer hush")).status == 200
        assert (await here.ask({"prompt": "short"})).status == 200
        assert here.service.recorder is not None and path.exists() is False
    told = lines_of(path)
    assert len(told) == 4 and [line["status"] for line in told] == [200] * 4
    first, second, third, short = told
    assert all(line["pod"] == "pod-0" and line["cached"] == 4 and line["output_length"] == 7 for line in told)
    assert all(0 < line["ttft"] <= line["took"] for line in told[:3]) and short["ttft"] is None
    whole = first["input_length"] // 16
    assert first["hash_ids"][:whole] == second["hash_ids"][:whole] == third["hash_ids"][:whole]
    assert len(first["hash_ids"]) == -(-first["input_length"] // 16)
    assert second["hash_ids"][-1] != third["hash_ids"][-1] and 0 < second["timestamp"] - first["timestamp"] < 60_000
    raw = path.read_bytes()
    assert not [word for word in (b"launch", b"hush", b"visible", b"tiny-qwen", b"127.0.0.1") if word in raw]
    assert all(0 <= number < 2**53 for line in told for number in line["hash_ids"])
    fleet = read_recording(raw.splitlines()).fleet
    assert fleet is not None and [pod.pod for pod in fleet.pods] == ["pod-0"] and fleet.policy == "round-robin"


async def test_mooncakes_readers_read_it(tmp_path: Path) -> None:
    """Every line, by its four fields; lines come as requests end."""
    path = tmp_path / "requests.jsonl"
    async with house(streams, record={"path": str(path)}, **TOKENIZED) as here:
        for end in ("", "And now?"):
            await here.ask({"prompt": SECRET * 40 + end, "stream": True})
    found = read_trace(path.read_text().splitlines(), 1)
    assert isinstance(found, Arrivals) and found.size == 16 and len(found.turns) == 2


async def test_who_was_refused_came_too(tmp_path: Path) -> None:
    """By us or by a pod; what never was a request for tokens is left out."""
    path = tmp_path / "requests.jsonl"
    async with house(says(400), record={"path": str(path)}, **TOKENIZED) as here:
        assert (await here.ask({"prompt": SECRET})).status == 400
        here.pod("pod-0").drain(True)
        assert (await here.ask({"prompt": SECRET})).status == 503
        assert (await here.ask(b"{", path="/v1/completions")).status == 400
        assert (await here.ask(b"", path="/v1/files")).status == 503
    assert [(line["status"], line["pod"]) for line in lines_of(path)] == [(400, "pod-0"), (503, None)]


def noted(recorder: Recorder, demand: Demand, count: int, **ended: Any) -> None:
    for number in range(count):
        recorder.note(demand, Ended(float(number), number + 0.5, 200, "pod-0", **ended))


def values(recorder: Recorder) -> dict[str, float]:
    samples = [sample for family in recorder.collect() if family is not None for sample in family.samples]
    return {labels_of(series)["result"]: value for series, value in samples}


async def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """More is dropped, and counted."""
    core = core_of(1)
    recorder = Recorder(RecordConfig(path=str(tmp_path / "log"), queue_max=5), core, "overlap")
    noted(recorder, asked(core, 1), 7)
    await recorder.stop()
    assert values(recorder) == {"written": 5.0, "dropped": 2.0} and len(lines_of(tmp_path / "log")) == 5


async def test_a_disk_that_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Is said once, and harms nobody; what could not be written is counted."""
    core = core_of(1)
    (tmp_path / "folder").write_text("")
    recorder = Recorder(RecordConfig(path=str(tmp_path / "folder" / "log")), core, "overlap")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            noted(recorder, asked(core, 1), 1)
            await recorder.stop()
    assert values(recorder) == {"written": 0.0, "dropped": 2.0} and len(caplog.records) == 1
    (tmp_path / "folder").unlink()
    noted(recorder, asked(core, 1), 1)
    await recorder.stop()
    assert values(recorder) == {"written": 1.0, "dropped": 2.0}


async def test_lines_are_written_while_it_runs(tmp_path: Path) -> None:
    """Not only in the end."""
    core = core_of(1)
    recorder = Recorder(RecordConfig(path=str(tmp_path / "log")), core, "overlap")
    await recorder.start()
    noted(recorder, asked(core, 1), 3)
    async with asyncio.timeout(20):
        while values(recorder)["written"] < 3:
            await asyncio.sleep(0.02)
    await recorder.stop()


async def test_answers_of_unknown_length_are_measured_by_others(tmp_path: Path) -> None:
    """By their bytes: streams and whole answers apart."""
    core = core_of(1)
    recorder = Recorder(RecordConfig(path=str(tmp_path / "log")), core, "overlap")
    noted(recorder, asked(core, 1), 200, tokens=10, bytes_out=1000)
    noted(recorder, asked(core, 1), 200, tokens=10, bytes_out=30, streams=False)
    for streams, bytes_out in ((True, 5000), (False, 150), (True, 1)):
        recorder.note(asked(core, 1), Ended(0.0, 1.0, 200, "pod-0", streams=streams, bytes_out=bytes_out))
    await recorder.stop()
    assert [line["output_length"] for line in lines_of(tmp_path / "log")[-3:]] == [50, 50, 1]


async def test_what_is_known_of_the_pods_is_told(tmp_path: Path) -> None:
    """Speeds, capacities, the size of blocks: with the first line, and now and then."""
    core = core_of(2)
    core.fleet.pods["pod-1"].blocks = 100
    recorder = Recorder(RecordConfig(path=str(tmp_path / "log")), core, "overlap")
    noted(recorder, asked(core, 1), 2)
    await recorder.stop()
    first, second = lines_of(tmp_path / "log")
    assert "fleet" not in second
    assert first["fleet"] == {
        "pods": [
            {"pod": "pod-0", "kv_tokens": None, "factor": 1.0},
            {"pod": "pod-1", "kv_tokens": 1600, "factor": 1.0},
        ],
        "block_size": 16, "base_s": 0.0, "token_s": 0.001, "position_s": 0.0, "policy": "overlap",
    }  # fmt: skip
