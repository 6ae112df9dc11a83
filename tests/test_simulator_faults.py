"""What a pod does wrong on purpose, and how long its steps take."""

from __future__ import annotations

import pytest

from simulator.faults import Faults, Frame, Wire, change
from simulator.pace import Pace
from simulator.scheduler import Request, Work


def sent(faults: Faults, count: int = 2_000) -> list[int]:
    """Sequence numbers on the wire after `count` frames."""
    wire = Wire(faults)
    return [out.seq for seq in range(count) for out in wire.send(Frame(seq, b""))]


def test_without_faults_frames_go_out_as_they_are() -> None:
    """All, once, in order."""
    assert sent(Faults()) == list(range(2_000))


def test_drop_loses_its_share() -> None:
    """About the share is missing, order is kept, and the seed decides which."""
    seqs = sent(Faults(drop=0.25))
    assert seqs == sorted(set(seqs))
    assert 0.2 < 1 - len(seqs) / 2_000 < 0.3
    assert seqs == sent(Faults(drop=0.25))
    assert seqs != sent(Faults(drop=0.25, seed=1))
    assert sent(Faults(drop=1.0)) == []
    assert sent(Faults(silent=True)) == []


def test_duplicate_sends_twice_in_a_row() -> None:
    """With share 1 each frame comes twice."""
    assert sent(Faults(duplicate=1.0), 3) == [0, 0, 1, 1, 2, 2]


def test_reorder_swaps_neighbours() -> None:
    """With share 1 pairs are swapped; nothing is lost but maybe the last, which waits for a next one."""
    assert sent(Faults(reorder=1.0), 4) == [1, 0, 3, 2]
    seqs = sent(Faults(reorder=0.3))
    assert seqs != sorted(seqs)
    assert set(range(1_999)) <= set(seqs)


def test_faults_change_by_name() -> None:
    """Given names change, others stay."""
    faults = change(change(Faults(), {"drop": 0.5}), {"refuse": "close", "slow": 2})
    assert faults == Faults(drop=0.5, refuse="close", slow=2.0)


@pytest.mark.parametrize(
    "changes", [{"dorp": 1}, {"drop": 2}, {"slow": 0}, {"refuse": "maybe"}, {"silent": "yes"}, {"die_after_chunks": -1}]
)
def test_bad_faults_are_refused(changes: dict[str, object]) -> None:
    """Unknown names, values out of range or of the wrong type: ValueError."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        change(Faults(), changes)


def work_of(computed: int, prompt: int, count: int) -> Work:
    """A step with one piece of one prompt."""
    request = Request(range(prompt), (1,))
    request.computed = computed
    return Work({request: count})


def test_a_step_costs_its_base_its_sequences_and_its_uncached_tokens() -> None:
    """And all of it scales."""
    pace = Pace(prefill_tokens_per_s=1_000, step_base_s=0.01, step_sequence_s=0.001)
    assert pace.step_s(work_of(0, 500, 500)) == pytest.approx(0.511)
    assert pace.step_s(work_of(400, 500, 100)) == pytest.approx(0.111)
    assert pace.step_s(work_of(499, 500, 1)) == pytest.approx(0.011)
    fast = Pace(prefill_tokens_per_s=1_000, step_base_s=0.01, step_sequence_s=0.001, time_scale=0.1)
    assert fast.step_s(work_of(0, 500, 500)) == pytest.approx(0.0511)


def test_attention_makes_late_tokens_dearer() -> None:
    """At `attention_tokens` a token costs twice what it costs at 0."""
    pace = Pace(prefill_tokens_per_s=1_000, attention_tokens=1_000, step_base_s=0, step_sequence_s=0)
    assert pace.step_s(work_of(900, 1_101, 200)) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="above 0"):
        Pace(prefill_tokens_per_s=0)
    with pytest.raises(ValueError, match="negative"):
        Pace(step_base_s=-1)
