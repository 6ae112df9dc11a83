"""What is known of each rank, as rows of the page's tables: every worker knows all of it. Pure."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from router.core.decision import Core
from router.core.fleet import Pod, Rank

_STEP = 16  # rows in one step: well under 1 ms
_NOTHING = (0, 0, 0.0, 0)
_NO_FEED = ["the pod has no event feed"]

POD_COLUMNS = (
    "pod", "rank", "state", "fit", "reasons", "breaker", "requests", "prefill_tokens", "backlog_s",
    "gpu", "predicted", "cpu", "disk", "blocks_max", "tokens_per_s",
)  # fmt: skip
"""Of the fleet's table. `reasons`: why it is not fit, or why what is known of it is not exact."""
FEED_COLUMNS = (
    "heard_s_ago", "lag_s", "sequence", "gaps", "missed", "replays", "replays_failed", "restarts", "orphans",
    "decode_errors", "over", "under", "rule", "proven",
)  # fmt: skip
"""Of the feeds' table; null where the pod publishes no events, but for `rule` and `proven`."""

SERVED_COLUMNS = ("hit_ratio", "ttft_s")
"""Of the last requests; null where there were none."""

_NO_EVENTS: tuple[Any, ...] = (None,) * (len(FEED_COLUMNS) - 2)

Row = list[Any]


def fleet_rows(core: Core, now: float) -> Generator[None, None, list[Row]]:
    """One for each rank, in the fleet's order: values of `POD_COLUMNS`, then of `FEED_COLUMNS`."""
    rows: list[Row] = []
    for pod in list(core.fleet.pods.values()):
        shared = _of_pod(pod, now)
        for rank in pod.ranks:
            rows.append(_row(rank, core, shared, now))
            if len(rows) % _STEP == 0:
                yield
    return rows


def add_served(rows: list[Row], served: dict[str, list[float]]) -> None:
    """To each row the values of `SERVED_COLUMNS`: of what all workers have served, by pod and rank."""
    for row in rows:
        asked, cached, seconds, answers = served.get(f"{row[0]}/{row[1]}", _NOTHING)
        row += [round(cached / asked, 3) if asked else None, round(seconds / answers, 4) if answers else None]


def _of_pod(pod: Pod, now: float) -> tuple[bool, list[str], str, int | None]:
    """What its ranks have in common."""
    fit = pod.fit(now)
    unfit = [] if fit and pod.answers else pod.unfit(now)
    return fit, unfit, pod.breaker.state(now), pod.blocks


def _row(rank: Rank, core: Core, shared: tuple[Any, ...], now: float) -> Row:
    fit, unfit, breaker, blocks_max = shared
    load, feed, trust = rank.load, rank.feed, rank.trust
    gpu, predicted, cpu, disk, _ = core.index.holding(rank.id)
    rule = (str(trust.calibration.rule), trust.rule is not None and trust.calibration.proven)
    name, number = rank.id
    if feed is None:
        state, known, told = "blind", _NO_FEED, _NO_EVENTS
    else:
        state, counts = feed.state, feed.counts
        known = [] if state == "exact" else feed.reasons
        told = (
            None if feed.last_heard is None else round(now - feed.last_heard, 1), round(feed.lag_s, 4),
            feed.last_number, counts.gap, counts.missed, counts.replay_complete, counts.replay_failed, counts.restart,
            counts.orphans, counts.decode_errors, counts.predictions_over, counts.predictions_under,
        )  # fmt: skip
    return [
        name, number, state, fit, unfit + known, breaker, load.requests, load.prefill_tokens,
        round(load.backlog_s(now), 3), gpu, predicted, cpu, disk, blocks_max, round(load.rate.tokens_per_s),
        *told, *rule,
    ]  # fmt: skip
