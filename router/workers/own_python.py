"""Other processes of this program: by this interpreter, from the folder that this code is in, whatever is run where."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_FOLDER = Path(__file__).parents[2]


def command_of(module: str, *arguments: str) -> list[str]:
    """A command line that runs `module`: never a folder of that name in the current directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment_of_ours() -> dict[str, str]:
    """This process's, in which `command_of` finds our modules."""
    path = os.pathsep.join(part for part in (str(_FOLDER), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path}
