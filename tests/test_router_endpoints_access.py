"""Who is let in, what pods see of a request, and that nobody but the configuration says where requests go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from router.config.gateway import GatewayConfig
from router.config.keys import KeyRing, api_key, read_keys
from router.config.settings import Config
from router.endpoints.access import guarded as guarded_app
from router.endpoints.data_plane import SHOWN_KEY
from router.errors import ConfigError
from router.service import Service
from tests.fakes.peers import Call, Peer, peer
from tests.fakes.processes import MODEL, PLAIN, ROOT, GatewayProcess, eventually, gateway

PROMPT = "a prompt that nobody should ever see in a log"
ASKED = {"model": MODEL, "prompt": PROMPT}


async def pod(call: Call) -> None:
    """What the gateway wants to know of a pod; and for all else: fine, with what some servers add for browsers."""
    await call.read_body()
    path = call.head.split(b" ")[1]
    body = json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode() if path == b"/v1/models" else b"{}"
    head = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    await call.send(head % (404 if path == b"/metrics" else 200, len(body)) + body)


@contextlib.asynccontextmanager
async def guarded(folder: Path, **own: Any) -> AsyncIterator[tuple[GatewayProcess, Peer]]:
    """The gateway as a process, in front of one pod that remembers what it is sent."""
    async with peer(pod) as seen:
        with contextlib.ExitStack() as stack:
            static = [{"name": "pod-0", "address": seen.address}]
            yield await asyncio.to_thread(stack.enter_context, gateway(folder, static, gateway=own)), seen


def posted(seen: Peer) -> list[dict[str, str]]:
    """The headers of the completions that the pod was asked for."""
    heads = [call.head.decode("latin-1") for call in seen.calls if call.head.startswith(b"POST /v1/completions ")]
    return [dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line) for head in heads]


# --- keys


def test_shown_keys() -> None:
    """A key is shown as a bearer token or as x-api-key, exactly; whatever else is shown does not open."""
    ring = KeyRing(["first", "second"])
    good = [
        [(b"authorization", b"Bearer first")],
        [(b"authorization", b"bearer  second ")],
        [(b"x-api-key", b"second")],
        [(b"authorization", b"Basic Zmlyc3Q="), (b"x-api-key", b"first")],
    ]
    bad = [
        [],
        [(b"authorization", b"first")],
        [(b"authorization", b"Basic first")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer firs")],
        [(b"authorization", b"Bearer FIRST")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"first second")],
        [(b"x-api-key", b"\xff" * 10_000)],
        [(b"cookie", b"first")],
    ]
    assert [ring.allows(headers, 0.0) for headers in good] == [True] * len(good)
    assert [ring.allows(headers, 0.0) for headers in bad] == [False] * len(bad)
    assert "first" not in repr(ring)
    assert not KeyRing([]).allows([(b"x-api-key", b"")], 0.0)


def test_file_of_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file is read again when it has changed: keys come and go; what is no file of keys changes nothing, once told;
    an empty one takes all its keys away, and leaves those of the configuration."""
    file = tmp_path / "keys"
    file.write_text("# of teams\none\n\n  two  \n")
    ring, now = KeyRing(["own"], str(file)), 0.0

    def opens() -> list[str]:
        nonlocal now
        now += 10
        return [key for key in ("own", "one", "two", "three") if ring.allows([(b"x-api-key", key.encode())], now)]

    assert opens() == ["own", "one", "two"]
    file.write_text("two\nthree\n")
    assert ring.allows([(b"x-api-key", b"one")], now)  # it is not looked at for each request
    assert opens() == ["own", "two", "three"]
    for content in (b"three and\xff", b"two words\n", b"k" * 5000):
        file.write_bytes(content)
        caplog.clear()
        assert opens() == opens() == ["own", "two", "three"]
        assert [record.levelname for record in caplog.records].count("ERROR") <= 1 and "words" not in caplog.text
    file.unlink()
    assert opens() == ["own", "two", "three"]
    file.write_text("one\n")
    assert opens() == ["own", "one"]
    file.write_text("#\n")
    assert opens() == ["own"]


