"""The data plane: pure ASGI for what is proxied, in front of FastAPI for the rest.

An ASGI dispatcher before FastAPI costs nothing; FastAPI's own routing would cost more than the whole proxy.
"""

from __future__ import annotations

import re
import time

from router.core.demand import Story
from router.core.token_states import Witness
from router.endpoints.adapters import LOAD, UNLOAD, tell_all
from router.errors import RouterError, Saturated
from router.pieces import Pieces
from router.prompts.prompt import Prompt, takes_prompt, unread
from router.proxy.attempts import Attempt, Dispatch, Request, Routing
from router.proxy.preparation import Preparations
from router.proxy.uploads import Upload, take_body
from router.proxy.waiting_room import ClaimRules, Claims, WaitingRoom
from router.recording.recorder import Ended
from router.server.asgi import ClientGone, Receive, Scope, Send, read_body, send_error, send_json
from router.service import Service
from router.tokens.understanding import Understood, unknown

_MODELS = "/v1/models"  # of /v1/*, what we answer ourselves
_PASSED = frozenset(
    """
    /tokenize /detokenize /pooling /classify /rerank /v2/rerank /v2/embed /generative_scoring /invocations
    /inference/v1/generate
    """.split()
)
_OF_ALL = frozenset((LOAD, UNLOAD))  # what is said to one pod has to reach all
_NOTHING_COMPUTED = frozenset(
    ("/tokenize", "/detokenize", "/v1/chat/completions/render", "/v1/completions/render")
)  # such a request has a prompt, and leaves no block in any pod
SHOWN_KEY = "warmroute.key"
"""In a scope, the API key that was shown, where one is asked for."""
_REQUEST_ID = b"x-request-id"
_IS_REQUEST_ID = re.compile(rb"[!-~][ -~]{0,199}").fullmatch


