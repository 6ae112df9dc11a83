"""One request and its response by themselves: what an application may say, and what of it reaches the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from router.server.asgi import ClientDisconnected
from router.server.exchange import Exchange
from router.server.heads import CONTINUE

_LARGE = b"x" * (64 * 1024 + 1)


class Wire(asyncio.Transport):
    """Keeps what is written, each call by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.writes += map(bytes, list_of_data)


class Carrier:
    """A connection that carries one exchange. `paused`: the client does not read."""

    def __init__(self, is_leaving: bool = False) -> None:
        self.wire = Wire()
        self.transport: asyncio.Transport | None = self.wire
        self.write_paused = False
        self.is_leaving = is_leaving
        self.waits = self.times_taken = self.bytes_released = self.times_answered = self.times_ended = 0

    async def writable(self) -> None:
        self.waits += 1

    def taken(self) -> None:
        self.times_taken += 1

    def released(self, size: int) -> None:
        self.bytes_released += size

    def leaving(self) -> bool:
        return self.is_leaving

    def answered(self, exchange: Exchange) -> None:
        self.times_answered += 1

    def ended(self, exchange: Exchange) -> None:
        self.times_ended += 1

    @property
    def said(self) -> bytes:
        """All that the client gets."""
        return b"".join(self.wire.writes)


def _exchange(
    method: str = "POST",
    modern: bool = True,
    keep_alive: bool = True,
    expects: bool = False,
    is_leaving: bool = False,
) -> tuple[Exchange, Carrier]:
    carrier = Carrier(is_leaving)
    return Exchange(carrier, method, modern, keep_alive, expects), carrier


