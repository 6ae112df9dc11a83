"""Families of series as plain values, and Prometheus' text of them. Pure.

A sample is its series as the text names it, and its value: so a scrape is little more than joining strings, and what
several workers tell is made one by the names alone. Labels stand in the order of the alphabet.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from math import isnan
from typing import Literal, NamedTuple, Protocol, TypeAlias

Join = Literal["sum", "max", "min"]
"""How what several workers tell of one series is made one. Every worker knows the whole fleet: facts are not added."""
SeriesKind = Literal["counter", "gauge", "histogram"]
Sample: TypeAlias = tuple[str, float]
"""A series, `name{label="value"}`, and its value."""

STEP = 256
"""Samples that are made, or looked at, in one step: well under 1 ms."""
UNKNOWN_MODEL = "unknown"
"""Any model that no pod serves."""
OTHER = "other"
"""Any model for which there are no more series."""
_LARGE = 1e300
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


class MetricFamily(NamedTuple):
    """All series of one name. That of a counter ends in `_total`, as it is written."""

    name: str
    kind: SeriesKind
    text: str
    join: Join
    samples: list[Sample]


TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of Prometheus' text."""

Steps: TypeAlias = Iterator[MetricFamily | None]
"""Families, and None where others may have their turns."""


class Tells(Protocol):
    """A part with series of its own."""

    def collect(self) -> Steps:
        """Its families, as of now."""


class Buckets(Protocol):
    """A histogram, as far as it is told."""

    bounds: tuple[float, ...]

    def totals(self) -> tuple[list[int], float]:
        """Values by bucket, of which there is one more than bounds; and their sum."""


def labels(**given: str) -> str:
    """`{name="value",…}`, escaped."""
    pairs = [f'{name}="{escaped(given[name])}"' for name in sorted(given)]
    return f"{{{','.join(pairs)}}}" if given else ""


def escaped(value: str) -> str:
    """A label's value, as it stands between the quotes."""
    if '"' in value or "\\" in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def labels_of(series: str) -> dict[str, str]:
    """The labels of a series."""
    return {name: _ESCAPED.sub(_meant, value) for name, value in _LABEL.findall(series)}


def _meant(escape: re.Match[str]) -> str:
    return "\n" if escape[1] == "n" else escape[1]


def gauge(name: str, text: str, value: float, join: Join = "max") -> MetricFamily:
    """One that holds now."""
    return MetricFamily(name, "gauge", text, join, [(name, value)])


def gauges(name: str, text: str, label: str, values: Mapping[str, float], join: Join = "max") -> MetricFamily:
    """One for each value of a label."""
    return MetricFamily(name, "gauge", text, join, [(name + labels(**{label: one}), v) for one, v in values.items()])


def counter(name: str, text: str, value: float, join: Join = "sum") -> MetricFamily:
    """One that only grows; its name ends in `_total`."""
    return MetricFamily(name, "counter", text, join, [(name, value)])


def counters(name: str, text: str, label: str, values: Mapping[str, float], join: Join = "sum") -> MetricFamily:
    """One for each value of a label."""
    return gauges(name, text, label, values, join)._replace(kind="counter")


def histogram(name: str, text: str, of: Buckets) -> MetricFamily:
    """One without labels."""
    return MetricFamily(name, "histogram", text, "sum", _buckets(name, "", of))


def histograms(name: str, text: str, of: Iterable[tuple[dict[str, str], Buckets]]) -> MetricFamily:
    """One for each set of labels."""
    samples = [sample for given, each in of for sample in _buckets(name, labels(**given)[1:-1], each)]
    return MetricFamily(name, "histogram", text, "sum", samples)


def _buckets(name: str, given: str, of: Buckets) -> list[Sample]:
    counts, summed = of.totals()
    before, after = f'{name}_bucket{{{given}{"," if given else ""}le="', '"}'
    if given > "le":  # labels are in order
        before, after = f'{name}_bucket{{le="', f'",{given}}}'
    whole = f"{{{given}}}" if given else ""
    total, samples = 0, list[Sample]()
    for bound, count in zip([*map(str, of.bounds), "+Inf"], counts, strict=True):
        total += count
        samples.append((before + bound + after, total))
    return [*samples, (f"{name}_count{whole}", total), (f"{name}_sum{whole}", summed)]


def text_of(families: Iterable[MetricFamily | None]) -> Generator[None, None, bytes]:
    """The Prometheus text format, some samples at a time."""
    parts: list[str] = []
    for family in families:
        if family is None:
            yield
            continue
        help_text = family.text.replace("\\", r"\\").replace("\n", r"\n")
        parts.append(f"# HELP {family.name} {help_text}\n# TYPE {family.name} {family.kind}\n")
        samples = family.samples
        for start in range(0, len(samples), STEP):
            lines = [
                f"{series} {value if -_LARGE < value < _LARGE else _no_number(value)}\n"
                for series, value in samples[start : start + STEP]
            ]
            parts.append("".join(lines))
            yield
    return "".join(parts).encode()


def _no_number(value: float) -> str:
    return "NaN" if isnan(value) else "+Inf" if value > 0 else "-Inf"


def word(sentence: str) -> str:
    """A label's value of a sentence: words say which one it is, and no dashboard has to quote prose."""
    return re.sub(r"\W+", "_", sentence.partition(":")[0].lower()).strip("_")
