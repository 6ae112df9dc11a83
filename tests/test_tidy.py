"""The house's rules, held by a walk over syntax trees; each rule is shown to catch what it forbids."""

from __future__ import annotations

import ast
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("indexer", "scorer", "router", "simulator")
PURE = ("indexer", "scorer")
BELOW = {"indexer": (), "scorer": ("indexer",), "router": ("scorer", "indexer"), "simulator": ()}

LINE = (
    "errors", "garbage", "native", "core", "pieces", "plan", "config", "server", "metrics", "recording", "upstream",
    "prompts", "tokens", "events", "shared_index", "discovery", "handover", "warmup", "causes", "proxy", "workers",
    "state", "alerts", "service", "page", "endpoints", "process", "commands", "cli", "__main__",
)  # fmt: skip
"""The rooms of `router`, folders and files: each imports only from those before it."""

ROOM_MODULES_MAX = 12
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500

_PURE_IMPORTS = {
    "__future__", "abc", "array", "bisect", "collections", "contextlib", "dataclasses", "enum", "functools", "heapq",
    "hashlib", "hmac", "itertools", "math", "operator", "struct", "types", "typing", "zlib", "cachetools", "msgspec",
    "numba", "numpy", "xxhash",
}  # fmt: skip
"""What cannot reach a socket, clock, random source, environment, log or metric. Add to it what can't either."""
_PURE_AT_THE_EDGE = _PURE_IMPORTS | {
    "indexer",
    "scorer",
    "re",
    "json",
    "orjson",
    "http",
    "urllib",
    "httptools",
    "pathlib",
}
"""The same for modules of `router`: text has its parsers, and a path is a name."""
PARAMETERS_MAX = 7

_EACH_HAS = {"log"}
_IMPURE_CALLS = {"open", "input", "print", "__import__", "exec", "eval", "breakpoint"}
_LOCKS = {"Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Barrier"}
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
_TESTS = (
    "tests",
    "tests_aiperf",
    "tests_chaos",
    "tests_fidelity",
    "tests_kubernetes",
    "tests_page",
    "tests_redis",
    "tests_soak",
    "tests_templates",
    "tests_vllm",
    "benchmarks",
)

STORIES = {
    "alert_rules": "tests what Prometheus and Grafana get of charts/",
    "cache_not_read": "a fact of requests, from the prompt to the ledger",
    "causes": "the whole gateway before pods that are made to miss, for each cause",
    "chart": "tests charts/",
    "cycles": "what the collector finds after a request, whoever left it",
    "docs": "tests README.md and docs/",
    "discovery": "pods that come and go, from their sources to requests",
    "ends_teach": "the core from decisions to the ends of requests, over many of its modules",
    "evidence": "pods' figures as proof: from the prober to the index",
    "examples": "tests examples/",
    "full_index": "one state of the index, over many of its modules",
    "full_report": "one fact of events, from the wire to the ledger",
    "gateway": "the whole gateway before good pods, as processes",
    "gateway_bound": "the whole gateway, before pods that connect to it",
    "gateway_bytes": "the whole gateway between raw clients and raw pods",
    "gateway_faults": "the whole gateway before pods with faults",
    "handover": "the whole gateway before pods that leave",
    "growth": "a year of coming and going, over all tables of a gateway",
    "large_requests": "the whole gateway under bodies that take long to read",
    "lower_tiers": "one fact of events, from the wire to the holders",
    "offloading": "the whole gateway before pods with an offloading tier",
    "package": "tests the distribution",
    "pieces": "the whole gateway before pods that compute long prompts",
    "prometheus": "a real Prometheus before the whole gateway",
    "recorded_tokens": "recorded requests, from the body to token ids",
    "remembered": "the whole gateway, over its own end, and beside another one",
    "resilience": "the whole gateway before bad pods",
    "reuse_rules": "the whole gateway before pods that reuse blocks in other ways",
    "rolling": "a restart of all, under load",
    "simulated_faults": "feeds under faults in simulated time, against a pod that knows the truth",
    "simulated_rules": "the simulator and the index, against each other",
    "simulated_truth": "the simulator against recordings",
    "tidy": "tests the house",
    "truth": "the index against recordings",
    "unfit_pods": "the whole gateway before pods that should not be asked",
    "versions": "the whole gateway before pods of several versions",
    "vllm_clients": "the whole gateway before vLLM's clients",
    "warmup": "prompts that are warm before anybody asks, before real pods",
    "workers_life": "workers as processes, from start to end",
    "wrong_tokens": "the whole gateway before pods that make other tokens",
}  # fmt: skip
"""Test modules that are named after what happens, as no one module does it: `tests/test_<story>.py`."""

