"""Multipart forms (RFC 7578), as far as routing needs them: which model a form is for. Pure."""

from __future__ import annotations

import re

_DELIMITER = re.compile(rb"[\r\n]{0,8}(--[0-9A-Za-z'()+_,./:=? -]{1,70})(?=\r\n)")  # what pods read, lines before too
_DELIMITER_BYTES_MAX = 82  # with those, and its line's end
_PARAMETER = rb'[^=;"\r\n]+=(?:"(?:[^"\\\r\n]|\\.)*"[ \t]*|[^;"\r\n]*);'  # a quoted value may hold anything
_NAMED_MODEL = re.compile(
    rb"\r\ncontent-disposition:[ \t]*form-data;(?:" + _PARAMETER + rb')*?[ \t]*name=(?:"model"|model)[ \t]*(?:[;\r]|$)',
    re.IGNORECASE,
)
_HEAD_BYTES_MAX = 4096
_VALUE_BYTES_MAX = 1024
_PARTS_MAX = 1000


def is_form(body: bytes) -> bool:
    """Does it begin as a form does?"""
    return _DELIMITER.match(body) is not None


def model_of_form(body: bytes) -> str | None:
    """The value of the form's field `model`, None where there is none."""
    return ModelOfForm().look(body)


class ModelOfForm:
    """Looks for the field `model` in a form, also while it comes: no byte is looked at twice, but for a few.

    The first line of a form is its delimiter. `settled`: the answer will not change, whatever else comes.
    """

    __slots__ = ("_delimiter", "_looked", "_part", "_parts", "model", "settled")

    def __init__(self) -> None:
        self.model: str | None = None
        self.settled = False
        self._delimiter = b""
        self._part = 0  # where the part begins that is not whole yet
        self._looked = 0  # up to here there is no end of it
        self._parts = 0

    def look(self, body: bytes | bytearray) -> str | None:
        """The model, as far as `body` tells: all that has come, from its first byte."""
        if not self._delimiter and not self.settled:
            self._begin(body)
        delimiter = self._delimiter
        while delimiter and not self.settled:
            end = body.find(delimiter, self._looked)
            if end < 0:
                self._looked = max(self._part, len(body) - len(delimiter) + 1)
                break
            head = body.find(b"\r\n\r\n", self._part, min(end, self._part + _HEAD_BYTES_MAX))
            if head >= 0 and _NAMED_MODEL.search(body, self._part, head):
                value = bytes(body[head + 4 : end]) if end - head <= _VALUE_BYTES_MAX else b""
                self.model = value.decode("utf-8", "replace").strip() or None
                self.settled = True
            self._part = self._looked = end + len(delimiter)
            self._parts += 1
            self.settled = self.settled or self._parts == _PARTS_MAX
        return self.model

    def _begin(self, body: bytes | bytearray) -> None:
        first = _DELIMITER.match(body)
        if first is not None:
            self._delimiter = b"\r\n" + first[1]
            self._part = self._looked = first.end()
        else:
            self.settled = len(body) > _DELIMITER_BYTES_MAX
