"""Traces of both formats, as requests."""

from __future__ import annotations

import json
import random
from itertools import islice

import pytest

from router.errors import BadRecording
from router.plan.traces import Arrivals, Numbers, Sessions, read_trace

SESSION = {"bs": 64, "models": ["m"], "tool": 0, "sys": 0, "reqs": [[0, 640, 5, 0, 0, "", [0, 10]]]}


def line(timestamp: int, blocks: list[int], session: int | None = None, tokens: int = 0) -> str:
    entry: dict[str, object] = {"timestamp": timestamp, "input_length": tokens or 512 * len(blocks), "hash_ids": blocks}
    if session is not None:
        entry["session"] = session
    return json.dumps({**entry, "output_length": 0})


def arrivals(lines: list[str], seed: int = 1, copies: int = 1, speed: float = 1.0) -> Arrivals:
    found = read_trace(lines, seed, copies, speed)
    assert isinstance(found, Arrivals)
    return found


def test_times_are_seconds_from_the_first_request() -> None:
    """Scaled by the speed; an answer has one token at least."""
    found = arrivals([line(100_001, [1, 2]), line(102_004, [1, 3], tokens=900)], speed=2.0)
    assert [time for time, _ in found.turns] == [0.0, 2.003 / 2]
    assert found.size == 512 and found.turns[1][1].tokens == 900 and found.turns[1][1].answer == 1
    one, other = (turn.blocks for _, turn in found.turns)
    assert one[0] == other[0] and one[1] != other[1]


def test_blocks_are_as_long_as_most_prompts_say() -> None:
    """Some traces leave blocks out of some prompts."""
    lines = [line(number, [1, 10 + number], tokens=512 + number) for number in range(1, 9)]
    assert arrivals([*lines, line(9, [1, 2], tokens=5000)]).size == 512
    assert arrivals([line(number, list(range(number)), tokens=64 * number - 9) for number in range(1, 9)]).size == 64


def test_rounded_times_are_spread() -> None:
    """Each within the time to which it was rounded, the same for one seed."""
    lines = [line(3000 * (number // 10), [number]) for number in range(30)]
    times = [time for time, _ in arrivals(lines).turns]
    assert len(set(times)) == 30 and all(3 * (number // 10) <= time < 3 * (number // 10 + 1)
                                         for number, time in enumerate(times))  # fmt: skip
    assert times == [time for time, _ in arrivals(lines).turns]
    assert times != [time for time, _ in arrivals(lines, seed=2).turns]


def test_copies_share_what_sessions_share() -> None:
    """All else is their own, and they come at other times."""
    lines = [line(1, [1, 2], 1), line(5, [1, 3], 2), line(1006, [1, 3, 4], 2)]
    turns = arrivals(lines, copies=2).turns
    assert len(turns) == 6 and [time for time, _ in turns] == sorted(time for time, _ in turns)
    assert len({turn.blocks[0] for _, turn in turns}) == 1
    assert len({turn.blocks[1] for _, turn in turns}) == 4
    assert len({turn.session for _, turn in turns}) == 4


def session(number: int, stretches: list[list[int]], tool: int = 256, system: int = 256) -> str:
    reqs = [[0.0, 64 * sum(each[1::2]), 9, 400.0, 0, "n", each] for each in stretches]
    return json.dumps({"id": f"s{number}", "models": ["m"], "bs": 64, "tool": tool, "sys": system, "reqs": reqs})


def sessions(lines: list[str], speed: float = 1.0) -> Sessions:
    found = read_trace(lines, 1, 1, speed)
    assert isinstance(found, Sessions)
    return found


def test_agents_share_tools_and_system_prompts() -> None:
    """As far as these are equally long; what follows is the session's own, and the same from turn to turn."""
    found = sessions([session(1, [[1, 16], [1, 24]]), session(2, [[1, 16]])], speed=2.0)
    first, second = found.sessions
    assert found.size == 256 and first[1].blocks[:4] == first[0].blocks and first[1].think_s == 150.0
    assert first[0].blocks[:2] == second[0].blocks[:2] and first[0].blocks[2] != second[0].blocks[2]
    assert found.common == set(first[0].blocks[:2])


def test_a_session_ends_with_a_prompt_that_is_too_long() -> None:
    """At 128k tokens."""
    found = sessions([session(1, [[1, 16], [1, 2048], [1, 2049], [1, 16]])])
    assert [turn.tokens for turn in found.sessions[0]] == [1024, 131_072]


def test_users_ask_session_after_session() -> None:
    """Each replay is a session of its own, with blocks of its own but for what all share."""
    found = sessions([session(number, [[1, 16], [1, 24]]) for number in range(3)])
    numbers, rng = Numbers(), random.Random(1)
    turns = list(islice(found.user(numbers, rng), 40))
    replays = {turn.session for turn in turns}
    assert len(replays) >= 20
    assert len({turn.blocks[0] for turn in turns}) == 1
    assert len({turn.blocks[3] for turn in turns}) == len(replays)
    assert turns == list(islice(found.user(Numbers(), random.Random(1)), 40)), "by its seed alone"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "there is no request in it"),
        (["garbage"], "line 1: it is no JSON object with timestamp"),
        (["[1]"], "line 1"),
        ([line(1, [1]).replace("1,", "NaN,", 1)], "line 1"),
        ([line(1, [1]), "", line(2, [2])[:-9]], "line 3"),
        (
            [line(1, [1]), json.dumps({"timestamp": 1, "input_length": None, "output_length": 1, "hash_ids": []})],
            "line 2",
        ),
        ([line(1, [1]), json.dumps(SESSION)], "line 2: it is no JSON object with timestamp"),
        ([json.dumps(SESSION), line(1, [1])], "line 2: it is no JSON object with bs"),
        ([json.dumps({**SESSION, "reqs": [[0, 1]]})], "line 1"),
        ([json.dumps({**SESSION, "models": []})], "line 1"),
        ([json.dumps({**SESSION, "reqs": [[0, 200_000, 1, 0, 0, "", [0, 3125]]]})], "no session begins with less"),
    ],
)
def test_what_is_no_trace_is_said(lines: list[str], words: str) -> None:
    """With the line, and with what was expected."""
    with pytest.raises(BadRecording, match=words):
        read_trace(lines, 1)
