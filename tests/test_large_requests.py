"""Bodies that take long to read: what is not read in time is routed all the same, where it is known for whom it is."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.fakes.houses import MODEL, house, says
from tests.fakes.peers import until

AT_ONCE = {"tokens": {"reading_max": 0.001}}
LATE = "there was no time to read so large a body"

MANY = b'"x":[%b0]' % (b"{}," * (1 << 20))
NAMED = b'"model":"%b"' % MODEL.encode()
FIRST = b' { %b , "prompt":"x", %b}' % (NAMED, MANY)
LAST = b'{"prompt":"x", %b , %b }\n' % (MANY, NAMED)
INSIDE = b'{"prompt":"x",%b,%b,%b}' % (MANY, NAMED, MANY.replace(b"x", b"y"))
UNNAMED = b'{"prompt":"x",%b}' % MANY


@pytest.mark.parametrize("body", [FIRST, LAST, INSIDE, UNNAMED], ids=["first", "last", "inside", "unnamed"])
async def test_what_is_not_read_in_time_is_routed_by_load(body: bytes) -> None:
    """It is served as it came, and the decision says why nothing of it is known."""
    async with house(says(200), says(200), **AT_ONCE) as here:
        answer = await here.ask(body)
        assert (answer.status, answer.headers[b"x-warmroute-matched-tokens"]) == (200, b"0")
        assert [(each.reason, each.matched_tokens) for each in here.service.core.decisions] == [(LATE, 0)]
        assert any(call.body == body for pod in here.pods.values() for call in pod.seen.calls)


@pytest.mark.parametrize(("body", "status"), [(FIRST, 200), (LAST, 200), (INSIDE, 429), (UNNAMED, 429)])
async def test_no_time_to_find_out_for_whom_it_is(body: bytes, status: int) -> None:
    """Where pods serve different models it goes to no wrong one: the client is asked to come again."""
    async with house(says(200), says(200), **AT_ONCE) as here:
        here.pods["pod-1"].models = [{"id": "another"}]
        await until(lambda: here.service.core.fleet.is_known("another"))
        for _ in range(2):
            answer = await here.ask(body)
            assert answer.status == status and (status == 200 or b"retry-after" in answer.headers)
        assert [pod.posts for pod in here.pods.values()] == [2 * (status == 200), 0]


@pytest.mark.parametrize(
    ("tokens", "reason"), [(AT_ONCE, LATE), ({"tokens": {"decoded_max": "1MiB"}}, "too much JSON")]
)
async def test_what_is_not_read_is_not_scored(tokens: dict[str, Any], reason: str) -> None:
    """It is said so, and no pod is asked: it is not known to be a request for a pod's own /score."""
    async with house(says(200), **tokens) as here:
        transport = httpx.ASGITransport(here.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            body = b'{"model":"m","prompt":[%b0]}' % (b"7," * (1 << 20))
            told = await client.post("/score", content=body)
        assert told.status_code == 413 and reason in told.json()["error"]["message"]
        assert not any(call.head.startswith(b"POST") for call in here.pods["pod-0"].seen.calls)
