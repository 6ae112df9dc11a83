"""What the gateway answers is what its OpenAPI document says: statuses, content types, bodies, never a 500."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx

from tests.fakes.processes import PLAIN, ROOT, PodProcess, gateway, pods

SCHEMATHESIS = ROOT / ".venv-fidelity" / "bin" / "schemathesis"
SETTINGS = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = "100"
TIME_MAX_S = 180


def test_the_document_holds(tmp_path: Path) -> None:
    """Requests made up from the document, good and bad ones: every answer is one that it lists."""
    assert SCHEMATHESIS.exists(), "schemathesis is not installed: run `make test-fidelity`"
    fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
    with pods(*fleet), gateway(tmp_path, [pod.configured for pod in fleet]) as served:
        command = [str(SCHEMATHESIS), "--config-file", str(SETTINGS), "run", f"{served.url}/openapi.json"]
        command += ["--checks", "all", "--max-examples", EXAMPLES, "--no-color"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIME_MAX_S, cwd=tmp_path, check=False)
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
        assert "Tested: 0" not in run.stdout
        assert "Traceback" not in served.logged()
        assert httpx.get(f"{served.url}/readyz", **PLAIN).status_code == 200
