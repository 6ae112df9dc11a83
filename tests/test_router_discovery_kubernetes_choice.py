"""What a Service or a pool of the cluster says of which Pods it means, and where they listen."""

from __future__ import annotations

from typing import Any

import pytest

from router.config.fleet import KubernetesConfig
from router.discovery.kubernetes_choice import Choice, NothingChosen, choice_of, paths_of


def service(*ports: dict[str, Any], **given: Any) -> Choice:
    section = KubernetesConfig.model_validate({"service": "s", **given})
    return choice_of(section, {"spec": {"selector": {"b": "2", "a": "1"}, "ports": list(ports)}})


def pool(spec: dict[str, Any], **given: Any) -> Choice:
    return choice_of(KubernetesConfig.model_validate({"inference_pool": "p", **given}), {"spec": spec})


def test_places() -> None:
    """Labels need nobody; a pool may be of either kind, the newest first."""
    of_labels, of_pool = KubernetesConfig(selector="a=b"), KubernetesConfig(inference_pool="p")
    assert list(paths_of(of_labels, "n")) == []
    assert list(paths_of(KubernetesConfig(service="s"), "n")) == ["/api/v1/namespaces/n/services/s"]
    assert [place.split("/")[2:4] for place in paths_of(of_pool, "n")] == [
        ["inference.networking.k8s.io", "v1"], ["inference.networking.x-k8s.io", "v1alpha2"]
    ]  # fmt: skip
    assert all(place.endswith("/namespaces/n/inferencepools/p") for place in paths_of(of_pool, "n"))


def test_the_port_of_a_service() -> None:
    """The target of the only one, or of the one named like a server's; of others nothing follows."""
    assert service({"port": 80, "targetPort": 8100}) == Choice("a=1,b=2", (8100,))
    assert service({"port": 80, "targetPort": "serve"}) == Choice("a=1,b=2", ("serve",))
    assert service({"port": 80}) == Choice("a=1,b=2", (80,))
    two = ({"name": "kv-events", "port": 5557}, {"name": "http", "port": 80, "targetPort": 8000})
    assert service(*two).ports == (8000,)
    assert service({"name": "kv-events", "port": 5557}, {"name": "replay", "port": 5558}).ports == ()
    assert service().ports == ()
    assert service({"port": 80, "targetPort": 8100}, port=8000).ports == (), "what is configured goes before"


def test_the_ports_of_a_pool() -> None:
    """Each is a server in every Pod."""
    new = {"selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": 8000}, {"number": 8001}]}
    assert pool(new) == Choice("app=vllm", (8000, 8001))
    assert pool({"selector": {"app": "vllm"}, "targetPortNumber": 8000}) == Choice("app=vllm", (8000,))
    assert pool(new, port=9000) == Choice("app=vllm")


@pytest.mark.parametrize("thing", [{}, {"spec": None}, {"spec": {"selector": None}}, {"spec": {"selector": {}}}])
def test_nothing_is_chosen(thing: dict[str, Any]) -> None:
    """One without a selector has its endpoints by hand: it can't say which Pods it means."""
    for section, what in (
        (KubernetesConfig(service="s"), "Service s"),
        (KubernetesConfig(inference_pool="p"), "Pool p"),
    ):
        with pytest.raises(NothingChosen, match=f"{what} selects no Pods"):
            choice_of(section, thing)
