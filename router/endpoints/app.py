"""The application: FastAPI for what we answer ourselves, behind the dispatcher that proxies the rest."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.routing import compile_path

from indexer.match import Hit
from router.core.fleet import RankId
from router.endpoints.answers import score_answer
from router.endpoints.data_plane import Gateway
from router.endpoints.openapi import SCORE_BODY, SCORE_QUERY, Described, Readiness, errors, invalid
from router.endpoints.operators import operators
from router.errors import BadRequest, BodyTooLarge, MethodNotAllowed, NoSuchPath, NotFound, RouterError, UnknownModel
from router.prompts.prompt import parse_query
from router.server.asgi import read_body
from router.server.operator_access import OperatorAccess
from router.service import GATEWAY_VERSION, Service
from router.tokens.understanding import Understood, with_model
from router.workers.kept_counters import Counts

_SCORE_ERRORS = errors(400, 401, 403, 404, 413, 429, 502, 503, 504)


def create_app(service: Service) -> Gateway:
    """The data plane (with the operators' plane, unless that has a port of its own), and the service's life."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running(at_once=not service.is_replacement):
            yield

    app = _fastapi(lifespan)
    gateway = Gateway(service, app)
    access = OperatorAccess(service.config.gateway, own_port=False)
    app.include_router(_data_plane(service, gateway, access))
    if service.config.gateway.ops_port is None:
        app.include_router(operators(service, access))
    return gateway


def create_ops_app(service: Service, counts: Counts | None = None) -> FastAPI:
    """The operators' plane alone, for its own port; the service's life belongs to the data plane.

    `counts`: for the private socket of a worker, whom the others ask for them.
    """
    app = _fastapi(None)
    app.include_router(operators(service, OperatorAccess(service.config.gateway, own_port=True), counts))
    app.include_router(_health(service))
    return app


def _fastapi(lifespan: Any) -> FastAPI:
    app = Described(title="warmroute", version=GATEWAY_VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(RouterError)
    async def ours(request: Request, error: RouterError) -> Response:
        headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
        return Response(error.body(), error.status, headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def unfit(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        wrong = invalid({**first, "loc": first["loc"][1:]})
        return Response(wrong.body(), 400, media_type="application/json")

    @app.exception_handler(400)
    async def unreadable(request: Request, error: Exception) -> Response:
        return Response(BadRequest("The body can't be read.").body(), 400, media_type="application/json")

    @app.exception_handler(500)
    async def ours_alone(request: Request, error: Exception) -> Response:
        return Response(RouterError("The gateway failed.").body(), 500, media_type="application/json")

    @app.exception_handler(404)
    async def nowhere(request: Request, error: Exception) -> Response:
        unknown = NoSuchPath(f"There is no {request.url.path[:200]} here.")
        return Response(unknown.body(), unknown.status, media_type="application/json")

    @app.exception_handler(405)
    async def otherwise(request: Request, error: Exception) -> Response:
        refused = MethodNotAllowed(f"{request.url.path[:200]} does not take {request.method}.")
        return Response(
            refused.body(), refused.status, {"allow": _methods_of(app, request.url.path)}, "application/json"
        )

    return app


def _methods_of(app: FastAPI, path: str) -> str:
    """The methods that a path takes, over all its routes: Starlette's own answer knows those of the first only."""
    methods: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        if compile_path(template)[0].match(path):
            methods.update(method.upper() for method in operations)
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


def _health(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is up."""
        return {"status": "ok"}

    @router.api_route("/ping", methods=["GET", "POST"], responses=errors(503), include_in_schema=False)
    @router.get("/health", response_class=Response, responses={503: {"description": "Service Unavailable"}})
    async def health() -> Response:
        """As vLLM says it: 200 with nothing in it while requests can be served, else 503."""
        return Response(status_code=503 if service.unready() else 200)

    @router.get("/version")
    async def version() -> dict[str, str]:
        """The oldest vLLM among the pods, as vLLM's clients ask for it, and the gateway's own version."""
        versions = [pod.version for pod in service.core.fleet.pods.values() if pod.version]
        return {"version": min(versions, key=_numbers, default=GATEWAY_VERSION), "warmroute": GATEWAY_VERSION}

    @router.get("/load")
    async def load() -> dict[str, int]:
        """Requests in flight, in vLLM's words."""
        return {"server_load": service.in_flight}

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
    async def readyz() -> Response:
        """200 when requests can be served; else 503 with the reasons. Which pods are fit, and why others are not."""
        body = service.readiness()
        return _json(body, 200 if body["ready"] else 503)

    return router


def _data_plane(service: Service, gateway: Gateway, access: OperatorAccess) -> APIRouter:
    router = APIRouter()
    router.include_router(_health(service))
    body_max = service.config.gateway.body_max

    async def scored(request: Request, meaning: Understood) -> Response:
        keys = request.query_params.get("keys", "false")
        if keys not in _SWITCH:
            raise BadRequest("keys: it is neither true nor false")
        if _SWITCH[keys] or not service.config.gateway.tell_matches:
            access.check_operator(request.scope)
        others = await service.sharing.hits(meaning.demand) if service.sharing is not None else None
        return _scored(service, meaning, others, _SWITCH[keys])

    @router.get("/v1/models", response_model=dict[str, Any], responses=errors(401))
    async def models() -> Response:
        """The union of the pods' models."""
        return _json({"object": "list", "data": service.core.fleet.union_of_models()})

    @router.get("/v1/models/{name:path}", responses=errors(401, 404))
    async def model(name: str) -> dict[str, Any]:
        """One model, as the first pod that serves it describes it."""
        for each in service.core.fleet.union_of_models():
            if each["id"] == name:
                return each
        raise UnknownModel(f"The model {name[:200]!r} is not served here.")

    @router.post("/score", openapi_extra=SCORE_BODY, responses=_SCORE_ERRORS)
    async def score(request: Request) -> Response:
        """Who would serve this prompt, and why. Sends nothing to any pod and changes no load."""
        body = await read_body(request.scope, request.receive, body_max)
        known = service.encoder.recalled("/score", body)
        if known is not None:
            return await scored(request, known)
        prompt = await service.encoder.parsed("/score", body)
        if prompt.model is None:
            service.core.fleet.check_unnamed()
        if not _PROMPTS.intersection(prompt.fields):
            if not _OF_VLLM.intersection(prompt.fields):
                raise BodyTooLarge(f"Not scored: {prompt.reason}.")
            return _Forwarded(gateway, body)
        return await scored(request, await service.encoder.understood("/score", body, prompt))

    @router.get("/score", openapi_extra=SCORE_QUERY, responses=_SCORE_ERRORS)
    async def score_of_prompt(request: Request) -> Response:
        """The same for `?model=…&prompt=…`."""
        prompt = with_model(parse_query(request.query_params), service.core.fleet)
        if prompt.model is None:
            service.core.fleet.check_unnamed()
        query: bytes = request.scope["query_string"]
        known = service.encoder.recalled("/score?", query)
        if known is None:
            known = await service.encoder.understood("/score?", query, prompt)
        return await scored(request, known)

    return router


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


_PROMPTS = frozenset(("prompt", "messages", "token_ids"))
_OF_VLLM = frozenset(("text_1", "data_1", "queries"))  # its own /score, for cross-encoders
_SWITCH = {"true": True, "1": True, "false": False, "0": False}
_NO_TIME_US = dict.fromkeys(("render", "tokenize", "keys", "lookup"), 0)  # of what was known


class _Forwarded(Response):
    """A response that the proxy gives."""

    def __init__(self, gateway: Gateway, body: bytes) -> None:
        super().__init__()
        self._gateway = gateway
        self._body = body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._gateway.proxied(scope, receive, send, self._body)


def _scored(service: Service, meaning: Understood, others: Mapping[RankId, Hit] | None, keys: bool) -> Response:
    core, demand = service.core, meaning.demand
    if demand.pods is not None and not any(pod in core.fleet.pods for pod in demand.pods):
        raise NotFound("There are no such pods.")
    began = time.monotonic()
    holders = core.look_up(demand, others, began)
    now = time.monotonic()
    decision = core.decide(demand, holders, frozenset(), now)
    lookup, score = (round(spent_s * 1e6) for spent_s in (now - began, time.monotonic() - now))
    timing_us = {**_NO_TIME_US, **meaning.timing_us, "lookup": lookup, "score": score}
    cache = "hit" if holders.kept else meaning.known
    return _json(score_answer(decision, core.scoring, cache, timing_us, keys))


def _json(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS), status, media_type="application/json")
