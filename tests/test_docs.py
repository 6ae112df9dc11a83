"""The documents hold: links lead somewhere; the commands, keys, metrics, alerts and targets that they name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from router.alerts.conditions import ALERTS
from router.cli import main
from router.config.settings import Config
from router.config.sources import folded, known_keys
from simulator.cli import simulate

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "charts/warmroute/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
VALUES = ROOT / "charts" / "warmroute" / "values.yaml"
SUFFIXES = ("_bucket", "_sum", "_count")


def text_of(page: Path) -> str:
    """The whole page."""
    return page.read_text(encoding="utf-8")


def code_of(text: str) -> Iterator[str]:
    """Each span of code, and each line of a block, with lines that go on joined."""
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()
    yield from (
        " ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    )


def anchors_of(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower().replace("`", "")).strip().replace(" ", "-") for head in heads}


def dead_links(page: Path, text: str) -> list[str]:
    """Links to files and headings here that are not there."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", path):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(text_of(target))):
            dead.append(link)
    return dead


def unknown_commands(text: str) -> list[str]:
    """Commands and options of ours that there are not."""
    unknown = []
    for code in code_of(text):
        for name, rest in re.findall(r"(?:^|&& |\$ |<\()warmroute ([a-z]\w*)\b([^|#&;]*)", code):
            command: click.Command | None = simulate if name == "simulate" else main.commands.get(name)
            if command is None:
                unknown.append(name)
                continue
            options = {flag for parameter in command.params for flag in parameter.opts} | {"--help", "-h"}
            quoted = re.sub(r"'[^']*'", "", rest)
            unknown += [f"{name} {flag}" for flag in re.findall(r"(?<!\S)(--[\w-]+)", quoted) if flag not in options]
    return unknown


def unknown_keys(text: str) -> list[str]:
    """Dotted keys of the configuration that there are not."""
    known = {folded(key.replace(".", "")) for key in known_keys(Config)}
    known |= {folded(key.replace(".", "")) for key in _chart_values(yaml.safe_load(VALUES.read_text("utf-8")))}
    sections = {name for name in known_keys(Config) if "." not in name}
    unknown = []
    for code in code_of(text):
        if re.fullmatch(r"[A-Za-z_]+(\.[A-Za-z_]+)+", code) and code.partition(".")[0] in sections:
            unknown += [code] if folded(code.replace(".", "")) not in known else []
    return unknown


def _chart_values(values: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield above + name
        if isinstance(value, dict):
            yield from _chart_values(value, f"{above}{name}.")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    """Files and headings of this repository."""
    assert dead_links(page, text_of(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page: Path) -> None:
    """Each with the options that it is shown with; and targets of make."""
    text = text_of(page)
    assert unknown_commands(text) == []
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert {name for code in code_of(text) for name in re.findall(r"^make ([\w-]+)", code)} <= targets


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs" or page.name == "README.md"])
def test_keys_exist(page: Path) -> None:
    """Keys of the configuration, in whichever spelling."""
    assert unknown_keys(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_metrics_exist(page: Path) -> None:
    """Each that a page names is a name in the sources, with our prefix or what a room puts before it."""
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "router").rglob("*.py"))
    known = {name.removeprefix("warmroute_") for name in re.findall(r"\"(?:\w*\{\w+\})?(\w+)", sources)}
    for name in re.findall(r"\bwarmroute_(\w+[a-z])\b", text_of(page)):
        whole = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
        assert {name, whole, name.removeprefix("pod_")} & known, name


def test_every_alert_and_state_is_explained() -> None:
    """What each means, and what to do."""
    text = text_of(ROOT / "docs" / "operations.md")
    for word in (*ALERTS, "exact", "degraded", "blind"):
        assert re.search(rf"^\| `{word}` \|", text, re.MULTILINE), word


def test_each_check_catches() -> None:
    """What is not there is found."""
    page = ROOT / "docs" / "operations.md"
    assert dead_links(page, "[a](nowhere.md) [b](#no-such-heading) [c](tiers.md#tiers-below-the-gpu)") == [
        "nowhere.md",
        "#no-such-heading",
    ]
    assert unknown_commands("`warmroute fly`, and `warmroute check --configg x --json`\n") == ["fly", "check --configg"]
    assert unknown_commands("```sh\nwarmroute serve \\\n  --prt 80\n```") == ["serve --prt"]
    assert unknown_keys("`index.blocks_mx`, `index.blocksMax`, `os.path`") == ["index.blocks_mx"]
