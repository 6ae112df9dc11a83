"""A trace as work: requests as Mooncake published them, one JSON object a line. What `record.path` holds is such.

A trace has no texts: blocks of the same number become the same words, so what is shared in it is shared again.
"""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from router.commands.bench.work import BenchTurn, Flow, Work
from router.commands.demo.workload import words_of
from router.errors import BadRecording, ConfigError
from router.plan.traces import Arrivals, Turn, read_trace

_ANSWER_TOKENS_MAX = 256


class ReplaySize(NamedTuple):
    """How much of a trace: the first `requests`, squeezed into `seconds` (0: as recorded), prompts of at most
    `tokens_max` (None: as recorded): if the longest is longer, all are scaled down alike."""

    requests: int
    seconds: float
    tokens_max: int | None


def replayed(path: str, size: ReplaySize, seed: int) -> Work:
    """The work of a trace's file. Raises `ConfigError`."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            lines = list(islice((line for line in file if not line.isspace()), size.requests))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text") from None
    arrivals = _arrivals(path, lines, seed)
    last_s = max(time_s for time_s, _ in arrivals.turns)
    speed = max(1.0, last_s / size.seconds) if size.seconds else 1.0
    longest = max(turn.tokens for _, turn in arrivals.turns)
    scale = 1.0 if size.tokens_max is None else min(1.0, size.tokens_max / longest)
    vocabulary: dict[int, str] = {}
    flows = [
        Flow(time_s / speed, (), [_turn(turn, arrivals.size, scale, seed, vocabulary)])
        for time_s, turn in arrivals.turns
    ]
    what = f"{len(flows)} requests of {Path(path).name}, {speed:.3g} times as fast as recorded"
    what += f", prompts scaled to {scale:.2g} of their length" if scale < 1.0 else ""
    return Work("replay", what, flows)


def _arrivals(path: str, lines: list[str], seed: int) -> Arrivals:
    try:
        found = read_trace(lines, seed)
    except BadRecording as error:
        raise ConfigError(f"{path}: is no trace of requests (docs/bench.md): {error.message}") from None
    if not isinstance(found, Arrivals):
        raise ConfigError(f"{path}: has no requests that come at a time")
    return found


def _turn(turn: Turn, size: int, scale: float, seed: int, vocabulary: dict[int, str]) -> BenchTurn:
    """Its words, block by block; the last block is as long as is left."""
    whole, parts = max(1, round(size * scale)), []
    left = max(1, round(turn.tokens * scale))
    for block in turn.blocks:
        if block not in vocabulary:
            vocabulary[block] = words_of(random.Random(f"{seed} {block}"), whole)
        parts.append(vocabulary[block] if left >= whole else " ".join(vocabulary[block].split()[:left]))
        left -= whole
        if left <= 0:
            break
    answer = min(_ANSWER_TOKENS_MAX, max(1, round(turn.answer * scale)))
    return BenchTurn(" ".join(parts), 0.0, answer)