def test_keys_in_a_file(tmp_path: Path) -> None:
    """Keys are one a line; errors do not show them."""
    file = tmp_path / "keys"
    file.write_bytes(b"one\r\n#no\r\n\ttwo\r\n")
    assert read_keys(str(file)) == ["one", "two"]
    for content in (b"s3cret s3cret", b"s3cret\xe9", b"s3cret\0"):
        file.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            read_keys(str(file))
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"api_keys": ["good", "s3cret s3cret"]}, "an API key should be"),
        ({"api_keys": [""]}, "an API key should be"),
        ({"cors_origins": ["https://a.example/path"]}, "an origin should be"),
        ({"cors_origins": ["a.example"]}, "an origin should be"),
        ({"tls": {"cert_file": "c"}}, "go together"),
        ({"tls": {"client_ca_file": "c"}}, "without cert_file"),
    ],
)
def test_configured_wrongly(wrong: dict[str, Any], said: str) -> None:
    """What can't be meant is refused."""
    with pytest.raises(ValidationError, match=said):
        GatewayConfig.model_validate(wrong)


def test_files_must_be_there(tmp_path: Path) -> None:
    """A file of keys that is not there or empty, and a certificate that is none, end the start with one plain line."""
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    cases = {
        "WARMROUTE_GATEWAY__API_KEYS_FILE": (str(empty), "holds no key"),
        "WARMROUTE_GATEWAY__TLS": (json.dumps({"cert_file": "/nowhere", "key_file": "/nowhere"}), "there is no file"),
        "WARMROUTE_GATEWAY__TLS ": (json.dumps({"cert_file": str(empty), "key_file": str(empty)}), "can't be used"),
        "WARMROUTE_GATEWAY__API_KEYS": ('["s3cret s3cret"]', "an API key should be"),
    }
    for name, (value, said) in cases.items():
        environ = {key: kept for key, kept in os.environ.items() if not key.startswith("WARMROUTE_")}
        command = [sys.executable, "-m", "router", "serve", "--port", "0"]
        ended = subprocess.run(command, env={**environ, name.strip(): value}, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 1 and said in ended.stderr, ended.stderr
        assert len(ended.stderr.splitlines()) == 1 and "s3cret" not in ended.stderr
    with pytest.raises(ConfigError, match="can't be read"):
        from router.config.reading import load

        load(None, {"WARMROUTE_GATEWAY__API_KEYS_FILE": "/nowhere"}, {})


def test_priorities_of_keys(tmp_path: Path) -> None:
    """They stand behind the key, in the list and in the file; what the list says goes first. Other files have none."""
    file = tmp_path / "keys"
    file.write_text("filed \t 3\nlisted 7\nplain\n")
    ring = KeyRing(["listed -8"], str(file), api_key)

    def bound(key: bytes) -> Any:
        shown = ring.shown([(b"x-api-key", key)], 0.0)
        return shown and shown.priority_min

    assert [bound(key) for key in (b"filed", b"listed", b"plain")] == [3, -8, None]
    assert not ring.allows([(b"x-api-key", b"listed -8")], 0.0)
    for wrong in ("key 8", "key -9", "key x", "a b -1", " -1"):
        with pytest.raises(ValueError, match="an API key"):
            api_key(wrong)
    with pytest.raises(ValueError, match="a key"):
        read_keys(str(file))
    plain = KeyRing([], str(file))
    assert not plain.allows([(b"x-api-key", b"plain")], 0.0)


async def test_data_plane_asks_for_keys(tmp_path: Path) -> None:
    """With keys, nothing of the data plane answers without one; probes do; operators have a key of their own. What the
    pod sees has no key, and what is logged has neither keys nor prompts."""
    file = tmp_path / "keys"
    file.write_text("of-the-file\n")
    own = {
        "api_keys": ["of-the-config"],
        "api_keys_file": str(file),
        "operator_key": "of-operators",
        "log_level": "debug",
    }
    async with guarded(tmp_path, **own) as (served, seen), httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
        closed = [("POST", "/v1/completions"), ("POST", "/tokenize"), ("GET", "/v1/models"), ("POST", "/score")]
        closed += [("GET", "/score"), ("GET", "/openapi.json"), ("GET", "/nothing"), ("GET", "//healthz")]
        for method, path in closed:
            for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "of-operators"}):
                refused = await http.request(method, path, headers=headers, json=ASKED)
                error = refused.json()["error"]
                assert (refused.status_code, error["code"]) == (401, "invalid_api_key"), path
                assert refused.headers["www-authenticate"] == "Bearer" and refused.headers["x-request-id"]
        assert posted(seen) == []
        for path in ("/healthz", "/readyz"):
            assert (await http.get(path)).status_code == 200
        assert (await http.get("/pods", headers={"x-api-key": "of-the-config"})).status_code == 401
        assert (await http.get("/pods", headers={"x-api-key": "of-operators"})).status_code == 200

        for key in ("of-the-config", "of-the-file"):
            for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
                assert (await http.post("/v1/completions", headers=headers, json=ASKED)).status_code == 200
                assert (await http.post("/score", headers=headers, json=ASKED)).status_code == 200
        assert len(posted(seen)) == 4
        assert not {"authorization", "x-api-key"} & {name for headers in posted(seen) for name in headers}

        file.write_text("of-the-new-file\n")
        new, old = ({"x-api-key": key} for key in ("of-the-new-file", "of-the-file"))
        await eventually(lambda: httpx.get(f"{served.url}/v1/models", headers=new, **PLAIN).is_success)
        assert (await http.get("/v1/models", headers=old)).status_code == 401
        bad = await http.post("/v1/completions", headers=new, content=f'{{"prompt": "{PROMPT}", '.encode())
        assert bad.status_code == 400
        logged = served.logged()
        assert "DEBUG" in logged or "INFO" in logged
        assert not [word for word in (PROMPT, "of-the-", "of-operators") if word in logged.replace(str(file), "")]


