"""Adapters loaded and unloaded while pods serve: what is said to one pod is said to all pods of the base model."""

from __future__ import annotations

import asyncio

import orjson

from router.core.decision import Core
from router.core.fleet import Pod
from router.discovery.pods import Pods
from router.errors import BadRequest, UnknownModel
from router.server.asgi import Headers, Scope
from router.upstream.failures import UpstreamError
from router.upstream.pool import Upstream

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_ANSWER_BYTES_MAX = 64 * 1024
_UNREACHABLE = 502


async def tell_all(
    scope: Scope,
    body: bytes,
    core: Core,
    pods: Pods,
    upstreams: dict[str, Upstream],
    withheld: frozenset[bytes],
    shows_own_keys: bool,
) -> tuple[int, bytes]:
    """Status and JSON body: what each pod said, and 200 only if all did what was asked; else the highest status.

    Of several base models the body's `model` (which vLLM does not look at) says which. Raises `BadRequest` or
    `UnknownModel`. What the pods serve then is looked at before this returns.
    """
    names = [pod.name for pod in _pods_for(scope["path"], body, core)]
    told = await asyncio.gather(*[_tell(upstreams[name], scope, body, withheld, shows_own_keys) for name in names])
    await asyncio.gather(*[pods.look(name) for name in names])
    answers = {name: {"status": status, "answer": said} for name, (status, said) in zip(names, told, strict=True)}
    return max(status for status, _ in told), orjson.dumps({"pods": answers})


def _pods_for(path: str, body: bytes, core: Core) -> list[Pod]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    name = fields.get("lora_name") if type(fields) is dict else None
    if type(name) is not str or not name:
        raise BadRequest("lora_name: a string is required")
    fleet = core.fleet
    if path == UNLOAD:
        model = name
    else:
        model = fields.get("model")
        if model is None:
            fleet.check_unnamed()
            model = next(iter(fleet.base_models()), "")
    if type(model) is not str:
        raise BadRequest("model: not a string")
    pods = {rank.pod.name: rank.pod for rank in fleet.serving(model)}
    if not pods:
        raise UnknownModel(f"The model {model[:200]!r} is not served here.")
    return list(pods.values())


async def _tell(
    upstream: Upstream, scope: Scope, body: bytes, withheld: frozenset[bytes], own: bool
) -> tuple[int, str]:
    """`own`: with the pod's key in place of the client's."""
    headers: Headers = scope["headers"]
    ours = upstream.own_key() if own else ()
    try:
        response = await upstream.request("POST", scope["path"].encode(), headers, body, ours, withheld)
        try:
            return response.status, (await response.read(_ANSWER_BYTES_MAX)).decode("utf-8", "replace")
        finally:
            response.close()
    except UpstreamError as error:
        return _UNREACHABLE, error.message
