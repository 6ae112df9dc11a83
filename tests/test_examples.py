"""The programs in `examples/`: each ends well in front of a real gateway and simulated pods, and says what it shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.processes import PodProcess, gateway, pods

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "basic_chat": "prompt tokens were cached",
    "batch": "40 prompts, ",
    "errors": "a model that nobody serves: 404",
    "observing": "warmroute_cache_hit_ratio",
    "rag": "document first: ",
    "score": "holds the longest prefix",
    "sessions": "whales",
    "streaming": "first chunk after",
    "warm_up": "tokens warmed on pod-",
    "tools": "with the tool's answer: ",
}
RUN_S = 60.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway in front of two pods."""
    with pods(PodProcess("pod-0"), PodProcess("pod-1")) as fleet:
        static = [pod.configured for pod in fleet]
        with gateway(tmp_path_factory.mktemp("examples"), static) as served:
            yield served.url


def test_each_program_is_here() -> None:
    """None is left out, and each is short."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SAYS.keys()
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 60 for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", sorted(SAYS))
def test_program(name: str, url: str) -> None:
    """It exits with 0, and prints what it is for."""
    environ = {"PATH": os.environ["PATH"], "WARMROUTE_URL": url}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert run.returncode == 0, run.stderr
    assert SAYS[name] in run.stdout
    assert not run.stderr
