"""The families as JSON: figures with their labels, histograms with their quantiles. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterable, Mapping
from math import isfinite
from typing import Any

import orjson

from router.metrics.families import STEP, MetricFamily, labels_of
from router.metrics.histograms import quantile

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_LABEL = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*")')
_BOUND = re.compile(r',?le="[^"]*"')


def summary_of(families: Iterable[MetricFamily | None], names: Collection[str] = ()) -> Generator[None, None, bytes]:
    """`{name: {"type", "help", "values": […]}}`, some samples at a time; only of these `names`, if there are any.

    A value is `{"labels", "value"}`; that of a histogram `{"labels", "count", "sum", "mean", "p50", "p95", "p99",
    "buckets"}`, the last one as pairs of upper bound and values up to it. What is no number is null.
    """
    parts = []
    for family in families:
        if family is None:
            yield
            continue
        if names and family.name not in names:
            continue
        head = orjson.dumps({"type": family.kind, "help": family.text})[:-1]
        values = list[bytes]()
        if family.kind == "histogram":
            values.extend(orjson.dumps(one) for one in _of_histograms(family))
            yield
        for start in range(0, 0 if values else len(family.samples), STEP):
            values.extend([_value(*sample) for sample in family.samples[start : start + STEP]])
            yield
        parts.append(b'"%b":%b,"values":[%b]}' % (family.name.encode(), head, b",".join(values)))
    return b"{%b}" % b",\n".join(parts)


def summary_as_asked(
    families: Iterable[MetricFamily | None], query: Mapping[str, list[str]]
) -> Generator[None, None, bytes]:
    """The same; `names` of a query are those of families, with commas between."""
    return summary_of(families, {name for given in query.get("names", ()) for name in given.split(",")})


def _value(series: str, value: float) -> bytes:
    """A label's escapes are JSON's, so labels need not be taken apart."""
    at = series.find("{")
    given = _LABEL.sub(r'"\1":\2', series[at:]) if at >= 0 else "{}"
    return b'{"labels":%b,"value":%b}' % (given.encode(), orjson.dumps(value if isfinite(value) else None))


def _of_histograms(family: MetricFamily) -> Iterable[dict[str, Any]]:
    """One for each set of labels but `le`."""
    found: dict[str, dict[str, Any]] = {}
    for series, value in family.samples:
        name, _, given = series.partition("{")
        own = _BOUND.sub("", given).removeprefix(",").rstrip("}")
        one = found.setdefault(own, {"labels": labels_of(own), "bounds": [], "totals": [], "sum": 0.0})
        if name.endswith("_bucket"):
            one["bounds"].append(labels_of(series)["le"])
            one["totals"].append(value)
        elif name.endswith("_sum"):
            one["sum"] = value
    for one in found.values():
        bounds, totals = [float(bound) for bound in one["bounds"]], one["totals"]
        counts = [after - before for before, after in zip([0, *totals], totals, strict=False)]
        count = totals[-1] if totals else 0
        yield {
            "labels": one["labels"], "count": count, "sum": one["sum"], "mean": one["sum"] / count if count else None,
            **{name: quantile(share, bounds[:-1], counts) for name, share in _QUANTILES.items()},
            "buckets": list(zip(one["bounds"], totals, strict=True)),
        }  # fmt: skip
