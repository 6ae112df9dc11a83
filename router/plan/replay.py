"""A recording as it would come again, and what it tells of the pods.

Who continues a prompt has waited for its answer: such a request comes again as long after that answer as it did. Where
many did not wait (a trace that was played by the clock), all come when they came.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

from router.plan.figures import Answered, Figures, figures
from router.plan.profiles import PodProfile
from router.plan.recording import Entry, RecordedFleet, Recording
from router.plan.traces import Turn, times_of

_HASTY_SHARE = 0.02  # of the requests that continue others: if more did not wait for the answer, nobody is taken to
_TOO_MANY, _GONE, _ERROR = 429, 499, 400
_EQUAL = 0.15  # pods whose speeds are no further apart than this are taken for equal: they are measured no better
_ANSWERS_MIN = 20  # of at least _LONG tokens, before steps are known
_LONG = 4
_FAR_POSITION = 1e12  # cost does not grow with the context
_SEED = 1
_WARM = 0.2  # of the time, which is not counted


class Rerun(NamedTuple):
    """`chains`: when their first requests come (s), and all of their requests. `length_s`: until the last one came.

    `counted_from`: the `session` of the first one that is counted, as are all above: whatever time they take again.
    """

    chains: Sequence[tuple[float, Sequence[Turn]]]
    length_s: float
    counted_from: int
    waits: int
    """Requests that come after the answers to others."""


def rerun_of(recording: Recording, waits: bool | None = None) -> Rerun:
    """`waits`: whether who continues a prompt waits for its answer; None: as it was recorded."""
    entries = [each for each in recording.entries if each.status < _ERROR or each.status in (_TOO_MANY, _GONE) or
               each.status >= 500]  # fmt: skip
    times_s = _times_s(recording, entries)
    answers = [each.answer for each in entries if each.status < _ERROR]
    usual = round(fmean(answers)) if answers else 1
    before = _continued(entries, recording.size)
    said = _said(entries, before, recording)
    thinks = {number: _think_s(entries[first], entries[number]) for number, first in before.items()}
    hasty = sum(think_s is None for think_s in thinks.values())
    if waits is False or (waits is None and hasty > _HASTY_SHARE * len(before)):
        thinks = {}
    chains: list[tuple[float, list[Turn]]] = []
    of: dict[int, list[Turn]] = {}
    followed: set[int] = set()
    for number, entry in enumerate(entries):
        think_s, first = thinks.get(number), before.get(number)
        turn = Turn(
            entry.tokens,
            entry.answer if entry.status < _ERROR else usual,
            entry.blocks,
            number,
            think_s or 0.0,
            said.get(number, ()),
        )
        if think_s is None or first is None or first in followed:
            of[number] = [turn]
            chains.append((times_s[number], of[number]))
        else:
            followed.add(first)
            of[number] = of[first]
            of[first].append(turn)
    length_s = max(1e-3, *times_s[-1:])
    return Rerun(chains, length_s, bisect_left(times_s, length_s * _WARM), len(followed))


def _times_s(recording: Recording, entries: Sequence[Entry]) -> Sequence[float]:
    """From the first one on; published traces may have been rounded, which a gateway's own are not."""
    stamps = [entry.at_ms for entry in entries]
    if recording.fleet is None and stamps:
        return times_of(stamps, random.Random(_SEED))
    return [(stamp - stamps[0]) / 1e3 for stamp in stamps]


def as_recorded(recording: Recording, slo_s: float) -> Figures | None:
    """What was measured then; None: too little was. `slo_s`: see `figures`."""
    begins_ms, ends_ms = recording.entries[0].at_ms, recording.entries[-1].at_ms
    outcomes, work = [], dict[str | None, float]()
    for each in recording.entries:
        if each.ttft_s is None or each.cached is None:
            continue
        arrived = (each.at_ms - begins_ms) / 1e3
        ended = None if each.took_s is None else arrived + each.took_s
        outcomes.append(Answered(arrived, each.ttft_s, True, ended, each.tokens, each.cached))
        work[each.pod] = work.get(each.pod, 0.0) + each.tokens - each.cached
    length_s = max(1e-3, (ends_ms - begins_ms) / 1e3)
    since = length_s * _WARM
    if all(each.arrived < since for each in outcomes):
        return None
    return figures(outcomes, list(work.values()), since, length_s, slo_s)