class Gateway:
    """The ASGI application."""

    def __init__(self, service: Service, rest: object) -> None:
        """`rest`: the FastAPI application, for everything that is not proxied."""
        self._service = service
        self._rest = rest
        self._body_max = service.config.gateway.body_max
        self._upload_kept_max = service.config.gateway.upload_kept_max
        admission = service.config.admission
        self._accepted_max = service.config.gateway.requests_max + admission.queue_max
        believed = admission.claims_believed
        self._rules = ClaimRules(
            not service.config.gateway.asks_for_keys if believed is None else believed, admission.priority_min,
            (b"x-warmroute-session", service.config.sessions.header.lower().encode()),
        )  # fmt: skip
        results = service.metrics.admissions
        waiting_room: WaitingRoom[Attempt] = WaitingRoom(service.core, admission.wait_max, results)
        config, preparations = service.config, None
        if config.scoring.pieces.enabled:
            preparations = Preparations(Pieces(service.core), service.encoder, waiting_room)
            service.metrics.join(preparations)
        self._dispatch = Dispatch(
            service.core, service.metrics, service.upstreams, waiting_room, service.pods.look_again,
            config.shows_own_keys, config.gateway.tell_matches, service.recorder, preparations,
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = scope["type"] == "http"
        if http and not self._service.started and _needs_pods(scope["path"]):
            await self._service.begun()
        if http and _is_proxied(scope["path"]):
            await self.proxied(scope, receive, send)
        else:
            await self._rest(scope, receive, send)  # type: ignore[operator]

    async def proxied(self, scope: Scope, receive: Receive, send: Send, body: bytes | Upload | None = None) -> None:
        """Route and forward one request; `body`: already read."""
        service = self._service
        request_id = service.request_id()
        model: str | None = None
        routing: Routing | None = None
        refusal: RouterError | None = None
        if service.in_flight >= self._accepted_max:
            full = Saturated("Too many requests are in flight.")
            self._tell_refused(scope, request_id, model, full)
            return await self._refuse(send, full, request_id, model)
        service.in_flight += 1
        try:
            request_id = _request_id(scope) or request_id
            if body is None:
                if scope["method"] != "POST" or takes_prompt(scope["path"]) or scope["path"] in _OF_ALL:
                    body = await read_body(scope, receive, self._body_max)
                else:
                    body = await take_body(scope, receive, self._upload_kept_max, self._body_max)
            if scope["path"] in _OF_ALL and scope["method"] == "POST":
                assert isinstance(body, bytes), "it is read whole"
                return await self._tell_all(scope, send, body, request_id)
            began = time.monotonic()
            meaning = await self._understand(scope, body)
            model = meaning.demand.model
            others = await service.sharing.hits(meaning.demand) if service.sharing is not None else None
            request = self._request(scope, body, request_id, began, meaning)
            routing = Routing(self._dispatch, meaning, others, request)
            if service.journal.tracing is not None:
                routing.story.trace = service.journal.tracing.begin(scope["headers"])
            refusal = await service.proxy.forward(scope, receive, send, body, routing, [(_REQUEST_ID, request_id)])
            if routing.served:
                if request.witness is not None:
                    service.encoder.parity.offer(meaning.demand, request.witness)
                if isinstance(body, bytes):
                    service.handover.recent.note(scope["path"], body, meaning.demand, began)
            if refusal is not None:
                service.metrics.count(model, "", refusal.status)
                if service.recorder is not None:
                    service.recorder.note(meaning.demand, Ended(began, time.monotonic(), refusal.status))
        except ClientGone:
            return None
        except RouterError as error:
            self._tell_refused(scope, request_id, model, error)
            await self._refuse(send, error, request_id, model)
        finally:
            service.in_flight -= 1
            if routing is not None:
                seen = body if isinstance(body, bytes) and not meaning.large else None
                service.journal.ended(routing.story, model, routing.last, seen, refusal)
        return None

    def _tell_refused(self, scope: Scope, request_id: bytes, model: str | None, error: RouterError) -> None:
        """A request was refused before anything was decided."""
        story = Story(request_id, scope["path"], time.monotonic())
        self._service.journal.ended(story, model, None, None, error)

    async def _tell_all(self, scope: Scope, send: Send, body: bytes, request_id: bytes) -> None:
        service = self._service
        own = service.config.shows_own_keys
        status, said = await tell_all(
            scope, body, service.core, service.pods, service.upstreams, service.proxy.dropped, own
        )
        service.metrics.count(None, "", status)
        await send_json(send, status, said, [(_REQUEST_ID, request_id)])

    def _request(
        self, scope: Scope, body: bytes | Upload, request_id: bytes, began: float, meaning: Understood
    ) -> Request:
        client, path = scope.get("client"), scope["path"]
        address = client[0] if client else ""
        claims = Claims(self._rules, scope["headers"], scope.get(SHOWN_KEY), address, meaning.priority)
        if meaning.demand.origin is None or meaning.large or not isinstance(body, bytes):
            return Request(request_id, path, began, claims)
        return Request(request_id, path, began, claims, Witness(path, body))

    async def _understand(self, scope: Scope, body: bytes | Upload) -> Understood:
        path: str = scope["path"]
        if scope["method"] != "POST":
            return _NOTHING
        service = self._service
        encoder, fleet = service.encoder, service.core.fleet
        if isinstance(body, bytes):
            known = encoder.recalled(path, body)
            if known is not None:
                return known
            prompt = await encoder.parsed(path, body)
        else:
            prompt = unread(path, body.model)
        if prompt.model is None and body:
            fleet.check_unnamed()
        if prompt.model is not None and not fleet.is_known(prompt.model):
            await service.pods.look_again()  # it may have been loaded a moment ago
        if path in _NOTHING_COMPUTED:
            return unknown(prompt, "nothing is computed for this request")
        if not isinstance(body, bytes):
            return unknown(prompt, prompt.reason, prompt.guessed_tokens(body.known_bytes))
        meaning = await encoder.understood(path, body, prompt)
        if meaning.demand.keys:
            service.metrics.understood(meaning.timing_us)
        return meaning

    async def _refuse(self, send: Send, error: RouterError, request_id: bytes, model: str | None) -> None:
        self._service.metrics.count(model, "", error.status)
        await send_error(send, error, [(_REQUEST_ID, request_id)])


_NO_PROMPT = "there is no prompt in this request"
_NOTHING = unknown(Prompt("none", None, {}, reason=_NO_PROMPT), _NO_PROMPT)


def _is_proxied(path: str) -> bool:
    return (path.startswith("/v1/") and path != _MODELS and not path.startswith(f"{_MODELS}/")) or path in _PASSED


def _needs_pods(path: str) -> bool:
    return path.startswith("/v1/") or path in _PASSED or path == "/score"


def _request_id(scope: Scope) -> bytes | None:
    """The client's own, if it is one: not empty, not too long, of visible characters."""
    for name, value in scope["headers"]:
        if name == _REQUEST_ID:
            return bytes(value) if _IS_REQUEST_ID(value) else None
    return None
