"""An error that a pod tells in the middle of a stream, whose status said that all was well. Pure.

vLLM sends the head of a stream before it computes: what fails then comes as an event, `data: {"error": {…}}`, and the
stream ends as if it was whole.
"""

from __future__ import annotations

import re

import orjson

_WORD = b'error"'  # in a string it would be error\", so most streams are not looked at any closer
_OPENS = re.compile(rb'(?:\A|[\r\n])data: ?(?=\{"(?:error":|(?:object|type)": ?"error"))')
_INTERNAL, _BAD_REQUEST = 500, 400
_CLIENTS_FAULT = ("invalid_request_error", "BadRequestError")


def read_error(tail: bytes) -> int | None:
    """The status of the last error event in a stream's end; None where there is none. 500 where it names no status."""
    if _WORD not in tail:
        return None
    places = [opens.end() for opens in _OPENS.finditer(tail)]
    if not places:
        return None
    try:
        said = orjson.loads(tail[places[-1] :].partition(b"\n")[0])
    except orjson.JSONDecodeError:  # it was cut
        return _INTERNAL
    error = said.get("error") if type(said.get("error")) is dict else said
    code = error.get("code")
    if type(code) is int and 400 <= code <= 599:
        return code
    return _BAD_REQUEST if error.get("type") in _CLIENTS_FAULT else _INTERNAL
