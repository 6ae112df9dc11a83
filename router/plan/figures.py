"""What came out of a run."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

from router.errors import BadRecording

_SHORTEST_S = 1e-3  # that is counted
_SLO_S = 2.0  # until the first token, and so much more for each of a prompt's


class Answered(NamedTuple):
    """One request. `ttft_s`: until its first token, or so far."""

    arrived: float
    ttft_s: float
    began: bool
    ended: float | None
    tokens: int
    cached: int


class Figures(NamedTuple):
    """Times in seconds, to the first token. `in_slo`: share of the requests; `imbalance`: the work of the pod that had
    most, against the mean."""

    hit: float
    mean: float
    p50: float
    p90: float
    p99: float
    done_per_s: float
    in_slo: float
    requests: int
    imbalance: float


def figures(outcomes: Sequence[Answered], work_s: Sequence[float], since: float, until: float, slo_s: float) -> Figures:
    """Of what arrived from `since` on; `slo_s`: for each token of a prompt. Raises `BadRecording` if nothing did."""
    counted = [each for each in outcomes if each.arrived >= since]
    if not counted:
        raise BadRecording("no request comes after the first fifth of the time, which is not counted")
    times = sorted([each.ttft_s for each in counted])
    good = sum([each.began and each.ttft_s <= _SLO_S + each.tokens * slo_s for each in counted])
    done = sum([each.ended is not None and since <= each.ended <= until for each in counted])
    tokens = sum([each.tokens for each in counted])
    return Figures(
        hit=sum([each.cached for each in counted]) / tokens,
        mean=sum(times) / len(times),
        p50=value_at(0.5, times),
        p90=value_at(0.9, times),
        p99=value_at(0.99, times),
        done_per_s=done / max(_SHORTEST_S, until - since),
        in_slo=good / len(counted),
        requests=len(counted),
        imbalance=max(work_s) * len(work_s) / (sum(work_s) or 1.0),
    )


def value_at(share: float, ordered: Sequence[float]) -> float:
    """The value below which this share of them lies, by rank; NaN of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else nan
