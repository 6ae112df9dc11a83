"""The demo, small: real processes, the same work twice, and a table of what was measured."""

from __future__ import annotations

import io
import socket

from rich.console import Console

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


async def test_cache_aware_beats_round_robin() -> None:
    """On a fleet whose pods can't hold all conversations, cache-aware routing finds more of their tokens cached."""
    work, measured = conversations(SMALL, 1), {}
    async with fleet(2, ["--num-blocks", "120", "--time-scale", "0.1"]) as pods:
        for title, policy in (("round-robin", "round-robin"), ("cache-aware", "predicted-ttft")):
            async with gateway(pods, policy, free_port()) as address:
                measured[title] = await play(address, MODEL, work, SMALL, lambda so_far: None)
            await forget_all(pods)
    plain, aware = measured["round-robin"], measured["cache-aware"]
    assert plain.requests == aware.requests == 24 and not plain.failures + aware.failures
    assert plain.by_pod == {"pod-0": 12, "pod-1": 12}
    assert aware.hit_ratio > plain.hit_ratio
    assert as_values(aware)["hit_ratio"] == aware.hit_ratio and as_values(plain)["requests_by_pod"] == plain.by_pod
    console = Console(file=io.StringIO(), width=120)
    print_table(console, measured, ["pod-0", "pod-1"])
    assert isinstance(console.file, io.StringIO)
    assert f"{aware.hit_ratio:.1%}" in console.file.getvalue()
