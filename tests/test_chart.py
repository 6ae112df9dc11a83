"""The Helm chart: its values, schema and templates agree; a real Helm engine lints, installs and refuses it.

The engine is the package `helm-sdkpy` in a folder of its own: $WARMROUTE_HELM_SDK, else `.helm` beside `.venv`:

    python -m pip install --ignore-requires-python --no-deps --target .helm helm-sdkpy==0.1.32 cffi pycparser

Where it is not there, the tests marked `engine` are skipped and the others still hold the chart.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.config.reading import load

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "warmroute"
SDK = Path(os.environ.get("WARMROUTE_HELM_SDK") or ROOT / ".helm")
engine = pytest.mark.skipif(not (SDK / "helm_sdkpy").is_dir(), reason="no Helm engine: see the head of test_chart.py")

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
TEMPLATES = {path.name: path.read_text(encoding="utf-8") for path in sorted((CHART / "templates").iterdir())}

POD = {"name": "pod-0", "address": "https://vllm-0.vllm:8000", "events": "tcp://vllm-0.vllm:5557"}
FULL: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "pull"}],
    "config": {"discovery": {"static": [POD]}, "index": {"blocks_max": 123456789}},
    "operatorKey": {"existingSecret": "warmroute-key", "key": "token"},
    "apiKeys": {"existingSecret": "warmroute-clients", "key": "keys"},
    "redis": {"existingSecret": "warmroute-redis", "key": "redis-url"},
    "podTls": {"existingSecret": "vllm-tls", "cert": "client.crt", "key": "client.key"},
    "tokenizers": {"mountPath": "/tokenizers", "volume": {"persistentVolumeClaim": {"claimName": "tokenizers"}}},
    "ports": {"data": 18080, "ops": 19090, "events": 15557, "eventRanks": 2},
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
    "serviceAccount": {"annotations": {"a": "b"}},
    "drain": {"delaySeconds": 7, "timeoutSeconds": 600},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}], "opsFrom": [{"namespaceSelector": {}}],
                      "eventsFrom": [{"podSelector": {"matchLabels": {"app": "vllm"}}}],
                      "egress": [{"to": [{"podSelector": {}}]}]},
    "env": [{"name": "WARMROUTE_GATEWAY__LOG_LEVEL", "value": "debug"}],
    "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "nodeSelector": {"e": "f"},
    "tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity": {}}, "priorityClassName": "high",
}  # fmt: skip


# --- without an engine


def complaints(schema: dict[str, Any] | bool, value: Any, at: str = "values") -> list[str]:
    """What is wrong with `value`, by the few words of JSON Schema that the chart's schema uses."""
    if isinstance(schema, bool):
        return [] if schema else [f"{at} may not be given"]
    known = {"$schema", "description", "type", "additionalProperties", "properties", "required", "items", "enum",
             "pattern", "minLength", "minimum", "maximum"}  # fmt: skip
    assert not schema.keys() - known, f"this test does not know {schema.keys() - known}"
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and type(value) not in [kinds[kind] for kind in wanted]:
        return [f"{at} is no {wanted}"]
    wrong = [f"{at} is not one of {schema['enum']}"] if value not in schema.get("enum", [value]) else []
    if isinstance(value, str):
        fits = re.search(schema.get("pattern", ""), value) and len(value) >= schema.get("minLength", 0)
        wrong += [] if fits else [f"{at}: {value!r}"]
    if isinstance(value, int):
        wrong += [] if schema.get("minimum", value) <= value <= schema.get("maximum", value) else [f"{at}: {value}"]
    if isinstance(value, list):
        wrong += [line for item in value for line in complaints(schema.get("items", True), item, f"{at}[]")]
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        wrong += [f"{at}.{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            wrong += complaints(properties.get(key, others), item, f"{at}.{key}")
    return wrong


def leaves(values: dict[str, Any], above: str = "") -> set[str]:
    """Dotted paths of all values below which there is nothing of the chart's own."""
    paths: set[str] = set()
    for key, value in values.items():
        free = above + key in ("config", "resources")
        paths |= leaves(value, f"{above}{key}.") if isinstance(value, dict) and value and not free else {above + key}
    return paths


def test_values_fit_their_schema() -> None:
    """The default values and a full set fit; a wrong type, an unknown key and a key in the config file do not."""
    assert complaints(SCHEMA, VALUES) == []
    assert complaints(SCHEMA, FULL) == []
    assert complaints(SCHEMA, {"replicas": 3}) == ["values.replicas may not be given"]
    assert complaints(SCHEMA, {"replicaCount": "3"}) == ["values.replicaCount is no ['integer']"]
    assert complaints(SCHEMA, {"config": {"gateway": {"operator_key": "x"}}})
    assert complaints(SCHEMA, {"config": {"gateway": {"apiKeysFile": "x"}}})
    assert complaints(SCHEMA, {"image": {"repository": "r", "digest": "latest"}})


def test_schema_and_values_know_the_same_keys() -> None:
    """Each key of values.yaml stands in the schema, and each key of the schema (but `global`) in values.yaml."""

    def paths(schema: dict[str, Any], above: str = "") -> set[str]:
        found: set[str] = set()
        for key, below in schema.get("properties", {}).items():
            deeper = below.get("properties") and below.get("additionalProperties") is False
            found |= paths(below, f"{above}{key}.") if deeper else {above + key}
        return found

    assert paths(SCHEMA) - {"global"} == leaves(VALUES)


def used_values(text: str) -> set[str]:
    """Dotted paths below .Values in a template, those inside `with .Values.x` blocks included."""
    used: set[str] = set()
    scopes: list[str | None] = []
    for action in re.findall(r"\{\{-?\s*(.*?)\s*-?\}\}", text, re.DOTALL):
        used |= set(re.findall(r"\.Values\.([A-Za-z0-9_.]+)", action))
        scope = next((name for name in reversed(scopes) if name is not None), None)
        if scope:
            used |= {f"{scope}.{name}" for name in re.findall(r"(?<![\w$.)])\.([a-z]\w*)", action)}
        word = action.split(" ", 1)[0]
        if word in ("if", "with", "range", "define"):
            opened = re.match(r"with (?:\.Values)?\.([A-Za-z0-9_.]+)$", action)
            inner = f"{scope}.{opened[1]}" if opened and scope and ".Values" not in action else opened and opened[1]
            scopes.append(inner if word == "with" else None)
        elif word == "end":
            scopes.pop()
    return used


def test_every_value_is_used_and_every_use_is_a_value() -> None:
    """No key of values.yaml is dead, and no template reads a key that values.yaml lacks."""
    used = set().union(*map(used_values, TEMPLATES.values()))
    known = leaves(VALUES)
    inner = {path.rsplit(".", depth)[0] for path in known for depth in range(1, path.count(".") + 1)}
    assert used - known - inner == set()
    assert known - used == set()


def test_default_config_is_accepted(tmp_path: Path) -> None:
    """The gateway reads the config of values.yaml, with the variables that the Deployment adds."""
    file = tmp_path / "warmroute.yaml"
    file.write_text(yaml.safe_dump(VALUES["config"]), encoding="utf-8")
    environ = {
        name: "9090" if name.endswith("PORT") else "120s"
        for name in re.findall(r"name: (WARMROUTE_\w+), value", TEMPLATES["deployment.yaml"])
        if not name.endswith("_FILE")
    }
    environ |= {"WARMROUTE_GATEWAY__PORT": "8080", "WARMROUTE_EVENTS__BIND": "tcp://*:5557"}
    assert len(environ) == 4
    config = load(str(file), environ, {})
    assert (config.gateway.ops_port, config.gateway.drain_timeout) == (9090, 120.0)


def test_chart_is_a_chart_of_this_version() -> None:
    """Chart.yaml is of API v2, and its appVersion is the distribution's version."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert (chart["apiVersion"], chart["name"]) == ("v2", "warmroute")
    assert f'version = "{chart["appVersion"]}"' in project


# --- with a real engine
# It runs in a process of its own: a Go runtime with signal handlers, whose settings are environment variables.


def helm(tmp_path: Path, action: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the engine answers, or {"error": …}. Installs go to the stand-in API server."""
    environ = {"PYTHONPATH": f"{SDK}", "HELM_DRIVER": "memory", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    script = ROOT / "tests" / "fakes" / "helm_engine.py"
    run = subprocess.run(
        [sys.executable, str(script), action, str(CHART)],
        input=json.dumps(values or {}), env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


def installed(tmp_path: Path, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The objects of an install, by kind."""
    answer = helm(tmp_path, "install", values)
    assert "error" not in answer, answer["error"]
    objects = [item for item in yaml.safe_load_all(answer["manifest"]) if item]
    assert len({item["kind"] for item in objects}) == len(objects)
    return {item["kind"]: item for item in objects}


def config_of(objects: dict[str, dict[str, Any]], tmp_path: Path) -> Any:
    """The configuration that the gateway would read in the container, from the ConfigMap and its environment."""
    file = tmp_path / "warmroute.yaml"
    file.write_text(objects["ConfigMap"]["data"]["warmroute.yaml"], encoding="utf-8")
    container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    environ = {item["name"]: item.get("value", "redis://:pw@redis:6379") for item in container["env"]}
    return load(str(file), {name: in_a_container(value, tmp_path) for name, value in environ.items()}, {})


def in_a_container(value: str, tmp_path: Path) -> str:
    """A file that the container would have, here; any other value as it is."""
    if not value.startswith("/etc/warmroute-"):
        return value
    file = tmp_path / value.removeprefix("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a-key\n", encoding="utf-8")
    return str(file)


@engine
def test_engine_lints_the_chart(tmp_path: Path) -> None:
    """`helm lint` has nothing worse to say than that there is no icon."""
    answer = helm(tmp_path, "lint")
    assert (answer["TotalChartsLinted"], answer["Errors"]) == (1, None)
    assert [message for message in answer["Messages"] if message["Severity"] > 1] == []


@engine
def test_default_install(tmp_path: Path) -> None:
    """The defaults install five objects: hardened, drained, spread, with a configuration that is read."""
    objects = installed(tmp_path, {})
    assert objects.keys() == {"Deployment", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget"}
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 65532)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert container["image"] == "warmroute:0.1.0"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert pod["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "ScheduleAnyway"
    config = config_of(objects, tmp_path)
    assert pod["terminationGracePeriodSeconds"] > 5 + config.gateway.drain_timeout
    assert (config.gateway.port, config.gateway.ops_port) == (8080, 9090)


@engine
def test_full_install(tmp_path: Path) -> None:
    """With everything on, each value arrives where it belongs, large integers unharmed."""
    objects = installed(tmp_path, FULL)
    assert {"HorizontalPodAutoscaler", "ServiceMonitor", "NetworkPolicy"} <= objects.keys()
    spec = objects["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert "replicas" not in spec
    assert container["image"] == "warmroute@sha256:" + "0" * 64
    assert pod["terminationGracePeriodSeconds"] == 7 + 600 + 15
    assert container["lifecycle"]["preStop"]["exec"]["command"][-1] == "import time; time.sleep(7)"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert mounts["tokenizers"] == "/tokenizers"
    assert volumes["operator-key"]["secret"]["items"] == [{"key": "token", "path": "operator-key"}]
    assert volumes["api-keys"]["secret"]["items"] == [{"key": "keys", "path": "api-keys"}]
    assert volumes["pod-tls"]["secret"] == {"secretName": "vllm-tls", "defaultMode": 0o440}
    (url,) = [item for item in container["env"] if item["name"] == "WARMROUTE_INDEX__REDIS__URL"]
    assert url["valueFrom"] == {"secretKeyRef": {"name": "warmroute-redis", "key": "redis-url"}}
    assert {port["containerPort"] for port in container["ports"]} == {18080, 19090, 15557, 15558}
    assert {15557, 15558} < {port["port"] for port in objects["Service"]["spec"]["ports"]}
    config = config_of(objects, tmp_path)
    assert (config.gateway.port, config.gateway.ops_port, config.gateway.drain_timeout) == (18080, 19090, 600.0)
    assert config.index.blocks_max == 123456789 and config.events.bind == "tcp://*:15557"
    assert config.discovery.static[0].name == "pod-0"
    assert config.gateway.operator_key is not None and config.gateway.asks_for_keys
    assert config.index.redis.url is not None
    files = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
    tls = config.upstream.tls.model_dump(include=set(files))
    assert {name: Path(file).name for name, file in tls.items()} == files
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"][1]["from"] == [{"namespaceSelector": {}}]
    assert policy["ingress"][2]["from"] == [{"podSelector": {"matchLabels": {"app": "vllm"}}}]
    assert [port["port"] for port in policy["ingress"][2]["ports"]] == ["events-0", "events-1"]


@engine
def test_objects_select_the_pods(tmp_path: Path) -> None:
    """Service, budget, policy, monitor and spread select the labels that the pods carry."""
    objects = installed(tmp_path, FULL)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    service = objects["Service"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    monitor = objects["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert (
        objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        == objects["Deployment"]["metadata"]["name"]
    )


@engine
def test_a_new_config_rolls_the_pods(tmp_path: Path) -> None:
    """The checksum in the pod template follows the configuration and nothing else."""

    def checksum(values: dict[str, Any]) -> str:
        template = installed(tmp_path, values)["Deployment"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"replicaCount": 5}) != checksum({"config": {"decisions": {"kept": 1}}})


@engine
@pytest.mark.parametrize(
    "values",
    [{"replicas": 3}, {"replicaCount": "3"}, {"config": {"gateway": {"operatorKey": "x"}}}, {"ports": {"data": 80}}],
    ids=["unknown", "type", "secret", "privileged"],
)  # fmt: skip
def test_engine_refuses_bad_values(tmp_path: Path, values: dict[str, Any]) -> None:
    """What the schema forbids is not installed."""
    assert complaints(SCHEMA, values)
    assert "values don't meet the specifications of the schema" in helm(tmp_path, "install", values)["error"]


@engine
def test_pods_of_kubernetes(tmp_path: Path) -> None:
    """With them, and only with them, the gateway has a token, and a Role that lets it list and watch pods."""
    found = {"kubernetes": {"selector": "app=vllm", "namespace": "inference", "service": None}}
    objects = installed(tmp_path, {"config": {"discovery": found}})
    assert objects["Deployment"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    role, binding = objects["Role"], objects["RoleBinding"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "inference"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == objects["ServiceAccount"]["metadata"]["name"]
    config = config_of(objects, tmp_path)
    assert config.discovery.kubernetes is not None and config.discovery.kubernetes.selector == "app=vllm"
    service = installed(tmp_path, {"config": {"discovery": {"kubernetes": {"service": "vllm"}}}})["Role"]["rules"]
    assert service[1] == {"apiGroups": [""], "resources": ["services"], "resourceNames": ["vllm"], "verbs": ["get"]}


@engine
def test_notes_say_what_is_missing(tmp_path: Path) -> None:
    """The notes warn of no pods, of open operators' endpoints and of an open data plane, and only then."""
    bare, full = (helm(tmp_path, "install", values)["info"]["notes"] for values in ({}, FULL))
    for warning in ("There are no pods yet", "endpoints are open", "No API key is asked for"):
        assert warning in bare and warning not in full


@engine
def test_notes_warn_of_publishers(tmp_path: Path) -> None:
    """Where they connect to: of a port that is open to all, and of replicas that do not hear what one hears."""
    alone = {"ports": {"events": 5557}, "replicaCount": 1}
    several, one, full = (
        helm(tmp_path, "install", v)["info"]["notes"] for v in ({"ports": {"events": 5557}}, alone, FULL)
    )
    assert "can speak for any pod" in one and "connects to one replica" not in one
    assert "connects to one replica" in several
    assert "can speak for any pod" not in full and "connects to one replica" not in full
