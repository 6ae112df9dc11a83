"""Our server protocol: the ASGI contract and HTTP/1.1, byte by byte, over real sockets."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.fakes.serving import Answer, Peer, Served, serving

HOST = b"host: a\r\n"


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """One server for all tests that leave nothing behind."""
    with serving() as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    """The shared server, with nothing seen."""
    shared.app.seen.clear()
    shared.refused.clear()
    return shared


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    """A request with a body of known length."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST %b HTTP/1.1\r\n%bcontent-length: %d\r\n%b\r\n%b" % (path, HOST, len(body), lines, body)


def get(path: bytes, *headers: bytes) -> bytes:
    """A request without a body."""
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, HOST, b"".join(header + b"\r\n" for header in headers))


def only(answer: Answer | None) -> Answer:
    """The answer, which is there."""
    assert answer is not None
    return answer


# --- what an application sees


def test_scope(served: Served) -> None:
    """Names are in lower case, values as they came; path decoded, raw path and query not; the rest as ASGI says."""
    headers = (b"X-Two: One", b"x-two:two", b"X-Bytes: \xe9")
    served.ask(b"POST /echo/%%C3%%A9%%20x?a=%%20b&c HTTP/1.1\r\n%b%b\r\n\r\n" % (HOST, b"\r\n".join(headers)))
    scope = served.app.seen[0].scope
    assert (scope["type"], scope["method"], scope["http_version"], scope["scheme"]) == ("http", "POST", "1.1", "http")
    assert (scope["path"], scope["raw_path"]) == ("/echo/é x", b"/echo/%C3%A9%20x")
    assert (scope["query_string"], scope["root_path"]) == (b"a=%20b&c", "")
    assert scope["headers"] == [(b"host", b"a"), (b"x-two", b"One"), (b"x-two", b"two"), (b"x-bytes", b"\xe9")]
    assert scope["client"][0] == "127.0.0.1" and scope["server"] == ("127.0.0.1", served.port)
    assert scope["state"] == {} and "http.response.trailers" in scope["extensions"]
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}


def test_bodies(served: Served) -> None:
    """A body arrives as it was sent, however it is framed and cut; nothing of it is a request."""
    body = b"GET /evil HTTP/1.1\r\n\r\n" * 20_000
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[1:70_000], body[70_000:]))
    coded = b"POST /echo HTTP/1.1\r\n%btransfer-encoding: Chunked\r\n\r\n%b0\r\nx-trailer: 1\r\n\r\n" % (HOST, chunks)
    for request in (post(b"/echo", body), coded, post(b"/echo", b"")):
        for cuts in (1, 7):
            with served.connect() as peer:
                step = len(request) // cuts + 1
                for at in range(0, len(request), step):
                    peer.send(request[at : at + step])
                    time.sleep(0.01 if cuts > 1 else 0)
                answer = only(peer.answer())
            assert (answer.status, answer.body) == (200, b"" if request.endswith(b": 0\r\n\r\n") else body)
    assert [seen.scope["path"] for seen in served.app.seen] == ["/echo"] * 6


def test_byte_by_byte(served: Served) -> None:
    """A head may come one byte at a time."""
    with served.connect() as peer:
        for byte in post(b"/echo?q=1", b"abc", b"x-long: value"):
            peer.send(bytes([byte]))
        assert only(peer.answer()).body == b"abc"
    assert served.app.seen[0].scope["query_string"] == b"q=1"
    assert (b"x-long", b"value") in served.app.seen[0].scope["headers"]


def test_pipelined(served: Served) -> None:
    """Requests that come at once are answered in their order, one at a time, on one connection."""
    answers = served.ask(post(b"/slow", b"1") + post(b"/echo", b"2") + get(b"/pieces") + post(b"/echo", b"4"))
    assert [answer.body[:6] for answer in answers] == [b"1", b"2", b"onetwo", b"4", b""]
    assert [answer.headers.get("connection") for answer in answers] == [None] * 4 + ["close"]


def test_framing_of_responses(served: Served) -> None:
    """A known length is said; without one it is chunks for HTTP/1.1, and the end of the connection for HTTP/1.0."""
    known, pieces, _ = served.ask(post(b"/echo", b"abc") + get(b"/pieces"))
    assert known.headers == {"x-app": "ours", "content-length": "3"}
    assert pieces.headers == {"x-app": "ours", "transfer-encoding": "chunked"}
    assert pieces.whole and pieces.body == b"onetwo" + b"x" * 100_000
    for connection in (b"", b"connection: keep-alive\r\n"):
        with served.connect() as peer:
            peer.send(b"GET /pieces HTTP/1.0\r\n%b\r\n" % connection)
            old = only(peer.answer())
            assert old.headers == {"x-app": "ours", "connection": "close"}
            assert old.body == pieces.body and peer.closed()
    assert served.app.seen[-1].scope["http_version"] == "1.0"


