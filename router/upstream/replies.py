"""HTTP/1.1 without sockets: a request head to bytes, and bytes to one reply at a time (RFC 9110, 9112)."""

from __future__ import annotations

from collections.abc import Sequence

import httptools

from router.server.asgi import Headers
from router.upstream.failures import BrokenResponse, UnsendableRequest

# RFC 9110, 7.6.1 and 11.7: fields that speak to the next hop only, besides those that `Connection` names.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    )
)
# In a request these are ours to say: how its body is framed, and that the pod is not the client's choice.
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"trailer"}
_BODYLESS_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "DELETE"))
_BODYLESS_STATUSES = frozenset((204, 304))


def end_to_end(
    headers: Headers, dropped: frozenset[bytes] = HOP_BY_HOP, others: Sequence[bytes] = ()
) -> list[tuple[bytes, bytes]]:
    """The headers (lower-case names) without `dropped`, without `others`, and without those that `Connection` names."""
    kept, named = [], set[bytes]()
    for field in headers:
        name = field[0]
        if name in dropped:
            if name == b"connection":
                named.update(token.strip() for token in field[1].lower().split(b","))
        elif name not in others:
            kept.append(field)
    return [field for field in kept if field[0] not in named] if named else kept


def request_head(
    method: str,
    target: bytes,
    host: bytes,
    headers: Headers,
    body_bytes: int | None,
    ours: Sequence[tuple[bytes, bytes]] = (),
    dropped: frozenset[bytes] = NOT_FORWARDED,
) -> bytes:
    """The head of a request in origin-form, framed by Content-Length; `host` is the only Host.

    `body_bytes` None: nobody knows how many, and the body is to be sent as `chunk`s.
    `headers` go out without those that are `dropped`, and with `ours` in place of others of those names (lower case).
    Raises `UnsendableRequest` where a part could end its line early or address another host.
    """
    fields = end_to_end(headers, dropped, [name for name, _ in ours])
    fields += ours
    if body_bytes is None:
        fields.append((b"transfer-encoding", b"chunked"))
    elif body_bytes or method not in _BODYLESS_METHODS:
        fields.append((b"content-length", b"%d" % body_bytes))
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target), b"host: " + host, *map(b": ".join, fields), b"\r\n"]
    head = b"\r\n".join(lines)
    breaks = len(fields) + 3
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
        raise UnsendableRequest("A header holds a line break or a zero byte.")
    if (
        not target.startswith(b"/")
        or b" " in target
        or not (method.isascii() and method.isalpha())
        or method == "CONNECT"
    ):
        raise UnsendableRequest("The request line is not a method and a path.")
    return head


def chunk(data: bytes, *, last: bool) -> bytes:
    """A piece of a body (perhaps none) in the chunked coding; with the body's end where it is the `last`."""
    coded = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return coded + b"0\r\n\r\n" if last else coded


class Reply:
    """One reply as far as it has come: a record that `ReplyParser` fills.

    `headers` and `trailers` have lower-case names and no hop-by-hop fields; `length` is the Content-Length, if
    the body is framed by one; `chunks` are the body's bytes that nobody has taken yet, `buffered` their sum.
    `reusable` is known when `complete`: the connection may carry another exchange.
    """

    __slots__ = (
        "buffered",
        "chunks",
        "complete",
        "head_done",
        "headers",
        "length",
        "reusable",
        "status",
        "trailers",
    )

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self.length: int | None = None
        self.chunks: list[bytes] = []
        self.buffered = 0
        self.head_done = False
        self.complete = False
        self.reusable = False


class ReplyParser:
    """The bytes of one connection -> replies, one at a time: `expect(reply)`, then `feed` until it is complete."""

    def __init__(self, head_bytes_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self._parser: httptools.HttpResponseParser | None = None
        self._forget()

    def _forget(self) -> None:
        self._reply = Reply()
        self._reply.complete = True
        self._head_only = False
        self._interim = False
        self._until_close = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._unproductive_bytes = 0
        self._refusal: str | None = None

    def expect(self, reply: Reply, *, head_only: bool = False) -> None:
        """From now on bytes belong to `reply`; `head_only` is for an answer to HEAD."""
        parser = None if self._head_only else self._parser  # after HEAD it would still wait for a body
        self._forget()
        self._parser = parser or httptools.HttpResponseParser(self)
        self._reply = reply
        self._head_only = head_only

    def feed(self, data: bytes) -> None:
        """Bytes came. Raises `BrokenResponse`; bytes after the reply's end only make it not reusable."""
        assert self._parser is not None, "feed before expect"
        reply = self._reply
        self._unproductive_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not reply.complete:
                raise self._broken(self._refusal or f"not HTTP/1.1: {error}") from error
            reply.reusable = False
        if self._unproductive_bytes > self._head_bytes_max and not reply.complete:
            raise self._broken(f"over {self._head_bytes_max} bytes of head, trailers or framing")

    def eof(self) -> None:
        """The peer is done. The end of a close-delimited body; raises `BrokenResponse` for any other reply."""
        if not self._until_close:
            where = "in the middle of the response" if self._reply.head_done else "before a response"
            raise self._broken(f"the connection was closed {where}")
        self._reply.complete = True

    def close(self) -> None:
        """Let go of the parser (it and we refer to each other)."""
        self._parser = None

    def _broken(self, message: str) -> BrokenResponse:
        return BrokenResponse(message, before_first_byte=not self._reply.head_done)

    def _refuse(self, message: str) -> None:
        self._refusal = message
        raise ValueError(message)  # stops the C parser; `feed` says the refusal

    # What httptools calls

    def on_message_begin(self) -> None:
        if self._reply.complete:
            self._refuse("bytes after the end")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value.strip()))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        if status < 200:
            if status == 101:
                self._refuse("it switches protocols, unasked")
            self._interim = True
            return
        self._check_head(status, fields)
        self._frame(status, fields)
        reply = self._reply
        reply.status = status
        reply.headers = end_to_end(fields)
        reply.head_done = True
        self._unproductive_bytes = 0
        if self._head_only:
            reply.reusable = self._parser.should_keep_alive()
            reply.complete = True

    def _check_head(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        if status > 599:
            self._refuse(f"status {status} does not exist")
        if self._unproductive_bytes > self._head_bytes_max:  # counts what came behind the head in the same read
            head_bytes = sum(len(name) + len(value) for name, value in fields)
            if head_bytes > self._head_bytes_max:
                self._refuse(f"over {self._head_bytes_max} bytes of head")

    def _frame(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        """RFC 9112, 6.3: what says where the body ends (the C parser has refused contradictions)."""
        length: int | None = None
        coded = False
        for name, value in fields:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                coded = True
                if value.lower() != b"chunked":
                    self._refuse("a transfer coding that is not chunked")
        if status not in _BODYLESS_STATUSES and not self._head_only:
            self._reply.length = length
            self._until_close = length is None and not coded

    def on_body(self, data: bytes) -> None:
        reply = self._reply
        if reply.complete:
            self._refuse("bytes after the end")
        self._unproductive_bytes = 0
        reply.chunks.append(data)
        reply.buffered += len(data)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._interim:
            self._interim = False
            return
        reply = self._reply
        if self._fields:
            reply.trailers, self._fields = end_to_end(self._fields), []
        reply.reusable = self._parser.should_keep_alive()
        reply.complete = True