PRIVATE = {
    ("test_indexer_prefixes", "_blocks"): "that its tables agree after every step is what the store stands on",
    ("test_indexer_prefixes", "_leaves"): "as _blocks",
    ("test_router_config_settings", "_front"): "which limits a port of the process got is not told otherwise",
    ("test_router_proxy_waiting_room", "_flows"): "what is over leaves nothing behind, and nobody else can see it",
    ("test_router_proxy_waiting_room", "_levels"): "as _flows",
    ("test_router_proxy_waiting_room", "_of_flow"): "as _flows",
    ("test_router_proxy_waiting_room", "_of_group"): "as _flows",
}  # fmt: skip
"""What tests see of our classes that others must not: the test, the name, the reason."""

_PUBLIC = {"_replace", "_asdict", "_fields", "_make"}  # of named tuples: documented, and called so for want of others
_REACHING = {"getattr", "setattr", "delattr", "hasattr", "object", "multiple"}  # the last two: of unittest.mock.patch

_EMPTY_NAMES = {"util", "helper", "manager", "base", "common", "misc"}


class Source(NamedTuple):
    """One file; `path` is relative to the repository."""

    path: Path
    tree: ast.Module
    nodes: list[ast.AST]
    """All of the tree."""
    lines: int

    @property
    def package(self) -> str:
        return self.path.parts[0]


Rule = Callable[[Source], Iterator[str]]


@cache  # every rule walks them all
def parsed(path: str, text: str) -> Source:
    tree = ast.parse(text)
    return Source(Path(path), tree, list(ast.walk(tree)), len(text.splitlines()))


