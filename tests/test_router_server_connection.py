"""What clients may not do: limits, each with its status, and requests that two readers could read in two ways."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fakes.serving import Peer, Served, serving

HEAD = b"POST /echo HTTP/1.1\r\nhost: a\r\n"
GET = b"GET /echo HTTP/1.1\r\nhost: a\r\n"
CODED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
NEXT = b"GET /evil HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """One server for all tests that leave nothing behind."""
    with serving(url_bytes_max=1000, header_bytes_max=4000, header_count_max=20, body_bytes_max=100_000) as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    """The shared server, with nothing seen."""
    shared.app.seen.clear()
    shared.refused.clear()
    return shared


def is_of_one_shape(error: dict[str, object]) -> bool:
    """Three strings, of which none is empty."""
    return set(error) == {"message", "type", "code"} and all(type(said) is str and said for said in error.values())


def refusal(served: Served, request: bytes, status: int) -> str:
    """The one answer to `request` is an OpenAI error and a close; the application sees nothing of what follows."""
    answers = served.ask(request + NEXT)
    assert [answer.status for answer in answers] == [status]
    assert answers[0].headers["connection"] == "close" and is_of_one_shape(answers[0].error())
    assert served.refused == [status]
    assert all("evil" not in seen.scope["path"] and "last" not in seen.scope["path"] for seen in served.app.seen)
    message: str = answers[0].error()["message"]
    return message


# --- sizes


def test_at_the_limits(served: Served) -> None:
    """At a limit is within it."""
    longest = b"GET /echo?%b HTTP/1.1\r\nhost: a\r\n%b\r\n" % (b"q" * 994, b"a: b\r\n" * 19)
    body = HEAD + b"content-length: 100000\r\n\r\n" + b"x" * 100_000
    header = GET + b"x: %b\r\n\r\n" % (b"y" * (4000 - len(b"/echohostax")))
    assert [answer.status for answer in served.ask(longest + body + header)] == [200] * 4


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (414, b"GET /echo?%b HTTP/1.1\r\nhost: a\r\n\r\n" % (b"q" * 995)),
        (414, b"GET /echo?%b" % (b"q" * 10_000)),
        (431, GET + b"a: b\r\n" * 20 + b"\r\n"),
        (431, GET + b"a: %b\r\n\r\n" % (b"b" * 4000)),
        (431, GET + b"a: %b" % (b"b" * 10_000)),
        (431, GET + b"%b: c" % (b"b" * 10_000)),
        (431, b"\r\n" * 5_000),
        (413, HEAD + b"content-length: 100001\r\n\r\n"),
        (413, HEAD + b"content-length: 100001\r\nexpect: 100-continue\r\n\r\n"),
        (413, HEAD + b"content-length: 18446744073709551615\r\n\r\n"),
        (413, CODED + b"186a1\r\n" + b"x" * 100_001),
        (413, CODED + b"ffffffffffffffff\r\n" + b"x" * 100_001),
    ],
)
def test_too_large(served: Served, status: int, request_: bytes) -> None:
    """Over a limit is refused with the status that says which, be it sent at once or in pieces."""
    for step in (len(request_), 3000):
        served.refused.clear()
        with served.connect() as peer:
            for at in range(0, len(request_), step):
                peer.send(request_[at : at + step])
                time.sleep(0.001)
            answers = peer.all()
        assert [answer.status for answer in answers] == [status] == served.refused
        assert is_of_one_shape(answers[0].error())
    served.eventually(lambda: served.front.bodies_bytes == 0)


@pytest.mark.parametrize("framing", [b"1;" + b"x" * 10_000, b"0\r\n" + b"a: b\r\n" * 5_000])
def test_framing(served: Served, framing: bytes) -> None:
    """What a body has beside its bytes, chunk extensions and trailers, is bounded as a head is."""
    with served.connect() as peer:
        peer.send(CODED)
        served.eventually(lambda: served.app.seen)
        peer.send(framing)
        assert [answer.status for answer in peer.all()] == [400] == served.refused


def test_large_body_behind_a_small_head(served: Served) -> None:
    """What is behind a head in the same read does not count for it, nor does the end of the request before it."""
    body = HEAD + b"content-length: 90000\r\n\r\n" + b"x" * 90_000
    assert [answer.status for answer in served.ask(body * 4)] == [200] * 5


def test_refusal_in_its_turn(served: Served) -> None:
    """A refusal waits for the answers to the requests before it."""
    slow = b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n"
    answers = served.ask(slow + b"1" + slow + b"2" + b"BAD\r\n\r\n")
    assert [(answer.status, answer.body[:1]) for answer in answers] == [(200, b"1"), (200, b"2"), (400, b"{")]


def test_refusal_of_a_body_that_was_answered(served: Served) -> None:
    """A body that turns out bad after its request was answered gets no second answer: the connection closes."""
    early = b"POST /early HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    with served.connect() as peer:
        peer.send(early)
        answer = peer.answer()
        assert answer is not None and answer.status == 403
        peer.send(b"not hexadecimal\r\n")
        assert peer.closed()
    assert served.refused == [400]


def test_refusal_within_an_answer() -> None:
    """A body that turns out bad while its request is being answered cuts the answer."""
    with serving() as served, served.connect() as peer:
        peer.send(b"POST /flushed HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        assert b"200" in (peer.line() or b"")
        peer.send(b"not hexadecimal\r\n")
        assert peer.closed()
        served.eventually(lambda: served.app.seen[0].failed_send)


# --- times


@pytest.mark.parametrize(
    ("request_", "limits"),
    [
        (HEAD, {"header_timeout_s": 0.2}),
        (b"\r\n", {"header_timeout_s": 0.2}),
        (HEAD + b"content-length: 3\r\n\r\nab", {"body_timeout_s": 0.2}),
        (CODED + b"3\r\nabc\r\n", {"body_timeout_s": 0.2}),
    ],
)
def test_silence(request_: bytes, limits: dict[str, Any]) -> None:
    """A request that stops in the middle is refused with 408."""
    with serving(**limits) as served, served.connect() as peer:
        peer.send(request_)
        assert [answer.status for answer in peer.all()] == [408]


@pytest.mark.parametrize(
    ("start", "piece", "limits"),
    [
        (GET, b"a: b\r\n", {"header_timeout_s": 0.3}),
        (HEAD + b"content-length: 99999\r\n\r\n", b"x", {"body_timeout_s": 0.3, "body_rate_min": 1000}),
        (CODED, b"1\r\nx\r\n", {"body_timeout_s": 0.3, "body_rate_min": 1000}),
    ],
)
def test_slowloris(start: bytes, piece: bytes, limits: dict[str, Any]) -> None:
    """A request that never stops, and never ends, is refused with 408."""
    with serving(header_count_max=10_000, **limits) as served, served.connect() as peer:
        peer.send(start)
        served.eventually(lambda: (peer.send(piece), served.refused)[1])
        assert served.refused == [408]
        assert [answer.status for answer in peer.all()] == [408]


def test_idle() -> None:
    """A connection without a request is closed without a word, new or used; one that waits for its answer is not."""
    with serving(keep_alive_s=1.0) as served, served.connect() as new, served.connect() as used:
        used.send(HEAD + b"content-length: 0\r\n\r\n")
        answer = used.answer()
        assert answer is not None and "connection" not in answer.headers
        with served.connect() as busy:
            busy.send(b"POST /forever HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            assert new.closed() and used.closed()
            assert not served.app.seen[1].disconnected
    assert served.refused == []


def test_refused_client_that_stays() -> None:
    """A client that is refused and does not leave is left."""
    with serving(linger_s=0.2) as served, served.connect() as peer:
        peer.send(b"BAD\r\n\r\n")
        assert [answer.status for answer in peer.all()] == [400]
        served.eventually(lambda: (peer.send(b"x" * 1000), not served.server.server_state.connections)[1])


# --- numbers


def test_requests_per_connection() -> None:
    """After so many requests the connection says that it closes, and closes; what came behind them is not taken."""
    with serving(requests_per_connection_max=3) as served:
        answers = served.ask((GET + b"\r\n") * 5)
        assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
        assert len(served.app.seen) == 3


def test_pipelined() -> None:
    """So many requests may wait for the answer to the one before them; those behind are not taken."""
    with serving(pipelined_max=4) as served:
        slow = b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"
        answers = served.ask(slow * 2 + (GET + b"\r\n") * 5_000)
        assert [answer.headers.get("connection") for answer in answers] == [None] * 4 + ["close"]
        assert len(served.app.seen) == 5


@pytest.mark.parametrize(
    ("limits", "status"), [({"connections_max": 3}, 503), ({"connections_per_client_max": 3}, 429)]
)
def test_connections(limits: dict[str, int], status: int) -> None:
    """A connection too many is told so, at once, and closed; the others live on; room is given back."""
    with serving(linger_s=0.1, **limits) as served:
        peers = [served.connect() for _ in range(3)]
        served.eventually(lambda: len(served.server.server_state.connections) == 3)
        with served.connect() as one_too_many:
            answer = one_too_many.answer()
            assert answer is not None and (answer.status, answer.headers["retry-after"]) == (status, "1")
            assert one_too_many.closed()
        for peer in peers:
            peer.send(GET + b"\r\n")
            answer = peer.answer()
            assert answer is not None and answer.status == 200
            peer.sock.close()
        served.eventually(lambda: not served.server.server_state.connections)
        with served.connect() as after:
            after.send(GET + b"\r\n")
            answer = after.answer()
            assert answer is not None and answer.status == 200
    assert served.refused == [status]


def test_bodies_in_all() -> None:
    """Bodies of requests that are not answered yet are bounded in all; what is refused or left is given back."""
    with serving(bodies_bytes_max=150_000) as served:
        held = HEAD + b"content-length: 110000\r\n\r\n" + b"x" * 100_000
        with served.connect() as first, served.connect() as second:
            first.send(held)
            served.eventually(lambda: served.front.bodies_bytes == 100_000)
            second.send(held)
            assert [(answer.status, answer.headers["retry-after"]) for answer in second.all()] == [(503, "1")]
            first.send(b"x" * 10_000)
            answer = first.answer()
            assert answer is not None and len(answer.body) == 110_000
        served.eventually(lambda: served.front.bodies_bytes == 0)


# --- one way to read


@pytest.mark.parametrize(
    "lengths",
    [
        b"content-length: 3\r\ncontent-length: 4\r\n",
        b"content-length: 3\r\ncontent-length: 3\r\n",
        b"content-length: 3, 3\r\n",
        b"content-length: +3\r\n",
        b"content-length: -3\r\n",
        b"content-length: 0x3\r\n",
        b"content-length: 3.0\r\n",
        b"content-length: 1 2\r\n",
        b"content-length: \r\n",
        b"content-length: 99999999999999999999\r\n",
        b"content-length : 3\r\n",
        b"content_length: 3\r\n",
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 3\r\n",
    ],
)
def test_lengths(served: Served, lengths: bytes) -> None:
    """There is one length, or a coding, never both and never a doubtful one: else a body could hide a request."""
    refusal(served, HEAD + lengths + b"\r\nabc", 400)


@pytest.mark.parametrize(
    ("status", "coding"),
    [
        (501, b"transfer-encoding: gzip, chunked\r\n"),
        (501, b"transfer-encoding: identity\r\n"),
        (501, b"transfer-encoding: xchunked\r\n"),
        (400, b"transfer-encoding: chunked, gzip\r\n"),
        (400, b"transfer-encoding: chunked, chunked\r\n"),
        (400, b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"),
        (400, b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n"),
        (400, b"transfer-encoding: \x0bchunked\r\n"),
        (400, b"transfer-encoding : chunked\r\n"),
        (400, b"transfer-encoding:\r\n"),
        (400, b"transfer_encoding: chunked\r\n"),
    ],
)
def test_codings(served: Served, status: int, coding: bytes) -> None:
    """The only coding is chunked, said once and plainly."""
    refusal(served, HEAD + coding + b"\r\n0\r\n\r\n", status)


def test_coding_of_http_1_0(served: Served) -> None:
    """HTTP/1.0 has no chunks: its peers would see a body where we see none."""
    refusal(served, CODED.replace(b"1.1", b"1.0") + b"0\r\n\r\n", 400)


@pytest.mark.parametrize(
    "chunks",
    [
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\r\nabc\r\n0\r\n\r\n",
        b"3;a\nabc\r\n0\r\n\r\n",
        b"3;a\rb\r\nabc\r\n0\r\n\r\n",
        b"3;a\0\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc\r\n0\n\n",
        b"3\r\nabc\r\n0\r\n\n",
        b"1_0\r\nabc",
        b"fffffffffffffffff\r\nabc",
        b"\r\nabc",
        b"0\r\ncontent-length: 5\r\n\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_chunks(served: Served, chunks: bytes) -> None:
    """A chunk's size is hexadecimal digits, its lines end with CRLF, its data where its size says."""
    refusal(served, CODED + chunks, 400)


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x: a\r\n b\r\n\r\n",
        GET + b"x: a\r\n\tb\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n host: a\r\n\r\n",
        b"GET /echo HTTP/1.1\nhost: a\n\n",
        GET + b"x: a\ny: b\r\n\r\n",
        GET + b"\n",
        GET + b"x: a\ry: b\r\n\r\n",
        GET + b"\rGET /evil",
        GET + b"x: a\0b\r\n\r\n",
        GET + b"x\0: b\r\n\r\n",
        GET + b"x: \x01\x7f\r\n\r\n",
        GET + b": x\r\n\r\n",
        GET + b"x y: z\r\n\r\n",
        GET + b"x(y): z\r\n\r\n",
        GET + b"xy\r\n\r\n",
    ],
)
def test_lines(served: Served, head: bytes) -> None:
    """Lines end with CRLF and are not folded, names are tokens, values have no control characters."""
    refusal(served, head, 400)


