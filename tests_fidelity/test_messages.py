"""The Messages API through the gateway, by the official `anthropic` package, beside the same at the pod itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.fakes.processes import MODEL, ROOT, PodProcess, gateway, pods

PYTHON = ROOT / ".venv-fidelity" / "bin" / "python"
CLIENT = Path(__file__).with_name("messages_client.py")


def conversation(url: str) -> dict[str, Any]:
    """What the package got from there."""
    assert PYTHON.exists(), "anthropic is not installed: run `make test-fidelity`"
    run = subprocess.run([PYTHON, CLIENT, url, MODEL], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    told: dict[str, Any] = json.loads(run.stdout)
    return told


def test_the_package_is_served(tmp_path: Path) -> None:
    """Whole and streamed, text and tools, errors: all is as at the pod, and the gateway says who it was."""
    with pods(PodProcess("pod-0")) as fleet, gateway(tmp_path, [fleet[0].configured]) as served:
        here, there = conversation(served.url), conversation(fleet[0].address)
        assert here["headers"].pop("x-warmroute-pod") == "pod-0" and here.pop("headers")["x-request-id"]
        del there["headers"]
        assert here == there
        assert here["whole"] == here["streamed"] and here["whole"][0] and here["pieces"] > 1
        assert here["tool"][1] == here["tool streamed"][0] == {"place": "value"}
        assert here["events"][:2] == ["message_start", "content_block_start"]
        assert here["events"][-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert here["unknown model"] == ["NotFoundError", 404] and here["no room"] == ["BadRequestError", 400]
        assert "Traceback" not in served.logged()
