"""`warmroute plan`: what it foretells is what comes, in virtual time; what is wrong is one line."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from router.commands.plan import Goal, Planner, WhatIf, answer, parse_goal
from router.errors import ConfigError
from router.plan.figures import Figures
from router.plan.profiles import PodProfile
from router.plan.recording import Entry, RecordedFleet, RecordedPod, Recording, line_of
from tests.fakes.command import run

SIZE = 16
POD = PodProfile(1 / 3000, 1e12, 0.01, 0.0, 0.0002, kv_tokens=24_000)


def conversations(count: int = 500, seed: int = 2) -> list[Entry]:
    """As they come: turns of some users, over shared prompts."""
    rng, entries, at_ms, number = random.Random(seed), [], 0.0, 1000
    open_ones: list[list[int]] = []
    for _ in range(count):
        at_ms += rng.expovariate(8.0) * 1e3
        if not open_ones or rng.random() < 0.25:
            system = rng.randrange(3)
            open_ones.append([*range(100 * system, 100 * system + 20)])
        blocks = open_ones.pop(rng.randrange(len(open_ones)))
        blocks = [*blocks, *range(number, number + 25)]
        number += 25
        if len(blocks) < 150:
            open_ones.append(blocks)
        entries.append(Entry(round(at_ms), SIZE * len(blocks) - 5, rng.randrange(5, 40), blocks))
    return entries


def told_of(pods: int) -> RecordedFleet:
    each = [RecordedPod(f"pod-{number}", POD.kv_tokens, 1.0) for number in range(pods)]
    return RecordedFleet(each, SIZE, 1.5 * POD.step_s, POD.token_s, 0.0, "predicted-ttft")


def silent(what: str, share: float) -> None:
    """Nobody watches."""


def written(path: Path, entries: list[Entry], fleet: RecordedFleet | None) -> Path:
    lines = b"".join([line_of(entry, fleet) for entry in entries])
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def planned(*arguments: object) -> dict[str, Any]:
    result = run("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_more_pods_less_waiting(tmp_path: Path) -> None:
    """And less memory fewer hits; what is not asked is as it was recorded."""
    path = written(tmp_path / "r.jsonl.gz", conversations(), told_of(3))
    three, six, tight = planned(path), planned(path, "--pods", 6), planned(path, "--kv-scale", 0.3)
    assert three["pods"] == 3 and three["policy"] == "predicted-ttft" and three["kv_tokens"] == POD.kv_tokens
    assert six["p90"] < three["p90"] < tight["p90"] and tight["hit"] < three["hit"] - 0.1
    blind = planned(path, "--policy", "round-robin")
    assert blind["policy"] == "round-robin" and blind["hit"] < three["hit"] - 0.1
    assert three == planned(path), "nothing in it is chance"


def test_the_fewest_pods_that_keep_a_promise(tmp_path: Path) -> None:
    """With all that was tried; none where no number does."""
    path = written(tmp_path / "r.jsonl", conversations(300), told_of(2))
    told = planned(path, "--advise", "ttft_p90=400ms")
    pods, tried = told["advice"]["pods"], told["advice"]["tried"]
    assert told["pods"] == pods and tried[str(pods)]["p90"] <= 0.4 < tried[str(pods - 1)]["p90"]
    assert told["advice"]["target"] == "ttft_p90=0.4s" and told["p90"] == tried[str(pods)]["p90"]
    many = Planner(Recording(conversations(20), SIZE, told_of(512)), WhatIf(), silent)
    assert many.advise(Goal("p50", 1e-9), "round-robin", 1000)[0] is None


def test_who_waited_for_answers_does_before_faster_pods(tmp_path: Path) -> None:
    """All is over sooner there: the same requests are counted for all that, and no promise is kept by nobody."""
    entries: list[Entry] = []
    for user in range(8):
        blocks = [*range(1000 * user, 1000 * user + 40)]
        for turn in range(6):
            blocks = [*blocks, *range(1000 * user + 100 + 20 * turn, 1000 * user + 120 + 20 * turn)]
            entries.append(Entry(12_000 * turn + 50 * user, SIZE * len(blocks), 10, blocks, "pod-0", took_s=11.5))
    entries.sort(key=lambda entry: entry.at_ms)
    path = written(tmp_path / "r.jsonl", entries, told_of(1))
    one, eight = planned(path, "--pods", 1), planned(path, "--pods", 8)
    assert one["waits"] == eight["waits"] == 40
    assert one["requests"] == eight["requests"] == 38 and 0.0 < eight["p90"] < one["p90"]
    advice = planned(path, "--advise", f"ttft_p90={eight['p90']}s")
    assert all(tried["requests"] == 38 for tried in advice["advice"]["tried"].values())


def test_answers_are_cached_too(tmp_path: Path) -> None:
    """Where those who continued found them cached, they are found again: on the same pods, as much as was recorded."""
    entries: list[Entry] = []
    for user in range(6):
        blocks, cached = list[int](), 0
        for turn in range(6):
            blocks = [*blocks, *range(1000 * user + 40 * turn, 1000 * user + 40 * turn + 20)]
            answer = [1000 * user + 40 * turn + 20 + number for number in range(8)]
            told = {"pod": f"pod-{user % 2}", "ttft_s": 0.1, "took_s": 2.0, "cached": cached}
            entries.append(Entry(5_000 * turn + 90 * user, SIZE * len(blocks), 8 * SIZE + 1, blocks, **told))  # type: ignore[arg-type]
            blocks = [*blocks, *answer]
            cached = SIZE * len(blocks)
    entries.sort(key=lambda entry: entry.at_ms)
    told_kept = planned(written(tmp_path / "kept.jsonl", entries, told_of(2)))
    assert told_kept["recorded"]["hit"] == pytest.approx(told_kept["replayed"]["hit"], abs=0.002)
    entries = [entry._replace(cached=max(0, (entry.cached or 0) - 8 * SIZE)) for entry in entries]
    told_lost = planned(written(tmp_path / "lost.jsonl", entries, told_of(2)))
    assert told_lost["recorded"]["hit"] == pytest.approx(told_lost["replayed"]["hit"], abs=0.002)
    assert told_lost["hit"] < told_kept["hit"] - 0.05


def test_the_table_says_the_same(tmp_path: Path) -> None:
    """For people."""
    path = written(tmp_path / "r.jsonl", conversations(100), told_of(2))
    result = run("plan", path, "--advise", "ttft_p90<=100s")
    assert result.exit_code == 0
    assert "1 pod with 24,000 tokens of cache each, predicted-ttft:" in result.output
    assert "ttft_p90=100s is met from 1 on." in result.output


def test_a_trace_of_others_tells_nothing_of_pods(tmp_path: Path) -> None:
    """What is neither told nor given is assumed, which is said."""
    bare = written(tmp_path / "bare.jsonl", conversations(40), None)
    told = planned(bare)
    assert told["pods"] == 4 and told["assumed"] == ["pods of speed and size 8b (--profile)", "4 pods (--pods)"]
    assert planned(bare, "--pods", 4, "--profile", "8b") == told | {"assumed": []}
    assert planned(bare, "--advise", "ttft_p90=100s")["pods"] == 1
    table = run("plan", bare).output
    assert "(It does not tell: pods of speed and size 8b (--profile) and 4 pods (--pods) are assumed.)" in table


def test_what_comes_is_what_was_foretold() -> None:
    """Recorded at 4 pods, foretold for 6 and 3: hit ratio within 3 points, p90 within 15%, of a fleet that the planner
    does not know but by its recording. Of some recordings the mean: in each, p90 hangs on a few dozen requests."""
    real: dict[int, list[Figures]] = {6: [], 3: []}
    foretold: dict[int, list[dict[str, Any]]] = {6: [], 3: []}
    for seed in (2, 3, 4):
        entries = conversations(seed=seed)
        truth = Planner(Recording(entries, SIZE, told_of(4)), WhatIf(), silent)
        truth.profile = POD._replace(front_s=0.004)
        seen = [entry._replace(pod=f"pod-{number % 4}") for number, entry in enumerate(entries)]
        recording = Recording(seen, SIZE, told_of(4))
        for pods in real:
            real[pods].append(truth.ask(pods, "predicted-ttft", POD.kv_tokens))
            foretold[pods].append(answer(Planner(recording, WhatIf(pods=pods), silent), WhatIf(pods=pods)))
    for pods, each in real.items():
        told = foretold[pods]
        assert fmean(one["hit"] for one in told) == pytest.approx(fmean(one.hit for one in each), abs=0.03)
        assert fmean(one["p90"] for one in told) == pytest.approx(fmean(one.p90 for one in each), rel=0.15)


def test_what_is_older_stands_beside(tmp_path: Path) -> None:
    """The older half of a recording is read first."""
    entries = conversations(60)
    written(tmp_path / "r.jsonl.1", entries[:30], told_of(2))
    path = written(tmp_path / "r.jsonl", entries[30:], None)
    whole = written(tmp_path / "all.jsonl", entries, told_of(2))
    assert planned(path) == planned(whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "/nowhere/r.jsonl"), "/nowhere/r.jsonl: can't be read: No such file"),
        (("plan", __file__), "line 1: it is no recorded request"),
        (("plan", "{bare}", "--policy", "overlp"), "there is no policy 'overlp': did you mean overlap?"),
        (("plan", "{bare}", "--advise", "soon"), "--advise: 'soon' is no target: write ttft_p90=2s"),
        (("plan", "{bare}", "--advise", "ttft_p90=2x"), "--advise: unit 'x' is not one of"),
        (("plan", "{one}"), "no request comes after the first fifth of the time"),
        (("plan", "{bare}", "--profile", "7b"), "'7b' is not one of 8b, 32b, 70b; did you mean"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """And no traceback."""
    bare = written(tmp_path / "bare.jsonl", conversations(5), None)
    one = written(tmp_path / "one.jsonl", conversations(1), None)
    result = run(*(str(each).replace("{bare}", str(bare)).replace("{one}", str(one)) for each in arguments))
    assert result.exit_code != 0 and result.output.count("\n") == 1 and words in result.output


def test_targets() -> None:
    """Durations as everywhere."""
    assert parse_goal(" ttft_p99 <= 500ms ") == Goal("p99", 0.5) and parse_goal("ttft_mean=2") == Goal("mean", 2.0)
    with pytest.raises(ConfigError):
        parse_goal("ttft_p95=2s")