def _start(*headers: tuple[bytes, bytes], status: int = 200, **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def _piece(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _says(*messages: dict[str, Any], **how: Any) -> tuple[Exchange, Carrier]:
    exchange, carrier = _exchange(**how)
    exchange.arrived_whole()

    async def say() -> None:
        for message in messages:
            await exchange.send(message)

    asyncio.run(say())
    return exchange, carrier


def _head_of(carrier: Carrier) -> list[bytes]:
    return carrier.said.partition(b"\r\n\r\n")[0].split(b"\r\n")


async def _waits(exchange: Exchange) -> asyncio.Task[Any]:
    """Somebody who waits for what comes next."""
    waiting = asyncio.create_task(exchange.receive())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


# --- the request's body


def test_a_body_in_pieces() -> None:
    """Each is handed over once; together where they came together; the end is said with the last one."""
    exchange, carrier = _exchange()

    async def read() -> None:
        exchange.arrived(b"ab")
        exchange.arrived(b"c")
        assert (exchange.unread, exchange.held) == (3, 3)
        assert await exchange.receive() == {"type": "http.request", "body": b"abc", "more_body": True}
        assert (exchange.unread, exchange.held, carrier.times_taken) == (0, 3, 1)
        waiting = await _waits(exchange)
        exchange.arrived(b"d")
        assert await waiting == {"type": "http.request", "body": b"d", "more_body": True}
        waiting = await _waits(exchange)
        exchange.arrived_whole()
        assert await waiting == {"type": "http.request", "body": b"", "more_body": False}
        assert carrier.times_taken == 2, "nothing came that could be taken"
        waiting = await _waits(exchange)
        exchange.lost()
        assert await waiting == {"type": "http.disconnect"}

    asyncio.run(read())


def test_all_who_wait_are_told() -> None:
    """Also where one of them does not wait any more; and the client, that did not ask to be told, is told nothing."""
    exchange, carrier = _exchange()

    async def wait() -> None:
        gone, one, other = [await _waits(exchange) for _ in range(3)]
        gone.cancel()
        await asyncio.sleep(0)
        exchange.lost()
        assert await one == await other == {"type": "http.disconnect"} and carrier.said == b""

    asyncio.run(wait())


def test_who_waits_is_told_of_the_end_of_the_answer() -> None:
    """And what is not read then is not kept, nor what still comes; whoever asks learns that it is over."""
    exchange, carrier = _exchange()

    async def answer() -> None:
        exchange.arrived(b"abc")
        await exchange.receive()
        waiting = await _waits(exchange)
        await exchange.send(_start())
        await exchange.send(_piece(b"done"))
        assert await waiting == {"type": "http.disconnect"} and carrier.times_answered == 1
        exchange.arrived(b"late")
        assert (exchange.unread, exchange.held) == (0, 3)
        assert await exchange.receive() == {"type": "http.disconnect"}

    asyncio.run(answer())


def test_what_is_not_read_is_dropped_with_the_answer() -> None:
    """It counts as unread no longer."""
    exchange, _ = _exchange()
    exchange.arrived(b"abc")

    async def answer() -> None:
        await exchange.send(_start())
        await exchange.send(_piece(b""))

    asyncio.run(answer())
    assert exchange.complete and exchange.unread == 0


def test_what_is_released_is_not_held() -> None:
    """The connection knows how much memory its requests take."""
    exchange, carrier = _exchange()
    exchange.arrived(b"abcde")
    exchange.release(3)
    assert (exchange.held, carrier.bytes_released) == (2, 3)


def test_a_client_without_a_body_is_not_asked_for_it() -> None:
    """It said that it would wait, and has nothing to send."""
    exchange, carrier = _exchange(expects=True)
    exchange.arrived_whole()

    async def read() -> None:
        assert await exchange.receive() == {"type": "http.request", "body": b"", "more_body": False}
        waiting = await _waits(exchange)
        exchange.lost()
        await waiting

    asyncio.run(read())
    assert carrier.said == b""


@pytest.mark.parametrize(("modern", "arrives", "asked"), [(True, b"", 1), (False, b"", 0), (True, b"a", 0)])
def test_a_client_is_asked_for_its_body_once(modern: bool, arrives: bytes, asked: int) -> None:
    """Once somebody reads; but for one that can't know what that means, or sends already."""
    exchange, carrier = _exchange(modern=modern, expects=True)

    async def read() -> None:
        if arrives:
            exchange.arrived(arrives)
            await exchange.receive()
        waiting = [await _waits(exchange) for _ in range(2)]
        exchange.lost()
        await asyncio.gather(*waiting)

    asyncio.run(read())
    assert carrier.said == CONTINUE * asked


def test_an_answer_that_has_begun_is_not_interrupted() -> None:
    """A client that waited to send its body would take the `100` for a piece of the answer."""
    exchange, carrier = _exchange(expects=True)

    async def answer() -> None:
        await exchange.send(_start((b"content-length", b"4")))
        await exchange.send(_piece(b"ab", more=True))
        waiting = await _waits(exchange)
        await exchange.send(_piece(b"cd"))
        await waiting

    asyncio.run(answer())
    assert CONTINUE not in carrier.said and carrier.said.endswith(b"\r\n\r\nabcd")


# --- the response's head


def test_a_known_length_is_kept() -> None:
    """A short answer goes out as one write."""
    exchange, carrier = _says(_start((b"content-length", b"3"), (b"x-a", b"b")), _piece(b"abc"))
    assert carrier.wire.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-a: b\r\n\r\nabc"]
    assert exchange.complete and exchange.delimited and exchange.keep_alive


def test_without_a_length_there_are_chunks() -> None:
    """An empty piece is none: it would end the body."""
    exchange, carrier = _says(_start(), _piece(b"abc", more=True), _piece(b"", more=True), _piece(b"x" * 17))
    assert carrier.said == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n11\r\n" + b"x" * 17 + b"\r\n0\r\n\r\n"
    )
    assert exchange.delimited and exchange.keep_alive


def test_for_an_old_client_the_connection_ends_the_body() -> None:
    """HTTP/1.0 has no chunks."""
    exchange, carrier = _says(_start(), _piece(b"abc"), modern=False)
    assert carrier.said == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
    assert not exchange.delimited and not exchange.keep_alive


def test_an_old_client_is_kept_where_a_length_is_known() -> None:
    """If it wishes so."""
    exchange, carrier = _says(_start((b"content-length", b"1")), _piece(b"a"), modern=False)
    assert exchange.keep_alive and _head_of(carrier) == [b"HTTP/1.1 200 OK", b"content-length: 1"]


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body(status: int) -> None:
    """A length says what a body would have; of 204 it may not be said."""
    exchange, carrier = _says(_start((b"content-length", b"3"), status=status), _piece(b"abc"))
    assert exchange.delimited and exchange.keep_alive
    lengths = [line for line in _head_of(carrier) if line.startswith(b"content-length")]
    assert carrier.said.partition(b"\r\n\r\n")[2] == b"" and len(lengths) == (status == 304)


def test_a_head_alone() -> None:
    """It is that of the answer with its body."""
    exchange, carrier = _says(_start((b"content-length", b"3")), _piece(b"abc"), method="HEAD")
    assert carrier.said == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n" and exchange.keep_alive


def test_the_framing_is_ours() -> None:
    """What an application says of transfer codings and connections is not passed on; but whom it closes, is."""
    length, coding = (b"content-length", b"9"), (b"transfer-encoding", b"chunked")
    _, carrier = _says(_start(length, coding, (b"x-a", b"b")), _piece(b"abc"))
    assert _head_of(carrier) == [b"HTTP/1.1 200 OK", b"x-a: b", b"transfer-encoding: chunked"]
    _, carrier = _says(_start(coding), _piece(b"abc"), modern=False)
    assert _head_of(carrier) == [b"HTTP/1.1 200 OK", b"connection: close"], "an old client would read chunks as text"
    exchange, carrier = _says(_start((b"connection", b"keep-alive, x-a"), (b"content-length", b"0")), _piece(b""))
    assert exchange.keep_alive and _head_of(carrier) == [b"HTTP/1.1 200 OK", b"content-length: 0"]
    exchange, carrier = _says(_start((b"connection", b"Close"), (b"content-length", b"0")), _piece(b""))
    assert not exchange.keep_alive
    assert _head_of(carrier) == [b"HTTP/1.1 200 OK", b"content-length: 0", b"connection: close"]


@pytest.mark.parametrize("how", [{"keep_alive": False}, {"is_leaving": True}])
def test_a_connection_that_ends_says_so(how: dict[str, bool]) -> None:
    """Be it by the client's wish, or by ours."""
    exchange, carrier = _says(_start((b"content-length", b"0")), _piece(b""), **how)
    assert not exchange.keep_alive and _head_of(carrier)[-1] == b"connection: close"


@pytest.mark.parametrize(("whole", "kept"), [(True, True), (False, False)])
def test_a_body_that_was_not_asked_for(whole: bool, kept: bool) -> None:
    """Whether it still comes, only the client knows: behind the answer there may be a body, or a request."""
    exchange, _ = _exchange(expects=True)
    if whole:
        exchange.arrived_whole()

    async def answer() -> None:
        await exchange.send(_start((b"content-length", b"0")))
        await exchange.send(_piece(b""))

    asyncio.run(answer())
    assert exchange.keep_alive is kept


def test_nothing_is_out_before_the_first_piece() -> None:
    """So an application that fails until then can still be answered for."""
    exchange, carrier = _says(_start((b"content-length", b"3")))
    assert not exchange.begun and not exchange.complete and carrier.said == b""


# --- the response's body


@pytest.mark.parametrize(
    "pieces",
    [
        (_piece(b"abcd"),),
        (_piece(b"abcd", more=True),),
        (_piece(b"ab"),),
        (_piece(b"ab", more=True), _piece(b"cd")),
    ],
)
def test_a_body_of_another_length_than_was_said(pieces: tuple[dict[str, Any], ...]) -> None:
    """The client would take the rest for the next answer, or wait for ever."""
    with pytest.raises(RuntimeError, match="not as long"):
        _says(_start((b"content-length", b"3")), *pieces)


def test_a_body_of_the_length_that_was_said_in_pieces() -> None:
    """They count together."""
    exchange, carrier = _says(_start((b"content-length", b"3")), _piece(b"ab", more=True), _piece(b"c"))
    assert exchange.complete and carrier.said.endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize(
    ("messages", "framed"),
    [
        ((_start((b"content-length", b"%d" % len(_LARGE))), _piece(_LARGE)), [_LARGE]),
        ((_start(), _piece(_LARGE)), [_LARGE, b"\r\n0\r\n\r\n"]),
        ((_start(), _piece(_LARGE, more=True), _piece(b"")), [_LARGE, b"\r\n", b"0\r\n\r\n"]),
    ],
)
def test_large_pieces_are_not_copied(messages: tuple[dict[str, Any], ...], framed: list[bytes]) -> None:
    """They go out beside their framing."""
    _, carrier = _says(*messages)
    assert carrier.wire.writes[1:] == framed
    assert carrier.wire.writes[0].endswith(b"\r\n\r\n" if len(framed) == 1 else b"\r\n\r\n%x\r\n" % len(_LARGE))


def test_pieces_up_to_a_bound_go_out_as_one_write() -> None:
    """One packet for head and body, and one for each chunk."""
    bound = _LARGE[1:]
    _, carrier = _says(_start((b"content-length", b"%d" % len(bound))), _piece(bound))
    assert len(carrier.wire.writes) == 1
    _, carrier = _says(_start(), _piece(b"abc", more=True), _piece(bound))
    assert len(carrier.wire.writes) == 2


def test_who_says_something_out_of_turn_is_told() -> None:
    """It would be taken for something else by the client."""
    trailers = {"type": "http.response.trailers", "headers": []}
    begun, promised = _start(), (_start(trailers=True), _piece(b""))
    for messages in (
        (_piece(b""),),
        (begun, begun),
        (begun, trailers),
        (begun, _piece(b""), _piece(b"")),
        (*promised, _piece(b"")),
        (*promised, begun),
    ):
        with pytest.raises(RuntimeError, match="out of turn"):
            _says(*messages)


def test_what_is_left_out_is_nothing_more() -> None:
    """Of a message that says no body, or whether more comes."""
    exchange, carrier = _says({"type": "http.response.start", "status": 200}, {"type": "http.response.body"})
    assert exchange.complete and carrier.said.endswith(b"\r\n\r\n0\r\n\r\n")


def test_a_client_that_does_not_read_is_waited_for() -> None:
    """One that reads is not."""
    exchange, carrier = _exchange()
    carrier.write_paused = True
    asyncio.run(exchange.send(_start()))
    assert carrier.waits == 1
    carrier.write_paused = False
    asyncio.run(exchange.send(_piece(b"")))
    assert carrier.waits == 1


def test_a_client_that_has_left() -> None:
    """Whoever answers it finds out."""
    exchange, _ = _exchange()
    exchange.lost()
    with pytest.raises(ClientDisconnected):
        asyncio.run(exchange.send(_start()))


def test_trailers() -> None:
    """They follow the last chunk, all together; only then the answer is complete."""
    first = {"type": "http.response.trailers", "headers": [(b"x-a", b"1")], "more_trailers": True}
    last = {"type": "http.response.trailers", "headers": [(b"x-b", b"2")]}
    exchange, carrier = _says(_start(trailers=True), _piece(b"abc"), first)
    assert not exchange.complete and carrier.said.endswith(b"3\r\nabc\r\n")
    exchange, carrier = _says(_start(trailers=True), _piece(b"abc"), first, last)
    assert exchange.complete and carrier.said.endswith(b"3\r\nabc\r\n0\r\nx-a: 1\r\nx-b: 2\r\n\r\n")


def test_trailers_of_a_body_without_chunks() -> None:
    """There is no place for them."""
    last = {"type": "http.response.trailers", "headers": [(b"x-b", b"2")]}
    exchange, carrier = _says(_start((b"content-length", b"1"), trailers=True), _piece(b"a"), last)
    assert exchange.complete and carrier.said.endswith(b"\r\n\r\na")


@pytest.mark.parametrize("value", [b"a\nb", b"a\rb", b"a\r\nx-evil: 1", b"a\0b"])
def test_a_trailer_can_not_end_its_line(value: bytes) -> None:
    """What stands behind it would be a trailer, or an answer, of its own."""
    trailers = {"type": "http.response.trailers", "headers": [(b"x-a", value)]}
    with pytest.raises(ValueError, match="line break or a zero"):
        _says(_start(trailers=True), _piece(b""), trailers)


# --- what is said at once


def _pushed(exchange: Exchange, take: Callable[[], bytes] = lambda: b"abc") -> bytes | None:
    return exchange.push(take)


def test_a_piece_is_pushed() -> None:
    """At once, and more may come."""
    exchange, carrier = _says(_start())
    assert _pushed(exchange) == b"abc" and carrier.said.endswith(b"3\r\nabc\r\n") and not exchange.complete


@pytest.mark.parametrize("state", ["paused", "gone", "not started", "complete"])
def test_nothing_is_taken_that_can_not_be_pushed(state: str) -> None:
    """It would be lost: whoever pushes says it in the ordinary way then."""
    exchange, carrier = _says(*{"not started": (), "complete": (_start(), _piece(b""))}.get(state, (_start(),)))
    carrier.write_paused = state == "paused"
    if state == "gone":
        exchange.lost()
    taken: list[bytes] = []
    assert _pushed(exchange, lambda: taken.append(b"") or b"") is None  # type: ignore[func-returns-value]
    assert not taken


# --- its task


def test_however_an_application_ends_the_connection_knows(caplog: pytest.LogCaptureFixture) -> None:
    """A failure is told in the log; that the client has left is none."""

    def ending(error: Exception | None) -> int:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if error is not None:
                raise error

        exchange, carrier = _exchange()
        asyncio.run(exchange.run(app, {}))
        return carrier.times_ended

    assert ending(None) == ending(ClientDisconnected("left")) == 1 and not caplog.records
    assert ending(KeyError("ours")) == 1 and "the application failed" in caplog.text


def test_an_exchange_is_seen_in_logs() -> None:
    """How far it has come, and how much of its body."""
    begun = (_start((b"content-length", b"2")), _piece(b"a", more=True))
    for messages, state in ((), "open"), (begun, "begun"), ((*begun, _piece(b"b")), "complete"):
        exchange, _ = _says(*messages)
        assert repr(exchange) == f"<Exchange {state} size=0 whole>"
    exchange, _ = _exchange()
    exchange.lost()
    assert repr(exchange) == "<Exchange gone size=0>"
