"""A table of two sides and their ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from rich.table import Table

Column = TypeVar("Column")


class TableRow(NamedTuple, Generic[Column]):
    """Of both sides. `form`: as `str.format` takes it; `ratio`: show what the second is of the first."""

    name: str
    form: str
    value: Callable[[Column], float]
    ratio: bool = True


def side_by_side(title: str, sides: Mapping[str, Column], rows: Sequence[TableRow[Column]]) -> Table:
    """`sides`: two, by name."""
    table = Table(title=title)
    table.add_column("")
    for name in (*sides, "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        before, after = (row.value(side) for side in sides.values())
        ratio = f"{after / before:.2f}x" if row.ratio and before > 0 else ""
        table.add_row(row.name, row.form.format(before), row.form.format(after), ratio)
    return table
