"""The servers and the gateway, started once and gone at the end; logs on failure; figures when all is done."""

from __future__ import annotations

import random
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import pytest

from tests_vllm.figures import report
from tests_vllm.fleet import Gateway, VllmServer, make_model
from tests_vllm.install import version_in, vllm_venv
from tests_vllm.talk import Answered

ANSWERS = pytest.StashKey[list[Answered]]()
NOTES = pytest.StashKey[list[str]]()
STARTED = pytest.StashKey[list[VllmServer | Gateway]]()


def pytest_configure(config: pytest.Config) -> None:
    """A session that is told to end takes its servers with it."""
    config.stash[ANSWERS], config.stash[NOTES], config.stash[STARTED] = [], [], []

    def told_to_end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, told_to_end)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the ends of all logs."""
    result = yield
    if result.failed:
        started = item.config.stash[STARTED]
        result.sections += [(str(each.process.log), each.process.tail()) for each in started]
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The figures."""
    answers = config.stash[ANSWERS]
    terminalreporter.section("figures")
    for line in config.stash[NOTES] + (report(answers) if answers else []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def answers(pytestconfig: pytest.Config) -> list[Answered]:
    """All that was answered so far."""
    return pytestconfig.stash[ANSWERS]


@pytest.fixture(scope="session")
def notes(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the report."""
    return pytestconfig.stash[NOTES]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that is served."""
    assert version_in(vllm_venv()) is not None, f"no vLLM runs in {vllm_venv()}: `make test-vllm` installs one"
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all processes write their logs."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def servers(model: Path, logs: Path, notes: list[str], pytestconfig: pytest.Config) -> Iterator[list[VllmServer]]:
    """Two vLLM servers that answer."""
    with ExitStack() as stack:
        started = [stack.enter_context(VllmServer(f"pod-{number}", number, model, logs)) for number in range(2)]
        pytestconfig.stash[STARTED] += started
        waited_s = sum(server.wait() for server in started)
        notes.append(f"two servers started in {waited_s:.0f} s")
        yield started


@pytest.fixture(scope="session")
def gateway(servers: list[VllmServer], model: Path, logs: Path, pytestconfig: pytest.Config) -> Iterator[Gateway]:
    """The gateway in front of both, ready."""
    with Gateway(servers, model, logs) as gateway:
        pytestconfig.stash[STARTED].append(gateway)
        gateway.wait()
        yield gateway


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Of its own for each test, always the same."""
    return random.Random(request.node.name)
