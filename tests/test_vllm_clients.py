"""What a client of vLLM does and expects beside completions, through a real gateway in front of pods of two models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.prompts.multipart import model_of_form
from tests.fakes.peers import Call, Peer, peer
from tests.fakes.processes import GatewayProcess, gateway

BODY = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}


def pod_of(model: str, refuses: bool = False) -> Any:
    """A pod that serves this model: it answers anything with 200, and says where else to look if asked at `…/`.

    `refuses`: it unloads no adapter.
    """
    adapters: list[str] = []

    async def behave(call: Call) -> None:
        await call.read_body()
        target = call.head.split(b" ", 2)[1].decode()
        host = re.search(rb"\r\nhost: ([^\r]*)", call.head, re.IGNORECASE)
        assert host is not None
        status, headers, body = "200 OK", "", b"{}"
        if target == "/v1/models":
            cards = [{"id": model, "root": model, "parent": None}]
            cards += [{"id": name, "root": f"/loras/{name}", "parent": model} for name in adapters]
            body = json.dumps({"data": cards}).encode()
        elif target == "/v1/load_lora_adapter":
            adapters.append(json.loads(call.body)["lora_name"])
            body = b"Success"
        elif target == "/v1/unload_lora_adapter":
            if refuses:
                status, body = "404 Not Found", b"no such adapter"
            else:
                adapters.remove(json.loads(call.body)["lora_name"])
        elif target == "/version":
            body = json.dumps({"version": "0.32.0" if model == "chat" else "0.9.1"}).encode()
        elif target.endswith("/"):
            place = f"http://{host[1].decode()}{target[:-1]}?again=1"
            status, headers, body = "307 Temporary Redirect", f"location: {place}\r\n", b""
        head = f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\n\r\n"
        await call.send(head.encode() + body)

    return behave


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[tuple[GatewayProcess, httpx.AsyncClient, list[Peer]]]:
    """A gateway, its client, and its pods: pod-0 serves `chat`, pod-1 `speech`."""
    async with peer(pod_of("chat")) as chat, peer(pod_of("speech")) as speech:
        pods = [{"name": f"pod-{n}", "address": each.address} for n, each in enumerate((chat, speech))]
        with contextlib.ExitStack() as stack:
            served = await asyncio.to_thread(stack.enter_context, gateway(tmp_path, pods))
            async with httpx.AsyncClient(base_url=served.url, trust_env=False) as http:
                yield served, http, [chat, speech]


Fleet = tuple[GatewayProcess, httpx.AsyncClient, list[Peer]]


async def test_forms_go_to_their_model(fleet: Fleet) -> None:
    """The model of a multipart form picks the pod, wherever it stands in the form; an unknown one is our own 404."""
    _, http, _ = fleet
    sound = {"file": ("a.wav", os.urandom(100_000), "audio/wav")}
    for model, pod in (("speech", "pod-1"), ("chat", "pod-0")):
        for _ in range(4):
            answer = await http.post("/v1/audio/transcriptions", files=sound, data={"model": model})
            assert (answer.status_code, answer.headers["x-warmroute-pod"]) == (200, pod)
    last = [("file", sound["file"]), ("model", (None, "speech"))]
    answer = await http.post("/v1/audio/translations", files=last)
    assert answer.headers["x-warmroute-pod"] == "pod-1"
    unknown = await http.post("/v1/audio/transcriptions", files=sound, data={"model": "nobody"})
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
    assert "x-warmroute-pod" not in unknown.headers


async def test_a_model_must_be_named_where_pods_differ(fleet: Fleet) -> None:
    """Anybody's answer is nobody's: 400 with the names; also of a form, and of our own /score."""
    _, http, _ = fleet
    nameless = {"messages": BODY["messages"]}
    for path in ("/v1/chat/completions", "/v1/embeddings", "/score", "/v1/messages"):
        refused = await http.post(path, json=nameless)
        assert refused.status_code == 400, path
        assert "chat, speech" in refused.json()["error"]["message"]
    form = await http.post("/v1/audio/transcriptions", files={"file": b"RIFF"})
    assert form.status_code == 400
    assert (await http.get("/score", params={"prompt": "x"})).status_code == 400


async def test_redirects_do_not_name_pods(fleet: Fleet) -> None:
    """A pod's redirect leads back here."""
    _, http, _ = fleet
    there = await http.post("/v1/chat/completions/", json=BODY)
    assert (there.status_code, there.headers["location"]) == (307, "/v1/chat/completions?again=1")
    assert (await http.post(there.headers["location"], json=BODY)).status_code == 200


async def test_odd_request_ids_are_replaced(fleet: Fleet) -> None:
    """What can't be an id is no reason to refuse a request."""
    _, http, pods = fleet
    for odd in ("", "x" * 201, "a\tb", "é"):
        answer = await http.post("/v1/chat/completions", json=BODY, headers={"x-request-id": odd.encode()})  # type: ignore[dict-item]
        assert answer.status_code == 200 and answer.headers["x-request-id"] not in ("", odd)
        told = f"x-request-id: {answer.headers['x-request-id']}".encode()
        assert any(told in call.head for call in pods[0].calls)
    kept = await http.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "x" * 200})
    assert kept.headers["x-request-id"] == "x" * 200


