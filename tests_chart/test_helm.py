"""What Helm makes of the chart: it is refused or valid for every Kubernetes, and the gateway reads what it mounts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.config.reading import load
from tests_chart.install import HELM, VALIDATE

CHART = Path(__file__).parents[1] / "charts" / "warmroute"
EXAMPLES = CHART.parents[1] / "examples" / "kubernetes"
ALERTS = CHART / "files" / "alerts.yaml"
VALUES = {path.name.removesuffix("-values.yaml"): path for path in (CHART / "ci").iterdir()}
VERSIONS = [f"1.{minor}" for minor in range(25, 38)]
Objects = dict[str, dict[str, Any]]
"""By kind and name: `Service/t-warmroute`."""


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One run of it; the release is `t`."""
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run([str(HELM), *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False)


def given(values: dict[str, Any] | str, tmp_path: Path) -> list[str]:
    """Arguments for values: those of a file in `ci`, or these."""
    if isinstance(values, str):
        return ["--values", str(VALUES[values])]
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return ["--values", str(file)]


def rendered(values: dict[str, Any] | str, tmp_path: Path) -> Objects:
    """What would be installed."""
    run = helm("template", "t", str(CHART), "--namespace", "inference", *given(values, tmp_path))
    assert run.returncode == 0, run.stderr
    (tmp_path / "manifest.yaml").write_text(run.stdout, encoding="utf-8")
    objects = [item for item in yaml.safe_load_all(run.stdout) if item]
    named = {f"{item['kind']}/{item['metadata']['name']}": item for item in objects}
    assert len(named) == len(objects)
    return named


def refusal(values: dict[str, Any], tmp_path: Path) -> str:
    """Why Helm does not take these values."""
    run = helm("template", "t", str(CHART), *given(values, tmp_path))
    assert run.returncode != 0
    return run.stderr


def notes(values: dict[str, Any] | str, tmp_path: Path) -> str:
    """What an install says."""
    run = helm("install", "t", str(CHART), "--dry-run=client", *given(values, tmp_path))
    assert run.returncode == 0, run.stderr
    return run.stdout.partition("NOTES:")[2]


def pod_of(objects: Objects) -> dict[str, Any]:
    """The pod's spec in the workload."""
    (workload,) = [item for item in objects.values() if item["kind"] in ("Deployment", "StatefulSet")]
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def config_of(objects: Objects, tmp_path: Path) -> Any:
    """The configuration that the gateway would read in the container, from the ConfigMap and its environment."""
    file = tmp_path / "warmroute.yaml"
    file.write_text(objects["ConfigMap/t-warmroute"]["data"]["warmroute.yaml"], encoding="utf-8")
    environ = {
        item["name"]: item.get("value", "redis://:pw@redis:6379") for item in pod_of(objects)["containers"][0]["env"]
    }
    return load(str(file), {name: in_a_container(value, tmp_path) for name, value in environ.items()}, {})


def in_a_container(value: str, tmp_path: Path) -> str:
    """A file that the container would have, here; any other value as it is."""
    if not value.startswith("/etc/warmroute-"):
        return value
    file = tmp_path / value.removeprefix("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("a-key\n", encoding="utf-8")
    return str(file)


def test_lint() -> None:
    """`helm lint --strict` has nothing worse to say than that there is no icon."""
    run = helm("lint", "--strict", str(CHART))
    assert run.returncode == 0, run.stdout
    assert "[WARNING]" not in run.stdout and "[ERROR]" not in run.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VALUES)
def test_kinds_are_those_of_kubernetes(values: str, version: str, tmp_path: Path) -> None:
    """Every object is strictly what this version's schema says; kinds of others (Prometheus, Gateway API) have none."""
    rendered(values, tmp_path)
    command = [str(VALIDATE), "--strict", "--kubernetes-version", version, str(tmp_path / "manifest.yaml")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    assert run.returncode == 0, lines
    known = [line for line in lines if "PASS" in line or "INFO" in line]
    assert len(known) >= 7, lines
    foreign = ("HTTPRoute", "ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject")
    assert all(any(kind in line for kind in foreign) for line in lines if "WARN" in line)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_alerts_are_rules(tmp_path: Path) -> None:
    """Prometheus takes the file as it is, and the PrometheusRule holds the same."""
    run = subprocess.run(
        ["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    rule = rendered("full", tmp_path)["PrometheusRule/t-warmroute"]
    assert rule["spec"] == yaml.safe_load(ALERTS.read_text(encoding="utf-8"))


def test_no_values_at_all(tmp_path: Path) -> None:
    """The defaults are hardened, drained, spread, and read by the gateway; the notes say that pods are missing."""
    objects = rendered({}, tmp_path)
    kinds = sorted(name.partition("/")[0] for name in objects)
    assert kinds == [
        "ConfigMap",
        "Deployment",
        "Pod",
        "PodDisruptionBudget",
        "Service",
        "Service",
        "Service",
        "ServiceAccount",
    ]
    pod = pod_of(objects)
    container = pod["containers"][0]
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 65532)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http", "scheme": "HTTP"}
    assert objects["Deployment/t-warmroute"]["spec"]["replicas"] == 2
    config = config_of(objects, tmp_path)
    assert pod["terminationGracePeriodSeconds"] > 5 + config.gateway.drain_timeout
    assert (config.gateway.port, config.gateway.ops_port) == (8080, 9090)
    assert "set discovery.selector" in notes({}, tmp_path)


def test_a_selector_is_enough(tmp_path: Path) -> None:
    """The gateway finds the pods: it has a token, and a Role that lets it list and watch them and nothing more."""
    objects = rendered("fewest", tmp_path)
    assert pod_of(objects)["automountServiceAccountToken"] is True
    role, binding = objects["Role/t-warmroute"], objects["RoleBinding/t-warmroute"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "inference"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "t-warmroute", "namespace": "inference"}]
    found = config_of(objects, tmp_path).discovery.kubernetes
    assert (found.selector, found.port, found.events_port, found.replay_port) == ("app=vllm", 8000, 5557, 5558)
    assert "no pods yet" not in notes("fewest", tmp_path)


def test_everything_arrives(tmp_path: Path) -> None:
    """With everything on, each value arrives where it belongs, large integers unharmed."""
    objects = rendered("full", tmp_path)
    spec = objects["Deployment/t-warmroute"]["spec"]
    pod = pod_of(objects)
    container = pod["containers"][0]
    assert "replicas" not in spec
    assert container["image"] == "warmroute@sha256:" + "0" * 64
    assert container["args"][-2:] == ["--log-level", "warning"]
    assert pod["terminationGracePeriodSeconds"] == 7 + 600 + 15
    assert container["lifecycle"]["preStop"]["exec"]["command"][-1] == "import time; time.sleep(7)"
    assert container["startupProbe"]["failureThreshold"] == 300
    assert container["startupProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert container["livenessProbe"]["tcpSocket"] == {"port": "ops"} and "httpGet" not in container["livenessProbe"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert (mounts["tokenizers"], volumes["tokenizers"]["emptyDir"]) == ("/tokenizers", {})
    assert [item["name"] for item in pod["initContainers"]] == ["tokenizers", "wait"]
    assert pod["initContainers"][0]["command"] == ["cp", "-r", "/out/.", "/tokenizers"]
    assert volumes["operator-key"]["secret"]["items"] == [{"key": "token", "path": "operator-key"}]
    assert volumes["api-keys"]["secret"]["items"] == [{"key": "keys", "path": "api-keys"}]
    (url,) = [item for item in container["env"] if item["name"] == "WARMROUTE_INDEX__REDIS__URL"]
    assert url["valueFrom"] == {"secretKeyRef": {"name": "warmroute-redis", "key": "redis-url"}}
    ports = {(port["containerPort"], port["protocol"]) for port in container["ports"]}
    assert ports == {(18080, "TCP"), (19090, "TCP"), (19090, "UDP"), (15557, "TCP"), (15558, "TCP")}
    assert objects["Role/t-warmroute"]["rules"][0]["verbs"] == ["get", "list", "watch", "patch"]


def test_the_gateway_reads_everything(tmp_path: Path) -> None:
    """So does the configuration: of the file, of discovery, of Secrets."""
    found = rendered("full", tmp_path)
    found["ConfigMap/t-warmroute"]["data"]["warmroute.yaml"] = found["ConfigMap/t-warmroute"]["data"][
        "warmroute.yaml"
    ].replace("/models/tiny-qwen", "pod")
    config = config_of(found, tmp_path)
    assert (config.gateway.port, config.gateway.ops_port, config.gateway.drain_timeout) == (18080, 19090, 600.0)
    assert config.index.blocks_max == 123456789 and config.events.bind == "tcp://*:15557"
    assert config.prefix_store_config.pod_mapping_ttl == 45.0
    assert (config.discovery.kubernetes.service, config.discovery.kubernetes.port) == ("vllm", 8100)
    assert config.gateway.operator_key is not None and config.gateway.asks_for_keys
    assert config.index.redis.url is not None and config.pods.api_key_file is not None
    files = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
    tls = config.upstream.tls.model_dump(include=set(files))
    assert {name: Path(file).name for name, file in tls.items()} == files


def test_only_the_data_plane_is_shown_outside(tmp_path: Path) -> None:
    """A load balancer, the Ingress and the route lead to the data port; operators and events stay inside."""
    objects = rendered("full", tmp_path)
    ports = {
        name: [port["targetPort"] for port in item["spec"]["ports"]]
        for name, item in objects.items()
        if item["kind"] == "Service"
    }
    assert ports == {
        "Service/t-warmroute": ["http"],
        "Service/t-warmroute-ops": ["ops"],
        "Service/t-warmroute-events": ["events-0", "events-1"],
        "Service/t-warmroute-peers": ["ops"],
    }
    types = {name: objects[name]["spec"].get("type", "ClusterIP") for name in ports}
    assert [name for name, kind in types.items() if kind != "ClusterIP"] == ["Service/t-warmroute"]
    path = objects["Ingress/t-warmroute"]["spec"]["rules"][0]["http"]["paths"][0]
    assert path["backend"] == {"service": {"name": "t-warmroute", "port": {"name": "http"}}}
    route = objects["HTTPRoute/t-warmroute"]["spec"]["rules"][0]
    assert route["backendRefs"] == [{"name": "t-warmroute", "port": 8080}]
    assert route["timeouts"] == {"request": "0s", "backendRequest": "0s"}


def test_network_policy(tmp_path: Path) -> None:
    """In: clients, operators, publishers, each from where it may; out: names, pods, the API server, Redis, no more."""
    policy = rendered("full", tmp_path)["NetworkPolicy/t-warmroute"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"][1]["from"] == [{"namespaceSelector": {}}]
    assert policy["ingress"][3]["from"] == [{"podSelector": {"matchLabels": {"app": "vllm"}}}]
    peers = policy["ingress"][2]
    assert {port["protocol"] for port in peers["ports"]} == {"TCP", "UDP"} and "matchLabels" in peers["from"][0][
        "podSelector"
    ]
    out = [{port["port"] for port in rule.get("ports", [])} for rule in policy["egress"]]
    assert out == [{53}, {8100, 5557, 5558, 8101}, {19090}, {443, 6443}, {6379}, set()]
    (space,) = policy["egress"][1]["to"]
    assert space["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "inference"}


def test_objects_select_the_pods(tmp_path: Path) -> None:
    """Services, budget, policy, monitor and spread select the labels that the pods carry; the test's pod has others."""
    objects = rendered("full", tmp_path)
    labels = objects["Deployment/t-warmroute"]["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        objects["Deployment/t-warmroute"]["spec"]["selector"]["matchLabels"],
        objects["Service/t-warmroute"]["spec"]["selector"],
        objects["Service/t-warmroute-ops"]["spec"]["selector"],
        objects["PodDisruptionBudget/t-warmroute"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy/t-warmroute"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    assert not selectors[1].items() <= objects["Pod/t-warmroute-test"]["metadata"]["labels"].items()
    assert all(
        item["metadata"]["labels"]["team"] == "inference" for item in objects.values() if "labels" in item["metadata"]
    )
    monitor = objects["ServiceMonitor/t-warmroute"]["spec"]
    watched = [name for name, item in objects.items() if item["kind"] == "Service"
               and monitor["selector"]["matchLabels"].items() <= item["metadata"]["labels"].items()]  # fmt: skip
    assert watched == ["Service/t-warmroute-ops"]
    scaled = objects["HorizontalPodAutoscaler/t-warmroute"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", "t-warmroute")


def test_a_new_config_rolls_the_pods(tmp_path: Path) -> None:
    """The checksum in the pod template follows the configuration and nothing else."""

    def checksum(values: dict[str, Any]) -> str:
        template = rendered(values, tmp_path)["Deployment/t-warmroute"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    base = checksum({})
    assert base == checksum({"replicaCount": 5})
    assert len({base, checksum({"config": {"decisions": {"kept": 1}}}), checksum({"discovery": {"service": "v"}})}) == 3


def test_a_configmap_of_ones_own(tmp_path: Path) -> None:
    """It takes the place of the chart's."""
    objects = rendered({"existingConfigMap": "mine"}, tmp_path)
    assert "ConfigMap/t-warmroute" not in objects
    assert pod_of(objects)["volumes"][0]["configMap"] == {"name": "mine"}


def test_a_stateful_set(tmp_path: Path) -> None:
    """The same pod in another kind of workload."""
    objects = rendered({"kind": "StatefulSet"}, tmp_path)
    workload = objects["StatefulSet/t-warmroute"]["spec"]
    assert (workload["replicas"], workload["podManagementPolicy"]) == (2, "Parallel")
    assert workload["serviceName"] == "t-warmroute-peers" and "volumeClaimTemplates" not in workload
    assert pod_of(objects) == pod_of(rendered({}, tmp_path))


def test_state_has_a_volume(tmp_path: Path) -> None:
    """An emptyDir, or one of each replica's own; the gateway saves there."""
    objects = rendered("full", tmp_path)
    assert {"name": "state", "emptyDir": {"sizeLimit": "2Gi"}} in pod_of(objects)["volumes"]
    objects = rendered("stateful", tmp_path)
    (claim,) = objects["StatefulSet/t-warmroute"]["spec"]["volumeClaimTemplates"]
    assert (claim["metadata"]["name"], claim["spec"]["storageClassName"]) == ("state", "fast")
    assert "state" not in [volume["name"] for volume in pod_of(objects)["volumes"]]
    assert config_of(objects, tmp_path).state.path == "/var/lib/warmroute/state"


def test_replicas_find_each_other(tmp_path: Path) -> None:
    """By the headless Service, at the operators' port; with a key they share loads."""
    objects = rendered("full", tmp_path)
    service = objects["Service/t-warmroute-peers"]["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is True
    peers = config_of(rendered("stateful", tmp_path), tmp_path).peers
    assert (peers.dns.name, peers.dns.port) == ("t-warmroute-peers.inference.svc", 9090)
    assert peers.key_file is not None
    alone = rendered({"peers": {"enabled": False}}, tmp_path)
    assert "Service/t-warmroute-peers" not in alone
    assert not config_of(alone, tmp_path).peers.are_there


def test_prompts_are_warmed(tmp_path: Path) -> None:
    """The files of the ConfigMap, at the start, and by a job that brings them through the operators' Service."""
    objects = rendered("full", tmp_path)
    given = yaml.safe_load(objects["ConfigMap/t-warmroute"]["data"]["warmroute.yaml"])["warmup"]
    assert given == {"files": ["/etc/warmroute-warmup/documents.txt"], "prefill_pods": 2, "delimiter": "---"}
    (job,) = objects["Job/t-warmroute-warmup"]["spec"]["template"]["spec"]["containers"]
    assert job["args"] == [
        "warmup", "--url=https://t-warmroute-ops:9999", "--prefill=2", "--delimiter=---", "--key=$(OPERATOR_KEY)",
        "/etc/warmroute-warmup/documents.txt",
    ]  # fmt: skip
    assert job["volumeMounts"][0]["mountPath"] == "/etc/warmroute-warmup"


def test_keda_and_a_pod_monitor(tmp_path: Path) -> None:
    """Each in place of its twin."""
    trigger = {"type": "prometheus", "metadata": {"query": "sum(warmroute_admission_waiting)", "threshold": "4"}}
    objects = rendered({"keda": {"enabled": True, "triggers": [trigger]}, "podMonitor": {"enabled": True}}, tmp_path)
    assert objects["ScaledObject/t-warmroute"]["spec"]["triggers"] == [trigger]
    assert "replicas" not in objects["Deployment/t-warmroute"]["spec"]
    (endpoint,) = objects["PodMonitor/t-warmroute"]["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("ops", "/metrics")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"replicas": 3}, "'replicas'"),
        ({"replicaCount": "3"}, "replicaCount"),
        ({"ports": {"data": 80}}, "ports/data"),
        ({"config": {"gateway": {"operatorKey": "x"}}}, "operatorKey"),
        ({"config": {"gateway": {"prot": 80}}}, "'prot'"),
        ({"config": {"probe": {"interval": "soon"}}}, "interval"),
        ({"config": {"scoring": {"policy": "best"}}}, "policy"),
        ({"config": {"index": {"blocksMax": -1}}}, "blocksMax"),
        ({"ports": {"data": 9090}}, "ports: data, ops and events"),
        ({"ports": {"events": 8079, "eventRanks": 2}}, "ports: data, ops and events"),
        ({"autoscaling": {"enabled": True, "minReplicas": 5}}, "minReplicas is above maxReplicas"),
        ({"autoscaling": {"enabled": True}, "replicaCount": 3}, "replicaCount is fixed"),
        ({"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": None}}, "nothing to go by"),
        ({"autoscaling": {"enabled": True}, "keda": {"enabled": True}}, "keep one"),
        ({"ingress": {"enabled": True}}, "without hosts"),
        ({"state": {"enabled": True, "persistence": {"enabled": True}}}, "kind StatefulSet"),
        ({"warmup": {"files": ["a"]}}, "name it"),
        ({"config": {"state": {"path": "/x"}}}, "path"),
        ({"tokenizers": {"volume": {"emptyDir": {}}, "copyFrom": {"image": "t:1"}}}, "keep one"),
    ],
)  # fmt: skip
def test_bad_values_are_refused(values: dict[str, Any], why: str, tmp_path: Path) -> None:
    """By Helm, before a pod would fail; the text says what is wrong."""
    assert why in refusal(values, tmp_path)


def test_notes_say_what_is_missing(tmp_path: Path) -> None:
    """They warn of no pods, of open operators' endpoints and of an open data plane, and only then."""
    bare, full = notes({}, tmp_path), notes("full", tmp_path)
    for warning in ("There are no pods yet", "endpoints are open", "No API key is asked for"):
        assert warning in bare and warning not in full


def test_notes_warn_of_publishers(tmp_path: Path) -> None:
    """Where they connect to: of a port that is open to all, and of replicas that do not hear what one hears."""
    several = notes({"ports": {"events": 5557}}, tmp_path)
    one = notes({"ports": {"events": 5557}, "replicaCount": 1}, tmp_path)
    full = notes("full", tmp_path)
    assert "can speak for any pod" in one and "connects to one replica" not in one
    assert "connects to one replica" in several
    assert "can speak for any pod" not in full and "connects to one replica" not in full


@pytest.mark.parametrize("version", (VERSIONS[0], VERSIONS[-1]))
def test_the_example_is_what_kubernetes_and_the_chart_take(version: str, tmp_path: Path) -> None:
    """vLLM's Deployment is strictly a Deployment, and the values beside it select its pods."""
    command = [str(VALIDATE), "--strict", "--kubernetes-version", version, str(EXAMPLES / "vllm.yaml")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    vllm = yaml.safe_load((EXAMPLES / "vllm.yaml").read_text(encoding="utf-8"))
    found = config_of(rendered(yaml.safe_load((EXAMPLES / "values.yaml").read_text("utf-8")), tmp_path), tmp_path)
    labels = vllm["spec"]["template"]["metadata"]["labels"]
    assert found.discovery.kubernetes.selector in {f"{name}={value}" for name, value in labels.items()}
