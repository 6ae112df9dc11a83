"""What several workers tell of themselves, as one: their metrics and their answers to operators. Pure.

Every worker knows the whole fleet, so what is a fact about a pod is not added up; what a worker has counted or keeps
for itself is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from math import isnan, nan
from typing import Any, NamedTuple, TypeAlias

import orjson

from router.causes.sentences import added_summaries
from router.metrics.families import Join, MetricFamily, Sample

_STEP = 256  # samples in one step: well under 1 ms
_NO_NUMBER = b"null"
_RATIOS = ("warmroute_cache_hit_ratio", "warmroute_cache_miss_ratio")
_WAYS: dict[Join, Callable[[float, float], float]] = {"sum": operator.add, "max": max, "min": min}


def families_of(steps: Iterable[MetricFamily | None]) -> Generator[None, None, list[MetricFamily]]:
    """All families, in steps, as they come."""
    families: list[MetricFamily] = []
    for family in steps:
        if family is not None:
            families.append(family)
        yield
    return families


class Columns(NamedTuple):
    """A family, which has no samples, and these by column: workers mostly tell the same series, so their names are
    read, and compared, all at once."""

    family: MetricFamily
    series: list[str]
    values: list[float]

    @property
    def samples(self) -> list[Sample]:
        return list(zip(self.series, self.values, strict=True))


def columns_of(family: MetricFamily) -> Columns:
    """The same by column."""
    series, values = [series for series, _ in family.samples], [value for _, value in family.samples]
    return Columns(family._replace(samples=[]), series, values)


def as_lines(families: Iterable[MetricFamily]) -> Generator[None, None, bytes]:
    """As JSON, each on two lines of its own, the second one its values: so they can be read in steps, too."""
    lines = []
    for family in families:
        told, series, values = columns_of(family)
        lines += [orjson.dumps((*told[:-1], series)), orjson.dumps(values)]
        yield
    return b"\n".join(lines)


Heads: TypeAlias = dict[bytes, Columns]
"""Families without values, by how they are told."""


def read(lines: bytes, heads: Heads | None = None) -> Generator[None, None, list[Columns]]:
    """What `as_lines` wrote; raises `orjson.JSONDecodeError`, `TypeError`, `ValueError`. What was no number is none
    again. `heads`: what was read before, and what is read now: to be read once."""
    heads = {} if heads is None else heads
    families: list[Columns] = []
    told = lines.splitlines()
    for head, line in zip(told[::2], told[1::2], strict=True):
        known = heads.get(head)
        if known is None:
            name, kind, text, join, series = orjson.loads(head)
            known = heads[head] = Columns(MetricFamily(name, kind, text, join, []), series, [])
        values = orjson.loads(line)
        if _NO_NUMBER in line:
            values = [nan if value is None else value for value in values]
        families.append(known._replace(values=values))
        yield
    return families


def counters_of(families: Iterable[MetricFamily]) -> list[MetricFamily]:
    """Those that only grow, and are ours: a pod's own fall when it is started anew."""
    return [family for family in families if _is_ours_to_keep(family)]


def gauges_of(families: Iterable[MetricFamily]) -> list[MetricFamily]:
    """All others."""
    return [family for family in families if not _is_ours_to_keep(family)]


def _is_ours_to_keep(family: MetricFamily) -> bool:
    return family.kind != "gauge" and family.join != "min"


def merged(workers: list[list[Columns]], hit_ratio: float | None = None) -> Generator[None, None, list[MetricFamily]]:
    """The families of all workers as those of one gateway. `hit_ratio`: over all; None: it is not told.

    What is merged is taken out of `workers`: to let go of all of it at once would take many milliseconds.
    """
    families: dict[str, Columns] = {}
    for worker in workers:
        worker.reverse()
        while worker:
            told = worker.pop()
            name, known = told.family.name, families.get(told.family.name)
            families[name] = told if known is None else (yield from _joined(known, told))
            yield
    if hit_ratio is not None:
        for name, ratio in zip(_RATIOS, (hit_ratio, 1 - hit_ratio), strict=True):
            if name in families:
                families[name] = families[name]._replace(series=[name], values=[ratio])
    result: list[MetricFamily] = []
    for columns in families.values():
        result.append(columns.family._replace(samples=columns.samples))
        yield
    return result


