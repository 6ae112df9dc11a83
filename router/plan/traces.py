"""Requests from traces: such that come when they come, and users who wait for their answers.

Two formats, one JSON object a line. Of requests (as Mooncake published them): `timestamp` (ms), `input_length`,
`output_length` (tokens), `hash_ids` (one a block of the prompt, the last of which may not be whole), maybe `session`.
Of agents' sessions: `bs`, `models`, `tool` and `sys` (tokens of tool definitions and system prompt), and `reqs`, each
of which is [time, input tokens, output tokens, think time s, …, …, [first block, count, …]].
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from router.errors import BadRecording

_COMMON_SHARE = 0.02  # of requests: what so many begin with, other users' requests begin with, too
_SIZES = [1 << power for power in range(3, 14)]  # of blocks, in tokens
_BATCH_MS = 1000  # timestamps that are multiples of more than this were rounded: within, requests are spread
_JOINED = 4  # blocks of a session that are taken as one
_CONTEXT_MAX = 131_072  # a session ends with the first prompt that is longer
_ANSWER_MAX = 8192
_THINK_MAX_S = 300.0
_RAMP_S = 120.0  # within which users begin
_BETWEEN_S = 20.0  # two sessions of a user


class Turn(NamedTuple):
    """One request of a trace. `blocks`: of its prompt, the last may not be whole; `session`: whose it is.

    `said`: blocks that its answer fills, beginning with that last one, as prompts that continue it have them.
    """

    tokens: int
    answer: int
    blocks: Sequence[int]
    session: int
    think_s: float = 0.0  # after the answer to the one before it
    said: Sequence[int] = ()


class Arrivals(NamedTuple):
    """Requests that come when they come, in order: (seconds, request). `size`: tokens a block."""

    size: int
    turns: Sequence[tuple[float, Turn]]


@dataclass(frozen=True, slots=True)
class Sessions:
    """What users do, one session after the other. `common`: blocks that sessions share."""

    size: int
    sessions: Sequence[Sequence[Turn]]
    common: frozenset[int]

    def user(self, numbers: Numbers, rng: random.Random) -> Iterator[Turn]:
        """What one user asks, without an end: it begins in the middle of a session."""
        first, pause_s = True, 0.0
        while True:
            session = rng.choice(self.sessions)
            begin = rng.randrange(len(session)) if first else 0
            first, number = False, numbers.new()
            own: dict[int, int] = defaultdict(numbers.new)  # every replay has blocks of its own
            for place, turn in enumerate(session[begin:]):
                blocks = [numbers.common(block) if block in self.common else own[block] for block in turn.blocks]
                yield Turn(turn.tokens, turn.answer, blocks, number, turn.think_s if place else pause_s)
            pause_s = _BETWEEN_S

    def begins_s(self, rng: random.Random) -> float:
        """When a user comes."""
        return rng.random() * _RAMP_S


class Numbers:
    """Of blocks and sessions, each once."""

    def __init__(self) -> None:
        self._next = 0
        self._common: dict[int, int] = {}

    def new(self) -> int:
        self._next += 1
        return self._next

    def common(self, block: int) -> int:
        """The same for all who ask for this block."""
        number = self._common.get(block)
        if number is None:
            number = self._common[block] = self.new()
        return number


def read_trace(lines: Iterable[str], seed: int, copies: int = 1, speed: float = 1.0) -> Arrivals | Sessions:
    """A trace of either format. `copies`, of requests alone: so many at once, moved in time, with prompts of their own
    but for what sessions share; `speed`: by which the times between requests are divided. Raises `BadRecording` naming
    the first line that is not as the first one."""
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            entries.append(_entry_of(line, number, sessions="reqs" in entries[0] if entries else None))
    if not entries:
        raise BadRecording("there is no request in it")
    if "reqs" in entries[0]:
        return _sessions(entries, speed)
    entries.sort(key=lambda entry: int(entry["timestamp"]))  # of gateways' recordings, lines come as requests end
    return _stream(entries, random.Random(seed), copies, speed)


def _entry_of(line: str, number: int, sessions: bool | None) -> dict[str, Any]:
    """Such that all that is read of it is there. `sessions`: what it must be; None: either."""
    try:
        entry: dict[str, Any] = orjson.loads(line)
        if sessions is None:
            sessions = "reqs" in entry
        numbers: list[Any] = []
        if sessions:
            numbers += [entry["bs"], entry["tool"], entry["sys"], len(entry["models"][0])]
            for at, tokens, answer, think_s, _, _, stretches in entry["reqs"]:
                numbers += [at, tokens, answer, think_s, *stretches]
        else:
            numbers += [entry["timestamp"], entry["input_length"], entry["output_length"], *entry["hash_ids"]]
        if all(isinstance(each, (int, float)) for each in numbers):
            return entry
    except (ValueError, LookupError, TypeError):
        pass
    known = "bs, models, tool, sys and reqs" if sessions else "timestamp, input_length, output_length and hash_ids"
    raise BadRecording(f"line {number}: it is no JSON object with {known}")


def _stream(entries: Sequence[dict[str, Any]], rng: random.Random, copies: int, speed: float) -> Arrivals:
    times, common = times_of([int(entry["timestamp"]) for entry in entries], rng), _common(entries)
    length_s = max(times) + 1e-3
    numbers, size = Numbers(), _size(entries)
    turns: list[tuple[float, Turn]] = []
    for copy in range(copies):
        moved_s = rng.random() * length_s if copy else 0.0
        own: dict[int, int] = defaultdict(numbers.new)
        sessions: dict[int, int] = defaultdict(numbers.new)
        for number, (time_s, entry) in enumerate(zip(times, entries, strict=True)):
            blocks = [numbers.common(block) if block in common else own[block] for block in entry["hash_ids"]]
            session = sessions[entry.get("session", -1 - number)]
            turn = Turn(max(1, entry["input_length"]), max(1, entry["output_length"]), blocks, session)
            turns.append(((time_s + moved_s) % length_s / speed, turn))
    turns.sort(key=lambda each: each[0])
    return Arrivals(size, turns)


def _size(entries: Sequence[dict[str, Any]]) -> int:
    """Tokens a block: what most prompts have as many blocks of as they need (some traces leave blocks out)."""
    shapes = Counter([(entry["input_length"], len(entry["hash_ids"])) for entry in entries if entry["hash_ids"]])
    return max(
        _SIZES, key=lambda size: sum([count for (tokens, n), count in shapes.items() if math.ceil(tokens / size) == n])
    )


def times_of(stamps: Sequence[int], rng: random.Random) -> list[float]:
    """Seconds from the first of them (ms, in order) on; such as were rounded are spread within that."""
    step_ms = math.gcd(*stamps)
    if step_ms < _BATCH_MS:
        return [(stamp - stamps[0]) / 1e3 for stamp in stamps]
    spread: list[float] = []
    for stamp, count in sorted(Counter(stamps).items()):
        spread += sorted([(stamp - stamps[0] + rng.random() * step_ms) / 1e3 for _ in range(count)])
    return spread


def _common(entries: Sequence[dict[str, Any]]) -> set[int]:
    """Blocks that are not one session's."""
    if "session" in entries[0]:
        of: dict[int, int] = {}
        return {
            block
            for entry in entries
            for block in entry["hash_ids"]
            if of.setdefault(block, entry["session"]) != entry["session"]
        }
    counts = Counter(block for entry in entries for block in entry["hash_ids"])
    return {block for block, count in counts.items() if count > _COMMON_SHARE * len(entries)}