def sources(*folders: str) -> list[Source]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [parsed(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths]


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import, those within functions too."""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, source.package if node.level else (node.module or "").partition(".")[0]


def imported_rooms(source: Source) -> Iterator[tuple[int, str]]:
    """Line and room of every import from `router`; those for typing only count in `core` alone."""
    room = _room(source)
    for_typing = set() if room == "core" else _for_typing(source)
    for node in source.nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "router":
            names = [f"router.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        if node in for_typing:
            continue
        for name in names:
            if name.startswith("router."):
                yield node.lineno, name.split(".")[1]


def _for_typing(source: Source) -> set[ast.AST]:
    blocks = [n for n in source.nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {node for block in blocks for node in ast.walk(block)}


def _room(source: Source) -> str:
    """Of a file of `router`: the folder or the file that is in `LINE`."""
    return source.path.parts[1].removesuffix(".py")


# --- the rules ---


def one_straight_line(source: Source) -> Iterator[str]:
    """Imports go from router to scorer to indexer; the simulator stands apart. (Rule 1.)"""
    allowed = (source.package, *BELOW[source.package])
    for line, name in imported(source):
        if name in PACKAGES and name not in allowed:
            yield f"{source.path}:{line} imports {name}"


def the_line(source: Source) -> Iterator[str]:
    """In `router`, imports go from each room to those before it. (Rule 1.)"""
    room = _room(source)
    if room == "__init__":
        return
    if room not in LINE:
        yield f"{source.path} is in no room"
        return
    for line, name in imported_rooms(source):
        if name not in LINE[: LINE.index(room) + 1]:
            yield f"{source.path}:{line} imports {name}"


def pure(source: Source) -> Iterator[str]:
    """The core is sans-IO: nothing waits, and nothing that it imports can look outside. (Rule 2.)"""
    for line, name in imported(source):
        if name not in _PURE_IMPORTS and name not in PURE:
            yield f"{source.path}:{line} imports {name}"
    yield from sync(source)
    for node in source.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _IMPURE_CALLS:
            yield f"{source.path}:{node.lineno} calls {node.func.id}"


def says_pure(source: Source) -> bool:
    """Whether the module's docstring says so."""
    return re.search(r"\bPure\b", ast.get_docstring(source.tree) or "") is not None


def pure_at_the_edge(source: Source) -> Iterator[str]:
    """`router/core` is as pure as `indexer` and `scorer`, and so is each module of `router` that says it is. (Rule 2.)

    Of `router` it imports errors, the core, sections of the configuration (not in the core), and others that say so.
    """
    if _room(source) != "core" and not says_pure(source):
        return
    may = _PURE_AT_THE_EDGE | {"router"}
    may |= set() if _room(source) == "core" else {"pydantic"}
    yield from (f"{source.path}:{line} imports {name}" for line, name in imported(source) if name not in may)
    for node in source.nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("router."):
            if not _is_for_the_pure(source, node.module or ""):
                yield f"{source.path}:{node.lineno} imports {node.module}, which does not say that it is pure"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _IMPURE_CALLS:
            yield f"{source.path}:{node.lineno} calls {node.func.id}"
    yield from sync(source)


def _is_for_the_pure(source: Source, module: str) -> bool:
    room = module.split(".")[1]
    if room in ("errors", "core") or (room == "config" and _room(source) != "core"):
        return True
    path = Path(*module.split(".")).with_suffix(".py")
    return (ROOT / path).is_file() and says_pure(parsed(str(path), (ROOT / path).read_text("utf-8")))


def frozen(source: Source) -> Iterator[str]:
    """What crosses rooms is not changed by who gets it. (Rule 5.)"""
    for node in source.nodes:
        if isinstance(node, ast.ClassDef) and re.search(r"(Limits|Settings|Demand|Prompt)$", node.name):
            made = [ast.unparse(part) for part in (*node.bases, *node.decorator_list)]
            if not any("NamedTuple" in part or "frozen=True" in part for part in made):
                yield f"{source.path}:{node.lineno} {node.name} is not frozen"


def few_parameters(source: Source) -> Iterator[str]:
    """What takes more than so many things has not found its record yet. (Rule 8.)"""
    for node in source.nodes:
        if isinstance(node, _FUNCTIONS):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            if count > PARAMETERS_MAX:
                yield f"{source.path}:{node.lineno} {node.name} takes {count}"


def sync(source: Source) -> Iterator[str]:
    """A decision never waits. (Rule 3.)"""
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for node in source.nodes:
        if isinstance(node, waits):
            yield f"{source.path}:{node.lineno} waits"
        elif isinstance(node, ast.comprehension) and node.is_async:
            yield f"{source.path}:{node.iter.lineno} waits"


def no_locks(source: Source) -> Iterator[str]:
    """What never waits needs no locks. (Rule 3.)"""
    for node in source.nodes:
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        for name in _LOCKS.intersection(names):
            yield f"{source.path}:{node.lineno} has a {name}"  # type: ignore[attr-defined]


def words(source: Source) -> Iterator[str]:
    """A module's name says what is in it. (Rule 7.)"""
    for part in (*source.path.parts[:-1], source.path.stem):
        for word in part.strip("_").split("_"):
            if word in _EMPTY_NAMES or word.removesuffix("s") in _EMPTY_NAMES:
                yield f"{source.path} is called {part}"


def short(source: Source) -> Iterator[str]:
    """Files and functions that can be read at once. (Rule 8.)"""
    if source.lines > FILE_LINES_MAX:
        yield f"{source.path} has {source.lines} lines"
    yield from short_functions(source)


def short_functions(source: Source) -> Iterator[str]:
    """Functions that can be read at once. (Rule 8.)"""
    for node in source.nodes:
        if isinstance(node, _FUNCTIONS):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{source.path}:{node.lineno} {node.name} has {lines} lines"


def nothing_runs(source: Source) -> Iterator[str]:
    """An import defines names, and does nothing. (Rule 5.) `__main__.py` is there to be run."""
    if source.path.name == "__main__.py":
        return
    defines = (
        ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign,
    )  # fmt: skip
    for node in source.tree.body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse
        if not (isinstance(node, defines) or text or typing_only):
            yield f"{source.path}:{node.lineno} runs at import: {ast.unparse(node)[:60]}"


def said(source: Source) -> Iterator[str]:
    """A docstring says what holds, of each module, public class and public function. (Rule 9.)"""
    if source.tree.body and not ast.get_docstring(source.tree):
        yield f"{source.path} has no docstring"
    for node in source.tree.body:
        if (
            isinstance(node, _FUNCTIONS | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ):
            yield f"{source.path}:{node.lineno} {node.name} has no docstring"


def said_of_tests(source: Source) -> Iterator[str]:
    """Each test says what holds. (Rule 9.)"""
    for node in source.nodes:
        if isinstance(node, _FUNCTIONS) and node.name.startswith("test_") and not ast.get_docstring(node):
            yield f"{source.path}:{node.lineno} {node.name} has no docstring"


def modules() -> set[str]:
    """Modules and packages as test modules write them: `router_tokens_local`."""
    paths = (path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {"_".join(part for part in path.with_suffix("").parts if part != "__init__") for path in paths}


MODULES = modules()


def named_after(source: Source) -> Iterator[str]:
    """A test module is named after the module that it tests, or is a story. What it stands on is a fake. (Rule 10.)"""
    name = source.path.stem
    if source.path.parent != Path("tests") or name in ("conftest", "__init__"):
        return
    if not name.startswith("test_"):
        yield f"{source.path} is no test: it belongs into tests/fakes/"
    elif (name := name.removeprefix("test_")) not in MODULES and name not in STORIES:
        yield f"{source.path} names no module, and is no story"


def alone(source: Source) -> Iterator[str]:
    """No module imports a test module, so each can be renamed or removed; what is shared is a fake. (Rule 10.)"""
    for node in source.nodes:
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            strange = name.startswith("tests.") and not name.startswith("tests.fakes.")
            if strange or any(part.startswith("test_") for part in name.split(".")):
                yield f"{source.path}:{node.lineno} imports {name}"  # type: ignore[attr-defined]


def no_second_defaults(source: Source) -> Iterator[str]:
    """The configuration has the defaults of limits, and nobody else. (Rule 4.)"""
    for node in source.nodes:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Limits"):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and field.value is not None:
                    yield f"{source.path}:{field.lineno} {ast.unparse(field.target)} has a default"


def private(source: Source) -> Iterator[str]:
    """Tests see of a module what others see of it. (Rule 10.) A class of the test itself may have names of its own."""
    for line, name in private_names(source):
        if (source.path.stem, name) not in PRIVATE:
            yield f"{source.path}:{line} touches {name}"


def private_names(source: Source) -> Iterator[tuple[int, str]]:
    """Line and name of what is reached into, be it by a text."""
    nodes = source.nodes
    own = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in nodes if isinstance(node, _FUNCTIONS)}
    for node in nodes:
        names = []
        if isinstance(node, ast.Attribute) and not (node.attr in own and ast.unparse(node.value) in ("self", "cls")):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _REACHING:
            names = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        for name in (name.rpartition(".")[2] for name in names):
            if name.startswith("_") and not name.startswith("__") and name not in _PUBLIC:
                yield node.lineno, name  # type: ignore[attr-defined]


# --- held ---


@pytest.mark.parametrize(
    ("rule", "folders"),
    [
        (one_straight_line, PACKAGES),
        (the_line, ("router",)),
        (pure, PURE),
        (no_locks, PURE),
        (pure_at_the_edge, ("router",)),
        (frozen, ("indexer", "scorer", "router")),
        (few_parameters, ("indexer", "scorer", "router")),
        (no_second_defaults, ("indexer", "scorer", "router")),
        (words, (*PACKAGES, "benchmarks", "tests")),
        (short, (*PACKAGES, "benchmarks")),
        (short_functions, ("tests",)),
        (nothing_runs, PACKAGES),
        (said, PACKAGES),
        (said_of_tests, ("tests",)),
        (named_after, ("tests",)),
        (alone, _TESTS),
        (private, _TESTS[:-1]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(value),
)
def test_held(rule: Rule, folders: tuple[str, ...]) -> None:
    """The rule holds in every file of these folders."""
    files = sources(*folders)
    assert {file.package for file in files} == set(folders)
    assert [fault for file in files for fault in rule(file)] == []


def small_rooms(files: list[Source]) -> Iterator[str]:
    """A folder is seen at one glance, and says what it is for. (Rule 1.)"""
    folders: dict[Path, list[Source]] = {}
    for file in files:
        folders.setdefault(file.path.parent, []).append(file)
    for folder, inside in folders.items():
        modules = [file for file in inside if file.path.name != "__init__.py"]
        if len(modules) > ROOM_MODULES_MAX:
            yield f"{folder} has {len(modules)} modules"
        own = [file for file in inside if file.path.name == "__init__.py"]
        if not own or not ast.get_docstring(own[0].tree):
            yield f"{folder} does not say what it is for"
        elif len(own[0].tree.body) > 1:
            yield f"{folder}/__init__.py has more than a docstring"


def public(source: Source) -> Iterator[str]:
    """Classes, functions, types and constants that a module defines for others."""
    for node in source.tree.body:
        names: list[str] = []
        if isinstance(node, _FUNCTIONS | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from (name for name in names if not name.startswith("_") and name not in _EACH_HAS)


def defined_twice(files: list[Source]) -> set[str]:
    """One word for one thing. (Rule 7.)"""
    counts = Counter(name for file in files for name in public(file))
    return {name for name, count in counts.items() if count > 1}


def test_one_word() -> None:
    """No public class, function, type or constant is defined twice; but that a command is called as what it does."""
    assert (
        defined_twice([file for file in sources("router", "indexer", "scorer") if file.path.name != "cli.py"]) == set()
    )


def test_one_word_catches() -> None:
    """Classes, functions, types and constants; not what is private, nor the log that each may have."""
    text = "class A: ...\ndef f(): ...\nKind = Literal['a']\nLIMIT = 5\nlog = 1\ndef _own(): ..."
    assert defined_twice([parsed("router/x.py", text), parsed("indexer/y.py", text)]) == {"A", "f", "Kind", "LIMIT"}


def test_rooms_are_small() -> None:
    """At most so many modules in each room of `router`, and a docstring."""
    assert list(small_rooms([file for file in sources("router") if len(file.path.parts) > 2])) == []


def test_small_rooms_is_exact() -> None:
    """At the limit is within it; a folder without a docstring, or with code in its `__init__.py`, is caught."""
    modules = [parsed(f"router/x/m{number}.py", "") for number in range(ROOM_MODULES_MAX)]
    said = parsed("router/x/__init__.py", '"""What for."""')
    assert list(small_rooms([*modules, said])) == []
    assert list(small_rooms([*modules, parsed("router/x/more.py", ""), said]))
    assert list(small_rooms(modules))
    assert list(small_rooms([*modules, parsed("router/x/__init__.py", "")]))
    assert list(small_rooms([*modules, parsed("router/x/__init__.py", '"""M."""\nfrom router.x import m0')]))


def test_for_typing_one_may_look_up() -> None:
    """Outside `core`, a type's name may come from a room further up the line."""
    text = "if TYPE_CHECKING:\n    from router.service import Service"
    assert list(the_line(parsed("router/workers/x.py", text))) == []
    assert list(the_line(parsed("router/workers/x.py", "from router.proxy.proxy import Proxy"))) == []
    assert list(the_line(parsed("router/__init__.py", ""))) == []


def test_stories_are_there() -> None:
    """No story is left in the list when its test is gone, and none is called as if it tested a module."""
    for story in STORIES:
        assert (ROOT / "tests" / f"test_{story}.py").is_file(), story
        assert story not in MODULES and not story.startswith(tuple(f"{package}_" for package in PACKAGES)), story


def test_what_is_private_is_needed() -> None:
    """No name is left in the list when its test no longer touches it."""
    touched = {(source.path.stem, name) for source in sources(*_TESTS[:-1]) for _, name in private_names(source)}
    assert set(PRIVATE) <= touched


# --- shown to catch ---

_BAD: list[tuple[Rule, str, str]] = [
    (one_straight_line, "indexer/x.py", "from scorer.load import Ticket"),
    (one_straight_line, "indexer/x.py", "import router.core.decision"),
    (one_straight_line, "scorer/x.py", "def f():\n    from router import core"),
    (one_straight_line, "simulator/x.py", "from indexer.events import BlockStored"),
    (one_straight_line, "router/x.py", "import os, simulator.pod as pod"),
    (the_line, "router/x.py", ""),
    (the_line, "router/rooms/x.py", ""),
    (the_line, "router/errors.py", "from router.core.demand import Demand"),
    (the_line, "router/server/x.py", "from router import upstream"),
    (the_line, "router/core/x.py", "def f():\n    import router.config.settings as settings"),
    (the_line, "router/core/x.py", "if TYPE_CHECKING:\n    from router.prompts.prompt import Prompt"),
    (the_line, "router/workers/x.py", "def f():\n    from router.process import run"),
    (pure, "indexer/x.py", "import asyncio"),
    (pure, "indexer/x.py", "import time"),
    (pure, "scorer/x.py", "from random import choice"),
    (pure, "scorer/x.py", "import os.path"),
    (pure, "indexer/x.py", "def f():\n    import logging"),
    (pure, "indexer/x.py", "from prometheus_client import Counter"),
    (pure, "indexer/x.py", "import zmq.asyncio as z"),
    (pure, "indexer/x.py", "async def f(): ..."),
    (pure, "indexer/x.py", "class C:\n    async def f(self):\n        return [x async for x in y]"),
    (pure, "indexer/x.py", "def f():\n    return open('x')"),
    (pure, "scorer/x.py", "print(1)"),
    (sync, "router/core/decision.py", "async def route(): ..."),
    (sync, "router/core/decision.py", "async def f():\n    async with a:\n        await b"),
    (no_locks, "router/core/decision.py", "import asyncio\nlock = asyncio.Lock()"),
    (no_locks, "router/core/decision.py", "from threading import RLock"),
    (no_locks, "router/core/decision.py", "def f():\n    return threading.Semaphore(1)"),
    (no_second_defaults, "router/x.py", "class FeedLimits:\n    replays_max: int = 32"),
    (pure_at_the_edge, "router/core/x.py", "import time"),
    (pure_at_the_edge, "router/core/x.py", "async def f(): ..."),
    (pure_at_the_edge, "router/core/x.py", "from router.config.settings import Config"),
    (pure_at_the_edge, "router/proxy/x.py", '"""M. Pure."""\nimport asyncio'),
    (pure_at_the_edge, "router/proxy/x.py", '"""M. Pure."""\nfrom router.upstream.pool import Upstream'),
    (frozen, "router/x.py", "@dataclass(slots=True)\nclass FeedLimits: ..."),
    (few_parameters, "router/x.py", "class C:\n    def f(self, a, b, c, d, e, f, g, *, h): ..."),
    (words, "router/utils.py", ""),
    (words, "router/http_helpers.py", ""),
    (words, "scorer/base.py", ""),
    (words, "router/common/x.py", ""),
    (words, "router/pod_manager.py", ""),
    (short, "router/x.py", "x = 1\n" * 501),
    (short, "router/x.py", "def f():\n" + "    x = 1\n" * 70),
    (short_functions, "tests/x.py", "class C:\n    async def f(self):\n" + "        x = 1\n" * 70),
    (nothing_runs, "router/x.py", "main()"),
    (nothing_runs, "router/x.py", "for x in y:\n    z = x"),
    (nothing_runs, "router/x.py", "if DEBUG:\n    x = 1"),
    (nothing_runs, "router/x.py", "if TYPE_CHECKING:\n    import a\nelse:\n    run()"),
    (nothing_runs, "router/x.py", "try:\n    import a\nexcept ImportError:\n    a = None"),
    (nothing_runs, "router/x.py", "with a:\n    x = 1"),
    (nothing_runs, "router/x.py", "x = 1\nx += 1"),
    (said, "router/x.py", "x = 1"),
    (said, "router/x.py", '"""M."""\nclass C: ...'),
    (said, "router/x.py", '"""M."""\nasync def f(): ...'),
    (said_of_tests, "tests/test_x.py", "def test_a(): ..."),
    (said_of_tests, "tests/test_x.py", "class TestX:\n    async def test_a(self): ..."),
    (named_after, "tests/test_router_gone.py", ""),
    (named_after, "tests/test_something.py", ""),
    (named_after, "tests/peers.py", ""),
    (alone, "tests/test_x.py", "from tests.test_y import Walk"),
    (private, "tests/test_x.py", "assert not queue._flows"),
    (private, "tests/test_x.py", "here.front.limits._seen.clear()"),
    (private, "tests/test_x.py", "from router.process import _front"),
    (private, "tests/test_x.py", "class C(Pool):\n    def f(self):\n        return self._idle"),
    (private, "tests/test_x.py", "class C:\n    def f(self, other):\n        self._x = other._x"),
    (private, "tests/test_x.py", "monkeypatch.setattr(module, '_LIMIT', 1)"),
    (private, "tests/fakes/x.py", "mock.patch.object(module, 'Pool._idle')"),
    (alone, "tests/fakes/x.py", "import tests.test_y as y"),
    (alone, "tests/test_x.py", "from tests.peers import peer"),
    (alone, "tests_redis/test_x.py", "def f():\n    from tests import test_y"),
    (alone, "tests_redis/test_x.py", "from .test_y import Walk"),
]


@pytest.mark.parametrize(("rule", "path", "text"), _BAD)
def test_caught(rule: Rule, path: str, text: str) -> None:
    """Each rule finds fault with what it forbids."""
    assert list(rule(parsed(path, text)))


_GOOD = textwrap.dedent('''\
    """A module."""

    from __future__ import annotations

    from typing import TYPE_CHECKING

    import numpy as np

    from indexer.blocks import Keys

    if TYPE_CHECKING:
        from collections import deque

    LIMIT = 5
    """Why five."""

    class Kept:
        """A class."""

        def looked_up(self) -> None: ...

    def kept() -> None:
        """A function."""

    def _own() -> None: ...
''')


@pytest.mark.parametrize("rule", [one_straight_line, pure, sync, no_locks, words, short, nothing_runs, said])
def test_not_caught(rule: Rule) -> None:
    """No rule finds fault with what is allowed."""
    assert list(rule(parsed("indexer/database.py", _GOOD))) == []
    assert list(rule(parsed("indexer/__init__.py", ""))) == []


def test_tests_not_caught() -> None:
    """Tests of modules and of packages, stories, fakes, and what is imported from fakes."""
    for name in ("test_router_tokens_local", "test_router_commands_demo", "test_scorer_pick", "test_truth", "conftest"):
        assert list(named_after(parsed(f"tests/{name}.py", ""))) == []
    text = "from tests.fakes.peers import peer\nfrom tests_redis.conftest import Server\nimport pytest"
    assert list(named_after(parsed("tests/fakes/peers.py", text))) == []
    assert list(alone(parsed("tests_redis/test_x.py", text))) == []
    text = (
        "class C:\n    def f(self):\n        self._x = limits._replace(a=1)\n        return self._f(self._x.__dict__)"
    )
    assert list(private(parsed("tests/test_x.py", text + "\n    def _f(self, x): ..."))) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_limits_are_exact(package: str) -> None:
    """At the limit is within it."""
    assert list(short(parsed(f"{package}/x.py", "x = 1\n" * FILE_LINES_MAX))) == []
    function = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)
    assert list(short(parsed(f"{package}/x.py", function))) == []
