"""What one worker alone knows of what it has served, and the accounts of all workers as one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from heapq import nlargest
from operator import itemgetter
from typing import Any

from indexer.prefixes import PrefixStats
from router.core.decision import Core
from router.core.demand import Decision
from router.workers.merging import merged_alerts

_PUT_IN_ORDER = ("decisions", "alerts")  # not added

WorkerAccount = dict[str, Any]
"""Plain values for JSON: see `account_of`. Numbers are added over workers, decisions put in order."""


def decisions_of(core: Core, count: int, worker: int, clock_offset: float) -> list[dict[str, Any]]:
    """The last picks, newest first, a line for each. `clock_offset`: what makes a time of the core one of the wall.

    `id` finds one again: the worker, and which of its decisions it was.
    """
    kept, turn = core.decisions, core.turn
    return [
        {"id": f"{worker}-{turn - place}", **_line(kept[-1 - place], clock_offset)}
        for place in range(min(count, len(kept)))
    ]


def found(core: Core, number: int) -> Decision | None:
    """The decision of this number, as long as it is kept."""
    place = core.turn - number
    return core.decisions[-1 - place] if 0 <= place < len(core.decisions) else None


def _line(decision: Decision, clock_offset: float) -> dict[str, Any]:
    demand, rank = decision.demand, decision.rank
    return {
        "at": round(decision.at + clock_offset, 3),
        "model": demand.model,
        "tokens": demand.tokens,
        "matched_tokens": decision.matched_tokens,
        "pod": rank.id.pod,
        "rank": rank.id.rank,
        "candidates": len(decision.ranks),
        "reason": decision.reason,
    }


def stats_of(stats: PrefixStats) -> dict[str, int]:
    """The prefix store's figures: sizes now, counts since the start."""
    return {
        "blocks": stats.blocks,
        "bytes": stats.nbytes,
        "mappings": stats.mappings,
        "hits": stats.hits,
        "partials": stats.partials,
        "misses": stats.misses,
        "evictions": sum(stats.evictions.values()),
    }


def by_class(requests: Counter[tuple[str, str, int]]) -> dict[str, int]:
    """Answers sent: all, and those that were errors of the client's, and of ours or the pods'."""
    told = {"all": 0, "4xx": 0, "5xx": 0}
    for (_, _, code), count in requests.items():
        told["all"] += count
        if code >= 400:
            told["5xx" if code >= 500 else "4xx"] += count
    return told


def added_up(accounts: Sequence[WorkerAccount], decisions_max: int) -> WorkerAccount:
    """Those of all workers as one; at least one."""
    newest = nlargest(decisions_max, (each for one in accounts for each in one["decisions"]), key=itemgetter("at"))
    alerts = merged_alerts({worker: {"alerts": one["alerts"]} for worker, one in enumerate(accounts)})["alerts"]
    return {**_added(accounts), "decisions": newest, "alerts": alerts}


def _added(values: Sequence[Any]) -> Any:
    """Numbers are added, also those within mappings and lists of one length; None where nobody knows."""
    known = [value for value in values if value is not None]
    first = known[0] if known else None
    if isinstance(first, dict):
        return {key: _added([value.get(key) for value in known]) for key in first if key not in _PUT_IN_ORDER}
    if isinstance(first, list):
        return [sum(column) for column in zip(*known, strict=True)]
    return sum(known) if known else None