def _sessions(entries: Sequence[dict[str, Any]], speed: float) -> Sessions:
    numbers: dict[object, int] = {}
    sessions, users = [], Counter[int]()
    for number, entry in enumerate(entries):
        turns = list(_session(number, entry, numbers, speed))
        if turns:
            sessions.append(turns)
            users.update({block for turn in turns for block in turn.blocks})
    if not sessions:
        raise BadRecording(f"no session begins with less than {_CONTEXT_MAX} tokens")
    common = frozenset(block for block, count in users.items() if count > 1)
    return Sessions(entries[0]["bs"] * _JOINED, sessions, common)


def _session(number: int, entry: dict[str, Any], numbers: dict[object, int], speed: float) -> Iterator[Turn]:
    """Blocks of tool definitions and system prompts are those of every session that has as long ones."""
    model, tool, system, size = entry["models"][0], entry["tool"], entry["sys"], entry["bs"]
    tool_blocks, system_blocks = tool // size, (tool + system) // size
    for _, tokens, answer, think_s, _, _, stretches in entry["reqs"]:
        if tokens > _CONTEXT_MAX:
            return
        pairs = zip(stretches[::2], stretches[1::2], strict=True)
        blocks = [block for first, count in pairs for block in range(first, first + count)]
        joined: list[int] = []
        for start in range(0, len(blocks) // _JOINED * _JOINED, _JOINED):
            end = start + _JOINED
            named: object
            if end <= tool_blocks:
                named = ("tool", model, tool, start)
            elif end <= system_blocks:
                named = ("system", model, tool, system, start)
            else:
                named = (number, joined[-1] if joined else -1, *blocks[start:end])
            joined.append(numbers.setdefault(named, len(numbers)))
        if len(blocks) % _JOINED:  # not whole: nobody has it again
            joined.append(numbers.setdefault(object(), len(numbers)))
        if joined:
            think_s = min(max(think_s, 0.0), _THINK_MAX_S) / speed
            yield Turn(tokens, min(max(answer, 1), _ANSWER_MAX), joined, number, think_s)
