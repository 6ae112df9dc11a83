"""Runs of the virtual fleet, by what the command line of `benchmarks.quality` says."""

from __future__ import annotations

import argparse
import gzip
import math
import random
from collections.abc import Callable
from pathlib import Path

from router.config.settings import Config, PiecesConfig
from router.core.settings import CoreSettings
from router.plan.figures import Figures
from router.plan.gateway import VirtualGateway
from router.plan.profiles import POD_PROFILES, PodPlan
from router.plan.publisher import EventPath
from router.plan.traces import Sessions, read_trace
from router.plan.world import World
from router.service import core_settings
from scorer.board import Board, row_of

BOUND = "bound"
_PIECES = PiecesConfig()


def settings_of(options: argparse.Namespace, pods: PodPlan, size: int) -> tuple[CoreSettings, float]:
    """What the core is set to, and the speed that it assumes at first."""
    blocks = max(65_536, 4 * pods.pods * pods.kv_tokens // size)
    given = {
        "scoring": {
            "policy": options.policy,
            "pieces": {"enabled": options.pieces > 0, "tokens": options.pieces or _PIECES.tokens},
        },
        "admission": {"look_ahead": options.look_ahead},
        "index": {"blocks_max": blocks},
    }
    config = Config.model_validate(given)
    return core_settings(config), config.scoring.prefill_tokens_per_second


def boards_of(workers: int, pods: int) -> list[Board] | list[None]:
    """By which the workers of one gateway hear of each other's requests; a single one has nobody to hear of."""
    if workers == 1:
        return [None]
    row = row_of(max(64, pods), 16_384)
    memory = memoryview(bytearray(workers * row.itemsize))
    return [Board(memory, workers, own, row) for own in range(workers)]


def world_of(options: argparse.Namespace, pods: PodPlan, size: int) -> World:
    """Gateways before pods."""
    if options.policy == BOUND:
        return World(pods, size, [], options.seed)
    settings, tokens_per_s = settings_of(options, pods, size)
    gateways = [
        VirtualGateway(settings, pods, size, tokens_per_s, board)
        for _ in range(options.replicas)
        for board in boards_of(options.workers, pods.pods)
    ]
    world = World(pods, size, gateways, options.seed)
    if options.event_delay or options.event_loss:
        path = EventPath(options.event_delay, options.event_loss)
        for number, gateway in enumerate(gateways):
            gateway.listen(path, world.at, random.Random(f"{options.seed} {number}"))
    return world


def run(options: argparse.Namespace) -> Figures:
    """What comes of one fleet and one trace. Raises `BadRecording` where the trace is none, or too short."""
    name = Path(options.trace)
    with gzip.open(name, "rt") if name.suffix == ".gz" else name.open() as lines:
        trace = read_trace(lines, options.seed, options.copies, options.speed)
    profile = POD_PROFILES[options.profile]
    pods = PodPlan(options.pods, profile, options.kv_tokens or profile.kv_tokens, options.slow_half)
    world = world_of(options, pods, trace.size)
    if isinstance(trace, Sessions):
        return world.serve(trace, options.users, options.horizon)
    return world.play(trace)


def above(least: float, kind: Callable[[str], float], most: float = math.inf) -> Callable[[str], float]:
    """Reads a number that is no less, and no more."""

    def number(given: str) -> float:
        value = kind(given)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{given} is not from {least:g} to {most:g}")
        return value

    return number


def parser(text: str | None = None) -> argparse.ArgumentParser:
    """`text`: what is said of it all."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--trace", required=True)
    made.add_argument("--pods", type=above(1, int), default=16)
    made.add_argument("--profile", choices=sorted(POD_PROFILES), default="70b")
    made.add_argument("--copies", type=above(1, int), default=1)
    made.add_argument("--speed", type=above(1e-6, float), default=1.0)
    made.add_argument("--users", type=above(1, int), default=64)
    made.add_argument("--horizon", type=above(1, float), default=3600.0, help="seconds")
    made.add_argument("--kv-tokens", type=above(1, int), help="of each pod's cache")
    made.add_argument("--policy", default="predicted-ttft")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--workers", type=above(1, int), default=1)
    made.add_argument("--replicas", type=above(1, int), default=1, help="gateways that hear of each other by events")
    made.add_argument("--event-delay", type=above(0, float), default=0.0, help="seconds")
    made.add_argument("--event-loss", type=above(0, float, 1), default=0.0, help="share of the frames")
    made.add_argument(
        "--slow-half", type=above(1e-6, float), default=1.0, help="factor by which half of them is slower"
    )
    made.add_argument(
        "--look-ahead", type=above(0, float, 60), default=0.5, help="seconds of prefill promised to a pod; 0: any"
    )
    usual = _PIECES.tokens if _PIECES.enabled else 0
    made.add_argument("--pieces", type=above(0, int), default=usual, help="tokens of a long prompt's; 0: whole")
    made.add_argument("--json", action="store_true")
    return made
