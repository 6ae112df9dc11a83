"""All sources together, as they are asked once: what they tell, and what is wrong with them, a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.commands.check import check_fleet
from router.config.settings import Config
from router.discovery.sources import Told, told_now
from tests.fakes.kube import KubePeer, kube_peer, pod


async def told(peer: KubePeer, given: dict[str, Any] | None = None, **more: Any) -> Told:
    chosen = given or {"selector": "app=vllm"}
    kubernetes = {"api": peer.address, "namespace": "inference", **chosen}
    return await told_now(Config.model_validate({"discovery": {"kubernetes": kubernetes, **more}}).discovery, 5.0)


async def test_what_is_wrong_is_one_line() -> None:
    """No Pod has the labels; nobody may look; there is no such Service; it selects nothing: each is said plainly."""
    async with kube_peer() as peer:
        said = "discovery.kubernetes: no Pod in inference has the labels app=vllm: waiting for one"
        assert await told(peer) == Told([], [said])
        (missing,) = (await told(peer, {"service": "vllm"})).troubles
        assert 'says 404: services "vllm" not found' in missing
        peer.services["vllm"] = {"spec": {"clusterIP": "None"}}
        (empty,) = (await told(peer, {"service": "vllm"})).troubles
        assert "the Service vllm selects no Pods: it has no selector" in empty
        peer.forbidden = True
        (forbidden,) = (await told(peer)).troubles
        assert "says 403" in forbidden and "a Role in inference has to allow get, list and watch of pods" in forbidden
        (forbidden,) = (await told(peer, {"service": "vllm"})).troubles
        assert "has to allow get of what chooses" in forbidden
        await peer.stop()
        (away,) = (await told(peer)).troubles
        assert away.startswith("discovery.kubernetes: ") and away.endswith("; pods stay as they were")


async def test_two_pods_of_one_name(tmp_path: Path) -> None:
    """Both are there, under two names; which, is said. IPv6 is in brackets."""
    file = tmp_path / "pods.yaml"
    file.write_text(json.dumps([{"name": "a", "address": "http://10.0.0.9:8000"}]))
    async with kube_peer() as peer:
        peer.put(pod("a", "fd00::1"))
        pods, troubles = await told(peer, file={"path": str(file)})
        assert [each.address for each in pods] == ["http://10.0.0.9:8000", "http://[fd00::1]:8000"]
        assert troubles == [f"two pods are called a: one is {pods[1].name}"] and pods[1].name != "a"
        assert pods[1].events == "tcp://[fd00::1]:5557"


def test_check_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The doctor says the same, and goes on."""
    config = Config.model_validate({"discovery": {"file": {"path": str(tmp_path / "none.yaml")}}})
    assert check_fleet(config, 0.1, as_json=False) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("✗ configuration: discovery.file: ") and "No such file" in lines[0]
    assert lines[1].startswith(
        "✗ configuration: there are no pods: neither in it nor where it says that there are some"
    )
