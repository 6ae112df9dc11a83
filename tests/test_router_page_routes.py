"""The page through real sockets: its files, who may look, the stream, and what stays when everybody has left."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.config.settings import Config
from router.endpoints.access import guarded
from router.endpoints.app import create_app, create_ops_app
from router.service import Service
from tests.fakes.cores import NOBODY, asked, route
from tests.fakes.processes import PLAIN, PodProcess, eventually
from tests.fakes.services import operators
from tests.fakes.serving import Served, serving
from tests.fakes.worker_processes import WORKERS, completion, each, workers

KEY = {"authorization": "Bearer k3y"}
SECRET = "nobody-should-read-this"


class Page(HTMLParser):
    """What a page's text has: what it refers to, its ids, and whatever a strict policy would not run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.refers: list[str] = []
        self.ids: list[str] = []
        self.inline: list[str] = []
        self.labelled: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._within = tag
        self.ids += [given["id"] or ""] if "id" in given else []
        self.labelled += [given[name] or "" for name in ("for", "aria-labelledby") if name in given]
        if tag in ("script", "link", "img"):
            self.refers.append(given.get("src") or given.get("href") or "")
        self.inline += [name for name in given if name == "style" or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)


@contextlib.contextmanager
def page_of(service: Service) -> Iterator[tuple[Served, httpx.Client]]:
    """The operators' plane of a service on a real socket, and a client."""
    with serving(create_ops_app(service)) as served, httpx.Client(base_url=_url(served), **PLAIN) as client:
        yield served, client


def _url(served: Served) -> str:
    return f"http://127.0.0.1:{served.port}"


