"""How the API server of Kubernetes is reached: in a cluster, by a kubeconfig, or as the configuration says."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from router.config.fleet import KubernetesConfig
from router.discovery.found import in_url
from router.errors import ConfigError

_MOUNTED = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_BYTES_MAX = 64 * 1024


class Api(NamedTuple):
    """The server, and how we show who we are. A token file is read anew for each connection: tokens expire."""

    url: str
    namespace: str
    token: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    ca_data: str | None = None
    client_cert: tuple[str, str] | None = None
    client_data: tuple[bytes, bytes] | None = None
    """The same in PEM, as it lies in a kubeconfig."""
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Raises ConfigError where a file can't be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca_data)
            if not self.verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if self.client_cert is not None:
                context.load_cert_chain(*self.client_cert)
            if self.client_data is not None:
                _load(context, *self.client_data)
        except (OSError, ValueError) as error:
            what = self.ca_file or "the certificates given"
            raise ConfigError(f"discovery.kubernetes: {what} can't be used: {error}") from None
        return context

    def headers(self) -> dict[str, str]:
        """Who we are, as of now."""
        token = self.token
        if self.token_file is not None:
            with contextlib.suppress(OSError):
                token = Path(self.token_file).read_text("ascii")[:_TOKEN_BYTES_MAX].strip()
        return {"authorization": f"Bearer {token}"} if token else {}


def api_of(given: KubernetesConfig, environ: Mapping[str, str] = os.environ, mounted: Path = _MOUNTED) -> Api:
    """As configured: `api`, else a kubeconfig, else the cluster that we are in. Raises ConfigError in one line."""
    if given.api is not None:
        return Api(given.api, given.namespace or "default", token_file=given.token_file, ca_file=given.ca_file)
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if given.kubeconfig is None and host:
        namespace = given.namespace
        with contextlib.suppress(OSError):
            namespace = namespace or (mounted / "namespace").read_text("utf-8").strip()
        return Api(
            f"https://{in_url(host)}:{port}",
            namespace or "default",
            token_file=given.token_file or str(mounted / "token"),
            ca_file=given.ca_file or str(mounted / "ca.crt"),
        )
    path = given.kubeconfig or environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return _of_kubeconfig(Path(path.split(os.pathsep)[0]), given)


def _of_kubeconfig(path: Path, given: KubernetesConfig) -> Api:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        context = _named(content, "contexts", content.get("current-context"))["context"]
        cluster = _named(content, "clusters", context["cluster"])["cluster"]
        user = _named(content, "users", context["user"])["user"]
    except OSError as error:
        hint = "not in a cluster, and no kubeconfig: set discovery.kubernetes.kubeconfig or .api"
        raise ConfigError(f"discovery.kubernetes: {path}: {error.strerror} ({hint})") from None
    except (yaml.YAMLError, LookupError, AttributeError, TypeError) as error:
        raise ConfigError(f"discovery.kubernetes: {path} is no kubeconfig that can be used: {error!r}") from None
    if "exec" in user or "auth-provider" in user:
        raise ConfigError(f"discovery.kubernetes: {path}: users that get a token by a program are not supported")
    folder = path.parent
    cert, key = (_file(user, name, folder) for name in ("client-certificate", "client-key"))
    try:
        ca_data = _data(cluster, "certificate-authority")
        cert_data, key_data = (_data(user, name) for name in ("client-certificate", "client-key"))
        ca_text = None if ca_data is None else ca_data.decode("ascii")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"discovery.kubernetes: {path} is no kubeconfig that can be used: {error}") from None
    return Api(
        str(cluster["server"]).rstrip("/"),
        given.namespace or context.get("namespace") or "default",
        token=user.get("token"),
        token_file=given.token_file or user.get("tokenFile"),
        ca_file=given.ca_file or _file(cluster, "certificate-authority", folder),
        ca_data=ca_text,
        client_cert=(cert, key) if cert and key else None,
        client_data=(cert_data, key_data) if cert_data and key_data else None,
        verify=not cluster.get("insecure-skip-tls-verify"),
    )


def _named(content: Mapping[str, Any], kind: str, name: str | None) -> dict[str, Any]:
    for each in content.get(kind) or ():
        if each["name"] == name:
            return dict(each)
    raise LookupError(f"no {kind} named {name}")


def _file(section: Mapping[str, Any], name: str, folder: Path) -> str | None:
    """A file that is named, relative to the kubeconfig; data beside it wins, as for kubectl."""
    given = None if section.get(f"{name}-data") else section.get(name)
    return str(folder / given) if given else None


def _data(section: Mapping[str, Any], name: str) -> bytes | None:
    """What a kubeconfig holds itself; raises ValueError."""
    data = section.get(f"{name}-data")
    return base64.b64decode(data, validate=True) if data else None


def _load(context: ssl.SSLContext, cert: bytes, key: bytes) -> None:
    """OpenSSL takes a client's certificate from files only: one that nobody else may read, for a moment."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(cert + b"\n" + key)
        file.flush()
        context.load_cert_chain(file.name)
