"""What is measured of placing requests, in one table: figures beside those of a bound that no router reaches.

    python -m benchmarks.quality --table FOLDER [--seeds 1 2 3] [--only Q2 Q3 …] [--policy predicted-ttft]

`FOLDER` has the traces. Q1: the greatest rate with 90% of the requests in time, against the bound's. Q2: p90 of the
time to the first token at 85% and 70% of what a fleet can do. Q3 to Q5: agents whose work fits the caches, hardly fits,
does not fit: turns a second, mean time, p99. Q6: four workers against one. Q7: events two seconds late and one of a
hundred lost, against at once. Q8: half of the pods two times slower, at as much less work. Q9: mean times against the
best of all policies.
"""

from __future__ import annotations

import argparse
import statistics
import typing
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from benchmarks.quality_runs import BOUND, parser, run
from router.plan.figures import Figures
from scorer.policies import PolicyName

CONVERSATION, TOOL, ZIPF, AGENTS = (
    "mooncake/conversation_0-1768s.jsonl.gz", "tool_bs512.jsonl.gz", "zipf_bs64.jsonl.gz", "agentic/coding_a.jsonl.gz",
)  # fmt: skip
OPEN = {
    "conversation, 16 pods": (CONVERSATION, ("--pods", "16", "--copies", "3"), 0.80),
    "tool calls, 16 pods": (TOOL, ("--pods", "16", "--copies", "2"), 1.08565),
    "zipf, 4 pods": (ZIPF, ("--pods", "4", "--copies", "2"), 1.19036),
}
"""Trace, fleet, and the speed at which it has 85% of what it can do."""
_AGENTS = ("--profile", "32b", "--kv-tokens", "960000")
USERS = {
    "Q3": {"16 pods, 160 users": ("--pods", "16", "--users", "160")},
    "Q4": {"16 pods, 224 users": ("--pods", "16", "--users", "224")},
    "Q5": {
        "16 pods, 256 users": ("--pods", "16", "--users", "256"),
        "4 pods, 64 users": ("--pods", "4", "--users", "64"),
    },
}
IN_TIME = 0.9
_SLOW_HALF = 0.75  # of what a fleet can do, where half of its pods are two times slower
_LOWER, _UPPER, _HALVINGS = 0.3, 2.0, 6  # of the speeds among which Q1 looks


@cache
def figures(folder: str, trace: str, given: tuple[str, ...], policy: str, seed: int) -> Figures:
    """One run; each is made once."""
    path = str(Path(folder) / trace)
    return run(parser().parse_args(["--trace", path, "--policy", policy, "--seed", str(seed), *given]))


