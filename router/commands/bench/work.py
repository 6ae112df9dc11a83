"""What users do: flows of turns, the same for the same seed. Words are roughly tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from router.commands.demo.workload import WorkloadShape, conversations, words_of

_LEVELS = (1, 4, 16)  # flows at a time
_SMALL = WorkloadShape(
    conversations=8, turns=4, systems=2, system_words=200, documents=4, document_words=800, turn_words=40,
    answer_tokens=12, start_within_s=0.0, think_s=0.0,
)  # fmt: skip
_LONG = WorkloadShape(conversations=16, turns=8, documents=16, think_s=0.4, start_within_s=2.0)


class BenchTurn(NamedTuple):
    """One request: what is said, after a pause, and how long the answer may be (tokens)."""

    says: str
    think_s: float = 0.0
    answer_tokens: int = 16


class Flow(NamedTuple):
    """One user: turns of one chat, each after the answer to the one before."""

    starts_s: float
    opening: Sequence[dict[str, str]]
    turns: Sequence[BenchTurn]


class Work(NamedTuple):
    """Flows, of which `at_once` go on at a time (None: all, each from its own start)."""

    name: str
    what: str
    flows: Sequence[Flow]
    at_once: int | None = None

    @property
    def requests(self) -> int:
        return sum(len(flow.turns) for flow in self.flows)


def works_of(mode: str, seed: int) -> list[Work]:
    """All of a mode: `single`, `batch`, `concurrent`, `cache`, or `full` for all four."""
    made: dict[str, Callable[[], list[Work]]] = {
        "single": lambda: [_single(seed)],
        "batch": lambda: [_batch(seed)],
        "concurrent": lambda: [_concurrent(seed, level) for level in _LEVELS],
        "cache": lambda: [_cache(seed)],
    }
    return [work for name, make in made.items() if mode in (name, "full") for work in make()]


def _single(seed: int) -> Work:
    rng = random.Random(f"single {seed}")
    flows = [Flow(0.0, (), [BenchTurn(f"Summarize: {words_of(rng, 1500)}")]) for _ in range(8)]
    twice = [flow for flow in flows for _ in range(2)]
    return Work("single", "8 long prompts, each asked twice in a row, one request at a time", twice, 1)


def _batch(seed: int) -> Work:
    rng = random.Random(f"batch {seed}")
    shared = [words_of(rng, 1200) for _ in range(4)]
    flows = [
        Flow(0.0, [{"role": "system", "content": shared[number % 4]}], [BenchTurn(words_of(rng, 40), 0.0, 8)])
        for number in range(48)
    ]
    rng.shuffle(flows)  # else pods in turn would be the ones that hold their instructions
    return Work("batch", "48 prompts behind 4 long instructions, all at once", flows)


def _concurrent(seed: int, level: int) -> Work:
    what = f"{_SMALL.conversations} conversations of {_SMALL.turns} turns over {_SMALL.documents} documents, "
    return Work(f"concurrent {level}", f"{what}{level} at a time", _flows(_SMALL, seed), level)


def _cache(seed: int) -> Work:
    what = f"{_LONG.conversations} conversations of {_LONG.turns} turns, of users who think between them"
    return Work("cache", what, _flows(_LONG, seed))


def _flows(shape: WorkloadShape, seed: int) -> list[Flow]:
    return [
        Flow(
            one.starts_s,
            one.opening,
            [
                BenchTurn(says, thinks_s, shape.answer_tokens)
                for says, thinks_s in zip(one.says, [0.0, *one.thinks_s], strict=False)
            ],
        )
        for one in conversations(shape, seed)
    ]
