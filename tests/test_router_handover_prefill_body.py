"""A body that is asked again for its prompt alone."""

from __future__ import annotations

import json

import pytest

from router.handover.prefill_body import prefill_body


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages"])
def test_one_token(path: str) -> None:
    """The prompt, the model and the salt stay as they are; the answer is one token, whole."""
    prompt = {"model": "adapter", "messages": [{"role": "user", "content": "ü"}], "cache_salt": "s", "tools": [{}]}
    body = {**prompt, "stream": True, "stream_options": {"include_usage": True}, "n": 4, "prompt_logprobs": 1}
    asked = prefill_body(path, json.dumps({**body, "max_tokens": 900, "max_completion_tokens": 900}).encode())
    assert asked is not None and json.loads(asked) == {**prompt, "max_tokens": 1, "stream": False}


def test_what_can_not_be_asked_so() -> None:
    """Another API, and what is no body."""
    assert prefill_body("/v1/responses", b"{}") is None
    assert prefill_body("/v1/completions", b"[]") is None
    assert prefill_body("/v1/completions", b"{") is None