@pytest.mark.parametrize(
    "hosts",
    [b"", b"host: a\r\nhost: a\r\n", b"host: a\r\nhost: b\r\n", b"host: a b\r\n", b"host: a/b\r\n", b"host: u@a\r\n"],
)
def test_hosts(served: Served, hosts: bytes) -> None:
    """There is one Host, and it is one."""
    refusal(served, b"GET /echo HTTP/1.1\r\n%b\r\n" % hosts, 400)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (400, b"GET /echo#x HTTP/1.1"),
        (400, b"GET /echo\x01 HTTP/1.1"),
        (400, b"GET /echo\xc3\xa9 HTTP/1.1"),
        (400, b"GET echo HTTP/1.1"),
        (400, b"GET * HTTP/1.1"),
        (400, b"GET ftp://a/echo HTTP/1.1"),
        (400, b"GET http:/// HTTP/1.1"),
        (400, b"GET http://user:word@a/echo HTTP/1.1"),
        (400, b"GET /echo/../evil HTTP/1.1"),
        (400, b"GET /echo/%2e%2E/evil HTTP/1.1"),
        (400, b"GET /echo/..%2fevil HTTP/1.1"),
        (400, b"GET /./echo HTTP/1.1"),
        (400, b"GET /echo/.. HTTP/1.1"),
        (405, b"CONNECT a:443 HTTP/1.1"),
        (400, b"get /echo HTTP/1.1"),
        (400, b"BREW /echo HTTP/1.1"),
        (400, b"GET\t/echo HTTP/1.1"),
        (400, b"GET /echo HTTP/1.1 "),
        (400, b"GET /echo HTTP/1.2"),
        (505, b"GET /echo HTTP/2.0"),
        (505, b"GET /echo HTTP/0.9"),
        (400, b"PRI * HTTP/2.0"),
        (505, b"GET /echo"),
    ],
)
def test_request_lines(served: Served, status: int, line: bytes) -> None:
    """A request line is a method, a path without dot segments (or a URL of one), and a version that we speak."""
    refusal(served, line + b"\r\nhost: a\r\n\r\n", status)


