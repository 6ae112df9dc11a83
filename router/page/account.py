"""What one worker alone knows of what it has served, and the accounts of all workers as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import nlargest
from operator import itemgetter
from typing import Any, NamedTuple

from indexer.prefixes import PrefixStats
from router.causes.journal import why_of
from router.causes.sentences import added_summaries
from router.core.decision import Core
from router.core.demand import Decision, Story
from router.workers.merging import merged_alerts

_PUT_IN_ORDER = ("decisions", "alerts", "summary")  # not added

WorkerAccount = dict[str, Any]
"""Plain values for JSON: see `account_of`. Numbers are added over workers, decisions put in order."""


class Numbered(NamedTuple):
    """A decision, and which one it was."""

    number: int
    decision: Decision


def last_requests(core: Core, count: int) -> list[Numbered]:
    """The last picks, newest first; of a request that was decided anew, the last one."""
    found: list[Numbered] = []
    seen: set[int] = set()
    for place, decision in enumerate(reversed(core.decisions)):
        story = decision.story
        if story is not None and id(story) in seen:
            continue
        seen.add(id(story))
        found.append(Numbered(core.turn - place, decision))
        if len(found) == count:
            break
    return found


def decisions_of(requests: Iterable[Numbered], worker: int, clock_offset: float) -> list[dict[str, Any]]:
    """A line for each. `clock_offset`: what makes a time of the core one of the wall.

    `id` finds one again: the worker, and which of its decisions it was.
    """
    return [{"id": f"{worker}-{number}", **_line(decision, clock_offset)} for number, decision in requests]


def served_lately(requests: Iterable[Numbered], since: float) -> dict[str, list[float]]:
    """What each rank has served `since` then: tokens of prompts, those cached, seconds to first bytes, how many."""
    served: dict[str, list[float]] = {}
    for _, decision in requests:
        story = decision.story
        if decision.at < since or story is None or story.ended_at is None or story.error is not None:
            continue
        pod, rank = decision.rank.id
        counts = served.setdefault(f"{pod}/{rank}", [0, 0, 0.0, 0])
        if story.usage is not None:
            counts[0] += story.usage[0]
            counts[1] += story.usage[1] or 0
        if story.first_at is not None:
            counts[2] += story.first_at - story.began
            counts[3] += 1
    return served


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
        "reason": decision.reason,
        "outcome": _outcome(decision.story),
        "missed": _most_missed(decision.story),
    }


def _outcome(story: Story | None) -> dict[str, Any] | None:
    """None: it is on its way."""
    if story is None or story.ended_at is None:
        return None
    return {
        "status": story.status,
        "error": story.error,
        "ttft_s": None if story.first_at is None else round(story.first_at - story.began, 4),
    }


def _most_missed(story: Story | None) -> list[Any] | None:
    """The cause that took most tokens, and how many; None: none, or it is not known."""
    why = why_of(story)
    most = None if why is None else max(why.missed, key=lambda one: one.tokens, default=None)
    return None if most is None else [most.cause, most.tokens]


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
    summary = added_summaries([one["summary"] for one in accounts])
    return {**_added(accounts), "decisions": newest, "alerts": alerts, "summary": summary}


def _added(values: Sequence[Any]) -> Any:
    """Numbers are added, also those within mappings and lists of one length; None where nobody knows."""
    known = [value for value in values if value is not None]
    first = known[0] if known else None
    if isinstance(first, dict):
        keys = dict.fromkeys(key for value in known for key in value if key not in _PUT_IN_ORDER)
        return {key: _added([value.get(key) for value in known]) for key in keys}
    if isinstance(first, list):
        return [sum(column) for column in zip(*known, strict=True)]
    return sum(known) if known else None