async def test_reloaded_operator_key(tmp_path: Path) -> None:
    """The operator key, too, is read anew when its file changes."""
    file = tmp_path / "key"
    file.write_text("before\n")
    async with guarded(tmp_path, operator_key_file=str(file)) as (served, _):
        assert served.get("/pods", headers={"authorization": "Bearer before"}).is_success
        file.write_text("afterwards\n")
        await eventually(lambda: served.get("/pods", headers={"authorization": "Bearer afterwards"}).is_success)
        assert served.get("/pods", headers={"authorization": "Bearer before"}).status_code == 401


def test_what_is_withheld() -> None:
    """A key that the gateway does not ask for is the pod's to check; one that it asks for is not for pods."""
    key = b"authorization"
    keys = {"api_keys": ["k"]}
    forwarded = ({}, {"forward_api_keys": True}, {**keys, "forward_api_keys": True})
    kept = (keys, {"api_keys_file": "f"}, {"forward_api_keys": False})
    assert [key in Config.model_validate({"gateway": given}).withheld for given in forwarded] == [False] * 3
    assert [key in Config.model_validate({"gateway": given}).withheld for given in kept] == [True] * 3


# --- where requests go


async def test_no_request_chooses_where_it_goes(tmp_path: Path) -> None:
    """Whatever host a request names, in its target, its Host or any header, it goes to a pod of the configuration, and
    that pod is called by its own name."""
    async with peer(pod) as evil, guarded(tmp_path) as (served, seen):
        there = evil.address.removeprefix("http://")
        body = json.dumps(ASKED).encode()
        named = f"x-forwarded-host: {there}\r\nforwarded: host={there}\r\nx-warmroute-pod: {evil.address}\r\n"
        named += f"x-original-url: {evil.address}/v1/completions\r\nx-forwarded-proto: https\r\n"
        for target in (f"{evil.address}/v1/completions", f"http://{there}//v1/completions", "/v1/completions"):
            head = f"POST {target} HTTP/1.1\r\nhost: {there}\r\nconnection: close\r\n{named}content-length: {len(body)}"
            answer = await asyncio.to_thread(_said, served.url, head.encode() + b"\r\n\r\n" + body)
            status = 404 if "//v1" in target.removeprefix("http://") else 200
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        for target in (there, f"//{there}/v1/completions", f"/v1/@{there}/", "/v1/../../x", f"http:{there}/v1/x"):
            await asyncio.to_thread(_said, served.url, f"GET {target} HTTP/1.1\r\nhost: {there}\r\n\r\n".encode())
        own = seen.address.removeprefix("http://")
        assert {headers["host"] for headers in posted(seen)} == {own} and len(posted(seen)) == 2
        assert all(f"\r\nhost: {own}\r\n".encode() in call.head.lower() for call in seen.calls)
        assert evil.connections == 0


