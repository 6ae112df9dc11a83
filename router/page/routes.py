"""The routes of the page.

Its files are for everybody: they are the same in every copy of warmroute, and a browser has to have them to ask for the
key. What they show is for who shows the operator key, or a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from router.core.demand import Decision
from router.errors import Forbidden, NotFound
from router.page.account import found
from router.page.audience import Audience, PictureStream
from router.page.files import GUARDED, INDEX, PageFiles
from router.page.passes import Passes
from router.page.picture import ACCOUNT, account_of
from router.server.asgi import Scope
from router.server.operator_access import OperatorAccess
from router.service import Service

PAGE_PATH = "/ui"
_ONE = "/worker/page/decision"
"""Where a worker describes one of its decisions to the others, on its private socket only."""

Describe = Callable[[Decision], dict[str, Any]]


def page_routes(service: Service, access: OperatorAccess, describe: Describe) -> APIRouter:
    """The page, for browsers. `describe`: one decision with all its candidates, as `/decisions` has it."""
    files, audience = PageFiles(), Audience(service)
    passes = Passes(service.config.gateway, service.config.page.pass_time)
    router = APIRouter(tags=["page"])

    def check(scope: Scope) -> None:
        if not passes.allow(scope["headers"]):
            access.check(scope)

    def may_look(scope: Scope) -> bool:
        try:
            check(scope)
        except Forbidden:
            return False
        return True

    @router.get(PAGE_PATH, response_class=Response, responses={200: {"content": {"text/html": {}}}})
    async def page(request: Request) -> Response:
        """The live page, for browsers."""
        return files.answer(INDEX, request)

    hidden = APIRouter(include_in_schema=False)

    @hidden.get("/")
    async def front() -> Response:
        """Who types the address alone into a browser means the page."""
        return RedirectResponse(PAGE_PATH)

    @hidden.get(f"{PAGE_PATH}/pass")
    async def is_open(request: Request) -> Response:
        """Whether this browser may look, and is known by a pass. To be told that it may not is no error."""
        return _json({"may_look": may_look(request.scope), "by_pass": passes.allow(request.scope["headers"])})

    @hidden.post(f"{PAGE_PATH}/pass")
    async def enter(request: Request) -> Response:
        """The operator key, shown once in a header, for a pass."""
        access.check(request.scope)
        return _empty({"set-cookie": passes.made(request.scope)})

    @hidden.delete(f"{PAGE_PATH}/pass")
    async def leave(request: Request) -> Response:
        """The browser forgets its pass."""
        return _empty({"set-cookie": passes.ended(request.scope)})

    @hidden.get(f"{PAGE_PATH}/events")
    async def events(request: Request) -> Response:
        """The pictures, as they are drawn."""
        check(request.scope)
        return PictureStream(audience, partial(may_look, request.scope))

    @hidden.get(f"{PAGE_PATH}/decision")
    async def decision(request: Request, id: Annotated[str, Query(pattern=r"^\d{1,4}-\d{1,18}$")]) -> Response:
        """One of the last decisions: every candidate's figures."""
        check(request.scope)
        worker, number = map(int, id.split("-"))
        return await _described(service, worker, number, describe)

    @hidden.get(f"{PAGE_PATH}/{{name:path}}")
    async def file(request: Request, name: str) -> Response:
        if not name:  # what the page refers to lies beside it
            return Response(status_code=308, headers={**_FRESH, "location": f"..{PAGE_PATH}"})
        return files.answer(name, request)

    router.include_router(hidden)
    return router


def private_routes(service: Service, describe: Describe) -> APIRouter:
    """What the workers ask each other for the page's sake."""
    router = APIRouter(include_in_schema=False)

    @router.get(ACCOUNT)
    async def account() -> Response:
        """What this worker has served."""
        return _json(account_of(service, service.config.page.decisions))

    @router.get(_ONE)
    async def one(number: int) -> Response:
        """One of its decisions."""
        return _described_here(service, number, describe)

    return router


async def _described(service: Service, worker: int, number: int, describe: Describe) -> Response:
    peers = service.peers
    if peers is None or worker == peers.worker.number:
        return _described_here(service, number, describe)
    told = await peers.ask_one(worker, "GET", f"{_ONE}?number={number}", peers.shown(service.config.gateway))
    if told is None:
        raise _gone()
    return Response(told.body, told.status, media_type=told.media_type, headers=_FRESH)


def _described_here(service: Service, number: int, describe: Describe) -> Response:
    known = found(service.core, number)
    if known is None:
        raise _gone()
    return _json(describe(known))


def _gone() -> NotFound:
    return NotFound("This decision is not kept any more (decisions.kept).")


_FRESH = {**GUARDED, "cache-control": "no-store"}


def _empty(headers: dict[str, str]) -> Response:
    return Response(status_code=204, headers={**_FRESH, **headers})


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS), headers=_FRESH, media_type="application/json")
