"""The OpenAPI document: what it lists, and that answers are so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.services import operators


async def document() -> dict[str, Any]:
    """The operators' plane's."""
    async with operators() as (client, _):
        answer: dict[str, Any] = (await client.get("/openapi.json")).json()
        return answer


async def test_only_our_own_errors() -> None:
    """Errors are listed with our body; FastAPI's 422 is not, nor its schemas: we never answer so."""
    known = await document()
    assert "HTTPValidationError" not in known["components"]["schemas"]
    for operations in known["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
    drain = known["paths"]["/pods/{name}/drain"]["post"]["responses"]
    assert set(drain) == {"200", "400", "401", "403", "404", "409"}
    body = drain["404"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ErrorBody"}
    assert list(known["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("GET", "/decisions?limit=0", {}, 400),
        ("POST", "/pods/nobody/drain", {}, 404),
        ("POST", "/cache/invalidate", {"json": {"pod": "nobody"}}, 404),
        ("POST", "/cache/invalidate", {"json": {"keys": ["1"]}}, 400),
        ("POST", "/cache/invalidate", {"json": {"keys": [1 << 64]}}, 400),
        ("POST", "/cache/invalidate", {"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400),
        ("POST", "/cache/invalidate", {}, 400),
    ],
)
async def test_refused(method: str, path: str, sent: dict[str, Any], status: int) -> None:
    """What is refused is refused with a listed status and our error body."""
    async with operators() as (client, _):
        answer = await client.request(method, path, **sent)
        listed = (await client.get("/openapi.json")).json()["paths"]
    template = path.partition("?")[0].replace("nobody", "{name}")
    assert str(answer.status_code) in listed[template][method.lower()]["responses"]
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == {400: "bad_request", 404: "not_found"}[status]
    assert answer.headers["content-type"] == "application/json"


async def test_the_methods_of_a_path() -> None:
    """405 names the methods of all routes of a path, those with parameters too."""
    async with operators() as (client, _):
        for path, methods in (("/pods/pod-0/drain", "POST"), ("/pods", "GET, HEAD")):
            refused = await client.request("DELETE", path)
            assert (refused.status_code, refused.headers["allow"]) == (405, methods)
            assert refused.json()["error"]["code"] == "method_not_allowed"
