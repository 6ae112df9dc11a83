"""Large JSON bodies, in pieces: where the fields of the object begin and end, and what each would weigh. Pure.

A decoder reads 64 MiB in one go, in which nothing else is done, and may make gigabytes of objects of them. Here numpy
looks at a piece at a time, so that another thread can have its turn, and only what is used is decoded, if it is not
too much.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from router.errors import BadRequest
from router.prompts.decoding import USED

_PIECE_BYTES = 256 * 1024
_FIELDS_MAX = 10_000  # of the object: no API has 100
_BOM = b"\xef\xbb\xbf"
_KEY = re.compile(rb'"(?:[^"\\]|\\.)*"')
_KEY_BYTES_MAX = 1024  # longer than any name that is used, however it is escaped
_BLANKS = b" \t\n\r"
_MODEL_FIRST = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"model"\s*:\s*"([^"\\]*)"').match
_MODEL_LAST = re.compile(rb',\s*"model"\s*:\s*"([^"\\]*)"\s*\}\s*$').search
_END_BYTES = 1024  # looked at for it

_QUOTE, _BACKSLASH, _COMMA = b'"\\,'

# What a decoded character weighs beside its own byte, with tracemalloc: a dict, a list, a pair of them or an item, and
# half of a string. Beside them each byte of the text is one of the result's, four where it is not Latin.
_WEIGHTS = np.zeros(256, dtype=np.int32)
_WEIGHTS[[ord("{"), ord("["), ord(","), _QUOTE]] = (232, 72, 40, 28)

_STEPS = np.zeros(256, dtype=np.int8)  # of depth
_STEPS[[ord("{"), ord("["), ord("}"), ord("]")]] = (1, 1, -1, -1)

_WIDEST_BYTES = 4  # of a character, in a text that has one that needs them

_SEEN = np.zeros(256, dtype=bool)
_SEEN[list(b'"\\{}[],')] = True


def weight_of(body: bytes) -> int:
    """What a body weighs at most when all of it is decoded, in bytes; more where texts have braces in them."""
    chars = len(body) if body.isascii() and b"\\u" not in body else _WIDEST_BYTES * len(body)
    return chars + sum(int(_WEIGHTS[char]) * body.count(char) for char in b'{[,"')


def model_at_an_end(body: bytes) -> str | None:
    """The model of an object whose first or last field it is, as clients write it; None: it may be anywhere."""
    found = _MODEL_LAST(body, max(0, len(body) - _END_BYTES)) or _MODEL_FIRST(body, 0, _END_BYTES)
    return found[1].decode("utf-8", "replace") if found is not None else None


class Skimmed(NamedTuple):
    """`body`: the used fields, as JSON. `left_out`: names of those that were too heavy, in no order."""

    body: bytes
    left_out: tuple[str, ...]


def skim(body: bytes, weight_max: int, piece_bytes: int = _PIECE_BYTES) -> Skimmed:
    """The used fields of a large object, which weigh up to `weight_max` bytes together when they are decoded.

    Raises BadRequest for what has no object's beginning and end, as far as that can be seen: what is left out is not
    looked at any closer.
    """
    if not opens(body):
        raise BadRequest("the body is not a JSON object")
    marks = _marks(body, piece_bytes)
    kept: dict[str, tuple[int, int, int]] = {}
    for (begin, before), (end, after) in pairwise(marks):
        name, start = _name(body, begin + 1, end)
        if name in USED:
            kept[name] = (start, end, after - before + end - begin)  # of two with one name the last one counts
    parts, left_out = [], []
    for name, (start, end, weight) in sorted(kept.items(), key=lambda field: field[1][2]):
        weight_max -= weight
        if weight_max < 0:
            left_out.append(name)
        else:
            parts.append(b'"%b":%b' % (name.encode(), body[start:end]))
    return Skimmed(b"{%b}" % b",".join(parts), tuple(left_out))


def opens(body: bytes) -> bool:
    """An object's brace is the first that is not blank."""
    start = _next(body, len(_BOM) if body.startswith(_BOM) else 0, len(body))
    return body[start : start + 1] == b"{"


