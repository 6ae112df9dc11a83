"""Multipart forms (RFC 7578), as far as routing needs them: which model a form is for. Pure."""

from __future__ import annotations

import re

_DELIMITER = re.compile(rb"--[0-9A-Za-z'()+_,./:=? -]{1,70}(?=\r\n)")
_NAMED_MODEL = re.compile(
    rb'content-disposition:[ \t]*form-data;(?:[^\r\n]*;)?[ \t]*name="?model"?[ \t]*(?:[;\r]|$)', re.IGNORECASE
)
_VALUE_BYTES_MAX = 1024
_PARTS_MAX = 1000


def model_of_form(body: bytes) -> str | None:
    """The value of the form's field `model`, None where there is none. The first line of a form is its delimiter."""
    first = _DELIMITER.match(body)
    if first is None:
        return None
    delimiter, start = b"\r\n" + first[0], first.end()
    for _ in range(_PARTS_MAX):
        end = body.find(delimiter, start)
        if end < 0:
            return None
        head = body.find(b"\r\n\r\n", start, end)
        if head >= 0 and _NAMED_MODEL.search(body, start, head):
            value = body[head + 4 : end] if end - head <= _VALUE_BYTES_MAX else b""
            return value.decode("utf-8", "replace").strip() or None
        start = end + len(delimiter)
    return None
