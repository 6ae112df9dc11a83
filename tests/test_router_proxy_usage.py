"""Usage, read from the end of a body."""

from __future__ import annotations

import json

import pytest

from router.proxy.usage import TAIL_BYTES, Tail, Usage, read_usage

FULL = {
    "prompt_tokens": 9,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 4, "created_cache_tokens": 1},
}


def chat(usage: object, **after: object) -> bytes:
    """A chat completion in vLLM's order of fields."""
    message = {"role": "assistant", "content": 'He said {"usage":{"prompt_tokens":1}} }}'}
    return json.dumps({"id": "x", "choices": [{"message": message}], "usage": usage, **after}).encode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (chat(FULL), Usage(9, 4)),
        (chat(FULL, prompt_logprobs=None, kv_transfer_params={"a": {}}), Usage(9, 4)),
        (chat({"prompt_tokens": 9, "prompt_tokens_details": None}), Usage(9, None)),
        (chat({"input_tokens": 7, "input_tokens_details": {"cached_tokens": 0}}), Usage(7, 0)),
        (chat(None), None),
        (chat(None, after={"prompt_tokens": 1}), None),
        (chat({"prompt_tokens": "many"}), None),
        (b'{"error":{"message":"no"}}', None),
        (chat(FULL)[:-40], None),
        (b'"usage"', None),
        (b"", None),
    ],
)
def test_usage_of_a_json_body(body: bytes, expected: Usage | None) -> None:
    """The last real usage object counts; text that looks like one, null and cut bodies do not."""
    assert read_usage(body) == expected


@pytest.mark.parametrize("step", [1, 7, 100, 10**6])
def test_usage_of_a_stream_in_pieces(step: int) -> None:
    """Only the end of a long stream is kept, and it is enough, however it was cut."""
    stream = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":null}\n\n' * 500
    stream += b'data: {"choices":[],"usage":' + json.dumps(FULL).encode() + b"}\n\ndata: [DONE]\n\n"
    tail = Tail()
    for at in range(0, len(stream), step):
        tail.add(stream[at : at + step])
    assert read_usage(tail.kept) == Usage(9, 4)
    assert len(tail.kept) <= max(TAIL_BYTES, step)