def test_expectations(served: Served) -> None:
    """What is expected and can't be met is refused."""
    refusal(served, GET + b"expect: 200-ok\r\n\r\n", 417)


def test_forms_of_targets(served: Served) -> None:
    """An absolute form means its path, and its host in place of Host; `*` is for OPTIONS; two slashes are a path."""
    lines = [
        b"GET HTTP://B:8/echo/1?q",
        b"GET http://b?q",
        b"OPTIONS *",
        b"GET //c/echo",
        b"GET /..a/b.",
        b"GET /echo/1",
    ]
    served.ask(b"".join(line + b" HTTP/1.1\r\nHost: a\r\n\r\n" for line in lines))
    found = [(seen.scope["path"], seen.scope["raw_path"], seen.scope["query_string"]) for seen in served.app.seen]
    assert found[:2] == [("/echo/1", b"/echo/1", b"q"), ("/", b"/", b"q")]
    assert found[2:4] == [("*", b"*", b""), ("//c/echo", b"//c/echo", b"")]
    assert [path for path, _, _ in found[4:]] == ["/..a/b.", "/echo/1", "/last"]
    hosts = [[value for name, value in seen.scope["headers"] if name == b"host"] for seen in served.app.seen]
    assert hosts == [[b"B:8"], [b"b"], [b"a"], [b"a"], [b"a"], [b"a"], [b"a"]]


