"""HTTP/1.1 heads on the client's side, without sockets: a request's checked, a response's written (RFC 9110, 9112).

llhttp refuses most of what two parsers could read in two ways; what it lets through and must not pass is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

from router.errors import RouterError
from router.server.asgi import Headers

_CODES = {413: "body_too_large", 414: "url_too_long", 431: "headers_too_large", 503: "saturated"}
_TYPES = {500: "internal_error", 429: "rate_limit_error", 503: "service_unavailable"}
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_AUTHORITY = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*").fullmatch  # RFC 3986, 3.2, without user information
_LOOKALIKES = frozenset((b"content_length", b"transfer_encoding"))  # some servers take _ for -, and frame by these
_UPGRADES = frozenset((b"connection", b"upgrade", b"http2-settings"))
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Refused(RouterError):
    """The server refuses a request before any application sees it, and closes the connection."""

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.type = _TYPES.get(status, "invalid_request_error")
        self.code = _CODES.get(status)
        self.retry_after_s = retry_after_s

    def response(self) -> bytes:
        """The whole response: the OpenAI error body, and `connection: close`."""
        body = self.body()
        retry = b"" if self.retry_after_s is None else b"retry-after: %d\r\n" % self.retry_after_s
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n"
        return head % (status_line(self.status), len(body), retry) + body


class Target(NamedTuple):
    """What a request is for. `authority`: the host that an absolute-form names, else None."""

    path: str
    raw_path: bytes
    query: bytes
    authority: bytes | None = None


def parse_target(method: str, target: bytes) -> Target:
    """The request-target (RFC 9112, 3.2); raises `Refused`. Whatever host it names, only path and query count."""
    authority = None
    if not target.startswith(b"/"):
        if target == b"*" and method == "OPTIONS":
            return Target("*", b"*", b"")
        target, authority = _origin_form(target)
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode("latin-1")
    if "%" in path:
        path = unquote(path)
    if b"#" in target:
        raise Refused(400, "The request target has a fragment.")
    if "/." in path and not {".", ".."}.isdisjoint(path.split("/")):
        raise Refused(400, "The path has dot segments: who resolves them decides where it leads.")
    return Target(path, raw_path, query, authority)


def _origin_form(target: bytes) -> tuple[bytes, bytes]:
    """Path with query, and authority, of an absolute-form."""
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in (b"http", b"https"):
        raise Refused(400, "The request target is not a path.")
    end = min((place for mark in b"/?#" if (place := rest.find(mark)) >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    if not authority or _AUTHORITY(authority) is None:
        raise Refused(400, "The request target names no proper host.")
    return path if path.startswith(b"/") else b"/" + path, authority


def check_fields(version: str, headers: Sequence[tuple[bytes, bytes]], names: Mapping[bytes, bytes]) -> None:
    """Refuse what could be read in two ways. `names`: `headers` (lower-case names) as a mapping."""
    if version == "1.1":
        host = names.get(b"host")
        if host is None or _AUTHORITY(host) is None:
            raise Refused(400, "There is no Host header." if host is None else "The Host header is not a host.")
    elif version != "1.0":
        raise Refused(505, f"HTTP/{version} is not spoken here.")
    if len(names) != len(headers) and sum(name == b"host" for name, _ in headers) > 1:
        raise Refused(400, "There is more than one Host header.")
    coding = names.get(b"transfer-encoding")
    if coding is not None:
        if version == "1.0":
            raise Refused(400, "HTTP/1.0 has no transfer codings.")
        if b"content-length" in names:
            raise Refused(400, "There are both Content-Length and Transfer-Encoding.")
        if coding.lower() != b"chunked":
            raise Refused(501, "The only transfer coding that is understood is chunked.")
    if not _LOOKALIKES.isdisjoint(names):
        raise Refused(400, "A header's name looks like that of a length or a coding.")
    expected = names.get(b"expect")
    if expected is not None and expected.lower() != b"100-continue":
        raise Refused(417, "The only expectation that can be met is 100-continue.")


def without_upgrade(method: str, target: bytes, version: str, headers: Headers) -> bytes:
    """The head of a request that asked to change the protocol, as if it had not asked (RFC 9110, 7.8)."""
    kept, last = [], False
    for name, value in headers:
        if name not in _UPGRADES:
            kept.append(b"%b: %b\r\n" % (name, value))
        elif name == b"connection":
            last = last or b"close" in tokens(value)
    if last:
        kept.append(b"connection: close\r\n")
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method.encode(), target, version.encode(), b"".join(kept))


def tokens(value: bytes) -> set[bytes]:
    """The members of a list of tokens, in lower case."""
    return {token.strip() for token in value.lower().split(b",")}


def status_line(status: int) -> bytes:
    """With its line end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def response_head(status: int, headers: Sequence[tuple[bytes, bytes]], ours: Sequence[bytes]) -> bytes:
    """A response's head; `ours` are whole lines. Raises `ValueError` where a header could end its line early."""
    lines = b"\r\n".join(map(b": ".join, headers))
    head = b"".join((status_line(status), lines, b"\r\n" if lines else b"", *ours, b"\r\n"))
    breaks = 2 + len(headers) + len(ours)
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks:
        raise ValueError("a response header holds a line break")
    return head
