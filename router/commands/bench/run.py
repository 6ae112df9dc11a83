"""The bench's course: which two sides there are, each work on one after the other, then the report."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from router.commands.bench.figures import first_tokens_ms, percentile
from router.commands.bench.measuring import BenchSide, Seen, play_work
from router.commands.bench.page import html_of
from router.commands.bench.replay import ReplaySize, replayed
from router.commands.bench.report import Compared, Report, print_tables
from router.commands.bench.work import Work, works_of
from router.commands.demo.processes import MODEL, POD, fleet, forget_all, gateway
from router.commands.demo.run import free_port
from router.commands.score import base_of, check_model, only_model, unasked

_EMBEDDED_TOKENS_MAX = 6000  # of a replayed prompt: a simulated pod holds some 20,000
_ASK_S = 30.0
_NOTICED_S = 10.0  # for a gateway to see that its pods were started anew


@dataclass(slots=True, frozen=True)
class BenchOptions:
    """What the command line said. `url`: None is the embedded fleet of so many `pods`."""

    mode: str
    file: str | None
    url: str | None
    against: Sequence[str]
    model: str | None
    key: str | None
    pods: int
    seed: int
    requests: int
    seconds: float
    json_file: str | None
    html_file: str | None


@dataclass(slots=True, frozen=True)
class _Sides:
    """Both, how they came to be, and what makes them begin anew."""

    both: tuple[BenchSide, BenchSide]
    how: str
    forget: Callable[[], Awaitable[None]]


def run_bench(options: BenchOptions) -> int:
    """Measure, print, and write the files; returns how many requests failed. Raises a `RouterError` or click's."""
    works = _works(options)
    for path in (options.json_file, options.html_file):
        if path is not None:
            Path(path).open("a").close()  # what can't be written is found out before all is measured
    console = Console()
    report = asyncio.run(_bench(console, options, works))
    print_tables(console, report)
    if options.json_file is not None:
        Path(options.json_file).write_bytes(orjson.dumps(report.values(), option=orjson.OPT_INDENT_2) + b"\n")
    if options.html_file is not None:
        Path(options.html_file).write_text(html_of(report), encoding="utf-8")
    return report.failures


def _works(options: BenchOptions) -> list[Work]:
    if options.mode != "replay":
        if options.file is not None:
            raise click.UsageError(f"{options.mode} takes no file: replay FILE does")
        return works_of(options.mode, options.seed)
    if options.file is None:
        raise click.UsageError("replay needs the file of a trace: warmroute bench replay FILE")
    longest = _EMBEDDED_TOKENS_MAX if options.url is None else None
    return [replayed(options.file, ReplaySize(options.requests, options.seconds, longest), options.seed)]


async def _bench(console: Console, options: BenchOptions, works: Sequence[Work]) -> Report:
    began = time.time()
    async with _embedded(options) if options.url is None else _outside(options) as sides:
        console.print(f"[bold]warmroute bench {options.mode}[/]: {sides.how}")
        compared = []
        for work in works:
            seen = []
            for side in sides.both:
                await sides.forget()
                seen.append(await _measured(console, work, side))
            compared.append(Compared(work, (seen[0], seen[1])))
        return Report(options.mode, sides.how, began, sides.both, compared)


async def _measured(console: Console, work: Work, side: BenchSide) -> Seen:
    columns = (
        TextColumn(f"{work.name:14} {side.title:16}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(work.name, total=work.requests, figures="")

        def tell(seen: Seen) -> None:
            p90 = percentile(first_tokens_ms(seen), 0.9)
            figures = "" if p90 is None else f"TTFT p90 {p90:4.0f} ms"
            failed = f", {seen.failures.total()} failed" if seen.failures else ""
            progress.update(task, completed=seen.done, figures=figures + failed)

        seen = await play_work(work, side, tell if console.is_terminal else lambda seen: None)
    if not console.is_terminal:
        console.print(f"{work.name}, {side.title}: {len(seen.answers)} requests in {seen.seconds:.1f} s")
    return seen


@contextlib.asynccontextmanager
async def _embedded(options: BenchOptions) -> AsyncIterator[_Sides]:
    """Simulated pods: asked in turn by the clients themselves, and through a gateway."""
    if options.against or options.key is not None or options.model is not None:
        raise click.UsageError("--against, --key and --model go with --url")
    async with fleet(options.pods, [*POD]) as pods, gateway(pods, "predicted-ttft", free_port()) as address:
        direct = BenchSide("pods in turn", [pod.address for pod in pods], MODEL, pods=len(pods))
        how = f"{options.pods} simulated pods, asked in turn and through the gateway; no GPU, real sockets."

        async def forget() -> None:
            await forget_all(pods)
            await _noticed(address)

        yield _Sides((direct, BenchSide("warmroute", [address], MODEL, pods=len(pods))), how, forget)


async def _noticed(address: str) -> None:
    """Wait until the gateway knows that its pods hold nothing, though not for ever."""
    end = time.monotonic() + _NOTICED_S
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        while time.monotonic() < end:
            told = (await client.get("/pods")).json()["pods"]
            if not any(sum(rank["blocks"].values()) for pod in told for rank in pod["ranks"]):
                return
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _outside(options: BenchOptions) -> AsyncIterator[_Sides]:
    """An endpoint against others in turn, else against itself with nothing that could be reused."""
    assert options.url is not None
    url = base_of(options.url)
    model = await asyncio.to_thread(_model_of, url, options)
    own = BenchSide("as it is", [url], model, options.key)
    if options.against:
        others = [base_of(other) for other in options.against]
        first, how = (
            BenchSide("against", others, model, options.key, pods=len(others)),
            f"{url} against {', '.join(others)} in turn.",
        )
    else:
        first = BenchSide("nothing shared", [url], model, options.key, unshared=True)
        how = f"{url}, against itself with prompts that have nothing in common."
    yield _Sides((first, own), how, _nothing)


def _model_of(url: str, options: BenchOptions) -> str:
    headers = {} if options.key is None else {"authorization": f"Bearer {options.key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_ASK_S) as client:
            return only_model(client) if options.model is None else check_model(client, options.model)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unasked(url, error) from error


async def _nothing() -> None:
    """Nothing is forgotten where the pods are not ours: each run's prompts begin in another way."""