def test_whitespace_behind_values(served: Served) -> None:
    """Whitespace around a value is not part of it."""
    request = b"POST /echo HTTP/1.1\r\nhost: \t a \t\r\ncontent-length:3 \t\r\nx:  y z \t\r\n\r\nabc"
    assert [answer.body for answer in served.ask(request)] == [b"abc", b""]
    headers = dict(served.app.seen[0].scope["headers"])
    assert headers == {b"host": b"a", b"content-length": b"3", b"x": b"y z"}
    coded = CODED.replace(b"chunked", b"\tChunked ") + b"3\r\nabc\r\n0\r\n\r\n"
    assert [answer.body for answer in served.ask(coded)] == [b"abc", b""]


# --- anything at all

PARTS = (
    *(HEAD, GET, CODED, NEXT, b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"-", b"\x80\xff", b"abc"),
    *(b"content-length: 3\r\n", b"content-length: 30\r\n\r\n", b"transfer-encoding: chunked\r\n", b"host: b\r\n"),
    *(b"3\r\nabc\r\n", b"0\r\n\r\n", b"ff\r\n", b"expect: 100-continue\r\n", b"connection: close\r\n"),
    *(b"POST /early HTTP/1.1\r\nhost: a\r\n", b"HEAD /echo HTTP/1.1\r\nhost: a\r\n", b"POST /pieces HTTP/1.0\r\n"),
    b"connection: upgrade\r\nupgrade: h2c\r\n",
)
VALID = (
    HEAD + b"content-length: 31\r\n\r\n" + NEXT,
    CODED + b"1f\r\n" + NEXT + b"\r\n0\r\n\r\n",
    HEAD + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 31\r\n\r\n" + NEXT,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Requests with requests in their bodies, here and there with a piece cut out or put in."""
    whole = draw(st.lists(st.sampled_from((*VALID, GET + b"\r\n")), min_size=1, max_size=3))
    data = b"".join(whole)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 4))
        data = data[:at] + draw(st.sampled_from((b"", *PARTS)) | st.binary(max_size=2)) + data[at + cut :]
    return data


