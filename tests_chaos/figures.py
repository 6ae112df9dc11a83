"""What is counted: by clients, by the gateway, by the gateway's host."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.processes import GatewayProcess, PodProcess, eventually
from tests_chaos.load import CUT, DROPPED, HUNG, LEFT, WHOLE, WRONG, Told
from tests_chaos.troubles import Span

CALM = "none"
OPEN_FILES_SLACK = 4
REST_S = 30.0  # for all to be as before


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the gateway takes from its host, at rest."""

    memory_bytes: int
    open_files: int


def footprint(served: GatewayProcess) -> Footprint:
    proc = Path("/proc", str(served.process.pid))
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return Footprint(int(status["VmRSS"].split()[0]) * 1024, len(list((proc / "fd").iterdir())))


def in_flight(served: GatewayProcess, fleet: Sequence[PodProcess]) -> dict[str, Any]:
    """What is not zero of the load that the gateway believes in, and of that which the pods have."""
    busy: dict[str, Any] = {}
    for name, ranks in served.ranks().items():
        busy |= {f"{name} {what}": n for what in ("requests", "prefill_tokens") if (n := ranks[0]["load"][what])}
    for pod in fleet:
        rank = pod.state()["ranks"][0]
        busy |= {f"{pod.name} itself {what}": rank[what] for what in ("running", "waiting") if rank[what]}
    return busy


async def at_rest(served: GatewayProcess, fleet: Sequence[PodProcess], files: int) -> Footprint:
    """Wait until nothing is in flight and idle connections are gone; what the gateway takes then."""
    busy: dict[str, Any] = {}

    def idle() -> bool:
        busy.clear()
        busy.update(in_flight(served, fleet))
        return not busy

    try:
        await eventually(idle, REST_S)
    except AssertionError:
        raise AssertionError(f"still in flight: {busy}") from None
    try:
        await eventually(lambda: footprint(served).open_files <= files + OPEN_FILES_SLACK, REST_S)
    except AssertionError:
        raise AssertionError(f"{footprint(served).open_files} files are open; at first {files}") from None
    return footprint(served)


def table(told: Sequence[Told], spans: Sequence[Span]) -> dict[str, collections.Counter[str]]:
    """How requests ended, by the trouble that was there: that of the pod that answered, else the one that came last."""
    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for one in told:
        met = [span for span in spans if span.began <= one.ended and span.ended >= one.began]
        met.sort(key=lambda span: (span.pod == one.pod, span.began))
        rows[met[-1].cause if met else CALM][one.end] += 1
    return dict(rows)


def shown(rows: dict[str, collections.Counter[str]]) -> str:
    ends = sorted({end for row in rows.values() for end in row} | {WHOLE, CUT, LEFT, DROPPED, WRONG, HUNG})
    lines = [f"{'trouble':<18} {'sent':>6} " + " ".join(f"{end:>7}" for end in ends)]
    total = sum(rows.values(), collections.Counter[str]())
    for name, row in [*sorted(rows.items()), ("all", total)]:
        lines.append(f"{name:<18} {row.total():>6} " + " ".join(f"{row[end]:>7}" for end in ends))
    return "\n".join(lines)


def counted(served: GatewayProcess, metric: str, label: str) -> collections.Counter[str]:
    """One of the gateway's counters, by one of its labels."""
    counts: collections.Counter[str] = collections.Counter()
    for line in served.get("/metrics").text.splitlines():
        if line.startswith(f"{metric}{{"):
            series, _, value = line.rpartition(" ")
            counts[series.split(f'{label}="')[1].split('"')[0]] += int(float(value))
    return counts


def felt(served: GatewayProcess) -> collections.Counter[str]:
    """What the gateway has met of the troubles: attempts that it gave up, and what was wrong with feeds."""
    met = counted(served, "warmroute_retries_total", "reason")
    for ranks in served.ranks().values():
        met.update(ranks[0]["events"]["counts"])
    return met
