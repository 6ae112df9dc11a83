"""Send a request to the pod that was picked and stream its answer back: bytes in, the same bytes out.

A failure before the first byte of a response goes to the next pod: freely, where the pod has not had the request;
`breaks_max` times, where it has, and maybe broke because of it; not at all, where the pod is well and may be at work on
it. What a pod says for reasons that may be its own one other pod is asked about. Never, where a pod has
had what is not kept of an upload, and after the first byte: the client's connection is cut (the response is left
unfinished, which makes the ASGI server close it), so that the client sees a broken response and not a clean end, for
JSON and for event streams alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from router.core.demand import NOT_DONE
from router.errors import BadRequest, Full, PodTimeout, PodUnreachable, RouterError, unraised
from router.proxy.client_watch import ClientWatch, Flight
from router.proxy.error_events import read_error
from router.proxy.places import without_hosts
from router.proxy.preparation import Preparation
from router.proxy.refusals import REFUSALS, retry_after_s
from router.proxy.uploads import Upload
from router.proxy.usage import Tail, Usage, read_usage
from router.server.asgi import PUSH, Headers, Message, Receive, Scope, Send, send_error
from router.upstream.failures import BREAKS, ResponseTimeout, UnsendableRequest, UpstreamError
from router.upstream.pool import Response, Upstream
from router.upstream.replies import NOT_FORWARDED

_TRAILERS = "http.response.trailers"
_EVENT_STREAM = b"text/event-stream"
_NO_LENGTH_STATUSES = (204, 304)  # without a body, and servers would wait for one of the length that is said


@dataclass(slots=True)
class Outcome:
    """How a forwarded request ended. `error` is a bounded word, None when the response went out whole."""

    status: int | None  # the pod's; None when no head has come
    bytes_out: int  # of the body, handed to the client's connection
    usage: Usage | None
    client_gone: bool = False
    error: str | None = None
    told: int | None = None  # the status of an error that the pod told in a stream, below a head that was fine


class Assignment(Protocol):
    """One pod, taken for one attempt. Exactly one of `failed`, `refused` and `finished` ends it, in every case."""

    @property
    def upstream(self) -> Upstream: ...
    @property
    def pod(self) -> str: ...
    @property
    def computes(self) -> bool:
        """The pod may be at work on what it does not answer yet: it is well, and whole answers take their time."""

    def is_disputed(self, status: int) -> bool:
        """May such an answer be the pod's own fault? One other pod is asked about it."""

    @property
    def preparation(self) -> Preparation | None:
        """What goes to the pod before the request."""

    @property
    def request_headers(self) -> Headers:
        """For the pod, in place of the client's of these names (lower case)."""

    @property
    def response_headers(self) -> Headers:
        """For the client, in place of the pod's of these names (lower case)."""

    def first_byte(self, now: float) -> None:
        """The first byte of the response's body is here (vLLM sends the head of a stream before it computes).

        Not called for an error: nothing was computed for it.
        """

    def failed(self, reason: str, now: float) -> None:
        """Nothing came from the pod; another one may be asked."""

    def refused(self, status: int, retry_after_s: float | None, now: float) -> None:
        """The pod's answer is that it can't take the request now; another one may be asked.

        `finished` follows if that answer goes to the client after all.
        """

    def finished(self, outcome: Outcome, now: float) -> None:
        """The attempt is over in any other way."""


class Routes(Protocol):
    """Where one request may go."""

    @property
    def broken(self) -> int:
        """So many pods broke off when they were asked about it, before it was sent to any."""

    def acquit(self) -> None:
        """The request is over: pods that refused it, and that nobody has proven wrong, were right to."""

    async def look_again(self) -> None:
        """A pod does not know the model that it was said to serve: find out who does, if that can be soon."""

    def route(self, exclude: frozenset[str]) -> Assignment:
        """Pick a pod that is not in `exclude`. Raises `RouterError`: no fit pod, `Full` …"""

    async def wait(self, full: Full) -> Assignment:
        """After `Full`: pick one when there is room. Raises `RouterError`: the wait is too long …"""