END = b"\0\r\n\r\n" * 30
"""After it nothing is a request: a head is bad, and a short body is at its end."""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated() | st.lists(st.sampled_from(PARTS), max_size=8).map(b"".join), st.integers(0, 400))
@example(VALID[0] + VALID[1] + VALID[2], 50)
@example(CODED + b"3\r\nabc\r\n0\r\nx: y\r\n\r\n" + NEXT, 70)
def test_anything(served: Served, data: bytes, cut: int) -> None:
    """Whatever comes, and wherever reads cut it: the application sees the requests that another parser sees, or fewer;
    each has one answer at most, what is refused is the last, no error is an error of ours, and the server lives."""
    served.app.seen.clear()
    with served.connect() as peer:
        peer.sock.settimeout(0.3)
        peer.send(data[:cut])
        if 0 < cut < len(data):
            time.sleep(0.001)
        peer.send(data[cut:] + END)
        statuses = [status for status in _statuses(peer) if status != 100]
    seen = [one for one in served.app.seen if one.whole or one.scope["path"] == "/early"]
    found = [(one.scope["method"], one.scope["raw_path"], one.body) for one in seen]
    others, failed = _as_read_by_h11(data + END)
    for ours, other in zip(found, others, strict=False):
        assert ours[:2] == other[:2] and (ours[1] == b"/early" or ours[2] == other[2])
    assert len(found) <= len(others) or failed
    assert all(status in (200, 403, 404) for status in statuses[:-1])
    assert not statuses or statuses[-1] < 500 or statuses[-1] in (501, 505)
    assert len([status for status in statuses if status in (200, 403)]) <= len(seen)
    with served.connect() as after:
        after.send(GET + b"\r\n")
        answer = after.answer()
        assert answer is not None and answer.status == 200


def _statuses(peer: Peer) -> list[int]:
    """Of all that comes."""
    received = b""
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        while piece := peer.sock.recv(65536):
            received += piece
    return [int(line.split(b" ")[1]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def _as_read_by_h11(data: bytes) -> tuple[list[tuple[str, bytes, bytes]], bool]:
    """Method, path and body of the requests that h11 finds, and whether it then refuses what follows."""
    found: list[tuple[str, bytes, bytes]] = []
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request, body = None, b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                found.append((request.method.decode(), request.target.partition(b"?")[0], body))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE or connection.their_state is h11.MUST_CLOSE:
                    return found, False
                connection.start_next_cycle()
            else:
                return found, False
    except h11.RemoteProtocolError:
        return found, True


@pytest.mark.parametrize("whole", VALID)
def test_never_a_request_from_a_body(served: Served, whole: bytes) -> None:
    """A body that is a request, its frame valid, is never taken for one: wherever its reads are cut."""
    for cut in range(1, len(whole), 3):
        served.app.seen.clear()
        with served.connect() as peer:
            peer.send(whole[:cut])
            time.sleep(0.001)
            peer.send(whole[cut:])
            peer.finish()
            assert [answer.status for answer in peer.all()] == [200, 200]
        assert [seen.scope["path"] for seen in served.app.seen] == ["/echo", "/last"]
        assert served.app.seen[0].body == NEXT
