"""Lines of recorded requests: what is written is read again, what is none is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from router.errors import BadRecording
from router.plan.recording import Entry, RecordedFleet, RecordedPod, coarser, ids_of, line_of, read_recording

FLEET = RecordedFleet([RecordedPod("a", 1600, 1.0), RecordedPod("b", None, 2.0)], 16, 0.01, 1e-4, 1e-9, "overlap")


def test_what_is_written_is_read() -> None:
    """In the order in which requests came; ids by other numbers, equal ones equal."""
    late = Entry(2000, 40, 7, [900, 901, 77], "a", 200, 0.5, 1.5, 16)
    early = Entry(1000, 33, 1, [900, 902, 78], None, 429)
    found = read_recording([line_of(late, None), b"\n", line_of(early, FLEET)])
    assert [entry.at_ms for entry in found.entries] == [1000, 2000]
    assert found.fleet == FLEET and found.size == 16
    assert found.entries[1] == late._replace(blocks=[0, 3, 4]) and found.entries[0] == early._replace(blocks=[0, 1, 2])


def test_mooncakes_lines_are_read() -> None:
    """Four fields, and blocks as large as they have to be."""
    lines = [b'{"timestamp": 27000, "input_length": 6758, "output_length": 500, "hash_ids": [%b]}' % ids for ids in (
        b", ".join(b"%d" % number for number in range(14)),
    )]  # fmt: skip
    found = read_recording(lines)
    assert found.size == 512 and found.fleet is None and found.entries[0].tokens == 6758
    assert read_recording([b'{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": []}']).size == 1


@pytest.mark.parametrize(
    "line",
    [b"nonsense", b"[]", b"3", b"{}", b'{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}',
     b'{"timestamp": 1, "input_length": -5, "output_length": 1, "hash_ids": []}',
     b'{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [], "fleet": {"pods": 1}}'],
)  # fmt: skip
def test_what_is_no_request_is_named_by_its_line(line: bytes) -> None:
    """And nothing at all is no recording."""
    fine = line_of(Entry(1, 5, 1, []), None)
    with pytest.raises(BadRecording, match=r"^line 2: it is no recorded request"):
        read_recording([fine, line])
    with pytest.raises(BadRecording, match="there is no request in it"):
        read_recording([b"", b"  \n"])


def test_ids_are_of_blocks() -> None:
    """Of whole ones their keys', of what is left one that nobody else has."""
    keys = np.array([2**63 + 5, 7], np.uint64)
    one, other = (ids_of(keys, 16, 40, number) for number in (1, 2))
    assert one[:2] == other[:2] == [5, 7] and len(one) == 3 and one[2] != other[2]
    assert ids_of(keys, 16, 32, 1) == [5, 7] and len(ids_of(keys[:0], 16, 3, 1)) == 1


def test_larger_blocks_keep_what_is_shared() -> None:
    """As far as these are whole; what is behind is nobody else's."""
    entries = [Entry(0, 100, 1, [0, 1, 2, 3, 4, 5, 6]), Entry(1, 96, 1, [0, 1, 2, 3, 4, 9])]
    recording = read_recording([line_of(entry, FLEET) for entry in entries])
    found = coarser(recording, 4)
    assert found.size == 32 and [list(entry.blocks) for entry in found.entries] == [[1, 3, 5, 6], [1, 3, 7]]
    assert coarser(recording, 7) is recording
    assert json.loads(line_of(entries[0], FLEET))["fleet"]["pods"][1] == {"pod": "b", "kv_tokens": None, "factor": 2.0}
