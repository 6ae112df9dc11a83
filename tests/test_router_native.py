"""What is compiled of the hot path: which modules, what lies beside their sources, and when that is too old."""

from __future__ import annotations

import ast
import builtins
import logging
import os
from pathlib import Path

import pytest

from router import native


def made(folder: Path, module: str, age_s: float) -> Path:
    """A source and its compiled twin, so much older than it."""
    source = folder / (module.replace(".", "/") + ".py")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.touch()
    twin = source.with_name(source.stem + ".cpython-311-x86_64-linux-gnu.so")
    twin.touch()
    os.utime(twin, (source.stat().st_atime, source.stat().st_mtime - age_s))
    return twin


def test_modules_exist() -> None:
    """Each is named once, and has a source."""
    assert len(set(native.MODULES)) == len(native.MODULES)
    assert [m for m in native.MODULES if not (native.root() / (m.replace(".", "/") + ".py")).exists()] == []


def test_exceptions_have_names_of_their_own() -> None:
    """mypyc gives a name one type in a function: that of the first exception that it is bound to."""
    shared = []
    for module in native.MODULES:
        tree = ast.parse((native.root() / (module.replace(".", "/") + ".py")).read_text("utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                types: dict[str, set[str]] = {}
                for node in ast.walk(function):
                    if isinstance(node, ast.ExceptHandler) and node.name and node.type:
                        types.setdefault(node.name, set()).add(ast.unparse(node.type))
                shared += [f"{module}.{function.name}: {name}" for name, of in types.items() if len(of) > 1]
    assert shared == []


def tree_of(module: str) -> ast.Module:
    return ast.parse((native.root() / (module.replace(".", "/") + ".py")).read_text("utf-8"))


def classes_of(module: str) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.ClassDef)]


def imported(module: str) -> set[str]:
    """Names that come from what is compiled."""
    imports = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports if node.module in native.MODULES for alias in node.names}


def bases_of(node: ast.ClassDef) -> set[str]:
    """By their last names: `Generic` of `typing.Generic[T]`."""
    plain = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
    return {base.attr if isinstance(base, ast.Attribute) else ast.unparse(base) for base in plain}


def test_classes_are_such_as_mypyc_takes() -> None:
    """Of what is built in it derives classes from these only: others are known when everything is compiled."""
    taken = {"object", "Exception", "LookupError", "IndexError", "Warning", "UserWarning", "ValueError"}
    refused = [
        f"{module}.{node.name}: {base}"
        for module in native.MODULES
        for node in classes_of(module)
        for base in bases_of(node) & set(dir(builtins)) - taken
    ]
    assert refused == []


def test_compiled_classes_have_compiled_subclasses_only() -> None:
    """mypyc refuses others when they are made: at the start. What is no class of its own kind does not count."""
    own_kinds = {"NamedTuple", "Protocol", "TypedDict", "Enum", "Struct", "Generic"}
    folders = [native.root() / package for package in ("indexer", "scorer", "router")]
    files = [path.relative_to(native.root()) for folder in folders for path in folder.rglob("*.py")]
    modules = {".".join(path.with_suffix("").parts) for path in files} - set(native.MODULES)
    compiled = {node.name for module in native.MODULES for node in classes_of(module) if not bases_of(node) & own_kinds}
    assert compiled > {"Core", "Fleet", "Upstream"}
    strange = [
        f"{module}.{node.name}"
        for module in modules
        for node in classes_of(module)
        if bases_of(node) & compiled & imported(module)
    ]
    assert strange == []


def test_what_lies_beside_the_sources(tmp_path: Path) -> None:
    """Twins of the modules and their library are found and removed, and nothing else is."""
    first, second = made(tmp_path, "router.core.decision", 0.0), made(tmp_path, "indexer.index", 5.0)
    library = tmp_path / "warmroute__mypyc.cpython-311-x86_64-linux-gnu.so"
    library.touch()
    other = made(tmp_path, "router.other", 5.0)
    assert sorted(native.twins(tmp_path)) == sorted([first, second, library])
    assert native.stale(tmp_path) == [second.name]
    native.remove_all(tmp_path)
    assert native.twins(tmp_path) == [] and other.exists() and (tmp_path / "router/core/decision.py").exists()


def test_old_code_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log says that code is compiled, and which of it is older than its source; of pure Python it says nothing."""
    monkeypatch.setattr(native, "root", lambda: tmp_path)
    with caplog.at_level(logging.INFO, logger="warmroute"):
        native.tell()
        assert caplog.messages == []
        old = made(tmp_path, "router.core.decision", 5.0)
        native.tell()
    assert caplog.messages == [
        "the hot path is compiled",
        f"compiled code is older than its source: {old.name} (warmroute native)",
    ]
