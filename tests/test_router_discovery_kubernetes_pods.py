"""A Pod object to the servers in it: addresses, ports, several servers, roles, and what is no server."""

from __future__ import annotations

from typing import Any

import pytest

from router.discovery.kubernetes_pods import NotAServer, Ports, servers_of
from tests.fakes.kube import pod

PORTS = Ports(8000, 5557, 5558)


def servers(thing: dict[str, Any], ports: Ports = PORTS) -> list[tuple[str, str, str | None, str | None]]:
    found = [each.pod for each in servers_of(thing, ports)]
    return [(each.name, each.address, each.events, each.replay) for each in found]


def annotated(**notes: str) -> dict[str, Any]:
    given = {f"warmroute.io/{name.replace('_', '-')}": note for name, note in notes.items()}
    return pod("p", "10.0.0.1", annotations=given)


def test_ports_of_the_configuration() -> None:
    """What a Pod does not say is as configured, IPv6 in brackets; without an events port there is no replay either."""
    assert servers(pod("p", "10.0.0.1")) == [
        ("p", "http://10.0.0.1:8000", "tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558")
    ]
    assert servers(pod("p", "fd00::7")) == [
        ("p", "http://[fd00::7]:8000", "tcp://[fd00::7]:5557", "tcp://[fd00::7]:5558")
    ]
    assert servers(pod("p", "10.0.0.1"), Ports(80, None, 5558)) == [("p", "http://10.0.0.1:80", None, None)]


def test_annotations() -> None:
    """They win; `none` is no socket."""
    thing = annotated(port="9000", events_port="none", model="m", scheme="https")
    assert servers(thing) == [("p", "https://10.0.0.1:9000", None, None)]
    found = servers_of(annotated(data_parallel_size="4", replay_port="6557", first_rank="8", model="tuned"), PORTS)[
        0
    ].pod
    assert (found.data_parallel_size, found.first_rank, found.model) == (4, 8, "tuned")


def test_several_servers_in_one_pod() -> None:
    """Each has a name of its own, and sockets: the ones at its place, or one more for each."""
    apart = Ports(8000, 5557, 6557)
    assert servers(annotated(port="8000,8001"), apart) == [
        ("p-8000", "http://10.0.0.1:8000", "tcp://10.0.0.1:5557", "tcp://10.0.0.1:6557"),
        ("p-8001", "http://10.0.0.1:8001", "tcp://10.0.0.1:5558", "tcp://10.0.0.1:6558"),
    ]
    told = servers(annotated(port="8000, 8001", events_port="5557,6557", replay_port="5558,none"))
    assert [each[2:] for each in told] == [
        ("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558"), ("tcp://10.0.0.1:6557", None)
    ]  # fmt: skip


def test_ports_of_what_chose_it() -> None:
    """Each is a server, by its number or the name that a container has for it; an annotation goes before."""
    two = pod("p", "10.0.0.1", containers=[{"http": 8000, "metrics": 9090}, {"second": 8001}])
    named = Ports(80, 5557, None, servers=("http", "second"))
    assert [each[:3] for each in servers(two, named)] == [
        ("p-8000", "http://10.0.0.1:8000", "tcp://10.0.0.1:5557"),
        ("p-8001", "http://10.0.0.1:8001", "tcp://10.0.0.1:5558"),
    ]
    ranks = Ports(80, 5557, None, servers=(8000, 8001, 8002))
    assert [each[1] for each in servers(pod("p", "fd00::7"), ranks)] == [
        f"http://[fd00::7]:{port}" for port in (8000, 8001, 8002)
    ]
    assert [each[1] for each in servers(annotated(port="7000"), named)] == ["http://10.0.0.1:7000"]
    with pytest.raises(NotAServer, match="a port named 'second'"):
        servers(pod("p", "10.0.0.1", containers=[{"http": 8000}]), named)


@pytest.mark.parametrize(
    "thing",
    [
        pod("p", None), pod("p", "10.0.0.1", phase="Succeeded"), pod("p", "10.0.0.1", phase="Failed"),
        pod("p", "10.0.0.1", labels={"llm-d.ai/role": "prefill"}),
    ],
    ids=["no address", "succeeded", "failed", "prefill only"],
)  # fmt: skip
def test_no_server(thing: dict[str, Any]) -> None:
    """Nothing to route to, and nothing to be said of it."""
    assert servers_of(thing, PORTS) == []


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"port": "http"}, "a port named 'http'"), ({"port": "8000,8000"}, "two of its servers have the port 8000"),
        ({"events_port": "often"}, "not a port"),
        ({"data_parallel_size": "0"}, "data_parallel"), ({"port": "99999"}, "address"),
        ({"scheme": "gopher"}, "address"),
    ],
)  # fmt: skip
def test_wrong_annotations(notes: dict[str, str], said: str) -> None:
    """What is wrong is named."""
    with pytest.raises(NotAServer, match=said):
        servers_of(annotated(**notes), PORTS)


def test_how_it_stands() -> None:
    """Ready as its condition says, leaving from the deletion timestamp on; its uid is in the servers'."""
    (found,) = servers_of(pod("p", "10.0.0.1", uid="u1", ready=False, deleted=True), PORTS)
    assert (found.uid, found.ready, found.leaving) == ("u1/8000", False, True)