@pytest.mark.parametrize("path", [b"/echo", b"/pieces", b"/status/200", b"/status/204", b"/status/304"])
def test_without_body(served: Served, path: bytes) -> None:
    """HEAD, 204 and 304 have no body, whatever the application says; the next answer is not taken for one."""
    method = b"GET" if b"0" in path and b"200" not in path else b"HEAD"
    with served.connect() as peer:
        peer.send(b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path, HOST))
        answer = only(peer.answer(bodyless=True))
        assert answer.headers.get("transfer-encoding") is None
        assert answer.status != 204 or "content-length" not in answer.headers
        peer.finish()
        assert [after.status for after in peer.all()] == [200]


def test_trailers(served: Served) -> None:
    """Trailers follow the last chunk."""
    answer = served.ask(get(b"/trailers"))[0]
    assert answer.whole and answer.body == b"abcdef" and answer.trailers == {"x-sum": "6", "x-end": "yes"}


def test_head_waits_for_body(served: Served) -> None:
    """A head goes out with the first piece of the body, be it empty, and not before."""
    with served.connect() as peer:
        peer.send(get(b"/held"))
        peer.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.line()
    with served.connect() as peer:
        peer.send(get(b"/flushed"))
        assert b"200 OK" in (peer.line() or b"")


def test_client_leaves(served: Served) -> None:
    """A client that leaves is told to the application, by `receive` and by `send`; half closed is closed."""
    for half in (False, True):
        served.app.seen.clear()
        with served.connect() as peer:
            peer.send(post(b"/forever", b"x"))
            served.eventually(lambda: served.app.seen)
            if half:
                peer.sock.shutdown(1)
            else:
                peer.sock.close()
            served.eventually(lambda: served.app.seen[0].failed_send)
    served.eventually(lambda: not served.server.server_state.tasks)


def test_client_leaves_within_body(served: Served) -> None:
    """A body that ends too early is a client that has left, and no request."""
    with served.connect() as peer:
        peer.send(post(b"/echo", b"abc")[:-1])
        served.eventually(lambda: served.app.seen)
    served.eventually(lambda: served.app.seen[0].disconnected)
    served.eventually(lambda: served.front.bodies_bytes == 0)


def test_two_wait(served: Served) -> None:
    """`receive` may be awaited by several; all hear that the response is complete."""
    assert served.ask(post(b"/task", b"x"))[0].body == b"done"
    served.eventually(lambda: served.app.seen[0].disconnected)


def test_continue(served: Served) -> None:
    """100 goes to who waits for it when the application wants the body; an answer without it closes."""
    head = post(b"/echo", b"abc", b"Expect: 100-Continue")[:-3]
    with served.connect() as peer:
        peer.send(head)
        assert peer.line() == b"HTTP/1.1 100 Continue"
        peer.send(b"abc")
        assert only(peer.answer()).body == b"abc"
        peer.finish()
        assert len(peer.all()) == 1
    with served.connect() as peer:
        peer.send(head.replace(b"/echo", b"/early"))
        early = only(peer.answer())
        assert (early.status, early.headers["connection"]) == (403, "close")
        peer.send(get(b"/evil"))
        assert peer.closed()
    assert served.ask(head + b"abc")[0].body == b"abc"
    assert b"100 Continue" not in served.ask(post(b"/slow", b"abc", b"expect: 100-continue"))[0].body
    assert [seen.scope["path"] for seen in served.app.seen if "evil" in seen.scope["path"]] == []


def test_answer_before_body(served: Served) -> None:
    """After an early answer the rest of the body is read and dropped: it is never a request."""
    body = get(b"/evil") * 30_000
    answers = served.ask(post(b"/early", body) + post(b"/echo", b"after"))
    assert [answer.body for answer in answers] == [b"early", b"after", b""]
    assert {seen.scope["path"] for seen in served.app.seen} == {"/early", "/echo", "/last"}
    served.eventually(lambda: served.front.bodies_bytes == 0)


