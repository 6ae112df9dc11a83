"""The operators' plane: metrics, pods, caches, decisions; behind the operator key if one is set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router.causes.sentences import misses_of
from router.core.decision import Core
from router.core.demand import Decision
from router.core.fleet import Pod
from router.endpoints.answers import ladder_answer, mix_answer, pod_answer, sessions_answer, shadow_answer
from router.endpoints.decisions import entry, errors_of, newest, whys
from router.endpoints.openapi import WARMUP_BODY, body_of, errors, invalid
from router.errors import CalledOff, NotFound
from router.handover.estates import Loss, cheapest
from router.metrics.families import TEXT_TYPE
from router.metrics.summary import summary_as_asked
from router.page.routes import page_routes, private_routes
from router.server.asgi import read_body
from router.server.long_answers import in_turns
from router.server.operator_access import OperatorAccess
from router.service import Service
from router.state.gateways import PEERS, SNAPSHOT
from router.warmup.prompts import WarmPath
from router.workers.kept_counters import Counts
from router.workers.merging import listed
from router.workers.peers import DRAIN_WAIT_MAX_S, TOLD

_ALL = 1 << 30
_KEYS_MAX = 10_000
_CLEANUP_SLICE = 200


class Invalidate(BaseModel):
    """What to forget: mappings of block keys, a pod's blocks, or those of all pods of a model."""

    model_config = ConfigDict(extra="forbid")

    keys: list[Annotated[int, Field(strict=True, ge=0, le=(1 << 64) - 1)]] | None = Field(
        default=None, max_length=_KEYS_MAX
    )
    pod: str | None = None
    model: str | None = None


def _invalidate(body: bytes) -> Invalidate:
    """Of a body, whatever content-type it says that it is, as of all our bodies. Raises `BadRequest`."""
    try:
        return Invalidate.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors()[0]) from None


def operators(service: Service, access: OperatorAccess, counts: Counts | None = None) -> APIRouter:
    """The routes of the operators' plane. `counts`: for other workers, who ask for them."""

    def may_look(request: Request) -> None:
        access.check(request.scope)

    def may_change(request: Request) -> None:
        access.check_operator(request.scope)

    router = APIRouter(dependencies=[Depends(may_look)], tags=["operators"], responses=errors(401))
    _observe(router, service)
    _observe_sessions(router, service.core)
    _tell_decisions(router, service)
    _change(router, service, {"dependencies": [Depends(may_change)], "responses": errors(403)})
    if counts is not None:

        @router.get(TOLD, include_in_schema=False)
        async def told() -> Response:
            """The series of this worker, for those who make them one."""
            now = time.monotonic()
            families = await in_turns(counts.told(now))
            window = orjson.dumps(service.metrics.window.totals(now))
            return Response(window + b"\n" + families, media_type="application/x-ndjson")

        router.include_router(private_routes(service, _described))
    both = _with_state(router, service, access)
    both.include_router(page_routes(service, access, _described))
    return both


def _described(decision: Decision) -> dict[str, Any]:
    return entry(decision, time.time() - time.monotonic())


def _with_state(router: APIRouter, service: Service, access: OperatorAccess) -> APIRouter:
    """And what other gateways may ask, too, who show that they are: without an operator key."""

    def may_look(request: Request) -> None:
        if not service.keeping.is_peer(request.scope["headers"]):
            access.check(request.scope)

    def may_know_all(request: Request) -> None:
        if not service.keeping.is_peer(request.scope["headers"]):
            access.check_operator(request.scope)

    both = APIRouter()
    both.include_router(router)
    options: dict[str, Any] = {"tags": ["operators"]}

    @both.get(PEERS, dependencies=[Depends(may_look)], responses=errors(401), **options)
    async def peers() -> dict[str, Any]:
        """Who this gateway is, which others there are, and what it was told at its start."""
        return service.keeping.told()

    @both.get(
        SNAPSHOT,
        dependencies=[Depends(may_know_all)],
        response_class=StreamingResponse,
        responses=errors(401, 403, 503) | {200: {"content": {"application/octet-stream": {}}}},
        **options,
    )
    async def snapshot() -> Response:
        """All that is known of the pods, for a gateway that joins: it shows what others have asked."""
        return StreamingResponse(service.keeping.pieces(), media_type="application/octet-stream")

    return both


