"""The figures as JSON: labels whole, quantiles as Prometheus would have them."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from router.metrics.families import MetricFamily, counters, gauge, histograms, labels
from router.metrics.histograms import Histogram, quantile
from router.metrics.summary import summary_as_asked, summary_of
from router.server.long_answers import at_once
from tests.fakes.services import operators


def summary(*families: MetricFamily) -> Any:
    """Decoded."""
    return orjson.loads(at_once(summary_of(families)))


def test_quantiles() -> None:
    """Evenly within a bucket, as `histogram_quantile`; what is above the last bound is that; of nothing, none."""
    bounds = (1.0, 2.0, 4.0)
    assert quantile(0.5, bounds, [10, 0, 0, 0]) == 0.5
    assert quantile(0.5, bounds, [0, 10, 10, 0]) == 2.0
    assert quantile(0.75, bounds, [0, 10, 10, 0]) == 3.0
    assert quantile(0.99, bounds, [0, 0, 0, 5]) == 4.0
    assert quantile(0.5, bounds, [0, 0, 0, 0]) is None


def test_histograms_have_their_quantiles() -> None:
    """By their labels, with the buckets that these were made of."""
    of = {"a": Histogram((1.0, 2.0)), "b": Histogram((1.0, 2.0))}
    for value in (0.5, 1.5, 1.5, 9.0):
        of["b"].observe(value)
    told = summary(histograms("h", "H.", [({"stage": name}, each) for name, each in of.items()]))["h"]
    assert (told["type"], told["help"]) == ("histogram", "H.")
    empty, full = told["values"]
    assert (empty["labels"], empty["count"], empty["p50"], empty["mean"]) == ({"stage": "a"}, 0, None, None)
    assert (full["labels"], full["count"], full["sum"], full["mean"]) == ({"stage": "b"}, 4, 12.5, 3.125)
    assert (full["p50"], full["p95"], full["p99"]) == (1.5, 2.0, 2.0)
    assert full["buckets"] == [["1.0", 1], ["2.0", 3], ["+Inf", 4]]


def test_figures_have_their_labels() -> None:
    """What is no number is null; a family without series has an empty list."""
    told = summary(
        gauge("age", "A.", float("nan")), counters("n_total", "N.", "x", {"one": 1, "two": 2}),
        MetricFamily("none", "gauge", "None.", "max", []),
    )  # fmt: skip
    assert told["age"]["values"] == [{"labels": {}, "value": None}]
    assert told["n_total"]["values"] == [{"labels": {"x": "one"}, "value": 1}, {"labels": {"x": "two"}, "value": 2}]
    assert told["none"] == {"type": "gauge", "help": "None.", "values": []}


@given(st.dictionaries(st.sampled_from("abc"), st.text(st.characters(exclude_categories=["Cs", "Cc"])), max_size=3))
def test_any_label_is_whole(values: dict[str, str]) -> None:
    """Quotes, backslashes and braces in it, too."""
    family = MetricFamily("x", "gauge", "X.", "max", [("x" + labels(**values), 1)])
    assert summary(family)["x"]["values"] == [{"labels": values, "value": 1}]


def test_some_names() -> None:
    """Only the families that are asked for."""
    families = [gauge("a", "A.", 1), gauge("b", "B.", 2), None, gauge("c", "C.", 3)]
    assert set(orjson.loads(at_once(summary_as_asked(families, {"names": ["a,c", "d"]})))) == {"a", "c"}
    assert set(orjson.loads(at_once(summary_as_asked(families, {})))) == {"a", "b", "c"}


async def test_the_endpoint_tells_all_that_metrics_tells() -> None:
    """Every family of the text is there, and `names` takes some of them."""
    async with operators() as (client, _):
        text = (await client.get("/metrics")).text
        told = (await client.get("/metrics.json")).json()
        some = (await client.get("/metrics.json?names=warmroute_pod_up,warmroute_whole_decision_seconds")).json()
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == set(told)
    assert set(some) == {"warmroute_pod_up", "warmroute_whole_decision_seconds"}
    assert [each["labels"] for each in some["warmroute_pod_up"]["values"]] == [{"pod": "pod-0"}, {"pod": "pod-1"}]
