"""A real Helm engine against a stand-in API server: `python helm_engine.py lint|install CHART < values.json`.

Prints one line of JSON: what the engine answers, or {"error": …}. The server knows the kinds of this chart, has no
objects and takes whatever it is given.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KINDS = {
    "v1": {"configmaps": "ConfigMap", "services": "Service", "serviceaccounts": "ServiceAccount"},
    "apps/v1": {"deployments": "Deployment"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "rbac.authorization.k8s.io/v1": {"roles": "Role", "rolebindings": "RoleBinding"},
    "monitoring.coreos.com/v1": {"servicemonitors": "ServiceMonitor"},
}


def discovered(path: str) -> dict[str, Any] | None:
    """The discovery document at `path`; None where there is none."""
    if path == "/version":
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [(name, *name.split("/")) for name in KINDS if "/" in name]
        versions = [(group, {"groupVersion": name, "version": version}) for name, group, version in groups]
        each = [{"name": group, "versions": [version], "preferredVersion": version} for group, version in versions]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": each}
    match = re.fullmatch("/apis?/(.+)", path)
    if match is None or match[1] not in KINDS:
        return None
    verbs = ["get", "list", "create", "patch", "delete"]
    resources = [
        {"name": plural, "kind": kind, "singularName": kind.lower(), "namespaced": True, "verbs": verbs}
        for plural, kind in KINDS[match[1]].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": match[1], "resources": resources}


class ApiServer(BaseHTTPRequestHandler):
    """Discovery, 404 for every object, 201 for every creation."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Discovery, or an object that is not there."""
        document = discovered(self.path.partition("?")[0])
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        self.answer(404 if document is None else 200, missing if document is None else document)

    def do_POST(self) -> None:
        """Takes the object."""
        self.answer(201, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, status: int, document: dict[str, Any]) -> None:
        """Send JSON."""
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def kubeconfig(port: int) -> str:
    """A kubeconfig for the stand-in server, in YAML: the engine takes JSON for the name of a file."""
    return (
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n"
        f"clusters: [{{name: here, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n"
        "contexts: [{name: here, context: {cluster: here, user: nobody}}]\n"
        "users: [{name: nobody, user: {}}]\n"
    )


def run(action: str, chart: str, values: dict[str, Any]) -> dict[str, Any]:
    """The engine's answer."""
    sdk = importlib.import_module("helm_sdkpy")  # in a folder of its own, and only there
    server = ThreadingHTTPServer(("127.0.0.1", 0), ApiServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = sdk.Configuration(namespace="models", kubeconfig=kubeconfig(server.server_port))
    try:
        if action == "lint":
            return asyncio.run(sdk.Lint(configuration).run(chart))
        return asyncio.run(sdk.Install(configuration).run("edge", chart, values=values, wait=False))
    except sdk.HelmError as error:
        return {"error": str(error)}
    finally:
        server.shutdown()


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], json.load(sys.stdin))))
