"""The distribution: its wheel holds all that the packages need and runs by itself; the lock is pinned and silent.

An editable install puts the whole repository on the path and so hides files that the wheel lacks.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("router", "indexer", "scorer", "simulator")
LOCK = ROOT / "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAME = re.compile(r"^([A-Za-z0-9._-]+)")


def normal(name: str) -> str:
    """A distribution's name in the form by which installers compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built here: no network, no build isolation, nothing written into the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    """The wheel's content in a folder of its own."""
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    """Each file below the four packages is in the wheel, whatever its kind, and there is nothing else but metadata."""
    ignored = {"__pycache__", ".mypy_cache", ".ruff_cache"}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and not ignored & set(path.parts)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert wanted - names == set()
    assert {name for name in names - wanted if ".dist-info/" not in name} == set()


def test_wheel_runs_without_the_repository(unpacked: Path, tmp_path: Path) -> None:
    """From the wheel alone every package is imported, and the command answers."""
    (entry,) = unpacked.glob("*.dist-info/entry_points.txt")
    module, function = re.findall(r"warmroute\s*=\s*([\w.]+):(\w+)", entry.read_text(encoding="utf-8"))[0]
    script = f"""if True:
        import sys
        sys.path[:] = [{str(unpacked)!r}, *(p for p in sys.path if p and {str(ROOT)!r} != p)]
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", type(f).__name__)]
        import indexer, router, scorer, simulator
        import {module} as command
        for package in (indexer, router, scorer, simulator, command):
            assert package.__file__.startswith({str(unpacked)!r}), package.__file__
        sys.argv = ["warmroute", "--help"]
        command.{function}()
    """
    run = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "serve" in run.stdout


def test_lock_pins_and_hashes_everything() -> None:
    """Each entry is one exact version with hashes; no address, path, index or host stands in the file."""
    text = LOCK.read_text(encoding="utf-8")
    entries = re.sub(r"\s*\\\n\s*", " ", text).strip().splitlines()
    pinned = re.compile(r"[a-z0-9.-]+==[\w.!+]+( ; [^/]+?)?( --hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in entries if not entry.startswith("#") and not pinned.fullmatch(entry)] == []
    assert len(entries) > 40
    assert not re.search(r"://|(?m:^\s*-(?!-hash))|\bindex\b|\.(com|org|io|net)\b", text)


def test_lock_covers_the_project() -> None:
    """What the product, its tests and its build name themselves is in the lock."""
    locked = {normal(entry.partition("==")[0]) for entry in LOCK.read_text().splitlines() if "==" in entry}
    groups = PROJECT["dependency-groups"]["dev"]
    asked = [*PROJECT["project"]["dependencies"], *groups, *PROJECT["build-system"]["requires"], "editables"]
    names = {normal(match[1]) for each in asked if (match := NAME.match(each))}
    assert names - locked == set()


def test_dockerfile_builds_from_what_it_is_given() -> None:
    """Every path that the Dockerfile copies is let through by .dockerignore and is there; its user is a number."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert set(PACKAGES) <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert [name for name in copied if f"!{name}" not in ignore] == []
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)


def test_ci_is_executable() -> None:
    """The entry of CI may be run, and its shell understands it."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