def _name(body: bytes, begin: int, end: int) -> tuple[str, int]:
    """The name of the field between two marks, and where its value starts; "" where there is none."""
    start = _next(body, begin, end)
    key = _KEY.match(body, start, min(end, start + _KEY_BYTES_MAX))
    colon = end if key is None else _next(body, key.end(), end)
    if key is None or body[colon : colon + 1] != b":":
        return "", end
    try:
        return str(msgspec.json.decode(key[0])), colon + 1
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", end


def _next(body: bytes, begin: int, end: int) -> int:
    """The place of the first byte that is not blank; looked for in pieces, as there may be nothing but blanks."""
    size = _KEY_BYTES_MAX
    while begin < end:
        piece = body[begin : min(begin + size, end)]
        rest = piece.lstrip(_BLANKS)
        if rest:
            return begin + len(piece) - len(rest)
        begin += len(piece)
        size = _PIECE_BYTES
    return end


def _marks(body: bytes, piece_bytes: int) -> list[tuple[int, int]]:
    """The places of the object's brace, its commas and its closing brace, and the weight of all up to there."""
    marks: list[tuple[int, int]] = []
    reader = _Reader()
    for start in range(0, len(body), piece_bytes):
        places, weights, closed = reader.read(np.frombuffer(body, np.uint8, min(piece_bytes, len(body) - start), start))
        marks += zip((places + start).tolist(), weights.tolist(), strict=True)
        if len(marks) > _FIELDS_MAX:
            raise BadRequest(f"the body has more than {_FIELDS_MAX} fields")
        if closed:
            if body[marks[-1][0] + 1 :].strip():
                break
            return marks
    raise BadRequest("the body is not valid JSON: its braces don't match")


class _Reader:
    """What goes on from one piece to the next."""

    def __init__(self) -> None:
        self._escaped = False  # the next byte is
        self._in_string = False
        self._depth = 0
        self._weight = 0

    def read(self, piece: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool]:
        """Places of marks, the weights before them, and whether the last one closes the object."""
        places = np.flatnonzero(_SEEN[piece])
        kinds = piece[places]
        places, kinds = self._unescaped(piece, places, kinds)
        quotes = kinds == _QUOTE
        inside = np.cumsum(quotes, dtype=np.int32) + self._in_string & 1
        outside = (inside == 0) & ~quotes
        steps = _STEPS[kinds] * outside
        depths = np.cumsum(steps, dtype=np.int32) + self._depth
        weights = np.cumsum(_WEIGHTS[kinds] * (outside | quotes), dtype=np.int64) + self._weight
        first = self._depth == 0  # the object's own brace is still to come: nothing but blanks is before it
        if len(kinds):
            self._in_string = bool(inside[-1])
            self._depth, self._weight = int(depths[-1]), int(weights[-1])
        found = np.flatnonzero((depths <= 1) & outside & ((kinds == _COMMA) | (depths == 0)))
        closed = np.flatnonzero(depths[found] == 0)
        if len(closed):
            found = found[: closed[0] + 1]
        if first and len(kinds):
            found = np.append(0, found)
        return places[found], weights[found], bool(len(closed))

    def _unescaped(
        self, piece: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], kinds: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Without backslashes, and without what is escaped by one: that is what comes behind an odd number of them."""
        slashes = kinds == _BACKSLASH
        at = places[slashes]
        before, self._escaped = self._escaped, False
        if before and (not len(at) or at[0] > 0):  # the first byte is escaped, and no backslash
            kept = places != 0
            places, kinds, slashes, before = places[kept], kinds[kept], slashes[kept], False
        if not len(at):
            return places, kinds
        firsts = np.flatnonzero(np.diff(at, prepend=-2) > 1)  # of each run
        starts, lengths = at[firsts], np.diff(firsts, append=len(at))
        odd = lengths & 1 == 1
        odd[0] ^= before
        escaped = (starts + lengths)[odd]
        self._escaped = bool(len(escaped) and escaped[-1] == len(piece))
        kept = ~slashes & ~np.isin(places, escaped)
        return places[kept], kinds[kept]
