"""How requests ended, as operators are told: entries, errors, sums, and the line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import orjson
import pytest

from router.causes.log_lines import AsJson, AsText
from router.service import Service
from tests.fakes.answering import MODEL, Answering, response, usage
from tests.fakes.peers import peer, until
from tests.fakes.services import in_process

BODY = {"model": MODEL, "prompt": "a-secret-word", "max_tokens": 1}


@contextlib.asynccontextmanager
async def before(*pods: Answering, **sections: Any) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """The gateway in front of them, all fit; the next request goes to pod-0."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(pod)) for pod in pods]
        static = [{"name": f"pod-{number}", "address": each.address} for number, each in enumerate(peers)]
        config = {"discovery": {"static": static}, "probe": {"interval": 60}, **sections}
        service, client = await stack.enter_async_context(in_process(config))
        await until(lambda: all(pod.fit(0.0) for pod in service.core.fleet.pods.values()))
        yield service, client


async def decisions(client: httpx.AsyncClient, **query: Any) -> Any:
    return (await client.get("/decisions", params=query)).json()


class Line(NamedTuple):
    """Of one request."""

    level: int
    text: str
    fields: dict[str, Any]


def lines(caplog: pytest.LogCaptureFixture) -> list[Line]:
    """Of requests."""
    return [
        Line(record.levelno, text, fields)
        for record in caplog.records
        if record.name == "warmroute.requests"
        for text, fields in zip(record.getMessage().split("\n"), record.requests, strict=True)  # type: ignore[attr-defined]
    ]


async def test_an_entry(caplog: pytest.LogCaptureFixture) -> None:
    """Who asked, who answered, how it ended; the same id stands in the log, and no word of the prompt anywhere."""
    caplog.set_level(logging.INFO)
    async with before(Answering(usage(8, 0))) as (_, client):
        answer = await client.post("/v1/completions", json=BODY, headers={"x-request-id": "r-1"})
        told = await decisions(client)
        (entry,) = told["decisions"]
        assert answer.headers["x-request-id"] == entry["request_id"] == "r-1"
        assert (entry["pod"], entry["path"]) == ("pod-0", "/v1/completions")
        outcome = entry["outcome"]
        assert (outcome["status"], outcome["error"]) == (200, None)
        assert (outcome["prompt_tokens"], outcome["cached_tokens"]) == (8, 0)
        assert 0 < outcome["ttft_s"] <= outcome["duration_s"] < 60
        assert [each["result"] for each in entry["attempts"]] == [200]
        assert entry["delivered_tokens"] + sum(one["tokens"] for one in entry["missed"]) == 8
        assert told["summary"]["requests"] == 1 and told["summary"]["prompt_tokens"] == 8
        (line,) = lines(caplog)
        assert line.level == logging.INFO and "r-1 /v1/completions 200 at pod-0 in " in line.text
        assert "a-secret-word" not in caplog.text + str(told)


async def test_times_are_of_one_clock() -> None:
    """However long an answer takes to make, its entries are as far apart as the decisions were."""
    async with before(Answering()) as (service, client):
        for _ in range(40):
            await client.post("/v1/completions", json=BODY)
        told = [entry["at"] for entry in (await decisions(client))["decisions"]]
        decided = [decision.at for decision in reversed(service.core.decisions)]
        assert [told[0] - at for at in told] == pytest.approx([decided[0] - at for at in decided], abs=1e-6)


async def test_a_request_on_its_way_has_no_outcome() -> None:
    """It is there from the decision on."""

    class Slow(Answering):
        """Answers when it is told to."""

        go = asyncio.Event()

        async def __call__(self, call: Any) -> None:
            if call.head.startswith(b"POST /v1/completions"):
                await self.go.wait()
            await super().__call__(call)

    pod = Slow()
    async with before(pod) as (service, client):
        asking = asyncio.create_task(client.post("/v1/completions", json=BODY))
        await until(lambda: len(service.core.decisions) > 0)
        (entry,) = (await decisions(client))["decisions"]
        assert (entry["pod"], entry["outcome"], entry["missed"], entry["attempts"]) == ("pod-0", None, [], [])
        pod.go.set()
        await asking
        (entry,) = (await decisions(client))["decisions"]
        assert entry["outcome"]["status"] == 200


