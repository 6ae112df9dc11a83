"""TLS to pods: who is believed, who is shown, what is read anew; over real sockets with certificates made here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result

from router.config.fleet import StaticPod
from router.config.settings import Config
from router.errors import ConfigError
from router.upstream.certificates import Certificates, PodCertificates
from router.upstream.failures import UpstreamError
from router.upstream.pod_client import PodClient
from router.upstream.pool import Tls
from tests.fakes.certificates import Authority, Certificate
from tests.fakes.command import file_of, run
from tests.fakes.peers import Call, Peer, peer
from tests.fakes.probes import Told
from tests.fakes.processes import PLAIN, ROOT, START_S, gateway

LOOK_S = 10.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom both sides believe."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pods_own(authority: Authority) -> Certificate:
    """A pod's certificate, for 127.0.0.1."""
    return authority.issue("pod")


def asking(shown: Certificate, clients: str | None = None) -> ssl.SSLContext:
    """A pod's side. `clients`: it speaks only to those whom this CA knows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients)
    context.load_cert_chain(shown.cert, shown.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.asynccontextmanager
async def secured(shown: Certificate, clients: str | None = None) -> AsyncIterator[Peer]:
    """A pod behind TLS that answers probes, /tokenize and completions."""

    async def pod(call: Call) -> None:
        await call.read_body()
        if call.head.startswith(b"POST"):
            body = b'{"tokens": [1, 2, 3]}' if b"/tokenize" in call.head else b'{"choices": []}'
            await call.send(b"HTTP/1.1 200 x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        else:
            await Told()(call)

    async with peer(pod, ssl=asking(shown, clients)) as seen:
        seen.address = seen.address.replace("http:", "https:")
        yield seen


def of(seen: Peer, default: dict[str, Any], **own: Any) -> Tls:
    """What the configuration makes of `upstream.tls` and the pod's own `tls`."""
    config = Config.model_validate({"upstream": {"tls": default}})
    pod = StaticPod.model_validate({"name": "a", "address": seen.address, **({"tls": own} if own else {})})
    tls = Certificates(config.upstream).of(pod)
    assert tls is not None
    return tls


async def answers(seen: Peer, tls: Tls) -> bool:
    """Whether a question reaches the pod; false: TLS has failed."""
    async with PodClient(seen.address, 5.0, tls) as client:
        try:
            return (await client.get(b"/health")).fine
        except UpstreamError:
            return False


# --- who is believed


async def test_only_the_right_ca(authority: Authority, pods_own: Certificate, tmp_path: Path) -> None:
    """A pod of our CA is believed; one of another is not, nor by the system's CAs; unless nothing is verified."""
    other = Authority(tmp_path, "other").root.cert
    async with secured(pods_own) as seen:
        assert await answers(seen, of(seen, {"ca_file": authority.root.cert}))
        assert not await answers(seen, of(seen, {"ca_file": other}))
        assert not await answers(seen, of(seen, {}))
        assert await answers(seen, of(seen, {"ca_file": other, "verify": False}))
        assert await answers(seen, of(seen, {"ca_file": other}, ca_file=authority.root.cert))


async def test_only_the_right_name(authority: Authority) -> None:
    """The certificate must be for the address's host, or for `server_name` where that is given."""
    default = {"ca_file": authority.root.cert}
    async with secured(authority.issue("named", "DNS:pod-0.vllm")) as seen:
        assert not await answers(seen, of(seen, default))
        assert await answers(seen, of(seen, default, server_name="pod-0.vllm"))
        assert not await answers(seen, of(seen, default, server_name="pod-1.vllm"))


async def test_a_pod_that_asks_who_we_are(authority: Authority, pods_own: Certificate, tmp_path: Path) -> None:
    """With mTLS a pod takes nobody without a certificate, and nobody whom its CA does not know."""
    ca = authority.root.cert
    ours, strange = authority.issue("gateway", "DNS:gateway"), Authority(tmp_path, "strange").issue("s", "DNS:gateway")
    async with secured(pods_own, clients=ca) as seen:
        assert await answers(seen, of(seen, {"ca_file": ca, "cert_file": ours.cert, "key_file": ours.key}))
        assert not await answers(seen, of(seen, {"ca_file": ca}))
        assert not await answers(seen, of(seen, {"ca_file": ca, "cert_file": strange.cert, "key_file": strange.key}))
        assert await answers(seen, of(seen, {"ca_file": ca}, cert_file=ours.cert, key_file=ours.key))
    with pytest.raises(ValueError, match="go together"):
        of(seen, {"cert_file": ours.cert})


# --- files


def test_files_that_can_not_be_used(authority: Authority, pods_own: Certificate, tmp_path: Path) -> None:
    """Missing, empty, broken, mismatched, or under a passphrase: an error that names pod, key and file, at once."""
    empty, broken, locked = (tmp_path / name for name in ("empty", "broken", "locked"))
    empty.touch()
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    ca, cert, key = authority.root.cert, pods_own.cert, pods_own.key
    for given, named in (
        ({"ca_file": "/nowhere/ca.pem"}, "a: tls.ca_file: /nowhere/ca.pem: can't be used: No such file"),
        ({"ca_file": str(empty)}, f"a: tls.ca_file: {empty}: can't be used"),
        ({"ca_file": str(broken)}, f"a: tls.ca_file: {broken}: can't be used"),
        ({"cert_file": "/nowhere/c", "key_file": key}, "a: tls.cert_file: /nowhere/c: can't be used"),
        ({"cert_file": cert, "key_file": "/nowhere/k"}, "a: tls.key_file: /nowhere/k: can't be used"),
        ({"cert_file": cert, "key_file": authority.root.key}, "key values mismatch"),
        ({"cert_file": cert, "key_file": str(locked)}, f"cert_file {cert} with key_file {locked}: can't be used"),
    ):
        pod = StaticPod.model_validate({"name": "a", "address": "https://h", "tls": {"ca_file": ca, **given}})
        with pytest.raises(ConfigError) as caught:
            Certificates(Config().upstream).of(pod)
        assert named in caught.value.message and "\n" not in caught.value.message


