"""The bench before real pods: both sides measured, every figure with its ratio, the files written."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest

from router.commands.bench.work import works_of
from tests.fakes.command import run
from tests.fakes.processes import MODEL, PodProcess, pods

TRACE = "\n".join(
    json.dumps({"timestamp": 40 * n, "input_length": 60 + n, "output_length": 3, "hash_ids": [0, 1, 2 + n % 3]})
    for n in range(8)
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[PodProcess]]:
    """Two pods, ten times as fast as real ones."""
    options = ("--time-scale", "0.1")
    with pods(PodProcess("pod-0", options=options), PodProcess("pod-1", options=options)) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def reported(fleet: list[PodProcess], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], str, str]:
    """A trace replayed on one pod against both: the JSON, the HTML and what was printed."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "trace.jsonl").write_text(TRACE)
    files = ("--json", folder / "r.json", "--html", folder / "r.html")
    asked = ("--url", f"{fleet[0].address}/v1", "--against", fleet[0].address, "--against", fleet[1].address)
    result = run("bench", "replay", folder / "trace.jsonl", "--seconds", "0.3", *asked, *files)
    assert result.exit_code == 0, result.output
    return json.loads((folder / "r.json").read_text()), (folder / "r.html").read_text(), result.output


def test_figures_are_ratios_of_both_sides(reported: tuple[dict[str, object], str, str]) -> None:
    """Both sides did the same work; each figure has both values, and what the second is of the first."""
    told, _, printed = reported
    (work,) = told["works"]  # type: ignore[misc]
    figures = {figure["name"]: figure for figure in work["figures"]}
    assert figures["requests"]["values"] == [8, 8] and figures["failed"]["values"] == [0, 0]
    assert [sum(by.values()) for by in work["requests_by_pod"]] == [8, 8]
    assert [len(by) for by in work["requests_by_pod"]] == [2, 1]
    first, second = figures["prompt tokens cached"]["values"]
    assert 0 < first < second  # one pod holds all after each prompt's first time; two must both see it
    for name in ("TTFT p50", "TTFT p90", "requests a second", "prompt tokens computed"):
        first, second = figures[name]["values"]
        assert figures[name]["ratio"] == pytest.approx(second / first) and name in printed
    assert f"{figures['TTFT p90']['ratio']:.2f}x" in printed


def test_the_page_stands_alone(reported: tuple[dict[str, object], str, str]) -> None:
    """Nothing is loaded from anywhere, there are no scripts, and each plot is well-formed."""
    _, page, _ = reported
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 2 and all(len(ET.fromstring(plot)) > 4 for plot in plots)
    assert not re.search(r"<script|<link|src=|url\(|@import", page)
    assert "TTFT p90" in page and MODEL not in page.split("<h2>")[0]


def test_against_itself(fleet: list[PodProcess]) -> None:
    """One endpoint alone: the same work with nothing that could be reused is what it is measured by."""
    result = run("bench", "single", "--url", fleet[0].address)
    assert result.exit_code == 0, result.output
    (cached,) = [line for line in result.output.splitlines() if "prompt tokens cached" in line]
    shares = [float(share) for share in re.findall(r"([\d.]+) %", cached)]
    assert shares[0] < 5 and 45 < shares[1] < 55


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sinlge",), "did you mean single?"),
        (("replay",), "replay needs the file of a trace"),
        (("cache", "x.jsonl"), "cache takes no file"),
        (("replay", "/nowhere.jsonl"), "/nowhere.jsonl: can't be read"),
        (("replay", __file__), "is no trace of requests"),
        (("single", "--against", "http://127.0.0.1:1"), "go with --url"),
        (("single", "--url", "http://127.0.0.1:1"), "can't be asked"),
        (("replay", __file__, "--seconds", "-1"), "--seconds"),
        (("single", "--url", "http://127.0.0.1:1", "--model", MODEL), "can't be asked"),
        (("single", "--json", "/nowhere/x.json"), "/nowhere/x.json: No such file"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    """Before anything is started or measured."""
    result = run("bench", *arguments)
    assert result.exit_code in (1, 2) and words in result.stderr and len(result.stderr.splitlines()) == 1, result.output


def test_failures_are_told() -> None:
    """Which requests were not answered, and why, is said on both sides; exit code 1."""
    with pods(PodProcess("pod-0", options=("--max-model-len", "64"))) as (short,):
        result = run("bench", "single", "--url", short.address, "--model", MODEL)
    assert result.exit_code == 1
    assert re.search(r"as it is: \d+ failed: 400: This model", result.output)


def test_a_model_that_nobody_serves_is_not_measured(fleet: list[PodProcess]) -> None:
    """One line, with those that are."""
    result = run("bench", "full", "--url", fleet[0].address, "--model", "unheard")
    assert result.exit_code == 1
    assert result.stderr == f"warmroute: The model unheard is not served there, but {MODEL}.\n"


def test_the_same_seed_is_the_same_work() -> None:
    """`full` is all modes; another seed is other work."""
    modes = [work for mode in ("single", "batch", "concurrent", "cache") for work in works_of(mode, 1)]
    assert works_of("full", 1) == modes and [work.name for work in modes] == [
        "single", "batch", "concurrent 1", "concurrent 4", "concurrent 16", "cache",
    ]  # fmt: skip
    assert works_of("batch", 2) != works_of("batch", 1)
