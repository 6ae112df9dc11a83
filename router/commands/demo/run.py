"""The demo's course: the same work under round-robin and cache-aware routing, then agents; tables of both sides."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from router.commands.demo.agents import AgentsShape, agents_scene
from router.commands.demo.processes import MODEL, POD, SimulatedPod, fleet, forget_all, gateway
from router.commands.demo.side_by_side import TableRow, side_by_side
from router.commands.demo.workload import Conversation, Measured, WorkloadShape, conversations, play
from router.errors import RouterError
from router.plan.figures import Figures
from router.server.listening import must_be_free

_USUAL_PORT = 8080  # the gateway's own default: where programs look for it
_POLICIES = (("round-robin", "round-robin"), ("cache-aware", "predicted-ttft"))


def run_demo(pods: int, keep: bool, port: int | None, seed: int, as_json: bool) -> None:
    """Run it and print the tables, or JSON; with `keep`, go on serving until interrupted. Raises a `RouterError`, also
    where requests failed."""
    if keep and port:
        must_be_free("127.0.0.1", port)
    measured, agents = asyncio.run(_demo(Console(stderr=as_json), pods, keep, port, seed))
    if as_json:
        told: dict[str, object] = {title: as_values(each) for title, each in measured.items()}
        told["agents"] = {title: each._asdict() for title, each in agents.items()}
        click.echo(orjson.dumps(told))
    if failed := sum(each.failures for each in measured.values()):
        raise RouterError(f"{failed} requests failed.")


async def _demo(
    console: Console, count: int, keep: bool, port: int | None, seed: int
) -> tuple[dict[str, Measured], dict[str, Figures]]:
    shape = WorkloadShape()
    work = conversations(shape, seed)
    port = (port or free_port(0 if port == 0 else _USUAL_PORT)) if keep else free_port()
    if keep:
        console.print(f"The page, while it lasts: http://127.0.0.1:{port}/ui", highlight=False)
    console.print(
        f"[bold]warmroute demo[/]: {count} simulated vLLM pods, {shape.conversations} conversations of {shape.turns} "
        f"turns over {shape.documents} documents and {shape.systems} system prompts; no GPU, real sockets."
    )
    measured: dict[str, Measured] = {}
    agents: dict[str, Figures] = {}
    async with fleet(count, [*POD]) as pods:
        for title, policy in _POLICIES:
            last = title == _POLICIES[-1][0]
            async with gateway(pods, policy, port) as address:
                measured[title] = await _measure(console, title, address, work, shape)
                if last:
                    print_table(console, measured, [pod.name for pod in pods])
                    agents = _agents(console, count, seed)
                    if keep:
                        await _stay(console, address, pods)
            if not last:
                await forget_all(pods)
    return measured, agents


def as_values(measured: Measured) -> dict[str, object]:
    """What the clients of one policy saw, for JSON; times in seconds."""
    return {
        "requests": measured.requests,
        "failures": measured.failures,
        "prompt_tokens": measured.prompt_tokens,
        "cached_tokens": measured.cached_tokens,
        "hit_ratio": measured.hit_ratio,
        "ttft_p50_s": measured.first_token_s(0.5),
        "ttft_p90_s": measured.first_token_s(0.9),
        "predicted_exactly": measured.exact,
        "requests_by_pod": dict(measured.by_pod),
        "seconds": measured.seconds,
    }


async def _measure(
    console: Console, title: str, address: str, work: list[Conversation], shape: WorkloadShape
) -> Measured:
    total = shape.conversations * shape.turns
    columns = (
        TextColumn(f"{title:12}"), BarColumn(), TextColumn("{task.completed}/{task.total} requests"),
        TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, figures="")
        result = await play(address, MODEL, work, shape, _reporter(progress, task))
    if not console.is_terminal:
        console.print(f"{title}: {result.requests} requests in {result.seconds:.1f} s")
    return result


def _agents(console: Console, pods: int, seed: int) -> dict[str, Figures]:
    columns = (TextColumn("{task.description:12}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0)
        return agents_scene(
            console,
            AgentsShape(),
            pods,
            seed,
            lambda side, share: progress.update(task, description=side, completed=share),
        )


def _reporter(progress: Progress, task: TaskID) -> Callable[[Measured], None]:
    def report(so_far: Measured) -> None:
        figures = f"{so_far.hit_ratio:6.1%} of prompt tokens cached, TTFT p90 {so_far.first_token_s(0.9) * 1e3:4.0f} ms"
        progress.update(task, completed=so_far.requests, figures=figures)

    return report


def print_table(console: Console, measured: dict[str, Measured], pods: list[str]) -> None:
    """What was measured under each policy, side by side, with their ratio."""
    rows: list[TableRow[Measured]] = [
        TableRow("prompt tokens cached", "{:.1%}", lambda m: m.hit_ratio),
        TableRow("prompt tokens computed", "{:,.0f}", lambda m: m.prompt_tokens - m.cached_tokens),
        TableRow("TTFT p50, ms", "{:,.0f}", lambda m: m.first_token_s(0.5) * 1e3),
        TableRow("TTFT p90, ms", "{:,.0f}", lambda m: m.first_token_s(0.9) * 1e3),
        TableRow("requests", "{:,.0f}", lambda m: m.requests, ratio=False),
        TableRow("failed", "{:,.0f}", lambda m: m.failures, ratio=False),
        TableRow("cached tokens predicted exactly", "{:.1%}", lambda m: m.exact / max(1, m.requests), ratio=False),
        *(TableRow(f"requests on {pod}", "{:,.0f}", partial(_requests_on, pod), ratio=False) for pod in pods),
    ]
    console.print(side_by_side("The same work, measured", measured, rows))


def _requests_on(pod: str, measured: Measured) -> int:
    return measured.by_pod[pod]


async def _stay(console: Console, address: str, pods: list[SimulatedPod]) -> None:
    console.print(f"\nThe gateway stays at {address} until Ctrl-C. Try:", soft_wrap=True)
    console.print(f"  curl {address}/v1/models", highlight=False)
    console.print(f"  warmroute score --url {address} --prompt 'Once upon a time'", highlight=False)
    console.print(f"  curl {address}/metrics", highlight=False)
    console.print(f"  WARMROUTE_URL={address} python examples/basic_chat.py", highlight=False)
    for pod in pods:
        console.print(f"  {pod.name}: {pod.address}, events {pod.events}", highlight=False)
    await asyncio.Event().wait()


def free_port(wanted: int = 0) -> int:
    """A port on loopback that nobody listens on now: the one that is wanted, if it can be."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway's own: what has ended is no bar
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            if not wanted:
                raise
            return free_port()
        port: int = probe.getsockname()[1]
        return port
