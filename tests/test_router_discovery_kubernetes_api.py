"""How the API server is reached: kubeconfigs, with files or with what they hold themselves."""

from __future__ import annotations

import asyncio
import base64
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.config.fleet import KubernetesConfig
from router.discovery.kubernetes_api import Api, api_of
from router.errors import ConfigError
from tests.fakes.certificates import Authority


def config_of(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> Api:
    """What a kubeconfig comes to."""
    content = {
        "current-context": "kind",
        "contexts": [{"name": "kind", "context": {"cluster": "kind", "user": "me", "namespace": "inference"}}],
        "clusters": [{"name": "kind", "cluster": {"server": "https://127.0.0.1:6443/", **cluster}}],
        "users": [{"name": "me", "user": user}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(content))
    return api_of(KubernetesConfig(selector="app=vllm", kubeconfig=str(path)), {})


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("inline", [True, False])
async def test_a_certificate_of_ours(tmp_path: Path, inline: bool) -> None:
    """As files, relative to the kubeconfig, or in it, as kind and k3s write it: a server that asks for it takes it."""
    ca = Authority(tmp_path)
    server, mine = ca.issue("server"), ca.issue("me")
    paths = {"client-certificate": Path(mine.cert), "client-key": Path(mine.key)}
    if inline:
        cluster = {"certificate-authority-data": _inline(Path(ca.root.cert))}
        user = {f"{name}-data": _inline(path) for name, path in paths.items()} | {"client-key": "/nowhere"}
    else:
        cluster = {"certificate-authority": Path(ca.root.cert).name}
        user = {name: path.name for name, path in paths.items()}
    api = config_of(tmp_path, cluster, user)
    assert (api.url, api.namespace) == ("https://127.0.0.1:6443", "inference")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server.cert, server.key)
    theirs.load_verify_locations(ca.root.cert)
    theirs.verify_mode = ssl.CERT_REQUIRED

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=theirs) as listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=api.context())
        assert await reader.read() == b"hello"
        writer.close()


@pytest.mark.parametrize(
    ("cluster", "user"),
    [
        ({"certificate-authority-data": "!!!"}, {}),
        ({"certificate-authority-data": 7}, {}),
        ({}, {"client-certificate-data": "!!!", "client-key-data": "QUJD"}),
        ({}, {"exec": {"command": "aws"}}),
    ],
)
def test_what_can_not_be_used(tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> None:
    """One line that says so."""
    with pytest.raises(ConfigError, match=r"^discovery\.kubernetes: ") as refused:
        config_of(tmp_path, cluster, user)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("cluster", "user"),
    [
        ({"certificate-authority-data": "QUJD"}, {}),
        ({"certificate-authority": "nowhere.crt"}, {}),
        ({}, {"client-certificate-data": "QUJD", "client-key-data": "QUJD"}),
    ],
)
def test_what_is_no_certificate(tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> None:
    """It is found when it is to be used, and told alike."""
    with pytest.raises(ConfigError, match="can't be used"):
        config_of(tmp_path, cluster, user).context()