class Table:
    """All rows, for some seeds."""

    def __init__(self, folder: str, policy: str, seeds: Sequence[int]) -> None:
        self._folder = folder
        self._policy = policy
        self._seeds = seeds

    def rows(self) -> dict[str, Callable[[], None]]:
        """What prints each of them."""
        return {
            "Q1": self.capacity,
            "Q2": self.tail,
            **{name: lambda name=name: self.agents(name) for name in USERS},  # type: ignore[misc]
            "Q6": lambda: self.beside("Q6", ("--workers", "4"), self._policy, ()),
            "Q7": lambda: self.beside("Q7", ("--event-delay", "2", "--event-loss", "0.01"), self._policy, ()),
            "Q8": lambda: self.beside("Q8", ("--slow-half", "2"), BOUND, ("--slow-half", "2"), _SLOW_HALF),
            "Q9": self.best,
        }

    def capacity(self) -> None:
        ratios = []
        for name, (trace, fleet, speed) in OPEN.items():
            for seed in self._seeds:
                ours, bound = (self._capacity(trace, fleet, speed, each, seed) for each in (self._policy, BOUND))
                ratios.append(ours / bound)
            say("Q1", name, ours=ours, bound=bound, ratio=ratios[-1])
        say("Q1", "all", mean=statistics.geometric_mean(ratios), worst=min(ratios))

    def tail(self) -> None:
        ratios = []
        for share in (1.0, 70 / 85):
            for name, (trace, fleet, speed) in OPEN.items():
                given = (*fleet, "--speed", str(speed * share))
                ours, bound = self._pair(trace, given, given, BOUND)
                each = [a.p90 / b.p90 for a, b in zip(ours, bound, strict=True)]
                ratios += each
                say("Q2", f"{name}, {85 * share:.0f}%", **means(ours), ratio=statistics.geometric_mean(each))
        say("Q2", "all", ratio=statistics.geometric_mean(ratios))

    def agents(self, name: str) -> None:
        for title, fleet in USERS[name].items():
            given = (*_AGENTS, *fleet)
            ours, bound = self._pair(AGENTS, given, given, BOUND)
            turns = [a.done_per_s / b.done_per_s for a, b in zip(ours, bound, strict=True)]
            waits = [a.mean / b.mean for a, b in zip(ours, bound, strict=True)]
            ratio = {"turns": statistics.geometric_mean(turns), "wait": statistics.geometric_mean(waits)}
            say(name, title, **means(ours), **ratio, worst_p99=max(each.p99 for each in ours))

    def beside(
        self, name: str, given: tuple[str, ...], other: str, others: tuple[str, ...], share: float = 1.0
    ) -> None:
        """p90 with `given` against the policy `other` with `others`, at this share of the usual rate."""
        ratios = []
        for title, (trace, fleet, speed) in OPEN.items():
            rate = (*fleet, "--speed", str(speed * share))
            ours, theirs = self._pair(trace, (*rate, *given), (*rate, *others), other)
            ratios += [a.p90 / b.p90 for a, b in zip(ours, theirs, strict=True)]
            say(name, title, **means(ours), ratio=statistics.geometric_mean(ratios[-len(self._seeds) :]))
        say(name, "all", ratio=statistics.geometric_mean(ratios))

    def best(self) -> None:
        cells: dict[str, tuple[str, tuple[str, ...]]]
        cells = {name: (trace, (*fleet, "--speed", str(speed))) for name, (trace, fleet, speed) in OPEN.items()}
        for users in USERS.values():
            cells |= {name: (AGENTS, (*_AGENTS, *fleet)) for name, fleet in users.items()}
        for name, (trace, given) in cells.items():
            found = {
                policy: statistics.fmean(self._run(trace, given, policy, seed).mean for seed in self._seeds)
                for policy in typing.get_args(PolicyName)
            }
            first = min(found, key=lambda policy: found[policy])
            say("Q9", f"{name}, best: {first}", ratio=found[self._policy] / found[first])

    def _pair(
        self, trace: str, given: tuple[str, ...], others: tuple[str, ...], other: str
    ) -> tuple[list[Figures], list[Figures]]:
        ours = [self._run(trace, given, self._policy, seed) for seed in self._seeds]
        return ours, [self._run(trace, others, other, seed) for seed in self._seeds]

    def _run(self, trace: str, given: tuple[str, ...], policy: str, seed: int) -> Figures:
        return figures(self._folder, trace, given, policy, seed)

    def _capacity(self, trace: str, fleet: tuple[str, ...], speed: float, policy: str, seed: int) -> float:
        lower, upper = speed * _LOWER, speed * _UPPER
        for _ in range(_HALVINGS):
            middle = (lower + upper) / 2
            found = self._run(trace, (*fleet, "--speed", f"{middle:.5f}"), policy, seed)
            lower, upper = (middle, upper) if found.in_slo >= IN_TIME else (lower, middle)
        return lower


def means(found: Sequence[Figures]) -> dict[str, float]:
    """Over seeds."""
    names = ("hit", "mean", "p90", "p99", "done_per_s", "in_slo")
    return {name: statistics.fmean(getattr(each, name) for each in found) for name in names}


def say(row: str, title: str, **values: float) -> None:
    """One line."""
    print(f"{row}  {title:34} " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()), flush=True)


def main(given: Sequence[str]) -> None:
    """`given`: the command line behind `--table`."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder")
    made.add_argument("--policy", default="predicted-ttft")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    made.add_argument("--only", nargs="+")
    options = made.parse_args(given)
    for name, row in Table(options.folder, options.policy, options.seeds).rows().items():
        if not options.only or name in options.only:
            row()
