"""`warmroute plan`: recorded requests again, before other pods or under another policy, in virtual time."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from router.config.reading import parse_policy
from router.config.settings import Config
from router.config.values import duration
from router.errors import BadRecording, ConfigError
from router.plan.figures import Figures
from router.plan.gateway import VirtualGateway
from router.plan.profiles import POD_PROFILES, PodPlan, PodProfile
from router.plan.recording import Recording, coarser, read_recording
from router.plan.replay import as_recorded, factors_of, profile_of, rerun_of
from router.plan.world import World
from router.service import core_settings

_BLOCKS_MAX = 512  # of a prompt, on the average: more say little, and take long
_PODS_MAX = 512  # that are tried
_SLO_TOKEN_S = 1 / 4000
_SEED = 1
_USUAL = "8b"  # what is not learned of pods is as there
_USUAL_PODS = 4  # as the demo has
_TARGET = re.compile(r"ttft_(mean|p50|p90|p99)\s*(?:=|<=)\s*(\S+)")


class Goal(NamedTuple):
    """A time to the first token that should not be exceeded: `mean`, `p50`, `p90` or `p99`, in seconds."""

    figure: str
    at_most_s: float


class WhatIf(NamedTuple):
    """What would be. None: as it was recorded."""

    pods: int | None = None
    policy: str | None = None
    kv_scale: float = 1.0
    profile: str | None = None
    target: Goal | None = None
    waits: bool | None = None


Watch = Callable[[str, float], None]
"""(what is played, share of it that is over)."""


class Planner:
    """One recording, asked again and again. `pods` (0: not told), `policy`: as they were then."""

    def __init__(self, recording: Recording, question: WhatIf, watch: Watch) -> None:
        """What is neither told nor given is `assumed`, in words."""
        self._recording = recording = coarser(recording, _BLOCKS_MAX)
        self._watch = watch
        fleet = recording.fleet
        told = profile_of(recording, POD_PROFILES[_USUAL])
        given = POD_PROFILES[question.profile] if question.profile is not None else None
        self.assumed = [] if told or given else [f"pods of speed and size {_USUAL} (--profile)"]
        self.profile: PodProfile = given or told or POD_PROFILES[_USUAL]
        self.factors = factors_of(fleet) if given is None else ()
        self.pods = len(fleet.pods) if fleet is not None else len({each.pod for each in recording.entries} - {None})
        self.policy = fleet.policy if fleet is not None else "predicted-ttft"
        self.replay = rerun_of(recording, question.waits)

    def calibrated(self) -> tuple[Figures | None, Figures | None]:
        """What was measured, and what comes of the same in virtual time; from then on requests take as much longer on
        their way as half of them did."""
        measured = as_recorded(self._recording, _SLO_TOKEN_S)
        if measured is None or not self.pods:
            return measured, None
        again = self.ask(self.pods, self.policy, self.profile.kv_tokens)
        lacking_s = measured.p50 - again.p50
        if lacking_s > 0.05 * measured.p50 or (lacking_s < 0 and self.profile.front_s > 0):
            self.profile = self.profile._replace(front_s=max(0.0, self.profile.front_s + lacking_s))
            again = self.ask(self.pods, self.policy, self.profile.kv_tokens)
        return measured, again

    def ask(self, pods: int, policy: str, kv_tokens: int) -> Figures:
        """So many pods of so many tokens each, under a policy."""
        plan = PodPlan(pods, self.profile, kv_tokens, factors=self.factors)
        size = self._recording.size
        blocks = max(65_536, 4 * pods * kv_tokens // size)
        given = {
            "scoring": {"policy": policy},
            "index": {"blocks_max": blocks, "pods_max": max(512, pods)},
        }
        config = Config.model_validate(given)
        world = world_of(config, plan, size, _SEED)
        length_s, title = self.replay.length_s, f"{pods} pod{'s' if pods > 1 else ''}, {policy}"
        world.watch = lambda now: self._watch(title, min(1.0, now / length_s))
        found = world.replay(self.replay)
        self._watch(title, 1.0)
        return found

    def advise(self, target: Goal, policy: str, kv_tokens: int) -> tuple[int | None, dict[int, Figures]]:
        """The fewest pods that meet the target, None if there are none, and all that was tried."""
        tried: dict[int, Figures] = {}

        def meets(pods: int) -> bool:
            if pods not in tried:
                tried[pods] = self.ask(pods, policy, kv_tokens)
            return bool(getattr(tried[pods], target.figure) <= target.at_most_s)

        enough = max(1, self.pods)
        while not meets(enough):
            if enough >= _PODS_MAX:
                return None, tried
            enough = min(_PODS_MAX, 2 * enough)
        short = max([pods for pods in tried if pods < enough], default=0)
        while enough - short > 1:
            middle = (enough + short) // 2
            short, enough = (short, middle) if meets(middle) else (middle, enough)
        return enough, tried


def world_of(config: Config, pods: PodPlan, size: int, seed: int) -> World:
    """Virtual pods behind one gateway of this configuration. `size`: tokens a block."""
    speed = config.scoring.prefill_tokens_per_second
    return World(pods, size, [VirtualGateway(core_settings(config), pods, size, speed)], seed)


def plan(path: str, question: WhatIf, as_json: bool) -> None:
    """Answer it, as a table or as JSON. Raises `BadRecording` or `ConfigError`."""
    if question.policy is not None:
        parse_policy(question.policy)
    recording = read_recording_at(path)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=1.0)

        def watch(what: str, share: float) -> None:
            progress.update(task, description=what, completed=share)

        try:
            told = answer(Planner(recording, question, watch), question)
        except BadRecording as error:
            raise BadRecording(f"{path}: {error.message}") from None
    if as_json:
        click.echo(orjson.dumps(told).decode())
    else:
        _print(Console(), told)


def answer(planner: Planner, question: WhatIf) -> dict[str, Any]:
    """All that is asked: the figures of what would be; what was `recorded`, and what comes of the same `replayed`."""
    measured, again = planner.calibrated()
    policy = question.policy or planner.policy
    kv_tokens = max(1, round(planner.profile.kv_tokens * question.kv_scale))
    advice: dict[str, Any] = {}
    pods = question.pods or planner.pods
    if question.target is not None:
        enough, tried = planner.advise(question.target, policy, kv_tokens)
        named = f"ttft_{question.target.figure}={question.target.at_most_s:g}s"
        each = {str(count): _shown(figures) for count, figures in sorted(tried.items())}
        advice = {"advice": {"target": named, "pods": enough, "tried": each}}
        pods = question.pods or enough or max(tried)
    if not pods:
        pods = _USUAL_PODS
        planner.assumed.append(f"{pods} pods (--pods)")
    found = planner.ask(pods, policy, kv_tokens)
    return {
        **(_shown(found) or {}),
        "pods": pods,
        "policy": policy,
        "kv_tokens": kv_tokens,
        "waits": planner.replay.waits,
        "assumed": planner.assumed,
        "recorded": _shown(measured),
        "replayed": _shown(again),
        **advice,
    }


def read_recording_at(path: str) -> Recording:
    """A file, maybe compressed, with what is older beside it. Raises `BadRecording`."""
    try:
        return read_recording(_lines(path))
    except BadRecording as error:
        raise BadRecording(f"{path}: {error.message}") from None
    except (OSError, EOFError) as error:
        raise BadRecording(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None


def parse_goal(text: str) -> Goal:
    """`ttft_p90=2s`; raises `ConfigError`."""
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--advise: {text[:50]!r} is no target: write ttft_p90=2s (or mean, p50, p99)")
    try:
        seconds = float(duration(match[2]))  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"--advise: {error}") from None
    return Goal(match[1], seconds)


def _lines(path: str) -> Iterator[bytes]:
    older = Path(f"{path}.1")
    for name in ([older] if older.is_file() else []) + [Path(path)]:
        with gzip.open(name) if name.suffix == ".gz" else name.open("rb") as file:
            yield from file


def _shown(found: Figures | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in found._asdict().items()}


def _print(console: Console, told: dict[str, Any]) -> None:
    pods = f"{told['pods']} pod{'s' if told['pods'] > 1 else ''}"
    console.print(f"{pods} with {told['kv_tokens']:,} tokens of cache each, {told['policy']}:", highlight=False)
    if told["assumed"]:
        console.print(
            f"(It does not tell: {' and '.join(told['assumed'])} are assumed.)", highlight=False, soft_wrap=True
        )
    table = Table()
    columns = {"": told, "recorded": told["recorded"], "the same, replayed": told["replayed"]}
    table.add_column("")
    for title, figures in columns.items():
        if figures is not None:
            table.add_column(title or "would be", justify="right")
    rows = [
        ("prompt tokens cached", "hit", "{:.1%}"),
        *((f"TTFT {key}, s", key, "{:.3f}") for key in ("mean", "p50", "p90", "p99")),
        ("answers a second", "done_per_s", "{:.2f}"),
        ("requests", "requests", "{:,}"),
    ]
    for name, key, form in rows:
        table.add_row(name, *(form.format(figures[key]) for figures in columns.values() if figures is not None))
    console.print(table)
    advice = told.get("advice")
    if advice is not None and advice["pods"] is None:
        console.print(f"{advice['target']} is not met by {max(map(int, advice['tried']))} pods.")
    elif advice is not None:
        console.print(f"{advice['target']} is met from {advice['pods']} on.")
