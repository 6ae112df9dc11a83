"""What AIPerf measures of the gateway: all its requests are answered, and both count the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.fakes.processes import MODEL, ROOT, TOKENIZER, PodProcess, gateway, pods

AIPERF = ROOT / ".venv-aiperf" / "bin" / "aiperf"
REQUESTS = 40


def profiled(url: str, folder: Path, *more: str) -> dict[str, Any]:
    """What it exports of some streamed chats."""
    command = [
        str(AIPERF), "profile", "--model", MODEL, "--url", url, "--endpoint-type", "chat", "--streaming",
        "--tokenizer", str(TOKENIZER), "--request-count", str(REQUESTS), "--concurrency", "4",
        "--output-artifact-dir", str(folder), "--ui-type", "none", "--no-auto-plot", *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (exported,) = folder.rglob("profile_export_aiperf.json")
    told: dict[str, Any] = json.loads(exported.read_text())
    return told


def test_all_is_answered_and_counted(tmp_path: Path) -> None:
    """Prompts that share a system prompt: no errors, plausible figures, and our own count is AIPerf's."""
    fleet = [PodProcess(f"pod-{number}", ("--time-scale", "0.2")) for number in range(2)]
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet]) as served:
        shape = ("--shared-system-prompt-length", "64", "--isl", "120", "--osl", "8")
        told = profiled(served.url, tmp_path / "aiperf", *shape)
        assert told["request_count"]["avg"] == REQUESTS and not told.get("error_request_count")
        assert 0 < told["time_to_first_token"]["p50"] < told["request_latency"]["p50"]
        metrics = served.get("/metrics").text
        ours = sum(
            float(line.rsplit(" ", 1)[1])
            for line in metrics.splitlines()
            if line.startswith("warmroute_requests_total{") and 'code="200"' in line
        )
        assert ours == REQUESTS
        assert sum(pod.state()["ranks"][0]["finished"] for pod in fleet) == REQUESTS