class _Flow:
    """A response's body on its way. Called while nothing has to be awaited: what came goes on at once."""

    __slots__ = ("_push", "_take", "bytes_out", "tail")

    def __init__(self, scope: Scope, response: Response) -> None:
        extensions = scope.get("extensions")
        self._push: Callable[[Callable[[], bytes]], bytes | None] | None = extensions.get(PUSH) if extensions else None
        self._take = response.take
        self.tail = Tail()
        self.bytes_out = 0

    def __call__(self) -> bool:
        """False where a task has to do it."""
        piece = self._push(self._take) if self._push is not None else None
        if piece is None:
            return False
        self.add(piece)
        return True

    def add(self, piece: bytes) -> None:
        self.tail.add(piece)
        self.bytes_out += len(piece)


class Proxy:
    """Forwards requests, on one loop. `clock` gives monotonic seconds to the assignments."""

    def __init__(
        self,
        attempts_max: int = 3,
        breaks_max: int = 1,
        withheld: frozenset[bytes] = frozenset(),
        watch_after_s: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`withheld`: pods do not see clients' headers of these names (lower case)."""
        self._attempts_max = attempts_max
        self._breaks_max = breaks_max
        self.dropped = NOT_FORWARDED | withheld
        self._clock = clock
        self.watch = ClientWatch(watch_after_s)

    async def forward(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        body: bytes | Upload,
        routes: Routes,
        error_headers: Headers = (),
    ) -> RouterError | None:
        """Answer this request, whose `body` has been read, or is an upload. `error_headers` go out with an error of our
        own.

        Returns when the answer is out, cut, or nobody is left to read it: the error of our own, if that was the
        answer. Raises only what is not expected, and a cancellation that came from outside.
        """
        flight = Flight(scope, receive, send, body)
        self.watch.begin(flight)
        try:
            return await self._serve(flight, routes, error_headers)
        except asyncio.CancelledError:
            if not flight.was_ours():
                raise
            return None
        finally:
            self.watch.end(flight)

    async def _serve(self, flight: Flight, routes: Routes, error_headers: Headers) -> RouterError | None:
        tried: frozenset[str] = frozenset()
        broken, disputed = routes.broken, False
        failure: RouterError | None = None
        if broken > self._breaks_max:
            failure = PodUnreachable(f"{broken} pods broke off when they were asked for the tokens of this request.")
            await send_error(flight.send, failure, error_headers)
            return failure
        held: list[tuple[Assignment, Response]] = []  # the answer of a pod that could not take it, the newest
        try:
            while len(tried) < self._attempts_max:
                try:
                    try:
                        assignment = routes.route(tried)
                    except Full as full:
                        assignment = await routes.wait(full)
                    answer = await self._ask(flight, assignment, broken > 0)
                except RouterError as refusal:
                    failure = failure or unraised(refusal)  # a pod that failed says more than that no other is left
                    break
                if isinstance(answer, UpstreamError):
                    failure = _as_seen_by_client(answer, assignment.pod)
                    error_headers = assignment.response_headers
                    broken += answer.breaks
                    late = isinstance(answer, ResponseTimeout) and assignment.computes
                    if not answer.before_first_byte or broken > self._breaks_max or late or flight.spent:
                        break
                elif flight.spent or _is_final(answer.status, assignment, disputed):
                    await self._relay(flight, assignment, answer)
                    return None
                else:
                    disputed = disputed or answer.status not in REFUSALS
                    broken += answer.status in BREAKS
                    while held:
                        held.pop()[1].close()
                    held.append((assignment, answer))
                    if flight.upload is not None:
                        flight.upload.to(None)
                    assignment.refused(answer.status, retry_after_s(answer.headers), self._clock())
                    if broken > self._breaks_max:
                        break
                    if answer.status == 404:
                        await routes.look_again()
                tried |= {assignment.pod}
            for last, answer in held:  # what a pod says of itself is better than what we would say
                await self._relay(flight, last, answer)
                return None
        finally:
            if disputed:
                routes.acquit()
            for _, answer in held:
                answer.close()
        assert failure is not None, "attempts_max is at least 1"
        await send_error(flight.send, failure, error_headers)
        return failure

    async def _ask(self, flight: Flight, assignment: Assignment, fresh: bool) -> Response | UpstreamError:
        """Ask one pod: its response, which nobody has seen yet, or why there is none."""
        scope = flight.scope
        method, target, headers = scope["method"], _target(scope), scope["headers"]
        try:
            preparation = assignment.preparation
            if preparation is not None:
                await preparation.run(
                    assignment.upstream, headers, flight.body, assignment.request_headers, self.dropped
                )
            if flight.upload is not None:
                return await self._ask_with(flight.upload, assignment, method, target, headers)
            return await assignment.upstream.request(
                method, target, headers, flight.body, assignment.request_headers, self.dropped, fresh
            )
        except UpstreamError as failure:
            if failure.before_first_byte:
                assignment.failed(failure.reason, self._clock())
            else:
                assignment.finished(Outcome(None, 0, None, error=failure.reason), self._clock())
            return failure
        except BaseException as error:
            outcome = Outcome(None, 0, None, client_gone=flight.gone, error=_word(error))
            assignment.finished(outcome, self._clock())
            if isinstance(error, UnsendableRequest):
                raise BadRequest(str(error)) from error
            raise

    async def _ask_with(
        self, upload: Upload, assignment: Assignment, method: str, target: bytes, headers: Headers
    ) -> Response:
        """The pod may answer before it has all of the upload, which goes on meanwhile."""
        response = await assignment.upstream.begin(
            method, target, headers, upload.beginning, upload.length, assignment.request_headers, self.dropped
        )
        upload.to(response)
        try:
            await response.ready()
        except BaseException:
            upload.to(None)
            response.close()
            raise
        return response

    async def _relay(self, flight: Flight, assignment: Assignment, response: Response) -> None:
        """Stream the response to the client and settle the assignment, whatever happens."""
        status, flow, error = response.status, _Flow(flight.scope, response), None
        fine = status < 400
        tells = fine and _is_event_stream(response)  # an error may come in the middle of it
        try:
            send_trailers = _announces_trailers(flight.scope, response)
            await flight.send(_start(response, assignment.response_headers, send_trailers))
            while True:
                chunk = response.take()
                done = response.complete
                if chunk or done:
                    if fine and not flow.bytes_out and not (tells and read_error(chunk)):
                        assignment.first_byte(self._clock())
                    await flight.send({"type": "http.response.body", "body": chunk, "more_body": not done})
                    flow.add(chunk)
                elif not flow.bytes_out:
                    await flight.send(
                        {"type": "http.response.body", "body": b"", "more_body": True}
                    )  # out with the head
                if done:
                    break
                await response.more(flow if flow.bytes_out else None)
            if send_trailers:
                await flight.send({"type": _TRAILERS, "headers": response.trailers, "more_trailers": False})
        except UpstreamError as failure:
            error = failure.reason
        except OSError:  # how a server of ASGI 2.4 says that the client has left
            flight.gone = True
        except BaseException as unexpected:
            error = _word(unexpected)
            raise
        finally:
            response.close()
            tail = flow.tail.kept
            told = read_error(tail) if tells else None
            outcome = Outcome(status, flow.bytes_out, read_usage(tail), flight.gone, error, told)
            assignment.finished(outcome, self._clock())


def _is_final(status: int, assignment: Assignment, disputed: bool) -> bool:
    """Nobody else is asked, after this answer. `disputed`: somebody was, because another's answer may be its own."""
    return status not in REFUSALS and (disputed or status < NOT_DONE or not assignment.is_disputed(status))


def _target(scope: Scope) -> bytes:
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    query: bytes = scope.get("query_string") or b""
    return path + b"?" + query if query else path


def _announces_trailers(scope: Scope, response: Response) -> bool:
    extensions = scope.get("extensions")
    if not extensions or _TRAILERS not in extensions:
        return False
    return any(name == b"trailer" for name, _ in response.headers)


def _is_event_stream(response: Response) -> bool:
    for name, value in response.headers:
        if name == b"content-type":
            return value[: len(_EVENT_STREAM)].lower() == _EVENT_STREAM
    return False


def _start(response: Response, ours: Headers, send_trailers: bool) -> Message:
    names = dict(ours)
    headers = without_hosts([field for field in response.headers if field[0] not in names])
    headers += ours
    if response.status in _NO_LENGTH_STATUSES:
        headers = [field for field in headers if field[0] != b"content-length"]
    message: Message = {"type": "http.response.start", "status": response.status, "headers": headers}
    if send_trailers:
        message["trailers"] = True
    return message


def _as_seen_by_client(error: UpstreamError, pod: str) -> RouterError:
    kind = PodTimeout if isinstance(error, ResponseTimeout) else PodUnreachable
    return kind(f"Pod {pod}: {error.message}.")


def _word(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "unsendable_request" if isinstance(error, UnsendableRequest) else "internal"