def _said(url: str, request: bytes) -> bytes:
    """All that comes for these bytes, until the connection is quiet."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 80), 10) as sock:
        sock.sendall(request)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while data := sock.recv(65536):
                answer += data
                sock.settimeout(0.3)
    return answer


# --- browsers


async def test_origins(tmp_path: Path) -> None:
    """Without origins, pages of others get no leave, neither from us nor from a pod, who is not asked. With origins,
    those get it, before they show a key; no others do."""
    ours, other = "https://chat.example.org", "https://evil.example.org"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with guarded(tmp_path) as (served, seen), httpx.AsyncClient(base_url=served.url, **PLAIN) as http:
        for method, headers in (("POST", {}), ("OPTIONS", asked)):
            answer = await http.request(method, "/v1/completions", headers={**headers, "origin": ours}, json=ASKED)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        await http.post("/v1/completions", headers={"authorization": "Bearer of-the-pod"}, json=ASKED)
        assert posted(seen)[-1]["authorization"] == "Bearer of-the-pod"
        heads = b"".join(call.head for call in seen.calls).lower()
        assert b"origin:" not in heads and b"access-control-" not in heads
    async with (
        guarded(tmp_path, cors_origins=[ours], api_keys=["k"]) as (served, seen),
        httpx.AsyncClient(base_url=served.url, **PLAIN) as http,
    ):
        for origin, allowed in ((ours, ours), (other, None)):
            leave = await http.options("/v1/completions", headers={**asked, "origin": origin})
            assert leave.headers.get("access-control-allow-origin") == allowed
            assert (leave.status_code == 200) is (allowed is not None)
            shown = {"origin": origin, "authorization": "Bearer k"}
            answer = await http.post("/v1/completions", headers=shown, json=ASKED)
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert "x-warmroute-pod" in answer.headers.get("access-control-expose-headers", "").lower()
        assert (await http.post("/v1/completions", headers={"origin": ours}, json=ASKED)).status_code == 401


# --- TLS


async def test_tls(tmp_path: Path) -> None:
    """With a certificate the ports speak TLS, and nothing else; with a CA for clients, to those only whom it knows."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, [*make.split(), *names], check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=certificate)
    known = ssl.create_default_context(cafile=certificate)
    known.load_cert_chain(certificate, key)
    for client_ca in (None, str(certificate)):
        tls = {"cert_file": str(certificate), "key_file": str(key), "client_ca_file": client_ca}
        with _tls_gateway(tmp_path, tls) as address:
            await eventually(lambda at=address: _listens(at))
            async with httpx.AsyncClient(base_url=f"https://{address}", trust_env=False, verify=known) as http:
                assert (await http.get("/healthz")).json() == {"status": "ok"}
                assert (await http.post("/v1/completions", json=ASKED)).status_code == 404
                assert (await http.post("/v1/completions", content=b"x" * 2_000_000)).status_code == 400
            async with httpx.AsyncClient(base_url=f"https://{address}", trust_env=False, verify=trusting) as http:
                if client_ca is None:
                    assert (await http.get("/healthz")).is_success
                else:
                    with pytest.raises(httpx.TransportError):
                        await http.get("/healthz")
            with pytest.raises(httpx.TransportError):
                await asyncio.to_thread(httpx.get, f"http://{address}/healthz", **PLAIN)


@contextlib.contextmanager
def _tls_gateway(folder: Path, tls: dict[str, Any]) -> Any:
    """A gateway without pods; where it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = folder / "tls.json"
    file.write_text(json.dumps({"gateway": {"host": "127.0.0.1", "port": port, "tls": tls}}))
    command = [sys.executable, "-m", "router", "serve", "--config", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _listens(address: str) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1).close()
        return True
    return False


async def test_the_shown_key_goes_with_the_request() -> None:
    """What asks for keys tells the application which one was shown, not what it is; two keys are two flows."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope[SHOWN_KEY])

    service = Service(Config.model_validate({"gateway": {"api_keys": ["one", "two -4"]}}))
    guard: Any = guarded_app(app, service)
    for name, value in ((b"authorization", b"Bearer one"), (b"x-api-key", b"one"), (b"x-api-key", b"two")):
        junk = (b"authorization", b"Bearer invented")
        scope = {"type": "http", "path": "/v1/completions", "headers": [junk, (name, value)]}
        await guard(scope, None, None)
    service.encoder.close()
    assert seen[0] == seen[1] != seen[2]
    assert not [key for key in seen if b"one" in key.digest or b"two" in key.digest]
    assert [key.priority_min for key in seen] == [None, None, -4]
