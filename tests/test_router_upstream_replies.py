"""HTTP/1.1 as conversations without sockets: bytes in, a reply out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.upstream.failures import BrokenResponse, UnsendableRequest
from router.upstream.replies import Reply, ReplyParser, end_to_end, request_head

HEAD_MAX = 4096
CHUNKED = (
    b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-One: 1 \r\nTrailer: X-Sum\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n"
)


def parse(*pieces: bytes, head_only: bool = False, eof: bool = False) -> Reply:
    """Feed the pieces of one reply."""
    parser, reply = ReplyParser(HEAD_MAX), Reply()
    parser.expect(reply, head_only=head_only)
    for piece in pieces:
        parser.feed(piece)
    if eof:
        parser.eof()
    return reply


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=20))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    """However the bytes are cut, 1xx, head, body and trailers are the same."""
    places = [0, *sorted(cuts), len(CHUNKED)]
    reply = parse(*(CHUNKED[a:b] for a, b in pairwise(places) if a < b))
    assert (reply.status, reply.complete, reply.reusable) == (200, True, True)
    assert reply.headers == [(b"x-one", b"1"), (b"trailer", b"X-Sum")]
    assert b"".join(reply.chunks) == b"hello world"
    assert reply.trailers == [(b"x-sum", b"11")]


def test_length_framed_is_reusable() -> None:
    """A body with a Content-Length ends at its last byte, and leaves the connection usable."""
    reply = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    assert (reply.length, reply.complete, reply.reusable, reply.buffered) == (2, True, True, 2)


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK\r\nconnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_closing_is_not_reusable(line: bytes) -> None:
    """A peer that will close says so, in HTTP/1.0 by saying nothing."""
    reply = parse(line + b"content-length: 2\r\n\r\nok")
    assert reply.complete and not reply.reusable


def test_close_delimited() -> None:
    """Without any framing the body ends with the connection, and only so."""
    reply = parse(b"HTTP/1.1 200 OK\r\n\r\nabc", b"def")
    assert not reply.complete
    reply = parse(b"HTTP/1.1 200 OK\r\n\r\nabc", b"def", eof=True)
    assert reply.complete and not reply.reusable and b"".join(reply.chunks) == b"abcdef"


@pytest.mark.parametrize(
    ("data", "head_came"),
    [
        (b"", False),
        (b"HTTP/1.1 200", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: 1\r\n", True),
    ],
)
def test_a_cut_is_not_an_end(data: bytes, head_came: bool) -> None:
    """A connection that ends before its reply is a failure, and it says whether a head had come."""
    with pytest.raises(BrokenResponse) as caught:
        parse(*([data] if data else []), eof=True)
    assert caught.value.before_first_byte is not head_came


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x01b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    """Ambiguous or malformed replies break, they are never guessed at."""
    with pytest.raises(BrokenResponse):
        parse(data)


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\nx-filler: " + b"y" * HEAD_MAX,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"e" * 5000,
    ],
    ids=["line", "1xx", "trailers", "chunk extension"],
)
def test_nothing_unproductive_is_endless(endless: bytes) -> None:
    """Heads, interim replies, trailers and framing are bounded (give or take one read)."""
    with pytest.raises(BrokenResponse):
        parse(*(endless[at : at + 100] for at in range(0, len(endless), 100)))


def test_a_huge_head_in_one_read() -> None:
    """The bound on a head holds to the byte also where it comes at once, and whole."""
    with pytest.raises(BrokenResponse):
        parse(b"HTTP/1.1 200 OK\r\nx-filler: " + b"y" * HEAD_MAX + b"\r\ncontent-length: 0\r\n\r\n")


def test_a_big_body_is_not_a_big_head() -> None:
    """A body that comes in the same read as the head does not count as head."""
    body = b"z" * (HEAD_MAX * 4)
    assert parse(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)).complete


@pytest.mark.parametrize("surplus", [b"x", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"])
def test_bytes_after_the_end_spoil_the_connection(surplus: bytes) -> None:
    """The reply stands, the connection is not used again, and the surplus is nobody's body."""
    reply = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" + surplus)
    assert reply.complete and not reply.reusable and reply.chunks == [b"ok"]


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(status: int) -> None:
    """204 and 304 end with their head, whatever length they speak of."""
    reply = parse(b"HTTP/1.1 %d X\r\ncontent-length: 5\r\n\r\n" % status)
    assert reply.complete and reply.reusable and reply.length is None


def test_head_and_then_another() -> None:
    """An answer to HEAD has a length and no body, and the next reply on the connection is understood."""
    parser, first, second = ReplyParser(HEAD_MAX), Reply(), Reply()
    parser.expect(first, head_only=True)
    parser.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
    assert first.complete and first.reusable
    parser.expect(second)
    parser.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    assert second.complete and second.chunks == [b"ok"]


def test_head_with_a_body_spoils_the_connection() -> None:
    """A peer that sends a body after HEAD can't be trusted with another request."""
    reply = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", head_only=True)
    assert reply.complete and not reply.reusable and not reply.chunks


def test_hop_by_hop_is_removed() -> None:
    """Fields of this hop go, with those that Connection names; the rest stays in order."""
    fields = [
        (b"connection", b"close, X-Private"),
        (b"a", b"1"),
        (b"x-private", b"2"),
        (b"keep-alive", b"timeout=5"),
        (b"upgrade", b"h2c"),
        (b"te", b"trailers"),
        (b"a", b"3"),
    ]
    assert end_to_end(fields) == [(b"a", b"1"), (b"a", b"3")]


def test_request_head() -> None:
    """One Host and one Content-Length, both ours; nothing that belongs to the client's connection."""
    headers = [
        (b"host", b"evil"),
        (b"content-length", b"7"),
        (b"transfer-encoding", b"chunked"),
        (b"expect", b"100-continue"),
        (b"authorization", b"Bearer x"),
    ]
    head = request_head("POST", b"/v1/x?a=b", b"pod:1", headers, 3)
    assert head == b"POST /v1/x?a=b HTTP/1.1\r\nhost: pod:1\r\nauthorization: Bearer x\r\ncontent-length: 3\r\n\r\n"


def test_request_head_without_a_body() -> None:
    """GET says no length, an empty POST says 0."""
    assert b"content-length" not in request_head("GET", b"/", b"h", [], 0)
    assert b"content-length: 0\r\n" in request_head("POST", b"/", b"h", [], 0)


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("GET", b"http://evil/", (b"a", b"b")),
        ("GET", b"/ HTTP/1.1\r\nx: y", (b"a", b"b")),
        ("GET", b"/a b", (b"a", b"b")),
        ("GET", b"", (b"a", b"b")),
        ("GET /", b"/", (b"a", b"b")),
        ("CONNECT", b"/", (b"a", b"b")),
        ("GET", b"/", (b"a", b"b\r\nhost: evil")),
        ("GET", b"/", (b"a", b"b\nhost: evil")),
        ("GET", b"/", (b"a\r\nb", b"c")),
        ("GET", b"/", (b"a", b"\0")),
    ],
)
def test_nothing_can_be_smuggled_into_a_head(method: str, target: bytes, header: tuple[bytes, bytes]) -> None:
    """A part that would end its line early, or address another host, is refused."""
    with pytest.raises(UnsendableRequest):
        request_head(method, target, b"h", [header], 0)
