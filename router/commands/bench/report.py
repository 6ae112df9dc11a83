"""What was measured, as tables and as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from router.commands.bench.figures import Figure, figures_of, first_tokens_ms
from router.commands.bench.measuring import BenchSide, Seen
from router.commands.bench.work import Work


@dataclass(slots=True, frozen=True)
class Compared:
    """One work on both sides."""

    work: Work
    seen: tuple[Seen, Seen]

    @property
    def figures(self) -> list[Figure]:
        return figures_of(*self.seen)


@dataclass(slots=True, frozen=True)
class Report:
    """Of one run of the bench. `began`: seconds since the epoch."""

    mode: str
    how: str
    began: float
    sides: tuple[BenchSide, BenchSide]
    compared: Sequence[Compared]

    @property
    def failures(self) -> int:
        return sum(seen.failures.total() for one in self.compared for seen in one.seen)

    def values(self) -> dict[str, Any]:
        """For JSON; times in milliseconds."""
        return {
            "warmroute": version("warmroute"),
            "mode": self.mode,
            "how": self.how,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "sides": [
                {"title": side.title, "addresses": list(side.addresses), "model": side.model} for side in self.sides
            ],
            "works": [_values(one) for one in self.compared],
        }


def _values(one: Compared) -> dict[str, Any]:
    return {
        "name": one.work.name,
        "what": one.work.what,
        "seconds": [round(seen.seconds, 3) for seen in one.seen],
        "figures": [
            {"name": f.name, "unit": f.unit, "values": list(f.values), "ratio": f.ratio, "improves": f.improves}
            for f in one.figures
        ],
        "ttft_ms": [[round(value, 3) for value in first_tokens_ms(seen)] for seen in one.seen],
        "requests_by_pod": [dict(seen.by_pod) for seen in one.seen],
        "failures": [dict(seen.failures) for seen in one.seen],
    }


def shown(value: float | None, unit: str) -> str:
    """A value, as people read it."""
    if value is None:
        return "-"
    large = abs(value)
    digits = 0 if not unit or large >= 1000 or (large >= 10 and value == int(value)) else 1 if large >= 10 else 2
    return f"{value:,.{digits}f}{f' {unit}' if unit else ''}"


def ratio_shown(figure: Figure) -> str:
    """As `0.25x`; nothing where there is none."""
    return f"{figure.ratio:.2f}x" if figure.ratio is not None and figure.lower_is_better is not None else ""


def print_tables(console: Console, report: Report) -> None:
    """A table for each work."""
    for one in report.compared:
        table = Table(title=f"{one.work.name}: {one.work.what}", title_justify="left")
        table.add_column("")
        for side in report.sides:
            table.add_column(side.title, justify="right")
        table.add_column("ratio", justify="right")
        for figure in one.figures:
            if figure.values == (None, None):
                continue
            style = {True: "green", False: "red", None: None}[figure.improves]
            values = [shown(value, figure.unit) for value in figure.values]
            table.add_row(figure.name, *values, ratio_shown(figure), style=style)
        console.print(table)
        for side, seen in zip(report.sides, one.seen, strict=True):
            for said, count in seen.failures.items():
                console.print(f"{side.title}: {count} failed: {said}", markup=False)
