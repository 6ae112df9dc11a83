"""Slow start: the price of a pod that is new or was away is raised, and decays, so that it is not flooded."""

from __future__ import annotations

from collections.abc import Sequence


def slowness(left_s: Sequence[float], length_s: float, factor: float) -> list[float] | None:
    """By what each candidate's price is multiplied, against the least slow one; None where all are alike.

    `left_s`: what each has left of its slow start, at most `length_s`, 0 or less when it is over. It begins with
    `factor` and falls in a straight line to 1.
    """
    raised = [1.0 + (factor - 1.0) * left / length_s if left > 0.0 else 1.0 for left in left_s]
    least = min(raised)
    if max(raised) == least:
        return None
    return [each / least for each in raised]