def test_tls_for_a_pod_without() -> None:
    """Settings that would do nothing are refused: somebody believes that there is TLS."""
    with pytest.raises(ValueError, match="not https"):
        StaticPod.model_validate({"name": "a", "address": "http://h", "tls": {"verify": True}})
    assert Certificates(Config().upstream).of(StaticPod(name="a", address="http://h")) is None


async def test_rotation(authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Files that are replaced are used for the next connection, once it is time to look; broken ones never are."""
    caplog.set_level(logging.INFO)
    now, other = 0.0, Authority(tmp_path, "other")
    old, new = authority.root.cert, other.root.cert
    file = tmp_path / "bundle.pem"

    def put(source: str) -> None:
        """As a rotation does it: the name changes hands."""
        shutil.copy(source, tmp_path / "next.pem")
        os.replace(tmp_path / "next.pem", file)

    put(new)
    config = Config.model_validate({"upstream": {"tls": {"ca_file": str(file)}}})
    trust = PodCertificates(config.upstream.tls, "a: tls", LOOK_S, lambda: now)
    tls = Tls(trust.context)
    async with secured(authority.issue("rotated")) as seen:
        assert not await answers(seen, tls)
        put(old)
        assert not await answers(seen, tls)
        now += LOOK_S
        assert await answers(seen, tls)
        file.write_text("half of a certif")
        now += LOOK_S
        assert await answers(seen, tls)
        now += LOOK_S
        assert await answers(seen, tls)
        put(new)
        now += LOOK_S
        assert not await answers(seen, tls)
        file.unlink()
        now += LOOK_S
        assert not await answers(seen, tls)
    lines = [record.getMessage() for record in caplog.records if record.name == "warmroute.pods"]
    assert [line.partition(":")[0] for line in lines] == [
        "a", "certificates stay as they were", "a", "certificates stay as they were",
    ]  # fmt: skip
    assert str(file) in lines[1]


def test_pods_with_equal_settings_share(authority: Authority) -> None:
    """One set of certificates for a fleet, whatever its pods' names; another one where a file differs."""
    trusts = Certificates(Config.model_validate({"upstream": {"tls": {"ca_file": authority.root.cert}}}).upstream)
    made = [
        trusts.of(StaticPod.model_validate({"name": "a", "address": "https://h", "tls": tls}))
        for tls in ({}, {"server_name": "x"}, {"verify": False})
    ]
    first, named, open_to_all = [each for each in made if each is not None]
    assert first.context() is named.context() is not open_to_all.context()
    assert [each.server_name for each in (first, named)] == [None, "x"]


# --- the whole gateway


async def test_gateway(authority: Authority, pods_own: Certificate, tmp_path: Path) -> None:
    """Probes, /tokenize and requests: all go over mTLS."""
    async with secured(pods_own, clients=authority.root.cert) as seen:

        def served() -> httpx.Response:
            tls = shown(authority)
            with gateway(tmp_path, [{"name": "a", "address": seen.address}], upstream={"tls": tls}) as gate:
                return httpx.post(f"{gate.url}/v1/completions", json={"model": "m", "prompt": "x"}, **PLAIN)

        answer = await asyncio.to_thread(served)
        assert (answer.status_code, answer.headers["x-warmroute-pod"]) == (200, "a")
        paths = {call.head.split(b" ")[1] for call in seen.calls}
        assert paths >= {b"/health", b"/v1/models", b"/metrics", b"/tokenize", b"/v1/completions"}


async def test_check(authority: Authority, pods_own: Certificate, tmp_path: Path) -> None:
    """`warmroute check` says what is wrong with TLS; of files, what start-up says."""
    tls = shown(authority)
    async with secured(pods_own, clients=authority.root.cert) as seen:

        def configured(**changed: Any) -> Path:
            given = {"discovery": {"static": [{"name": "a", "address": seen.address}]}}
            return file_of(tmp_path, {**given, "upstream": {"tls": {**tls, **changed}}})

        def checked(**changed: Any) -> Result:
            return run("check", "--config", configured(**changed), "--wait", "0.1")

        def started(**changed: Any) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "router", "serve", "--config", str(configured(**changed))]
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_S)

        for changed, said in (
            ({}, f"✓ a: {seen.address} answers."),
            ({"verify": False}, "✗ a: its certificate is not checked (tls.verify is off)"),
            (
                {"ca_file": None},
                f"✗ a: {seen.address} can't be reached: no connection: [SSL: CERTIFICATE_VERIFY_FAILED]",
            ),
        ):
            assert said in (await asyncio.to_thread(checked, **changed)).output
        broken = {"key_file": "/nowhere/key.pem"}
        check, start = await asyncio.to_thread(checked, **broken), await asyncio.to_thread(started, **broken)
        assert check.exit_code == start.returncode == 1
        words = start.stderr.strip().removeprefix("warmroute: ")
        assert words.startswith("a: tls.key_file: /nowhere/key.pem: can't be used") and words in check.output


def shown(authority: Authority) -> dict[str, str]:
    """`upstream.tls` of a gateway that shows a certificate."""
    ours = authority.issue("gateway", "DNS:gateway")
    return {"ca_file": authority.root.cert, "cert_file": ours.cert, "key_file": ours.key}
