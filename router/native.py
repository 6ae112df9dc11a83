"""The hot path as machine code: `warmroute native` compiles its modules where they are installed, with mypyc.

The sources stay as they are, and are what is compiled: a module with a compiled twin beside it is imported as that.
Needs a C compiler and `warmroute[native]`, and takes some minutes; after a change of a source: again, or `--remove`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from router.errors import ConfigError

_HOT = {
    "indexer": """
        absence backlog blocks changes engine events eviction feed groups holders index ledger losses mappings match
        orphans pages planes prefixes removals rule strangers stream table text_blocks trust
    """,
    "scorer": """
        adapters board candidates chains cost crowd history hold load mix other_workers pick policies recency reuse
        sendings sessions shadow slow_start uses working_set
    """,
    "router.metrics": "generations histograms metrics",
    "router.core": "breaker comparison decision demand fleet holdings retry_budget token_proof token_states",
    "router.endpoints": "data_plane",
    "router.prompts": "beginnings messages prompt rendering renderings",
    "router.handover": "recent",
    "router.proxy": "attempts client_watch error_events places proxy usage",
    "router.server": "connection exchange heads limits port",
    "router.tokens": "encoder given local recall safe_cuts understanding",
    "router.upstream": "connection pool replies",
}
MODULES = tuple(f"{package}.{name}" for package, names in _HOT.items() for name in names.split())
"""What every request and every event passes through. Not what only starts, operates or configures, nor what mypyc does
not take."""

_GROUP = "warmroute"  # names the library that holds the code of all modules

log = logging.getLogger("warmroute")


def root() -> Path:
    """Where the packages lie."""
    return Path(__file__).resolve().parent.parent


def twins(folder: Path) -> list[Path]:
    """The compiled files that there are."""
    found = [path for module in MODULES for path in folder.glob(module.replace(".", "/") + ".*.so")]
    return [*found, *folder.glob(f"{_GROUP}__mypyc.*.so")]


def stale(folder: Path) -> list[str]:
    """Modules whose source is newer than what was compiled of it."""
    pairs = ((path, path.with_name(path.name.split(".")[0] + ".py")) for path in twins(folder))
    return [path.name for path, source in pairs if source.exists() and source.stat().st_mtime > path.stat().st_mtime]


def tell() -> None:
    """Say in the log how this process runs, where that is not the ordinary way."""
    folder = root()
    if twins(folder):
        log.info("the hot path is compiled")
    if old := stale(folder):
        log.warning("compiled code is older than its source: %s (warmroute native)", ", ".join(old))


def remove_all(folder: Path) -> None:
    """Be pure Python again."""
    for path in twins(folder):
        path.unlink()


def compile_all(folder: Path) -> None:
    """Compile `MODULES` of `folder` into it, anew.

    Raises ConfigError without mypyc, SystemExit where it or the C compiler fails.
    It is done on a copy: mypy looks around where it works, and half of a result is none.
    """
    try:
        from mypyc.build import mypycify
        from setuptools import Distribution
        from setuptools.command.build_ext import build_ext
    except ImportError as error:
        raise ConfigError(f"this needs more: pip install 'warmroute[native]' ({error})") from error
    remove_all(folder)
    paths = [module.replace(".", "/") + ".py" for module in MODULES]
    flags = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    with tempfile.TemporaryDirectory(prefix="warmroute-native-") as scratch, contextlib.chdir(scratch):
        for package in dict.fromkeys(name.partition(".")[0] for name in _HOT):
            shutil.copytree(folder / package, package)
        extensions = mypycify([*flags, *paths], opt_level="2", target_dir="c", group_name=_GROUP)
        command = build_ext(Distribution({"name": _GROUP, "ext_modules": extensions}))
        command.build_lib, command.build_temp = "done", "c"
        command.parallel = os.cpu_count()
        command.ensure_finalized()
        command.run()
        shutil.copytree("done", folder, dirs_exist_ok=True)
