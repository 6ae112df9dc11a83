"""Who may use the data plane: API keys, origins."""

from __future__ import annotations

import logging
import time

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from router.config.keys import KeyRing, api_key
from router.endpoints.data_plane import SHOWN_KEY
from router.endpoints.operators import operators
from router.errors import RouterError
from router.server.asgi import App, Receive, Scope, Send, send_error
from router.server.operator_access import OperatorAccess
from router.service import Service

log = logging.getLogger("warmroute")

_OPEN = frozenset(("healthz", "readyz", "health", "ping", "version", "load"))
"""First segments of paths; probes show no key, nor do they to vLLM."""
_TOLD = ("x-request-id", "x-warmroute-pod", "x-warmroute-matched-tokens", "retry-after")


class Unauthorized(RouterError):
    """401: no good API key is shown."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Guard:
    """An ASGI application in front of the data plane: it lets in who shows a good key."""

    def __init__(self, app: App, keys: KeyRing, open_segments: frozenset[str], service: Service) -> None:
        """`open_segments`: what is not closed, by the first segment of its path."""
        self._app = app
        self._keys = keys
        self._open = open_segments
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope):
            key = self._keys.shown(scope["headers"], time.monotonic())
            if key is None:
                await self._refuse(send)
                return
            scope[SHOWN_KEY] = key
        await self._app(scope, receive, send)

    async def _refuse(self, send: Send) -> None:
        self._service.metrics.count(None, "", Unauthorized.status)
        ours = [(b"www-authenticate", b"Bearer"), (b"x-request-id", self._service.request_id())]
        await send_error(send, Unauthorized("The API key is missing or wrong."), ours)

    def _is_open(self, scope: Scope) -> bool:
        first = scope["path"].split("/", 2)[1:2]
        return bool(first) and first[0] in self._open


def _first_segments(router: APIRouter) -> set[str]:
    """Of all its paths, as FastAPI itself lists them: routers may be nested."""
    listed = FastAPI()
    listed.include_router(router)
    return {path.split("/")[1] for path in listed.openapi()["paths"]}


def guarded(app: App, service: Service) -> App:
    """`app` behind what the configuration asks for; itself, if that is nothing.

    Operators' endpoints, where they are on the same port, have a key of their own.
    """
    gateway = service.config.gateway
    if gateway.asks_for_keys:
        keys = KeyRing([key.get_secret_value() for key in gateway.api_keys], gateway.api_keys_file, api_key)
        segments = _OPEN
        if gateway.ops_port is None:
            segments |= _first_segments(operators(service, OperatorAccess(gateway, own_port=False)))
        app = Guard(app, keys, segments, service)
    if gateway.cors_origins:  # outermost: a browser's question before a request shows no key
        app = CORSMiddleware(
            app,
            allow_origins=gateway.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_TOLD,
        )
    return app