def events_of(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """The events of a stream, by name."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def pictures_of(response: httpx.Response) -> Iterator[dict[str, Any]]:
    return (data for name, data in events_of(response) if name == "picture")


async def test_files() -> None:
    """The page and all that it refers to are served to everybody, under a policy that lets in nothing else."""
    async with operators(operator_key="k3y") as (_, service):
        with page_of(service) as (_, client):
            answer = client.get("/ui")
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
            page = Page(answer.text)
            assert page.inline == []
            assert len(page.ids) == len(set(page.ids)) and set(page.labelled) <= set(page.ids)
            assert page.refers and all(name.startswith("ui/") for name in page.refers)
            scripts = [f"ui/{name}" for name in ("charts.js", "decisions.js", "fleet.js", "format.js", "tables.js")]
            for name in [*page.refers, *scripts]:
                file = client.get(f"/{name}")
                assert file.status_code == 200, name
                policy = file.headers["content-security-policy"].split("; ")
                assert "default-src 'none'" in policy and "script-src 'self'" in policy and "style-src 'self'" in policy
                assert file.headers["x-content-type-options"] == "nosniff"
                again = client.get(f"/{name}", headers={"if-none-match": file.headers["etag"]})
                assert (again.status_code, again.content) == (304, b"")


async def test_with_a_slash() -> None:
    """Who asks for a folder is sent to the page, wherever a proxy has put it."""
    async with operators() as (client, _):
        answer = await client.get("/ui/")
        assert (answer.status_code, answer.headers["location"]) == (308, "../ui")


async def test_beside_api_keys() -> None:
    """On the data port, where that asks for API keys, the page asks for the operators' own."""
    given = {"gateway": {"api_keys": ["a-client's"], "operator_key": "k3y"}}
    service = Service(Config.model_validate(given))
    transport = httpx.ASGITransport(guarded(create_app(service), service))
    async with service.running(), httpx.AsyncClient(transport=transport, base_url="http://g") as client:
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/ui")).status_code == 200 and (await client.get("/ui/page.js")).status_code == 200
        for shown, may in ({"authorization": "Bearer a-client's"}, False), (KEY, True):
            told = await client.get("/ui/pass", headers=shown)
            assert told.json()["may_look"] is may
            assert (await client.get("/ui/decision?id=0-1", headers=shown)).status_code == (404 if may else 401)


async def test_scripts_find_what_they_look_for() -> None:
    """Each id that a script asks for is in the page, and each file that one imports is served."""
    async with operators() as (client, _):
        ids = set(Page((await client.get("/ui")).text).ids)
        for name in ("page.js", "charts.js", "decisions.js", "fleet.js"):
            script = (await client.get(f"/ui/{name}")).text
            assert set(re.findall(r'(?:find|getElementById)\("([\w-]+)"\)', script)) <= ids, name
            for other in re.findall(r'from "\./([\w.]+)"', script):
                assert (await client.get(f"/ui/{other}")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/ui/none.js", "/ui/../routes.py", "/ui/%2e%2e/routes.py", "/ui/uplot", "/ui/uplot/LICENSE"]
)
async def test_nothing_else_is_served(path: str) -> None:
    """A path names one of the page's files, or nothing."""
    async with operators() as (_, service):
        with page_of(service) as (served, _):
            answer = served.ask(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())[0]
            assert answer.status in (400, 404), "the server itself refuses paths that climb"


async def test_key_and_pass() -> None:
    """What the page shows is for who shows the operator key, or the pass that it brings, which opens nothing else."""
    async with operators(operator_key="k3y") as (_, service):
        with page_of(service) as (_, client):
            looks = ("/ui/events", "/ui/decision?id=0-1")
            for path in looks:
                for shown in ({}, {"cookie": "warmroute-page=9999999999.00"}, {"cookie": "warmroute-page=k3y"}):
                    assert client.get(path, headers=shown).status_code == 401, (path, shown)
            assert client.get("/ui/pass").json() == {"may_look": False, "by_pass": False}
            assert client.post("/ui/pass", headers={"authorization": "Bearer no"}).status_code == 401
            entered = client.post("/ui/pass", headers=KEY)
            cookie, *attributes = entered.headers["set-cookie"].split("; ")
            assert entered.status_code == 204 and "k3y" not in cookie
            assert {"HttpOnly", "SameSite=Strict", "Max-Age=43200"} == set(attributes)
            shown = {"cookie": f"theme=dark; {cookie}"}
            client.cookies.clear()  # what is shown is shown by hand
            assert client.get("/ui/pass", headers=shown).json() == {"may_look": True, "by_pass": True}
            assert client.get("/ui/pass", headers=KEY).json() == {"may_look": True, "by_pass": False}
            with client.stream("GET", "/ui/events", headers=shown) as stream:
                assert stream.status_code == 200 and next(pictures_of(stream))["pods"]
            assert client.get("/ui/decision?id=0-1", headers=shown).status_code == 404
            for method, path in (("GET", "/pods"), ("GET", "/metrics"), ("POST", "/cache/clear"), ("POST", "/ui/pass")):
                assert client.request(method, path, headers=shown).status_code == 401, path
            assert "Max-Age=0" in client.delete("/ui/pass", headers=shown).headers["set-cookie"]


async def test_taken_key_ends_the_stream(tmp_path: Path) -> None:
    """A key that is taken away takes its passes along, of those too who look now."""
    file = tmp_path / "key"
    file.write_text("k3y\n")
    async with operators(operator_key_file=str(file)) as (_, service):
        with page_of(service) as (_, client):
            cookie = client.post("/ui/pass", headers=KEY).headers["set-cookie"].split("; ")[0]
            client.cookies.clear()
            with client.stream("GET", "/ui/events", headers={"cookie": cookie}) as stream:
                pictures = pictures_of(stream)
                next(pictures)
                file.write_text("other-key\n")
                for _ in pictures:
                    pass  # until it ends
            assert client.get("/ui/events", headers={"cookie": cookie}).status_code == 401


async def test_stream() -> None:
    """First how it went, then a picture of now, and another one after a while; a decision is found by its id."""
    async with operators() as (_, service):
        route(service.core, asked(service.core, 1), NOBODY, 0.0)
        with page_of(service) as (_, client), client.stream("GET", "/ui/events") as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            events = events_of(stream)
            name, course = next(events)
            assert (name, course["points"]) == ("course", [])
            first, second = (picture for _, picture in (next(events), next(events)))
            assert second["at"] > first["at"]
            rows = [dict(zip(second["columns"], row, strict=True)) for row in second["pods"]]
            assert [row["pod"] for row in rows] == ["pod-0", "pod-1"] and {row["state"] for row in rows} == {"blind"}
            [line] = second["decisions"]
            told = client.get(f"/ui/decision?id={line['id']}").json()
            assert (told["pick"], told["tokens"]) == (line["pod"], line["tokens"]) and len(told["pods"]) == 2
            with client.stream("GET", "/ui/events") as other:
                assert len(next(events_of(other))[1]["points"]) >= 2  # who comes later sees how it went
            for wrong, status in (("0-99", 404), ("x", 400), ("0-1-2", 400)):
                assert client.get(f"/ui/decision?id={wrong}").status_code == status


async def test_nothing_stays() -> None:
    """When all have left, by whatever way, there is nobody who draws, and no task is left."""
    async with operators() as (_, service):
        with page_of(service) as (served, client):
            tasks = _tasks(client)
            with contextlib.ExitStack() as stack:
                streams = [stack.enter_context(client.stream("GET", "/ui/events")) for _ in range(3)]
                looking = [pictures_of(stream) for stream in streams]
                assert all(next(pictures)["pods"] for pictures in looking)
                assert _tasks(client) > tasks + 3
                with served.connect() as rude:  # never reads, and is reset
                    rude.send(b"GET /ui/events HTTP/1.1\r\nhost: a\r\n\r\n")
            served.eventually(lambda: _tasks(client) == tasks)


def _tasks(client: httpx.Client) -> float:
    [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith("warmroute_tasks ")]
    return float(line.split()[1])


async def test_viewers_are_bounded() -> None:
    """As many may look as the configuration says; who is too many is told so, and may when another has left."""
    async with operators() as (_, bare):
        service = Service(
            bare.config.model_copy(update={"page": bare.config.page.model_copy(update={"viewers_max": 1})})
        )
        with page_of(service) as (served, client):
            with client.stream("GET", "/ui/events") as stream:
                pictures = pictures_of(stream)
                assert next(pictures)["pods"] == []
                refused = client.get("/ui/events")
                assert refused.status_code == 503 and "page.viewers_max" in refused.json()["error"]["message"]
            served.eventually(lambda: _is_open(client))
        await service.pods.stop()
        service.encoder.close()


def _is_open(client: httpx.Client) -> bool:
    with client.stream("GET", "/ui/events") as stream:
        return stream.status_code == 200


async def test_draining_ends_the_stream() -> None:
    """A process that is told to end does not wait for those who look."""
    async with operators() as (_, service):
        with page_of(service) as (_, client), client.stream("GET", "/ui/events") as stream:
            pictures = pictures_of(stream)
            next(pictures)
            service.draining = True
            for _ in pictures:
                pass


async def test_workers(tmp_path: Path) -> None:
    """Whichever worker is asked, the page shows what all have served; of prompts nothing is told."""
    with workers(tmp_path, PodProcess("pod-0"), PodProcess("pod-1"), gateway={"operator_key": "k3y"}) as served:
        async with each(served) as clients:
            for number, client in enumerate(clients.values()):
                for turn in range(3):
                    (
                        await client.post("/v1/completions", json=completion(f"{SECRET} {number} {turn}"))
                    ).raise_for_status()
        picture = await eventually(lambda: _of_both(served.url))
        assert picture["gateway"] | {"interval_s": 0} == {"workers": WORKERS, "answering": WORKERS, "interval_s": 0}
        assert picture["totals"]["prompt_tokens"] > 0 and picture["prefix_store"]["misses"] >= 6
        by_worker = {line["id"].split("-")[0]: line["id"] for line in picture["decisions"]}
        assert sorted(by_worker) == ["0", "1"]
        texts = [json.dumps(picture)]
        for one in by_worker.values():
            told = served.get(f"/ui/decision?id={one}", headers=KEY)
            assert told.status_code == 200 and len(told.json()["pods"]) == 2
            texts.append(told.text)
        assert not any(SECRET in text for text in texts)


def _of_both(url: str) -> dict[str, Any] | None:
    """A picture in which both workers have decided something."""
    with httpx.stream("GET", f"{url}/ui/events", headers=KEY, **PLAIN) as stream:
        picture = next(pictures_of(stream))
    return picture if len({line["id"].split("-")[0] for line in picture["decisions"]}) == WORKERS else None