def _joined(known: Columns, told: Columns) -> Generator[None, None, Columns]:
    """One family of two workers; a series that one of them has no number for is the other's."""
    way = _WAYS[known.family.join]
    if known.series == told.series and not isnan(sum(known.values) + sum(told.values)):
        return known._replace(values=list(map(way, known.values, told.values)))
    values = dict(known.samples)
    for start in range(0, len(told.series), _STEP):
        for series, value in zip(told.series[start : start + _STEP], told.values[start : start + _STEP], strict=True):
            before = values.get(series, nan)
            values[series] = value if isnan(before) else before if isnan(value) else way(before, value)
        yield
    return known._replace(series=list(values), values=list(values.values()))


# --- answers; by worker, the first is that of the worker who was asked ---

Answers: TypeAlias = Mapping[int, Any]
Bodies: TypeAlias = Mapping[int, bytes]
Merging: TypeAlias = Generator[None, None, bytes]
_Next: TypeAlias = tuple[float, int, dict[str, Any], Iterator[bytes]]


def listed(items: Iterable[bytes]) -> bytes:
    """What is between the brackets of a JSON list: each item on a line of its own, by which it is found again."""
    return b"\n%b\n" % b",\n".join(items)


def items_of(body: bytes) -> Iterator[bytes]:
    """The items of the one `listed` list of an answer."""
    start, end = _list_of(body)
    while start < end:
        stop = body.find(b"\n", start, end)
        stop = end if stop < 0 else stop
        yield body[start:stop].removesuffix(b",")
        start = stop + 1


def _list_of(body: bytes) -> tuple[int, int]:
    return body.index(b"\n") + 1, body.rindex(b"\n")


def pods_of_all(bodies: Bodies, limit: int) -> Merging:
    """As one worker tells, with what each of them knows; nothing of it is decoded."""
    own = next(iter(bodies.values()))
    told = []
    for worker in sorted(bodies):
        start, end = _list_of(bodies[worker])
        told.append(b'{"worker":%d,"pods":[%b]}' % (worker, bodies[worker][start:end]))
        yield
    return b'%b,"workers":[%b]}' % (own.rstrip()[:-1], b",".join(told))


def decisions_of_all(bodies: Bodies, limit: int) -> Merging:
    """The last ones of all; of each worker only those are decoded."""
    newest: list[_Next] = []
    for worker, body in bodies.items():
        _push(newest, worker, items_of(body))
        yield
    told: list[bytes] = []
    while newest and len(told) < limit:
        _, worker, decision, rest = heappop(newest)
        told.append(orjson.dumps({**decision, "worker": worker}))
        _push(newest, worker, rest)
        yield
    beside = orjson.dumps(_beside_decisions(bodies))
    return b'{"decisions":[%b],%b' % (listed(told), beside[1:])


def _beside_decisions(bodies: Bodies) -> dict[str, Any]:
    """What is told beside them: sums, over all workers."""
    rests = [rest_of(body) for body in bodies.values()]
    each = {name: [rest[name] for rest in rests if rest.get(name)] for name in ("shadow", "summary", "errors")}
    told: dict[str, Any] = {}
    if any("errors" in rest for rest in rests):
        told["errors"] = {word: 0 for counts in each["errors"] for word in counts}
        for counts in each["errors"]:
            told["errors"].update({word: told["errors"][word] + count for word, count in counts.items()})
    else:
        told["shadow"] = _shadow_of_all(each["shadow"])
        told["mix"] = rests[0].get("mix")  # each worker sees a part of the same work
    return told | ({"summary": added_summaries(each["summary"])} if each["summary"] else {})


def rest_of(body: bytes) -> dict[str, Any]:
    """What an answer tells behind its one `listed` list."""
    rest: dict[str, Any] = orjson.loads(b'{"":[' + body[body.rindex(b"\n") :])
    return rest