def test_upgrade_is_not_asked_for(served: Served) -> None:
    """A request that offers another protocol is answered as one that does not, with its body and what follows."""
    for offer in (b"h2c", b"websocket"):
        offered = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + offer, b"HTTP2-Settings: AAMAAABk")
        answers = served.ask(post(b"/echo", b"abc", *offered) + get(b"/echo/2", b"connection: keep-alive"))
        assert [answer.body for answer in answers] == [b"abc", b"", b""]
    names = {name for seen in served.app.seen for name, _ in seen.scope["headers"]}
    assert not names & {b"upgrade", b"http2-settings"}
    closing = served.ask(get(b"/echo", b"connection: upgrade, close", b"upgrade: h2c"))
    assert [answer.headers["connection"] for answer in closing] == ["close"]


# --- applications that fail


@pytest.mark.parametrize("path", [b"/crash", b"/silent", b"/long", b"/short", b"/split"])
def test_failure_before_the_answer(served: Served, path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """An application that fails before it has said anything gets its client a 500 with an error body, and a close."""
    answers = served.ask(post(path, b"secret prompt"))
    assert [answer.status for answer in answers] == [500]
    assert answers[0].error()["type"] == "internal_error" and answers[0].headers["connection"] == "close"
    assert "secret prompt" not in caplog.text


@pytest.mark.parametrize("path", [b"/crash_late", b"/unfinished"])
def test_failure_within_the_answer(served: Served, path: bytes) -> None:
    """An answer that breaks off is seen to: it has no end, and the connection closes."""
    answers = served.ask(get(path))
    assert [(answer.status, answer.body, answer.whole) for answer in answers] == [(200, b"some", False)]
    with served.connect() as peer:
        peer.send(b"GET /crash_late HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):  # what ends by the connection's end can only be broken by a reset
            while peer.sock.recv(4096):
                pass


# --- back-pressure


def test_slow_reader() -> None:
    """A client that does not read holds the application back, and is cut after `send_timeout_s`."""
    with serving(send_timeout_s=0.5) as served, served.connect() as peer:
        peer.send(get(b"/flood"))
        served.eventually(lambda: served.app.sent_bytes)
        served.eventually(lambda: not served.server.server_state.tasks)
        assert served.app.sent_bytes < 50_000_000
        assert peer.sock.recv(100).startswith(b"HTTP/1.1 200")


def test_slow_application() -> None:
    """A body that the application does not take is not read: it waits in the client, and is no slow client's."""
    with serving(unread_bytes_max=100_000, body_timeout_s=0.2) as served, served.connect() as peer:
        body = b"x" * 20_000_000
        peer.send(post(b"/lazy", body))
        answer = only(peer.answer())
        assert (answer.status, answer.body == body) == (200, True)
        assert served.app.seen[0].pieces > 1 and not served.refused


# --- leaving


def test_shutdown() -> None:
    """The server leaves: idle connections close at once, what has begun is answered and says that it closes."""
    with serving() as served, served.connect() as idle, served.connect() as busy, served.connect() as begun:
        idle.send(get(b"/echo"))
        assert only(idle.answer()).headers.get("connection") is None
        busy.send(post(b"/slow", b"x"))
        begun.send(post(b"/echo", b"abc")[:-1])
        served.eventually(lambda: len(served.app.seen) == 3)
        served.leave()
        assert idle.closed()
        assert only(busy.answer()).headers["connection"] == "close" and busy.closed()
        begun.send(b"c")
        assert only(begun.answer()).body == b"abc" and begun.closed()
        served.thread.join(10)
        assert not served.thread.is_alive()


def test_leaving_is_said() -> None:
    """While the server means to leave, every answer sends its client elsewhere."""
    with serving() as served:
        served.front.leaving = True
        with served.connect() as peer:
            peer.send(get(b"/echo"))
            assert only(peer.answer()).headers["connection"] == "close"
            assert peer.closed()


def test_leaving_is_not_said_any_more() -> None:
    """The head of an answer went out before: its client may ask once more, and is told then."""
    with serving() as served, served.connect() as peer:
        peer.send(get(b"/long_after"))
        head = peer.line()
        served.front.leaving = True
        assert head is not None and b"close" not in head and b"late" in (peer.line() or b"")
        time.sleep(0.1)
        peer.send(get(b"/echo"))
        assert only(peer.answer()).headers["connection"] == "close" and peer.closed()


def test_two_fronts_share_nothing() -> None:
    """What one server refuses and counts is not the other's."""
    with serving(connections_max=1) as one, serving(connections_max=1) as other:
        for served in (one, other):
            peer: Peer
            with served.connect() as peer:
                peer.send(get(b"/echo"))
                assert only(peer.answer()).status == 200
            assert served.refused == []
