"""The Helm chart: its values, schema and README agree with each other and with the configuration.

`python -m tests.test_chart` writes the chart's README anew; the schema of `config` is written with the page of the
configuration (`python -m tests.test_router_config_settings`). What a real Helm makes of the chart is told by
`tests_chart` (`make test-chart`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from router.config.reading import load
from tests.fakes.chart_schema import FILE
from tests.fakes.services import operators

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "warmroute"
PAGE = CHART / "README.md"
MARK = "<!-- made from values.yaml: python -m tests.test_chart -->\n"

TEXT = (CHART / "values.yaml").read_text(encoding="utf-8")
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
SCHEMA: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
TEMPLATES = {path.name: path.read_text(encoding="utf-8") for path in sorted((CHART / "templates").rglob("*.*"))}

# --- the README


def reference() -> str:
    """The values with their comments, section by section (`# -- TITLE ---`)."""
    _, *parts = re.split(r"^# -- (.+?) -+$", TEXT, flags=re.MULTILINE)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return "".join(f"\n## {title}\n\n```yaml\n{body.strip()}\n```\n" for title, body in pairs)


# --- the tests


def leaves(values: dict[str, Any], above: str = "") -> set[str]:
    """Dotted paths of all values below which there is nothing of the chart's own."""
    paths: set[str] = set()
    for key, value in values.items():
        free = key == "config" or SCHEMA_OF[above + key].get("additionalProperties", True) is not False
        paths |= leaves(value, f"{above}{key}.") if isinstance(value, dict) and value and not free else {above + key}
    return paths


def schema_paths(schema: dict[str, Any], above: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key that the chart's own schema knows, dotted, with its schema."""
    for key, below in schema.get("properties", {}).items():
        yield above + key, below
        if key != "config":
            yield from schema_paths(below, f"{above}{key}.")


SCHEMA_OF = dict(schema_paths(SCHEMA))


def test_readme_is_what_the_values_say() -> None:
    """The chart's README ends in the values with their comments."""
    head, mark, body = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert mark and "helm install" in head
    assert body == reference(), "run: python -m tests.test_chart"
    assert all(f"\n{key}:" in body for key in VALUES)


def test_schema_and_values_know_the_same_keys() -> None:
    """Each key of values.yaml stands in the schema, and each key of the schema (but `global`) in values.yaml."""
    inner = {path for path in SCHEMA_OF if any(other.startswith(f"{path}.") for other in SCHEMA_OF)}
    assert SCHEMA_OF.keys() - inner - {"global"} == leaves(VALUES)


MONITORS = ("serviceMonitor", "podMonitor")  # of one template, `warmroute.endpoint`


def used_values(text: str) -> set[str]:
    """Dotted paths below .Values in a template, those inside `with .Values.x` blocks included."""
    used: set[str] = set()
    scopes: list[str | None] = []
    for action in re.findall(r"\{\{-?\s*(.*?)\s*-?\}\}", text, re.DOTALL):
        used |= set(re.findall(r"\.Values\.([A-Za-z0-9_.]+)", action))
        scope = next((name for name in reversed(scopes) if name is not None), None)
        if scope is not None:
            used |= {f"{scope}.{name}".lstrip(".") for name in re.findall(r"(?<![\w$.)])\.([A-Za-z][\w.]*)", action)}
        used |= {f"{kind}.{name}" for kind in MONITORS for name in re.findall(r"\.monitor\.(\w+)", action)}
        word = action.split(" ", 1)[0]
        if word in ("if", "with", "range", "define"):
            opened = re.match(r"with (\$?\.Values|)\.?([A-Za-z0-9_.]*)$", action)
            whole = (
                opened and f"{scope or ''}.{opened[2]}".strip(".") if opened and not opened[1] else opened and opened[2]
            )
            scopes.append(whole if word == "with" else None)
        elif word == "end":
            scopes.pop()
    return used


def test_every_value_is_used_and_every_use_is_a_value() -> None:
    """No key of values.yaml is dead, and no template reads a key that values.yaml lacks."""
    used = set().union(*map(used_values, TEMPLATES.values()))
    known = leaves(VALUES)
    inner = {path.rsplit(".", depth)[0] for path in known for depth in range(1, path.count(".") + 1)}
    assert known - used == set()
    read = {path for text in TEMPLATES.values() for path in re.findall(r"\.Values\.([A-Za-z0-9_.]+)", text)}
    assert read - known - inner == set()


def test_default_config_is_accepted(tmp_path: Path) -> None:
    """The gateway reads the config of values.yaml, with the variables that the pod gets."""
    file = tmp_path / "warmroute.yaml"
    file.write_text(yaml.safe_dump(VALUES["config"]), encoding="utf-8")
    environ = {
        name: "9090" if name.endswith("PORT") else "/state" if name.endswith("PATH") else "120s"
        for name in re.findall(r"name: (WARMROUTE_\w+), value", TEMPLATES["_pod.tpl"])
        if not name.endswith("_FILE")
    }
    environ |= {"WARMROUTE_GATEWAY__PORT": "8080", "WARMROUTE_EVENTS__BIND": "tcp://*:5557"}
    assert len(environ) == 5
    config = load(str(file), environ, {})
    assert (config.gateway.ops_port, config.gateway.drain_timeout) == (9090, 120.0)


def test_chart_is_a_chart_of_this_version() -> None:
    """Chart.yaml is of API v2, and its appVersion is the distribution's version."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert (chart["apiVersion"], chart["name"]) == ("v2", "warmroute")
    assert f'version = "{chart["appVersion"]}"' in project


async def test_alerts_and_dashboard_name_series_that_exist() -> None:
    """Every metric in an expression is one that the gateway tells."""
    files = (CHART / "files" / "alerts.yaml", CHART / "files" / "dashboard.json")
    named = {name for file in files for name in re.findall(r"\bwarmroute_[a-z_]+", file.read_text(encoding="utf-8"))}
    async with operators() as (client, _):
        text = (await client.get("/metrics")).text
    told = {
        name + ending
        for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE)
        for ending in (("", "_bucket", "_count", "_sum") if kind == "histogram" else ("",))
    }
    assert named - told == set()
    assert len(named) > 20


def write_page() -> None:
    """The reference after the mark in the README."""
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(head + mark + reference(), encoding="utf-8")


if __name__ == "__main__":
    write_page()
