"""The command line in this process."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from router.cli import main


def run(*arguments: object) -> Result:
    """`warmroute …` in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def file_of(folder: Path, content: object) -> Path:
    """A JSON file."""
    path = folder / "file.json"
    path.write_text(json.dumps(content))
    return path