def _observe(router: APIRouter, service: Service) -> None:
    core = service.core

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(await service.metrics.scrape(), media_type=TEXT_TYPE)

    @router.get("/metrics.json")
    async def figures(names: str = "") -> Response:
        """The same as JSON, histograms with p50, p95, p99. `names`: only these families, with commas between."""
        asked = {"names": [names]} if names else {}
        return _json(await in_turns(summary_as_asked(service.metrics.steps(), asked)))

    @router.get("/pods")
    async def pods() -> Response:
        """All that is known of each pod."""
        now = time.monotonic()
        bound = service.pods.bound
        each = await in_turns(_listed([partial(pod_answer, pod, core, now) for pod in core.fleet.pods.values()]))
        told = (
            None
            if bound is None
            else {"endpoint": bound.endpoint, "unclaimed": bound.unclaimed, "named": list(bound.topics)}
        )
        return _json(b'{"pods":[%b],"events_bound":%b}' % (each, orjson.dumps(told)))

    @router.get("/scale-in", responses=errors(400))
    async def scale_in(count: Annotated[int, Query(ge=1, le=4096)] = 1) -> dict[str, Any]:
        """The pods whose loss costs least: of prompts of late, what only they hold, by how often it is asked for."""
        recent = service.handover.recent
        picked, each = await in_turns(cheapest(core, recent, count, time.monotonic()))
        return {
            "pods": [_loss(loss) for loss in picked],
            "all": [_loss(loss) for loss in each],
            "prompts_known": len(recent),
        }

    @router.get("/alerts")
    async def alerts() -> dict[str, Any]:
        """What fires, since when (seconds since the epoch), and why; and all names that there are."""
        return service.alerts.told()

    @router.get("/cache/status")
    async def cache_status() -> dict[str, Any]:
        """Sizes, hit ratios, evictions of index and prefix store."""
        stats, index = service.encoder.stats(), core.index
        cached, asked = service.metrics.window.totals(time.monotonic())
        pods = {rank.id.pod: {} for rank in core.fleet.ranks}  # type: ignore[var-annotated]
        for rank in core.fleet.ranks:
            pods[rank.id.pod][rank.id.rank] = index.holding(rank.id)._asdict()
        return {
            "index": {"blocks": index.blocks, "bytes": index.nbytes, "pods": pods},
            "prefix_store": {**asdict(stats), "lookups": dict(service.metrics.prefix_lookups)},
            "tokens": {model: ladder_answer(ladder) for model, ladder in core.fleet.ladders.items() if model},
            "hit_ratio": cached / asked if asked else 0.0,
            "window_tokens": {"cached": cached, "asked": asked},
            "shared_index": service.sharing.status() if service.sharing is not None else None,
        }


def _observe_sessions(router: APIRouter, core: Core) -> None:
    @router.get("/sessions", responses=errors(400))
    async def sessions(limit: Annotated[int, Query(ge=1, le=10_000)] = 50) -> dict[str, Any]:
        """Sessions, those that were used last first; what of their contexts lives in each pod's cache; what waits here
        for a pod, and why."""
        return sessions_answer(core, limit, time.monotonic())


def _tell_decisions(router: APIRouter, service: Service) -> None:
    core, journal = service.core, service.journal

    @router.get("/decisions", responses=errors(400))
    async def decisions(
        limit: Annotated[int, Query(ge=1, le=10_000)] = 50, outcome: Literal["error"] | None = None
    ) -> Response:
        """The last requests, newest first: every candidate's figures as they were, how it ended, and why not more of
        its prompt was cached; in all, as sentences. `outcome=error`: the last that ended in one, and how many did."""
        await journal.settled()
        offset = time.time() - time.monotonic()
        if outcome is not None:
            failed = await in_turns(_listed([partial(dict, one) for one in errors_of(journal, limit, offset)]))
            return _json(b'{"decisions":[%b],"errors":%b}' % (failed, orjson.dumps(journal.error_counts)))
        told = await in_turns(_listed([partial(entry, decision, offset) for decision in newest(core, limit)]))
        looks_on = {"shadow": shadow_answer(core.shadow), "mix": mix_answer(core)}
        rest = orjson.dumps({**looks_on, "summary": misses_of(whys(newest(core, _ALL)))})
        return _json(b'{"decisions":[%b],%b' % (told, rest[1:]))