def _shadow_of_all(each: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What another policy would have done, over all workers."""
    if not each:
        return None
    picks, same = (sum(shadow[name] for shadow in each) for name in ("picks", "same"))
    return {**each[0], "picks": picks, "same": same, "share": round(same / picks, 4) if picks else None}


def _push(newest: list[_Next], worker: int, rest: Iterator[bytes]) -> None:
    """The next one of a worker, who tells the newest first."""
    item = next(rest, None)
    if item is not None:
        decision = orjson.loads(item)
        heappush(newest, (-decision["at"], worker, decision, rest))


def of_answers(merge: Callable[[Answers], Any]) -> Callable[[Bodies, int], Merging]:
    """What is small enough to be made one of decoded answers."""

    def steps(bodies: Bodies, limit: int) -> Merging:
        answers = {}
        for worker, body in bodies.items():
            answers[worker] = orjson.loads(body)
            yield
        return orjson.dumps(merge(answers))

    return steps


def merged_status(answers: Answers) -> Any:
    """What all keep together; the pods as one worker tells, and what each of them has."""
    own, each = next(iter(answers.values())), list(answers.values())
    window = added([one["window_tokens"] for one in each])
    index = [one["index"] for one in each]
    return {
        **own,
        "index": {
            "blocks": max(one["blocks"] for one in index),
            "bytes": sum(one["bytes"] for one in index),
            "pods": own["index"]["pods"],
        },
        "prefix_store": added([one["prefix_store"] for one in each]),
        "window_tokens": window,
        "hit_ratio": window["cached"] / window["asked"] if window["asked"] else 0.0,
        "workers": [{"worker": worker, **answers[worker]} for worker in sorted(answers)],
    }


def merged_drain(answers: Answers) -> Any:
    """Each knows the requests of all."""
    own, handed = next(iter(answers.values())), [one["handover"] for one in answers.values() if "handover" in one]
    told = {**own, "requests": max(one["requests"] for one in answers.values())}
    return told | ({"handover": added(handed)} if handed else {})


def merged_sessions(answers: Answers) -> Any:
    """Each has routed some of them: what lives in the pods' caches for each is added."""
    own, each = next(iter(answers.values())), list(answers.values())
    counts = ("live", "kept", "held", "waiting_for_room")
    pods = [
        {**known[0], **_live(sum(pod["live_tokens"] for pod in known), known[0]["capacity_tokens"])}
        for known in zip(*(one["pods"] for one in each), strict=False)
    ]
    tokens = sum(one["working_set"]["tokens"] for one in each)
    room = own["working_set"]["capacity_tokens"]
    return {
        **own,
        **{count: sum(one[count] for one in each) for count in counts},
        "continuing": max(one["continuing"] for one in each),
        "working_set": {"tokens": tokens, "capacity_tokens": room, "ratio": _live(tokens, room)["ratio"]},
        "pods": pods,
        "waiting": [{**held, "worker": worker} for worker, one in answers.items() for held in one["waiting"]],
        "sessions": [{**session, "worker": worker} for worker, one in answers.items() for session in one["sessions"]],
    }


def _live(tokens: int, room: int | None) -> dict[str, Any]:
    return {"live_tokens": tokens, "ratio": round(tokens / room, 4) if room else None}


def merged_losses(answers: Answers) -> Any:
    """Each has seen some of the requests: what a pod is worth to them is added."""
    costs = ("cost_tokens", "cost_s", "alone_tokens", "prompts")
    each = {loss["pod"]: {**loss, **dict.fromkeys(costs, 0)} for one in answers.values() for loss in one["all"]}
    for one in answers.values():
        for loss in one["all"]:
            mine = each[loss["pod"]]
            mine.update({cost: mine[cost] + loss[cost] for cost in costs})
    ranked = sorted(each.values(), key=lambda loss: (loss["cost_tokens"], loss["blocks"], loss["requests"]))
    count = max(len(one["pods"]) for one in answers.values())
    known = sum(one["prompts_known"] for one in answers.values())
    return {"pods": ranked[:count], "all": ranked, "prompts_known": known}


def merged_alerts(answers: Answers) -> Any:
    """What any worker tells, each alert once, since it began first, with the workers that tell of it."""
    each: dict[tuple[str, str], Any] = {}
    for worker in sorted(answers):
        for alert in answers[worker]["alerts"]:
            known = each.setdefault((alert["name"], alert["subject"] or ""), {**alert, "workers": []})
            known["workers"].append(worker)
            if alert["since"] < known["since"]:
                known.update(since=alert["since"], for_s=alert["for_s"])
    return {**next(iter(answers.values())), "alerts": [each[key] for key in sorted(each)]}


def merged_saves(answers: Answers) -> Any:
    """`POST /index/snapshot`: one of them saves for all."""
    told = list(answers.values())
    return next((answer for answer in told if answer["saved"]), told[0])


def merged_changes(answers: Answers) -> Any:
    """How much all have forgotten."""
    return added(list(answers.values()))


def added(values: Sequence[Any]) -> Any:
    """Numbers are added, also those within mappings; of anything else, the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: added([value[key] for value in values if key in value]) for key in first}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return sum(values)
    return first
