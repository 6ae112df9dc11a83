"""How well requests are placed: a fleet in virtual time, in which the shipped core decides.

    python -m benchmarks.quality --trace FILE.jsonl[.gz] --pods 16 --profile 70b --copies 3 --speed 0.8
    python -m benchmarks.quality --trace AGENTS.jsonl.gz --pods 16 --profile 32b --users 160 --kv-tokens 960000

Traces of requests come when they come (`--copies`, `--speed`); of agents' sessions, users wait for their answers
(`--users`, `--horizon`). `--policy` is one of `scoring.policy`, or `bound`: one cache for all pods, requests in their
order, which no router reaches. The first fifth of the time is not counted. `--json`: one line. All that is
measured of placing, in one table: `python -m benchmarks.quality_table`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

from router.config.reading import parse_policy
from router.config.settings import Config
from router.core.settings import CoreSettings
from router.errors import ConfigError
from router.plan.figures import Figures
from router.plan.gateway import VirtualGateway
from router.plan.profiles import POD_PROFILES, PodPlan
from router.plan.publisher import EventPath
from router.plan.traces import Sessions, read_trace
from router.plan.world import World
from router.service import core_settings
from scorer.board import Board, row_of

BOUND = "bound"


def settings_of(options: argparse.Namespace, pods: PodPlan, size: int) -> tuple[CoreSettings, float]:
    """What the core is set to, and the speed that it assumes at first."""
    blocks = max(65_536, 4 * pods.pods * pods.kv_tokens // size)
    given = {
        "scoring": {"policy": options.policy},
        "admission": {"look_ahead": options.look_ahead, "queue_max": 100_000},
        "index": {"blocks_max": blocks},
    }
    config = Config.model_validate(given)
    return core_settings(config), config.scoring.prefill_tokens_per_second


def world_of(options: argparse.Namespace, pods: PodPlan, size: int) -> World:
    """Gateways before pods."""
    if options.policy == BOUND:
        return World(pods, size, [], options.seed)
    settings, tokens_per_s = settings_of(options, pods, size)
    row = row_of(max(64, pods.pods), 16_384)
    memory = memoryview(bytearray(options.workers * row.itemsize))
    boards = [Board(memory, options.workers, own, row) for own in range(options.workers)]
    gateways = [
        VirtualGateway(settings, pods, size, tokens_per_s, board if options.workers > 1 else None) for board in boards
    ]
    world = World(pods, size, gateways, options.seed)
    if options.event_delay or options.event_loss:
        path = EventPath(options.event_delay, options.event_loss)
        for number, gateway in enumerate(gateways):
            gateway.listen(path, world.at, random.Random(f"{options.seed} {number}"))
    return world


def run(options: argparse.Namespace) -> Figures:
    """What comes of one fleet and one trace."""
    name = Path(options.trace)
    with gzip.open(name, "rt") if name.suffix == ".gz" else name.open() as lines:
        trace = read_trace(lines, options.seed, options.copies, options.speed)
    profile = POD_PROFILES[options.profile]
    pods = PodPlan(options.pods, profile, options.kv_tokens or profile.kv_tokens, options.slow_half)
    world = world_of(options, pods, trace.size)
    if isinstance(trace, Sessions):
        return world.serve(trace, options.users, options.horizon)
    return world.play(trace)


def shown(found: Figures) -> dict[str, Any]:
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in found._asdict().items()}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--trace", required=True)
    made.add_argument("--pods", type=int, default=16)
    made.add_argument("--profile", choices=sorted(POD_PROFILES), default="70b")
    made.add_argument("--copies", type=int, default=1)
    made.add_argument("--speed", type=float, default=1.0)
    made.add_argument("--users", type=int, default=64)
    made.add_argument("--horizon", type=float, default=3600.0, help="seconds")
    made.add_argument("--kv-tokens", type=int, help="of each pod's cache")
    made.add_argument("--policy", default="predicted-ttft")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--workers", type=int, default=1)
    made.add_argument("--event-delay", type=float, default=0.0, help="seconds")
    made.add_argument("--event-loss", type=float, default=0.0, help="share of the frames")
    made.add_argument("--slow-half", type=float, default=1.0, help="factor by which half of the pods is slower")
    made.add_argument("--look-ahead", type=float, default=0.5, help="seconds of prefill that a pod is promised; 0: any")
    made.add_argument("--json", action="store_true")
    return made


def main() -> None:
    options = parser().parse_args()
    try:
        parse_policy(options.policy, BOUND)
    except ConfigError as error:
        sys.exit(error.message)
    found = shown(run(options))
    print(json.dumps(found) if options.json else "  ".join(f"{name} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