def _change(router: APIRouter, service: Service, guarded: dict[str, Any]) -> None:
    """`guarded`: what all these routes have, so that not everybody may use them."""
    core, store = service.core, service.core.store

    @router.post("/pods/{name}/drain", **_or_errors(guarded, 400, 404, 409))
    async def drain(
        name: str, wait: Annotated[float | None, Query(ge=0, le=DRAIN_WAIT_MAX_S)] = None
    ) -> dict[str, Any]:
        """Send nothing new to a pod, from the answer on. Before, what it alone holds is handed over, while it is used:
        for `wait` seconds at most (default: `handover.before`). 409: meanwhile it was undrained."""
        pod, wait_s = _pod(service, name), service.config.handover.before if wait is None else wait
        handed = await service.handover.before(name, 0 if pod.draining else wait_s)
        if handed is None:
            _pod(service, name)
            raise CalledOff(f"Pod {name} is not drained: it was undrained meanwhile.")
        return _draining(pod, True) | ({"handover": asdict(handed)} if handed.prompts else {})

    @router.post("/pods/{name}/undrain", **_or_errors(guarded, 404))
    async def undrain(name: str) -> dict[str, Any]:
        """Send to a pod again."""
        pod = _pod(service, name)
        service.handover.stays(name)
        return _draining(pod, False)

    @router.post("/warmup", openapi_extra=WARMUP_BODY, **_or_errors(guarded, 400, 404, 413, 503))
    async def warmup(
        request: Request, pods: Annotated[int, Query(ge=0, le=1000)] = 0, path: WarmPath = "/v1/chat/completions"
    ) -> dict[str, Any]:
        """Make the tokens of a prompt, given as the body of a request to `path`, and have `pods` pods compute it while
        they are idle. Of several workers, the one that answers keeps the tokens."""
        body = await read_body(request.scope, request.receive, service.config.gateway.body_max)
        return asdict(await service.warmup.warm(path, body, pods))

    @router.post("/cache/invalidate", openapi_extra=body_of(Invalidate), **_or_errors(guarded, 400, 404, 413))
    async def invalidate(request: Request) -> dict[str, Any]:
        """Forget mappings of block keys, or what pods are known to hold."""
        what = _invalidate(await read_body(request.scope, request.receive, service.config.gateway.body_max))
        forgotten = [_pod(service, what.pod)] if what.pod is not None else []
        if what.model is not None:
            forgotten += [rank.pod for rank in core.fleet.serving(what.model)]
        for pod in {pod.name: pod for pod in forgotten}.values():
            _forget(service, pod)
        keys = np.array(what.keys or [], dtype=np.uint64)
        return {"mappings": store.invalidate_mappings(keys), "pods": sorted({pod.name for pod in forgotten})}

    @router.post("/cache/clear", **guarded)
    async def clear() -> dict[str, Any]:
        """Forget everything: texts, mappings, and what pods are known to hold."""
        for pod in core.fleet.pods.values():
            _forget(service, pod)
        return {"text_blocks": store.clear(), "pods": sorted(core.fleet.pods)}

    @router.post(SNAPSHOT, **_or_errors(guarded, 409))
    async def save() -> dict[str, Any]:
        """Save what is known now to `state.path`."""
        return await service.keeping.save()

    @router.post("/cache/cleanup", **guarded)
    async def cleanup() -> dict[str, Any]:
        """Remove expired mappings now."""
        removed, now = 0, time.monotonic()
        while True:
            done = store.cleanup_expired(now, _CLEANUP_SLICE)
            removed += done.removed
            if done.done:
                return {"removed": removed}
            await asyncio.sleep(0)


def _or_errors(guarded: dict[str, Any], *statuses: int) -> dict[str, Any]:
    return {**guarded, "responses": guarded["responses"] | errors(*statuses)}


def _listed(answers: Sequence[Callable[[], object]]) -> Generator[None, None, bytes]:
    """The items of a JSON list, made one by one: of 512 pods all take a second."""
    items = []
    for answer in answers:
        items.append(orjson.dumps(answer(), option=orjson.OPT_NON_STR_KEYS))
        yield
    return listed(items)


def _loss(loss: Loss) -> dict[str, Any]:
    return loss._asdict() | {"cost_tokens": round(loss.cost_tokens, 1), "cost_s": round(loss.cost_s, 4)}


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _pod(service: Service, name: str) -> Pod:
    pod = service.core.fleet.pods.get(name)
    if pod is None:
        raise NotFound(f"There is no pod {name[:100]!r}.")
    return pod


def _draining(pod: Pod, draining: bool) -> dict[str, Any]:
    pod.drain(draining)
    return {"pod": pod.name, "draining": pod.draining, "requests": pod.requests}


def _forget(service: Service, pod: Pod) -> None:
    for rank in pod.ranks:
        if rank.feed is not None:
            rank.feed.unlearn()
        service.core.index.clear(rank.id)
    service.pods.mend(pod.name)
