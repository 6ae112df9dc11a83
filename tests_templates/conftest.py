"""All differences are told at the end."""

from __future__ import annotations

import pytest

LINES = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was compared, and every difference."""
    terminalreporter.section("templates")
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)
