"""The demo's second scene: agents whose contexts the pods' caches can't hold together, in virtual time.

The shipped core decides before pods of arithmetic: once whatever comes is sent on at once, once it is held here until
its pod can take it. Real sockets would need the agents' twenty minutes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from router.commands.demo.side_by_side import TableRow, side_by_side
from router.commands.plan import world_of
from router.config.settings import Config
from router.plan.figures import Figures
from router.plan.profiles import POD_PROFILES, PodPlan
from router.plan.traces import Sessions, Turn

_PROFILE = POD_PROFILES["32b"]
_SIZE = 256  # tokens a block
_MINUTE_S = 60.0
_SIDES: Mapping[str, Mapping[str, object]] = {"sent at once": {"look_ahead": 0}, "held": {}}
"""`admission` of each."""


@dataclass(slots=True, frozen=True)
class AgentsShape:
    """Sizes of the work: agents, and what a session of theirs is made of. Ranges are evenly drawn from."""

    agents_per_pod: int = 12
    horizon_s: float = 1200.0
    sessions: int = 40
    heads: int = 3  # tool definitions and system prompts: each session begins with one of them
    head_tokens: tuple[int, int] = (8_000, 16_000)
    task_tokens: tuple[int, int] = (500, 4_000)
    turns: tuple[int, int] = (15, 50)
    answer_tokens: tuple[int, int] = (50, 700)
    result_tokens: tuple[int, int] = (300, 4_000)  # what a tool returns, until the next turn
    think_s: tuple[float, float] = (1.0, 12.0)


def agents_scene(
    console: Console, shape: AgentsShape, pods: int, seed: int, watch: Callable[[str, float], None]
) -> dict[str, Figures]:
    """Play both sides, and print them. `watch`: is told the side, and which share of it is over."""
    work = sessions_of(shape, seed)
    plan = PodPlan(pods, _PROFILE, _PROFILE.kv_tokens)
    agents = pods * shape.agents_per_pod
    needed = agents * _context(work) / (pods * plan.kv_tokens)
    console.print(
        f"[bold]Agents[/]: {agents} of them on {pods} pods for {shape.horizon_s / _MINUTE_S:.0f} minutes; their "
        f"contexts need {needed:.1f} times what the caches hold. Virtual pods and time, the gateway's own decisions."
    )
    measured = {}
    for title, admission in _SIDES.items():
        world = world_of(Config.model_validate({"admission": admission}), plan, _SIZE, seed)
        world.watch = lambda now, title=title: watch(title, now / shape.horizon_s)
        measured[title] = world.serve(work, agents, shape.horizon_s)
        watch(title, 1.0)
    console.print(agents_table(measured))
    hold_max = Config().admission.hold_max
    console.print(f"Held: who lost its cache waits, {hold_max:.0f} s at most, so that nobody else loses theirs for it.")
    return measured


def sessions_of(shape: AgentsShape, seed: int) -> Sessions:
    """The same work for the same seed."""
    rng = random.Random(seed)
    count = 0

    def new(tokens: int) -> list[int]:
        nonlocal count
        count += -(-tokens // _SIZE)
        return list(range(count - -(-tokens // _SIZE), count))

    heads = [new(rng.randint(*shape.head_tokens)) for _ in range(shape.heads)]
    sessions = []
    for number in range(shape.sessions):
        blocks = list(rng.choice(heads))
        tokens = len(blocks) * _SIZE + rng.randint(*shape.task_tokens)
        turns = []
        for _ in range(rng.randint(*shape.turns)):
            blocks = blocks + new(tokens - len(blocks) * _SIZE)
            answer = rng.randint(*shape.answer_tokens)
            turns.append(Turn(tokens, answer, blocks, number, rng.uniform(*shape.think_s)))
            tokens += answer + rng.randint(*shape.result_tokens)
        sessions.append(turns)
    return Sessions(_SIZE, sessions, frozenset(block for head in heads for block in head))


def agents_table(measured: Mapping[str, Figures]) -> Table:
    """Both sides."""
    rows: list[TableRow[Figures]] = [
        TableRow("prompt tokens cached", "{:.1%}", lambda found: found.hit),
        TableRow("turns a minute", "{:,.1f}", lambda found: found.done_per_s * _MINUTE_S),
        TableRow("TTFT p50, s", "{:,.1f}", lambda found: found.p50),
        TableRow("TTFT p90, s", "{:,.1f}", lambda found: found.p90),
        TableRow("TTFT mean, s", "{:,.1f}", lambda found: found.mean),
        TableRow("TTFT p99, s", "{:,.1f}", lambda found: found.p99),
    ]
    return side_by_side("Agents, with and without waiting for the right pod", measured, rows)


def _context(work: Sessions) -> float:
    """Tokens of a prompt, on the average."""
    lengths = [turn.tokens for session in work.sessions for turn in session]
    return sum(lengths) / len(lengths)