async def test_websockets_are_refused_in_words(fleet: Fleet) -> None:
    """What is not relayed is not sent on as something else."""
    _, http, pods = fleet
    before = [len(pod.calls) for pod in pods]
    asked = {
        "connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    refused = await http.get("/v1/realtime?model=chat", headers=asked)
    assert refused.status_code == 501 and "WebSocket" in refused.json()["error"]["message"]
    new = [call.head for pod, count in zip(pods, before, strict=True) for call in pod.calls[count:]]
    assert not [head for head in new if b"realtime" in head]


@pytest.mark.parametrize("path", ["/v2/rerank", "/v2/embed", "/invocations", "/rerank", "/v1/rerank"])
async def test_other_paths_of_vllm(fleet: Fleet, path: str) -> None:
    """They reach a pod of their model."""
    _, http, pods = fleet
    answer = await http.post(path, json={**BODY, "model": "speech"})
    assert (answer.status_code, answer.headers["x-warmroute-pod"]) == (200, "pod-1")
    assert any(call.head.startswith(f"POST {path} ".encode()) for call in pods[1].calls)


async def test_adapters_are_loaded_everywhere(tmp_path: Path) -> None:
    """All pods of the base model are told, and no other; what each said comes back, and what they serve is known."""
    kinds = (pod_of("chat"), pod_of("chat", refuses=True), pod_of("speech"))
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer(kind)) for kind in kinds]
        static = [{"name": f"pod-{n}", "address": each.address} for n, each in enumerate(peers)]
        with contextlib.ExitStack() as outside:
            served = await asyncio.to_thread(outside.enter_context, gateway(tmp_path, static))
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=served.url, trust_env=False))
            adapter = {"lora_name": "tuned", "lora_path": "/loras/tuned"}
            which = await http.post("/v1/load_lora_adapter", json=adapter)
            assert which.status_code == 400 and "chat, speech" in which.json()["error"]["message"]
            loaded = await http.post("/v1/load_lora_adapter", json={**adapter, "model": "chat"})
            said = {"status": 200, "answer": "Success"}
            assert (loaded.status_code, loaded.json()) == (200, {"pods": {"pod-0": said, "pod-1": said}})
            assert (await http.get("/v1/models/tuned")).json()["parent"] == "chat"
            unloaded = await http.post("/v1/unload_lora_adapter", json={"lora_name": "tuned"})
            assert unloaded.status_code == 404
            assert {pod: each["status"] for pod, each in unloaded.json()["pods"].items()} == {
                "pod-0": 200,
                "pod-1": 404,
            }
            for bad, status in (({}, 400), ({"lora_name": "unheard"}, 404)):
                assert (await http.post("/v1/unload_lora_adapter", json=bad)).status_code == status


async def test_what_vllm_says_of_itself(fleet: Fleet) -> None:
    """Health, version, load and single models are answered as a client of vLLM expects."""
    _, http, _ = fleet
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        assert (await http.request(method, path)).status_code == 200, path
    assert (await http.get("/version")).json()["version"] == "0.9.1"
    assert (await http.get("/load")).json() == {"server_load": 0}
    assert (await http.get("/v1/models/speech")).json()["id"] == "speech"
    unknown = await http.get("/v1/models/of/nobody")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def form(*parts: bytes, delimiter: bytes = b"--B") -> bytes:
    """A form of these parts, each with its own head."""
    return b"".join(delimiter + b"\r\n" + part + b"\r\n" for part in parts) + delimiter + b"--\r\n"


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (form(b'Content-Disposition: form-data; name="model"\r\n\r\nm'), "m"),
        (form(b"content-disposition:form-data;name=model\r\n\r\nm"), "m"),
        (form(b'X: y\r\nContent-Disposition: form-data; name="model"; x=y\r\nZ: z\r\n\r\nm'), "m"),
        (form(b'Content-Disposition: form-data; filename="model"; name="file"\r\n\r\nm'), None),
        (form(b'Content-Disposition: form-data; name="models"\r\n\r\nm'), None),
        (form(b'Content-Disposition: form-data; name="file"; filename="x; name=model"\r\n\r\nno'), None),
        (form(rb'Content-Disposition: form-data; filename="\"; name=model"; name="file"' + b"\r\n\r\nno"), None),
        (form(b'Content-Disposition: form-data; filename="a;b"; size=; name="model"\r\n\r\nm'), "m"),
        (form(b'X: Content-Disposition: form-data; name="model"\r\n\r\nno'), None),
        (b"\r\n" + form(b'Content-Disposition: form-data; name="model"\r\n\r\nm'), "m"),
        (form(b'Content-Disposition: form-data; name="file"\r\n\r\nname="model"\r\n\r\nno'), None),
        (form(b'Content-Disposition: form-data; name="model"\r\n\r\n' + b"m" * 2000), None),
        (form(b'Content-Disposition: form-data; name="model"\r\n\r\n\xff'), "\ufffd"),
        (form(b'Content-Disposition: form-data; name="model"\r\n\r\n'), None),
        (b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\ncut', None),
        (b"--", None), (b"--B", None), (b"--B--\r\n", None), (b"", None), (form(), None),
    ],
)  # fmt: skip
def test_model_of_form(body: bytes, model: str | None) -> None:
    """The field itself, and nothing that looks like it."""
    assert model_of_form(body) == model


async def test_matches_are_kept_from_clients_where_wanted(tmp_path: Path) -> None:
    """With `tell_matches` off, no answer says how much was cached."""
    async with peer(pod_of("chat")) as chat:
        for told in (True, False):
            with contextlib.ExitStack() as stack:
                pods, own = [{"name": "pod-0", "address": chat.address}], {"tell_matches": told}
                served = await asyncio.to_thread(stack.enter_context, gateway(tmp_path, pods, gateway=own))
                async with httpx.AsyncClient(base_url=served.url, trust_env=False) as http:
                    answer = await http.post("/v1/chat/completions", json=BODY)
                    assert ("x-warmroute-matched-tokens" in answer.headers) is told
                    assert answer.headers["x-warmroute-pod"] == "pod-0"
