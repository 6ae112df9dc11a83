"""Errors in streams, read from their end."""

from __future__ import annotations

import pytest

from router.proxy.error_events import read_error

CHUNK = b'data: {"id":"x","choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (b'data: {"error":{"message":"EngineCore died","type":"InternalServerError","param":null,"code":500}}', 500),
        (b'data: {"error": {"message": "later", "type": "ServiceUnavailableError", "code": 503}}', 503),
        (b'data: {"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}', 400),
        (b'data: {"object":"error","message":"of old","type":"InternalServerError","param":null,"code":500}', 500),
        (b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"no"}}', 500),
        (b'event: error\ndata: {"type": "error","error":{"type":"invalid_request_error","message":"no"}}', 400),
        (b'data:{"error":{"message":"odd","code":"500"}}', 500),
        (b'data: {"error":{"message":"odd","code":200}}', 500),
        (b'data: {"error":{"message":"odd","code":599}}', 599),
        (b'data: {"error":{"message":"odd","code":600}}', 500),
        (b'data: {"error":"in a word"}', 500),
        (b'data: {"error":{"message":"it was c', 500),
    ],
)
def test_error_events(event: bytes, status: int) -> None:
    """Whatever shape vLLM or an API gives them, first or last in a stream; without a status it is the pod's fault."""
    for stream in (event, CHUNK + event, event + b"\n\n" + DONE, CHUNK + event + b"\n\n" + DONE, event + b"\r\n\r\n"):
        assert read_error(stream) == status


def test_the_last_one_counts() -> None:
    """Of several."""
    assert read_error(b'data: {"error":{"code":503}}\n\ndata: {"error":{"code":400}}\n\n') == 400


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        CHUNK + DONE,
        b'data: {"id":"x","choices":[{"delta":{"content":"data: {\\"error\\":{}}"}}]}\n\n',
        b'data: {"id":"x","error":null}\n\n',
        b'{"error":{"code":500}}',
        b'x data: {"error":{"code":500}}\n\n',
        b'data: {"type":"response.output_text.delta","delta":"error"}\n\n',
    ],
)
def test_what_is_none(stream: bytes) -> None:
    """Text that speaks of errors, and bodies that are no streams."""
    assert read_error(stream) is None
