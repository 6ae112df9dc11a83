"""A real kube-apiserver and its etcd on loopback. No kubelet and no controllers: Pods are what we write."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.certificates import Authority
from tests.fakes.processes import free_ports

BINARY = Path(os.environ.get("APISERVER_HOME", Path(__file__).parents[1] / ".apiserver")) / "bin" / "kube-apiserver"
NAMESPACE = "inference"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ADMIN = {"authorization": "Bearer admin-token"}
_START_S = 120.0
_PATCH = {"content-type": "application/merge-patch+json", **ADMIN}


class ApiServer:
    """One server; `stop` and `start` leave what it knows in its etcd."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self._etcd_port, self._peer_port = free_ports(3)
        self.url = f"https://127.0.0.1:{self.port}"
        authority = Authority(folder)
        self.ca_file = authority.root.cert
        self._cert = authority.issue("apiserver", "IP:127.0.0.1")
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self.admin = httpx.Client(
            base_url=self.url, headers=ADMIN, verify=ssl.create_default_context(cafile=self.ca_file), timeout=30
        )
        (folder / "tokens.csv").write_text("admin-token,admin,admin,system:masters\n")
        subprocess.run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)

    def start(self, *arguments: str) -> None:
        """Return when it is ready; the namespace is there."""
        etcd = f"http://127.0.0.1:{self._etcd_port}"
        if self._etcd is None:
            peer = f"http://127.0.0.1:{self._peer_port}"
            self._etcd = self._run(
                "etcd", "--data-dir", "etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", f"default={peer}", "--unsafe-no-fsync",
            )  # fmt: skip
        self._server = self._run(
            str(BINARY), "--etcd-servers", etcd, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
            "--secure-port", str(self.port), "--insecure-port", "0", "--tls-cert-file", self._cert.cert,
            "--tls-private-key-file", self._cert.key, "--token-auth-file", "tokens.csv", "--authorization-mode", "RBAC",
            "--service-account-key-file", "sa.key", "--service-account-signing-key-file", "sa.key",
            "--service-account-issuer", "https://kubernetes.default.svc", "--service-cluster-ip-range", "10.96.0.0/16",
            "--disable-admission-plugins", "ServiceAccount", "--profiling=false", *arguments,
        )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            assert self._server.poll() is None and time.monotonic() < deadline, "kube-apiserver did not start"
            time.sleep(0.2)
        answer = self.admin.post("/api/v1/namespaces", json={"metadata": {"name": NAMESPACE}})
        assert answer.status_code in (201, 409), answer.text

    def stop(self) -> None:
        """kill -9: connections are cut, and nobody listens."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def close(self) -> None:
        self.admin.close()
        self.stop()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()

    def put(self, name: str, ip: str, ready: bool = True, **labels: str) -> None:
        """A Pod on a node, as the scheduler and a kubelet would have it."""
        spec = {"nodeName": "node", "containers": [{"name": "vllm", "image": "vllm"}]}
        meta = {"name": name, "labels": {"app": "vllm", **labels}}
        self._done("POST", PODS, {"metadata": meta, "spec": spec}, {})
        self.stands(name, ip, ready)

    def stands(self, name: str, ip: str, ready: bool) -> None:
        """What its kubelet says."""
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions}
        self._done("PATCH", f"{PODS}/{name}/status", {"status": status}, _PATCH)

    def end(self, name: str) -> None:
        """It gets a deletionTimestamp."""
        self._done("DELETE", f"{PODS}/{name}", {"gracePeriodSeconds": 30}, {})

    def delete(self, name: str) -> None:
        """It is gone."""
        self._done("DELETE", f"{PODS}/{name}", {"gracePeriodSeconds": 0}, {})

    def clear(self) -> None:
        """No Pods."""
        for pod in (self.admin.get(PODS)).json()["items"]:
            self.delete(pod["metadata"]["name"])

    def compact(self) -> None:
        """All history up to now goes."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self._etcd_port}") as etcd:
            told = (etcd.post("/v3/kv/range", json={"key": "AA=="})).json()
            request = {"revision": told["header"]["revision"], "physical": True}
            (etcd.post("/v3/kv/compaction", json=request)).raise_for_status()

    def allow(self, verbs: list[str]) -> None:
        """The account `gateway` may do this with Pods."""
        of_rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]
        self._done("POST", f"{of_rbac}/roles", {"metadata": {"name": "gateway"}, "rules": rules}, {})
        subject = {"kind": "ServiceAccount", "name": "gateway", "namespace": NAMESPACE}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "gateway"}
        binding = {"metadata": {"name": "gateway"}, "subjects": [subject], "roleRef": role}
        self._done("POST", f"{of_rbac}/rolebindings", binding, {})

    def token(self, secret: str) -> str:
        """Of the account `gateway`: good for as long as this secret is there."""
        home = f"/api/v1/namespaces/{NAMESPACE}"
        self.admin.post(f"{home}/serviceaccounts", json={"metadata": {"name": "gateway"}})
        made = (self._done("POST", f"{home}/secrets", {"metadata": {"name": secret}}, {})).json()["metadata"]
        bound = {"kind": "Secret", "apiVersion": "v1", "name": secret, "uid": made["uid"]}
        spec = {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 600, "boundObjectRef": bound}
        answer = self._done("POST", f"{home}/serviceaccounts/gateway/token", {"spec": spec}, {})
        token: str = answer.json()["status"]["token"]
        return token

    def revoke(self, secret: str) -> None:
        """Its token is good for nothing."""
        self._done("DELETE", f"/api/v1/namespaces/{NAMESPACE}/secrets/{secret}", {}, {})

    def _done(self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
        answer = self.admin.request(method, path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer

    def _is_ready(self) -> bool:
        try:
            return (self.admin.get("/readyz")).text == "ok"
        except httpx.TransportError:
            return False

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        assert shutil.which(program) is not None, f"{program} is not there: tests_kubernetes/build.sh makes it"
        with (self._folder / f"{Path(program).name}.log").open("ab") as log:
            return subprocess.Popen([program, *arguments], cwd=self._folder, stdout=log, stderr=log)
