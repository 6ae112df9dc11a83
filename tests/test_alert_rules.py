"""The chart's alerts and dashboard, by Prometheus' own tool: each rule fires when it should, and not before."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

CHART = Path(__file__).parents[1] / "charts" / "warmroute" / "files"
RULES = CHART / "alerts.yaml"
GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
MINUTES = 90  # of series, one sample a minute

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")


class Case(NamedTuple):
    """Series (without their instance) that make a rule fire, and such that do not; values as promtool writes them."""

    fires: dict[str, str]
    quiet: dict[str, str]


def steady(value: float) -> str:
    """The same all the time."""
    return f"{value}x{MINUTES}"


def growing(each: float) -> str:
    """By so much a minute."""
    return f"0+{each}x{MINUTES}"


def of_histogram(name: str, quick: float, slow: float, bound: str) -> dict[str, str]:
    """So many values a minute below `bound`, and so many just above it."""
    return {
        f'{name}_bucket{{le="{bound}"}}': growing(quick),
        f'{name}_bucket{{le="2.0"}}': growing(quick + slow),
        f'{name}_bucket{{le="+Inf"}}': growing(quick + slow),
    }


_ERRORS = "warmroute_prediction_error_tokens"
_REQUESTS = 'warmroute_requests_total{code="200",model="m",pod="a"}'
_MEMORY = "warmroute_memory_bytes"
CASES = {
    "WarmrouteHitRatioLow": Case(
        {"warmroute_cache_hit_ratio": steady(0.2), _REQUESTS: growing(60)},
        {"warmroute_cache_hit_ratio": steady(0.2), _REQUESTS: growing(1)},
    ),
    "WarmrouteDecisionSlow": Case(
        of_histogram("warmroute_whole_decision_seconds", 97, 3, "0.1"),
        of_histogram("warmroute_whole_decision_seconds", 999, 1, "0.1"),
    ),
    "WarmrouteEvictions": Case(
        {'warmroute_cache_evictions_total{cache="text",reason="lru"}': growing(700)},
        {'warmroute_cache_evictions_total{cache="text",reason="manual"}': growing(700)},
    ),
    "WarmrouteIndexFull": Case(
        {"warmroute_index_refusals_total": growing(1)}, {"warmroute_index_refusals_total": steady(1)}
    ),
    "WarmroutePodNotExact": Case(
        {
            'warmroute_pod_state{pod="a",state="degraded"}': steady(1),
            'warmroute_alerts{name="pod_not_exact"}': steady(1),
        },
        {
            'warmroute_pod_state{pod="a",state="degraded"}': steady(0),
            'warmroute_pod_state{pod="b",state="blind"}': steady(1),  # on purpose: no pod has a feed
            'warmroute_alerts{name="pod_not_exact"}': steady(0),
        },
    ),
    "WarmrouteGapNotRepaired": Case(
        {'warmroute_event_replays_total{pod="a",result="failed"}': growing(1)},
        {'warmroute_event_replays_total{pod="a",result="complete"}': growing(1)},
    ),
    "WarmroutePredictionsWrong": Case(
        {f'{_ERRORS}_bucket{{le="64.0"}}': growing(90), f"{_ERRORS}_count": growing(100)},
        {f'{_ERRORS}_bucket{{le="64.0"}}': growing(99), f"{_ERRORS}_count": growing(100)},
    ),
    "WarmrouteNothingServed": Case(
        {'warmroute_requests_total{code="503",model="unknown",pod=""}': growing(1)}, {_REQUESTS: growing(100)}
    ),
    "WarmrouteBreakerOpen": Case(
        {'warmroute_breaker_state{pod="a"}': steady(2)}, {'warmroute_breaker_state{pod="a"}': steady(1)}
    ),
    "WarmrouteRetryBudgetSpent": Case(
        {"warmroute_retries_refused_total": growing(1)}, {"warmroute_retries_refused_total": steady(3)}
    ),
    "WarmrouteDiscoveryLost": Case(
        {'warmroute_discovery_sync{source="kubernetes"}': steady(0)},
        {'warmroute_discovery_sync{source="kubernetes"}': steady(1)},
    ),
    "WarmrouteMemoryHigh": Case(
        {f'{_MEMORY}{{kind="used"}}': steady(95), f'{_MEMORY}{{kind="limit"}}': steady(100)},
        {f'{_MEMORY}{{kind="used"}}': steady(95), f'{_MEMORY}{{kind="limit"}}': steady(0)},
    ),
    "WarmroutePodDown": Case({'warmroute_pod_up{pod="a"}': steady(0)}, {'warmroute_pod_up{pod="a"}': steady(1)}),
    "WarmrouteNoFitPod": Case(
        {
            'warmroute_pod_fit{pod="a",reason="unanswered"}': steady(0),
            'warmroute_pod_fit{pod="b",reason="draining"}': steady(0),
        },
        {
            'warmroute_pod_fit{pod="a",reason="unanswered"}': steady(0),
            'warmroute_pod_fit{pod="b",reason="fit"}': steady(1),
            'warmroute_alerts{name="no_fit_pod"}': steady(0),
        },
    ),
    "WarmrouteNoState": Case(
        {'warmroute_alerts{name="no_state"}': steady(1)}, {'warmroute_alerts{name="no_state"}': steady(0)}
    ),
    "WarmrouteSnapshotOld": Case(
        {"warmroute_snapshot_age_seconds": growing(60)}, {"warmroute_snapshot_age_seconds": steady(60)}
    ),
    "WarmrouteLoopSlow": Case(
        of_histogram("warmroute_loop_lag_seconds", 97, 3, "0.1"),
        of_histogram("warmroute_loop_lag_seconds", 999, 1, "0.1"),
    ),
    "WarmrouteGone": Case({}, {"warmroute_build_info": steady(1)}),
}


def promtool(*arguments: str) -> str:
    """One run, which is fine; what it says."""
    run = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def with_instance(series: str) -> str:
    """As a scrape names it."""
    name, _, rest = series.partition("{")
    return f'{name}{{instance="i",{rest or "}"}'


def unit(series: dict[str, str], alert: str, firing: int) -> dict[str, Any]:
    """One test: so many alerts of this name fire after an hour."""
    return {
        "interval": "1m",
        "input_series": [{"series": with_instance(name), "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": "60m",
                "exp_samples": [{"labels": "{}", "value": firing}] if firing else [],
            }
        ],
    }


def test_every_rule_fires_when_it_should(tmp_path: Path) -> None:
    """Each has a case that makes it fire, and one close to that which does not."""
    assert set(CASES) == {rule["alert"] for group in GROUPS for rule in group["rules"]}
    tests = [
        unit(series, alert, firing)
        for alert, case in CASES.items()
        for series, firing in ((case.fires, 1), (case.quiet, 0))
    ]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))


def test_rules_are_well_formed() -> None:
    """Expressions and the templates of their texts; each says what to do."""
    assert "SUCCESS" in promtool("check", "rules", str(RULES))
    for group in GROUPS:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("info", "warning", "critical")
            assert all(rule["annotations"][text] for text in ("summary", "description")), rule["alert"]


def expressions() -> list[str]:
    """All of the dashboard, with its variables filled in."""
    panels = json.loads((CHART / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [each.replace("$__rate_interval", "5m").replace("$job", "warmroute") for each in found]


def test_the_dashboard_asks_what_prometheus_can_answer(tmp_path: Path) -> None:
    """Every expression, as a recording rule; panels have numbers of their own, and do not lie on each other."""
    each = expressions()
    assert len(each) > 40 and not [one for one in each if "$" in one]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(each)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(each)} rules found" in promtool("check", "rules", str(file))
    panels = json.loads((CHART / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def test_what_is_summed_by_is_a_label() -> None:
    """A label that no series has would make one line of many."""
    texts = [*expressions(), *(str(rule["expr"]) for group in GROUPS for rule in group["rules"])]
    by = [names for text in texts for names in re.findall(r"\b(?:by|without) \(([\w, ]+)\)", text)]
    known = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    there = re.findall(r"^\| `\w+` \| \w+ \| (.*?) ?\|", known, re.MULTILINE)
    assert set(", ".join(by).split(", ")) - set(", ".join(there).split(", ")) <= {"le", "instance"}
