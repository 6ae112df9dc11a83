"""Traces as work: what is shared in a trace is shared by the words, at the times and lengths that are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.commands.bench.replay import ReplaySize, replayed

TRACE = [
    {"timestamp": 1, "input_length": 1000, "output_length": 500, "hash_ids": [7, 8]},
    {"timestamp": 2501, "input_length": 700, "output_length": 10, "hash_ids": [7, 9]},
    {"timestamp": 6002, "input_length": 512, "output_length": 1, "hash_ids": [7]},
]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Its file, in the order in which requests ended."""
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n\n" for entry in reversed(TRACE)))
    return str(path)


def test_blocks_are_words(trace: str) -> None:
    """The same block is the same words, of the block's size; the last one is as long as is left."""
    work = replayed(trace, ReplaySize(200, 0.0, None), 1)
    says = [flow.turns[0].says.split() for flow in work.flows]
    assert [len(words) for words in says] == [1000, 700, 512]
    assert says[0][:512] == says[1][:512] == says[2] and says[0][512:700] != says[1][512:]
    assert [flow.starts_s for flow in work.flows] == [0.0, 2.5, 6.001]
    assert [flow.turns[0].answer_tokens for flow in work.flows] == [256, 10, 1]


def test_squeezed_and_scaled(trace: str) -> None:
    """So many requests, within so many seconds, none longer than so many tokens."""
    work = replayed(trace, ReplaySize(2, 1.5, 70), 1)
    assert [flow.starts_s for flow in work.flows] == [0.0, 1.5]
    says = [flow.turns[0].says.split() for flow in work.flows]
    assert [len(words) for words in says] == [70, 51] and says[0][:51] == says[1]
    assert "2 requests" in work.what and "0.1 of their length" in work.what
