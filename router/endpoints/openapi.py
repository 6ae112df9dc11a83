"""What our OpenAPI document says beside what FastAPI sees itself: errors, and what we parse on our own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from router.errors import BadRequest
from router.server.asgi import Message, Receive, Scope, Send

_INVALID = "422"  # FastAPI's own status for what is not valid; ours is 400


class ErrorDetail(BaseModel):
    """What is wrong, as OpenAI says it."""

    message: str
    type: str
    code: str


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class PodReadiness(BaseModel):
    """Whether a pod takes requests; the reasons are why not, or what speaks against it though it does."""

    fit: bool
    reasons: list[str]


class Readiness(BaseModel):
    """Whether requests can be served, and why not."""

    ready: bool
    reasons: list[str]
    pods: dict[str, PodReadiness]


class Described(FastAPI):
    """A FastAPI application whose document knows only the errors that are listed. It answers HEAD as GET: our server
    leaves the body out."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await super().__call__(scope, receive, send)
        begun = asyncio.Event()

        async def gone() -> Message:
            """What would go on for as long as somebody listens ends with its head."""
            await begun.wait()
            return {"type": "http.disconnect"}

        async def told(message: Message) -> None:
            await send(message)
            begun.set()

        return await super().__call__({**scope, "method": "GET"}, gone, told)

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop(_INVALID, None)
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        return document


def invalid(first: Mapping[str, Any]) -> BadRequest:
    """What pydantic finds wrong, in one line: where, and what."""
    place = ".".join(str(part) for part in first["loc"])
    return BadRequest(f"{place}: {first['msg']}" if place else str(first["msg"]))


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may fail with these."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


def _parameter(name: str, what: str, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": what,
        "schema": {"type": "string", **schema},
    }


_TOKEN_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_TEXTS = {"type": "array", "minItems": 1, "maxItems": 1, "items": {"anyOf": [{"type": "string"}, _TOKEN_IDS]}}
_PROMPTS: dict[str, dict[str, Any]] = {
    "prompt": {
        "anyOf": [{"type": "string", "minLength": 1}, _TOKEN_IDS, _TEXTS],
        "description": "Text or token ids, as of a completion; also as the only one of a list.",
    },
    "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}, "description": "As of a chat."},
    "token_ids": {**_TOKEN_IDS, "description": "The prompt's token ids."},
}
_SHARED = {
    "model": {
        "type": ["string", "null"],
        "description": "Served by at least one pod. May be left out if there is only one.",
    },
    "pods": {
        "type": ["array", "null"],
        "minItems": 1,
        "items": {"type": "string"},
        "description": "Only these pods; names that are not known do not count.",
    },
    "cache_salt": {"type": ["string", "null"], "minLength": 1, "description": "As of the request that is meant."},
}

_KEYS: dict[str, Any] = {
    "name": "keys",
    "in": "query",
    "required": False,
    "description": "true: also the prompt's block keys, opaque numbers that /cache/invalidate takes. Operators only.",
    "schema": {"type": "boolean", "default": False},
}

SCORE_QUERY: dict[str, Any] = {
    "parameters": [
        _parameter("prompt", "Text, as of a completion.", required=True, minLength=1),
        _parameter("model", "Served by at least one pod. May be left out if there is only one."),
        _parameter("pods", "Only these pods: names with commas between.", minLength=1),
        _parameter("cache_salt", "As of the request that is meant.", minLength=1),
        _KEYS,
    ]
}
"""Of `GET /score`."""

SCORE_BODY: dict[str, Any] = {
    "parameters": [_KEYS],
    "requestBody": {
        "required": True,
        "description": "One prompt in one of three forms; with messages, every field of a chat may be there.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "oneOf": [
                        {"title": name, "properties": {name: schema, **_SHARED}, "required": [name]}
                        for name, schema in _PROMPTS.items()
                    ],
                }
            }
        },
    },
}
"""Of `POST /score`."""

WARMUP_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The request that would ask for the prompt, as `path` takes it.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "anyOf": [
                        {"title": name, "properties": {name: _PROMPTS[name]}, "required": [name]}
                        for name in ("messages", "prompt")
                    ],
                }
            }
        },
    },
}
"""Of `POST /warmup`."""
