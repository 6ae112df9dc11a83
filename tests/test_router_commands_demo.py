"""The demo, small: real processes, the same work twice, agents in virtual time, and tables of what was measured."""

from __future__ import annotations

import io
import socket
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from router.commands.demo.agents import AgentsShape, agents_scene, sessions_of
from router.commands.demo.processes import MODEL, fleet, forget_all, gateway
from router.commands.demo.run import as_values, free_port, print_table
from router.commands.demo.workload import Measured, WorkloadShape, conversations, play

SMALL = WorkloadShape(
    conversations=6,
    turns=4,
    documents=6,
    document_words=300,
    system_words=60,
    turn_words=20,
    answer_tokens=4,
    start_within_s=0.3,
    think_s=0.05,
)


def test_the_same_seed_is_the_same_work() -> None:
    """Both policies play equal conversations; another seed makes others."""
    assert conversations(SMALL, 1) == conversations(SMALL, 1)
    assert conversations(SMALL, 1) != conversations(SMALL, 2)


def test_where_the_gateway_stays() -> None:
    """At its own usual port, as programs expect, unless somebody listens there."""
    wanted = free_port()
    assert free_port(wanted) == wanted
    with socket.socket() as other:
        other.bind(("127.0.0.1", wanted))
        other.listen()
        assert free_port(wanted) != wanted


def test_quantiles_of_first_tokens() -> None:
    """The p90 of ten requests is the tenth; nothing measured is not a number."""
    measured = Measured(first_tokens_s=[float(n) for n in range(10)])
    assert measured.first_token_s(0.9) == 9.0 and measured.first_token_s(0.0) == 0.0
    assert Measured().first_token_s(0.5) != Measured().first_token_s(0.5)


async def test_cache_aware_beats_round_robin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fleet whose pods can't hold all conversations, cache-aware routing finds more of their tokens cached.

    Its gateway has the settings that it is given, and none of somebody's own.
    """
    monkeypatch.setenv("WARMROUTE_SCORING__POLICY", "nonsense")
    work, measured = conversations(SMALL, 1), {}
    async with fleet(2, ["--num-blocks", "120", "--time-scale", "0.1"]) as pods:
        for title, policy in (("round-robin", "round-robin"), ("cache-aware", "predicted-ttft")):
            environ = {"WARMROUTE_RECORD__PATH": str(tmp_path / policy)}
            async with gateway(pods, policy, free_port(), environ) as address:
                measured[title] = await play(address, MODEL, work, SMALL, lambda so_far: None)
            await forget_all(pods)
    plain, aware = measured["round-robin"], measured["cache-aware"]
    assert {len((tmp_path / policy).read_text().splitlines()) for policy in ("round-robin", "predicted-ttft")} == {24}
    assert plain.requests == aware.requests == 24 and not plain.failures + aware.failures
    assert plain.by_pod == {"pod-0": 12, "pod-1": 12}
    assert aware.hit_ratio > plain.hit_ratio
    assert as_values(aware)["hit_ratio"] == aware.hit_ratio and as_values(plain)["requests_by_pod"] == plain.by_pod
    console = Console(file=io.StringIO(), width=120)
    print_table(console, measured, ["pod-0", "pod-1"])
    assert isinstance(console.file, io.StringIO)
    assert f"{aware.hit_ratio:.1%}" in console.file.getvalue()


def test_a_session_grows() -> None:
    """Every prompt of an agent continues the one before it, block by block; sessions share but their heads."""
    work = sessions_of(AgentsShape(), 1)
    for session in work.sessions:
        for before, after in pairwise(session):
            whole = before.tokens // work.size
            assert after.blocks[:whole] == before.blocks[:whole] and after.tokens > before.tokens + before.answer
            assert len(after.blocks) == -(-after.tokens // work.size)
    of: dict[int, int] = {}
    shared = {
        block
        for number, session in enumerate(work.sessions)
        for block in session[-1].blocks
        if of.setdefault(block, number) != number
    }
    assert shared == work.common
    assert sessions_of(AgentsShape(), 1) == work != sessions_of(AgentsShape(), 2)


@pytest.mark.parametrize("seed", [1, 2])
def test_agents_that_are_held_get_more_done(seed: int) -> None:
    """Where contexts need more than the caches hold, whoever waits for the right pod gets more done."""
    console, seen = Console(file=io.StringIO(), width=120), []
    shape = AgentsShape(horizon_s=600.0)
    measured = agents_scene(console, shape, 2, seed, lambda side, share: seen.append((side, share)))
    plain, held = measured["sent at once"], measured["held"]
    assert held.hit > plain.hit and held.done_per_s > 1.2 * plain.done_per_s and held.p50 < plain.p50
    assert seen[-1] == ("held", 1.0) and all(0.0 <= share <= 1.0 for _, share in seen)
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    assert "24 of them on 2 pods for 10 minutes" in told and f"{held.hit:.1%}" in told
    assert agents_scene(console, shape, 2, seed, lambda side, share: None) == measured
