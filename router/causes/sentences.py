"""Causes of misses over many requests: sums, and each as a sentence. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.causes.names import Why

_COUNTS = ("requests", "prompt_tokens", "reachable_tokens", "captured_tokens", "delivered_tokens")


def misses_of(whys: Iterable[Why]) -> dict[str, Any]:
    """Sums over requests, and of their misses by cause and kind of it: most tokens first, each with its sentence."""
    counts = dict.fromkeys(_COUNTS, 0)
    missed: dict[tuple[str, str], list[int]] = {}
    for why in whys:
        for name, count in zip(_COUNTS, (1, why.tokens, why.reachable, why.captured, why.delivered), strict=True):
            counts[name] += count
        for cause, kind in {(one.cause, one.kind) for one in why.missed}:
            missed.setdefault((cause, kind), [0, 0])[1] += 1
        for one in why.missed:
            missed[one.cause, one.kind][0] += one.tokens
    return _told(counts, missed)


def added_summaries(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several gateway processes, as one."""
    counts = {name: sum(each[name] for each in summaries) for name in _COUNTS}
    missed: dict[tuple[str, str], list[int]] = {}
    for each in summaries:
        for one in each["missed"]:
            sums = missed.setdefault((one["cause"], one["kind"]), [0, 0])
            sums[0] += one["tokens"]
            sums[1] += one["requests"]
    return _told(counts, missed)


def _told(counts: dict[str, int], missed: Mapping[tuple[str, str], Sequence[int]]) -> dict[str, Any]:
    each = [
        {
            "cause": cause,
            "kind": kind,
            "tokens": tokens,
            "requests": requests,
            "sentence": _sentence(tokens, counts["prompt_tokens"], requests, kind),
        }
        for (cause, kind), (tokens, requests) in missed.items()
    ]
    return {**counts, "missed": sorted(each, key=lambda one: -int(str(one["tokens"])))}


def _sentence(tokens: int, of: int, requests: int, kind: str) -> str:
    share = 100 * tokens / of if of else 0.0
    percent = f"{share:.0f}" if share >= 1 else f"{share:.1g}"
    return f"{percent}% of prompt tokens missed because {kind} ({requests} request{'' if requests == 1 else 's'})."