@pytest.mark.parametrize("first", [None, response(503, b"{}")], ids=["breaks", "refuses"])
async def test_retries(first: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    """One request is one entry and one line, with each attempt: at whom, and how it ended."""
    caplog.set_level(logging.INFO)
    failing, serving = Answering(first), Answering()
    async with before(failing, serving) as (_, client):
        while not failing.posts:
            caplog.clear()
            answer = await client.post("/v1/completions", json=BODY)
        assert answer.status_code == 200
        entry = (await decisions(client, limit=1))["decisions"][0]
        assert [each["pod"] for each in entry["attempts"]] == ["pod-0", "pod-1"]
        assert entry["attempts"][1]["result"] == 200 and entry["attempts"][0]["result"] not in (200, None)
        assert entry["pod"] == "pod-1" and entry["outcome"]["status"] == 200
        assert entry["request_id"] not in [other["request_id"] for other in (await decisions(client))["decisions"][1:]]
        (line,) = lines(caplog)
        assert line.level == logging.WARNING and "asked: pod-0 " in line.text


async def test_errors_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    """The last ones, bounded, with how many there were of each; also what was refused before anybody was asked."""
    pod = Answering(response(500, b'{"error": {}}'))
    async with before(pod, decisions={"errors_kept": 3}) as (_, client):
        for _ in range(3):
            assert (await client.post("/v1/completions", json=BODY)).status_code == 500
        assert (await client.post("/v1/completions", json=BODY | {"model": "nobody's"})).status_code == 404
        assert (await client.post("/v1/completions", content=b"{")).status_code == 400
        told = await decisions(client, outcome="error")
        assert told["errors"] == {"500": 3, "model_not_found": 1, "bad_request": 1}
        assert [entry["outcome"]["status"] for entry in told["decisions"]] == [400, 404, 500]
        assert [entry["outcome"]["error"] for entry in told["decisions"]] == ["bad_request", "model_not_found", None]
        assert [entry["pod"] for entry in told["decisions"]] == [None, None, "pod-0"]
        assert "nobody's" in told["decisions"][1]["message"]
        assert all(entry["request_id"] and entry["missed"] == [] for entry in told["decisions"])
        assert len((await decisions(client, outcome="error", limit=1))["decisions"]) == 1
        assert (await client.get("/decisions", params={"outcome": "other"})).status_code == 400
    levels = {line.text.split(" ")[2]: line.level for line in lines(caplog)}
    assert levels == {"500": logging.ERROR, "404": logging.WARNING, "400": logging.WARNING}


@pytest.mark.parametrize(("wanted", "told"), [("all", 3), ("errors", 2), ("none", 0)])
async def test_which_requests_get_a_line(wanted: str, told: int, caplog: pytest.LogCaptureFixture) -> None:
    """All, those that failed or were refused, or none."""
    caplog.set_level(logging.INFO)
    pod = Answering()
    async with before(pod, log={"requests": wanted}) as (service, client):
        for answer in (usage(8, 0), response(500, b"{}"), response(400, b"{}")):
            pod.answer = answer
            await client.post("/v1/completions", json=BODY)
        await service.journal.settled()
        assert len(lines(caplog)) == told


async def test_prompts_are_logged_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """So much of a body as is wanted."""
    caplog.set_level(logging.INFO)
    async with before(Answering(), log={"prompts": True, "prompt_max": 40}) as (service, client):
        await client.post("/v1/completions", json=BODY)
        await service.journal.settled()
        (line,) = lines(caplog)
        body = line.fields["body"]
        assert len(body) == 40 and "a-secret" in body and "a-secret" in line.text


def record_of(message: str, *requests: dict[str, Any], **more: Any) -> logging.LogRecord:
    record = logging.LogRecord("warmroute.requests", logging.WARNING, "f", 1, message, (), **{"exc_info": None, **more})
    if requests:
        record.requests = requests
    return record


REQUEST = {"request_id": "r-1", "path": "/v1/x", "status": 503, "duration_s": 0.5, "error": "no_fit_pod"}


def test_lines_for_programs() -> None:
    """What is to be known of a line, and all figures of a request; each on a line of its own, whatever is in it."""
    both = AsJson("[worker 1] ").format(record_of("", REQUEST, REQUEST | {"request_id": "r-2", "missed": {"tier": 16}}))
    first, second = map(orjson.loads, both.split("\n"))
    assert (first["level"], first["logger"], first["by"]) == ("warning", "warmroute.requests", "worker 1")
    assert first["request_id"] == "r-1" and first["error"] == "no_fit_pod" and first["time"].endswith("+00:00")
    assert second["missed"] == {"tier": 16}
    try:
        raise ValueError("of ours")
    except ValueError as error:
        line = AsJson().format(record_of("it\nfailed", exc_info=(ValueError, error, None)))
    told = orjson.loads(line)
    assert "\n" not in line and "of ours" in told["exception"] and told["message"] == "it\nfailed"


def test_lines_for_people() -> None:
    """Each request has a line with its time and level, as all that is logged."""
    each = AsText("[worker 1] ").format(record_of("", REQUEST, REQUEST | {"request_id": "r-2"})).split("\n")
    assert [line.partition("WARNING [worker 1] warmroute.requests: ")[2] for line in each] == [
        f"{name} /v1/x 503 in 0.5 s: no_fit_pod" for name in ("r-1", "r-2")
    ]
    assert AsText().format(record_of("as ever")).endswith(" WARNING warmroute.requests: as ever")