def profile_of(recording: Recording, usual: PodProfile) -> PodProfile | None:
    """Its pods; None: it tells no speeds. What it does not tell is as in `usual`."""
    fleet = recording.fleet
    if fleet is None or fleet.token_s <= 0.0:
        return None
    position = fleet.token_s / fleet.position_s if fleet.position_s > 0 else _FAR_POSITION
    step_s, answer_s = steps_of(recording) or (usual.step_s, usual.answer_s)
    capacity = [pod.kv_tokens for pod in fleet.pods if pod.kv_tokens]
    return usual._replace(
        token_s=fleet.token_s,
        position=position,
        step_s=step_s,
        kv_s=0.0,
        answer_s=answer_s,
        kv_tokens=round(median(capacity)) if capacity else usual.kv_tokens,
        front_s=max(0.0, fleet.base_s - 1.5 * step_s),  # it waits for half a step, and is in one
    )


def factors_of(fleet: RecordedFleet | None) -> Sequence[float]:
    """By which its pods are slower than the fleet; none, where they are about equal."""
    factors = [pod.factor for pod in fleet.pods] if fleet is not None else []
    return factors if factors and max(factors) > (1 + _EQUAL) ** 2 * min(factors) else ()


def steps_of(recording: Recording) -> tuple[float, float] | None:
    """Seconds of a step, and for each answer in it: from how long answers took, less the prefill beside them."""
    fleet = recording.fleet
    rows: list[tuple[float, float]] = []
    for entries in _by_pod(recording.entries).values():
        begins = np.array([each.at_ms / 1e3 + (each.ttft_s or 0.0) for each in entries])
        ends = np.array([each.at_ms / 1e3 + (each.took_s or 0.0) for each in entries])
        work_s = np.array([_prefill_s(fleet, each) for each in entries])
        for number, entry in enumerate(entries):
            if entry.answer < _LONG or ends[number] <= begins[number]:
                continue
            length_s = ends[number] - begins[number]
            beside = np.minimum(ends, ends[number]) - np.maximum(begins, begins[number])
            within = (begins > begins[number]) & (begins < ends[number])
            steps_s = length_s - work_s[within].sum()
            rows.append((steps_s / (entry.answer - 1), beside[beside > 0].sum() / length_s))
    if len(rows) < _ANSWERS_MIN:
        return None
    steps, answers = np.array(rows).T
    spread = answers - answers.mean()
    slope = max(0.0, float((spread * steps).sum() / max(1e-9, (spread * spread).sum())))
    base = float(np.median(steps - slope * answers))
    if base <= 0.0:
        slope, base = 0.0, max(1e-4, float(np.median(steps)))
    return base, slope


def _prefill_s(fleet: RecordedFleet | None, entry: Entry) -> float:
    if fleet is None:
        return 0.0
    cached = entry.cached or 0
    middle = (cached + entry.tokens) / 2
    return (entry.tokens - cached) * (fleet.token_s + fleet.position_s * middle)


def _by_pod(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Those that were answered as a stream."""
    pods: dict[str, list[Entry]] = {}
    for each in entries:
        if each.pod is not None and each.ttft_s is not None and each.took_s is not None and each.status < _ERROR:
            pods.setdefault(each.pod, []).append(each)
    return pods


def _continued(entries: Sequence[Entry], size: int) -> dict[int, int]:
    """Of each request that begins with all of another one, which came before: the longest such."""
    ends: dict[int, int] = {}
    found: dict[int, int] = {}
    for number, entry in enumerate(entries):
        whole = entry.blocks[: entry.tokens // size]
        for block in reversed(whole[:-1]):
            if block in ends:
                found[number] = ends[block]
                break
        if whole:
            ends[whole[-1]] = number
    return found


def _said(entries: Sequence[Entry], before: Mapping[int, int], recording: Recording) -> dict[int, Sequence[int]]:
    """Blocks that answers filled, as who continued has them; none where pods did not find them: not all clients give
    an answer back as it was."""
    fleet, size = recording.fleet, recording.size
    fine = (0 if fleet is None else fleet.block_size) or size  # of a fleet that has told nothing yet it is 0
    found, said = [], dict[int, Sequence[int]]()
    for number, first in before.items():
        then, asked = entries[number], entries[first]
        computed = asked.tokens + asked.answer - 1  # the last token of an answer is not
        if computed // fine * fine > asked.tokens and (then.cached or 0) >= asked.tokens // fine * fine:
            found.append((then.cached or 0) > asked.tokens)
        said.setdefault(first, then.blocks[asked.tokens // size : min(computed, then.tokens) // size])
    return said if 2 * sum(found) > len(found) else {}


def _think_s(first: Entry, then: Entry) -> float | None:
    """Seconds from the answer to the next request; None: it did not wait for it."""
    if first.took_s is None:
        return None
    think_s = (then.at_ms - first.at_ms) / 1e3 - first.took_s
    return think_s if think_s >= 0.0 else None
