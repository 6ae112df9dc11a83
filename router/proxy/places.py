"""Headers of a pod's answer that say where something is: an address in the fleet is nothing for a client to see or to
reach. Pure.

Whatever is called by http(s) and a host, the pod or any other, becomes the path of the same: it is asked again here.
"""

from __future__ import annotations

import re

_WHOLE = frozenset((b"location", b"content-location"))  # the value is a place
_AMONG = frozenset((b"link", b"refresh"))  # there may be some in it
_OTHER_WAYS = b"alt-svc"  # to the pod itself, past us
_PLACES = _WHOLE | _AMONG | {_OTHER_WAYS}
_HOST = rb"(?:https?:)?//[^/?#<>\"'\s;,]*(/?)"
_IN_WHOLE = re.compile(rb"^()" + _HOST, re.IGNORECASE)
_IN_AMONG = re.compile(rb"((?:^|[<>=\"'\s;,]))" + _HOST, re.IGNORECASE)


def without_hosts(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The same headers (lower-case names), and no place in them has a host."""
    for name, _ in headers:
        if name in _PLACES:
            return [(name, _here(name, value)) for name, value in headers if name != _OTHER_WAYS]
    return headers


def _here(name: bytes, value: bytes) -> bytes:
    if name not in _PLACES:
        return value
    return (_IN_WHOLE if name in _WHOLE else _IN_AMONG).sub(rb"\1/", value)
