"""Pods that ask for a key: shown with all that the gateway asks, with clients' requests where wished, never told."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.config.fleet import StaticPod
from router.config.reading import load
from router.config.settings import Config
from router.config.upstream import PodKeysConfig
from router.endpoints.answers import pod_answer
from router.endpoints.app import create_app
from router.errors import ConfigError
from router.service import Service
from router.upstream.pod_keys import Keyring
from tests.fakes.peers import Call, peer, until
from tests.fakes.processes import MODEL, PLAIN, PodProcess, eventually, gateway, pods


class Closed:
    """A pod that answers nothing but /health without its key, as a strict vLLM would. `seen`: keys, by path."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.seen: dict[str, set[str]] = {}

    async def __call__(self, call: Call) -> None:
        await call.read_body()
        path = call.head.split(b" ")[1].decode()
        fields = dict(line.split(b": ", 1) for line in call.head.split(b"\r\n")[1:] if line)
        key = fields.get(b"authorization", b"").decode()
        self.seen.setdefault(path, set()).add(key)
        if key == f"Bearer {self.key}" or path == "/health":
            told = {"/v1/models": {"data": [{"id": "m"}]}, "/tokenize": {"tokens": [1, 2, 3]}}.get(
                path, {"choices": []}
            )
            status, body = 200, json.dumps(told).encode()
        else:
            status, body = 401, b'{"error": "Unauthorized"}'
        await call.send(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))


@contextlib.asynccontextmanager
async def in_front_of(closed: Closed, own: dict[str, Any], **sections: Any) -> AsyncIterator[tuple[Service, Any]]:
    """The gateway before one such pod, and a client."""
    async with peer(closed) as seen:
        static = [{"name": "a", "address": seen.address, **own}]
        given = {"discovery": {"static": static}, "models": [{"name": "m", "block_size": 16}], **sections}
        service = Service(Config.model_validate({"probe": {"interval": 0.02}, **given}))
        async with service.running():
            app: Any = create_app(service)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g") as client:
                yield service, client


async def asked(client: httpx.AsyncClient, **headers: str) -> int:
    answer = await client.post("/v1/completions", json={"model": "m", "prompt": "x"}, headers=headers)
    return answer.status_code


@pytest.mark.parametrize("of_all", [True, False])
async def test_what_the_gateway_asks(of_all: bool) -> None:
    """Probes and questions to /tokenize show the pod's key; a client has to show its own, where that is sent on."""
    closed, key = Closed("its-key"), {"api_key": "its-key"}
    other = {"api_key": "another"}
    sections = {"pods": key} if of_all else {"pods": other}
    async with in_front_of(closed, {} if of_all else key, **sections) as (service, client):
        assert service.core.fleet.pods["a"].fit(0.0)
        assert await asked(client) == 401
        assert await asked(client, authorization="Bearer wrong") == 401
        assert await asked(client, authorization="Bearer its-key") == 200
        assert not service.core.fleet.pods["a"].breaker.tripped
        shown = {"Bearer its-key"}
        assert all(closed.seen[path] == shown for path in ("/v1/models", "/metrics", "/version", "/tokenize"))


@pytest.mark.parametrize(
    ("pods_section", "gateway_section", "status"),
    [
        ({"replace_client_keys": True}, {}, 200),
        ({}, {"forward_api_keys": False}, 200),
        ({}, {"api_keys": ["ours"]}, 200),
        ({"replace_client_keys": False}, {"api_keys": ["ours"]}, 401),
        ({}, {}, 401),
    ],
)
async def test_in_place_of_the_client_s(
    pods_section: dict[str, Any], gateway_section: dict[str, Any], status: int
) -> None:
    """Where it replaces what clients show, or that is not for pods, the pod sees its own key alone."""
    closed = Closed("its-key")
    sections = {"pods": {"api_key": "its-key", **pods_section}, "gateway": gateway_section}
    async with in_front_of(closed, {}, **sections) as (_, client):
        assert await asked(client, authorization="Bearer ours", **{"x-api-key": "ours"}) == status
        assert closed.seen["/v1/completions"] == {"Bearer its-key" if status == 200 else "Bearer ours"} or status == 401


async def test_a_file_that_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The key of a file is what the file says now; a key is in no log and in no answer."""
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "key"
    file.write_text("old-secret\n")
    closed = Closed("old-secret")
    async with in_front_of(closed, {"api_key_file": str(file)}, probe={"interval": 0.02, "failures_max": 1}) as served:
        service, _ = served
        pod = service.core.fleet.pods["a"]
        assert pod.fit(0.0)
        closed.key = "new-secret"
        await until(lambda: not pod.answers)
        told = json.dumps([pod_answer(pod, service.core, 0.0), service.readiness()])
        assert "it says 401 to /v1/models" in told
        file.write_text("new-secret\n")
        await until(lambda: pod.answers)
        assert "secret" not in told + json.dumps(pod_answer(pod, service.core, 0.0)) + caplog.text


def test_files_that_can_not_be_used(tmp_path: Path) -> None:
    """A file that is not there or holds no key ends the start with one line; one that goes later leaves the key."""
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    for name, path in (("WARMROUTE_PODS__API_KEY_FILE", empty), ("WARMROUTE_PODS__API_KEY_FILE", tmp_path / "none")):
        with pytest.raises(ConfigError, match=r"pods\.api_key_file: .*(holds no key|can't be read)"):
            load(None, {name: str(path)}, {})
    with pytest.raises(ConfigError, match=r"^((?!bad key).)*$"):
        load(None, {"WARMROUTE_PODS__API_KEY": "bad key"}, {})
    file, now = tmp_path / "key", [0.0]
    file.write_text("one\n")
    keyring = Keyring(PodKeysConfig(api_key_file=str(file)), lambda: now[0])
    key = keyring.of(StaticPod(name="a", address="http://h"))
    assert key is not None and key is keyring.of(StaticPod(name="b", address="http://i"))
    assert key.headers() == [(b"authorization", b"Bearer one")]
    for change in (lambda: file.write_text(""), lambda: os.remove(file)):
        change()
        now[0] += 10
        assert key.headers() == [(b"authorization", b"Bearer one")]
    file.write_text("two\n")
    now[0] += 10
    assert key.headers() == [(b"authorization", b"Bearer two")]
    assert Keyring(PodKeysConfig()).of(StaticPod(name="a", address="http://h")) is None


async def test_simulated_pods_with_a_key(tmp_path: Path) -> None:
    """Two pods with keys of their own, one gateway that knows both: everything is exact, and clients need no key."""
    options = [("--api-key", f"secret-{number}") for number in range(2)]
    with pods(*(PodProcess(f"pod-{number}", given) for number, given in enumerate(options))) as fleet:
        static = [{**pod.configured, "api_key": given[1]} for pod, given in zip(fleet, options, strict=True)]
        with gateway(tmp_path, static, pods={"replace_client_keys": True}) as served:
            for place in range(6):
                body = {"model": MODEL, "prompt": f"{place} " * 100, "max_tokens": 2}
                answer = httpx.post(f"{served.url}/v1/completions", json=body, **PLAIN)  # noqa: ASYNC210
                assert answer.status_code == 200
            await eventually(lambda: all(ranks[0]["state"] == "exact" for ranks in served.ranks().values()))
            assert "secret" not in served.get("/pods").text + served.logged()
