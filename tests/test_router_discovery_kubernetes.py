"""Pods of Kubernetes, followed over real sockets: what comes, what goes, and what an API server does to its clients."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.following import Follower, following
from tests.fakes.kube import KubePeer, kube_peer, pod
from tests.fakes.peers import until


async def test_listed_in_pages_then_watched() -> None:
    """All of the selector are there; what comes, changes and goes later is told, by one list and one watch."""
    async with kube_peer() as peer:
        for number in range(5):
            peer.put(pod(f"vllm-{number}", f"10.0.0.{number}"))
        peer.put(pod("other", "10.0.0.9", labels={"app": "else"}))
        async with following(peer.address) as seen:
            await seen.names(*[f"vllm-{number}" for number in range(5)])
            await until(lambda: peer.watches == 1)
            peer.put(pod("vllm-5", None, ready=False))  # it has no address yet
            peer.put(pod("vllm-5", "10.0.0.5", ready=False))
            await seen.names(*[f"vllm-{number}" for number in range(6)])
            assert not seen.pods["uid-vllm-5/8000"].ready
            peer.put(pod("vllm-5", "10.0.0.5"))
            await until(lambda: seen.pods["uid-vllm-5/8000"].ready)
            peer.put(pod("vllm-5", "10.0.0.5", deleted=True))
            await until(lambda: seen.pods["uid-vllm-5/8000"].leaving)
            peer.delete("uid-vllm-5")
            peer.bookmark()
            await seen.names(*[f"vllm-{number}" for number in range(5)])
            assert (peer.lists, peer.watches, seen.slept) == (1, 1, [])
            first = seen.pods["uid-vllm-0/8000"].pod
            assert (first.address, first.events, first.replay) == (
                "http://10.0.0.0:8000", "tcp://10.0.0.0:5557", "tcp://10.0.0.0:5558",
            )  # fmt: skip


async def test_too_old() -> None:
    """A history that is compacted while it is watched: listed anew at once, and who went meanwhile is gone."""
    async with kube_peer() as peer:
        peer.put(pod("a", "10.0.0.1"))
        peer.put(pod("b", "10.0.0.2"))
        async with following(peer.address) as seen:
            await seen.names("a", "b")
            await until(lambda: peer.watches == 1)
            gone, again = "uid-a", pod("a", "10.0.0.1", uid="another")
            peer.pods.pop(gone)  # the watch does not say it
            peer.pods["another"] = {**again, "metadata": {**again["metadata"], "resourceVersion": "1"}}
            peer.compact()
            peer.put(pod("c", "10.0.0.3"))
            await seen.names("a", "b", "c")
            assert {"another/8000", "uid-b/8000", "uid-c/8000"} == set(seen.pods)
            assert "resourceVersion" not in peer.asked[-2][1] or peer.asked[-2][1]["resourceVersion"] != "0"


async def test_what_is_known_is_kept_while_the_server_is_away() -> None:
    """Connections cut, nobody listening: pods stay, tries get rarer; when it is back, all that changed is told."""
    async with kube_peer() as peer:
        peer.put(pod("a", "10.0.0.1"))
        peer.put(pod("b", "10.0.0.2"))
        async with following(peer.address) as seen:
            await seen.names("a", "b")
            await peer.stop()
            await until(lambda: len(seen.slept) > 5)
            assert set(seen.pods) == {"uid-a/8000", "uid-b/8000"} and not seen.source.synced
            peer.pods.pop("uid-a")
            peer.put(pod("c", "10.0.0.3"))
            await peer.start()
            await seen.names("b", "c")
            assert seen.source.synced


async def test_a_server_that_is_away_at_first() -> None:
    """There are no pods yet, and that is said at once; later there are."""
    async with kube_peer() as peer:
        await peer.stop()
        async with following(peer.address) as seen:
            await until(lambda: seen.batches == 1)
            assert seen.pods == {}
            peer.put(pod("a", "10.0.0.1"))
            await peer.start()
            await seen.names("a")


async def test_forbidden(caplog: pytest.LogCaptureFixture) -> None:
    """Without a Role, one line says what is missing, once; when it is there, all is well."""
    async with kube_peer() as peer:
        peer.put(pod("a", "10.0.0.1"))
        peer.forbidden = True
        with caplog.at_level(logging.INFO, "warmroute.discovery"):
            async with following(peer.address) as seen:
                await until(lambda: len(seen.slept) > 3)
                lines = [line for line in caplog.messages if "403" in line]
                assert len(lines) == 1 and "get, list and watch" in lines[0] and "inference" in lines[0]
                peer.forbidden = False
                await seen.names("a")
        assert caplog.messages[-1] == "kubernetes: the API server tells its pods again"


@contextlib.asynccontextmanager
async def shown(tmp_path: Path) -> AsyncIterator[tuple[Path, KubePeer, Follower]]:
    """The file of the token that is shown, the API server that asks for it, and what was told: pod a."""
    file = tmp_path / "token"
    file.write_text("first\n")
    async with kube_peer() as peer:
        peer.token = "first"
        peer.put(pod("a", "10.0.0.1"))
        async with following(peer.address, token_file=str(file)) as seen:
            await seen.names("a")
            yield file, peer, seen


async def test_a_token_that_ends(tmp_path: Path) -> None:
    """A token file is read anew: the new one is shown as soon as the old one is refused."""
    async with shown(tmp_path) as (file, peer, seen):
        peer.token = "second"
        await peer.stop()
        await peer.start()
        await until(lambda: len(seen.slept) > 2)
        assert set(seen.pods) == {"uid-a/8000"}
        file.write_text("second\n")
        peer.put(pod("b", "10.0.0.2"))
        await seen.names("a", "b")


async def test_a_token_that_is_rotated_in_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each watch shows the token of then: nobody is refused, and nothing is said."""
    async with shown(tmp_path) as (file, peer, seen):
        await until(lambda: peer.watches == 1)
        file.write_text("second\n")
        peer.token = "second"
        peer.end_watches()
        await until(lambda: peer.watches == 2)
        peer.put(pod("b", "10.0.0.2"))
        await seen.names("a", "b")
        assert (peer.lists, seen.slept, caplog.messages) == (1, [], [])


_LIST = b'{"metadata": {"resourceVersion": "1"}, "items": [%b]}'


@pytest.mark.parametrize(
    "instead",
    [
        b"", b"<html>", b"{}", b"[]", b'"x"', b"null", b"\xff", _LIST % b"{}", _LIST % b'"x"', _LIST % b"null",
        _LIST % b'{"metadata": {"uid": "u", "name": "n"}, "status": "x", "spec": []}',
        _LIST % b'{"metadata": {"uid": "u", "name": "n"}, "status": {"podIP": "10.0.0.1"}, "spec": {"containers": 7}}',
    ],
)  # fmt: skip
async def test_somebody_else_answers(instead: bytes) -> None:
    """A login page, a proxy: that is trouble in one line; what is known stays, and the API server is heard later."""
    async with kube_peer() as peer:
        peer.put(pod("a", "10.0.0.1"))
        async with following(peer.address) as seen:
            await seen.names("a")
            await until(lambda: peer.watches == 1)
            peer.instead = instead
            peer.end_watches()
            await until(lambda: seen.slept)
            told = seen.source.trouble
            assert told is not None and "\n" not in told and told.endswith("; pods stay as they were")
            assert set(seen.pods) == {"uid-a/8000"} and not seen.source.synced
            peer.instead = None
            peer.put(pod("b", "10.0.0.2"))
            await seen.names("a", "b")


async def test_pods_of_a_service(caplog: pytest.LogCaptureFixture) -> None:
    """The Service's selector counts; one that is not there, or selects nothing, is told."""
    async with kube_peer() as peer:
        peer.put(pod("a", "10.0.0.1", labels={"app": "vllm", "tier": "hot"}))
        peer.put(pod("b", "10.0.0.2"))
        async with following(peer.address, service="vllm") as seen:
            await until(lambda: len(seen.slept) > 1)
            assert any("vllm" in line and "not found" in line for line in caplog.messages)
            peer.services["vllm"] = {"spec": {}}
            await until(lambda: any("selects no Pods" in line for line in caplog.messages))
            peer.services["vllm"] = {"spec": {"selector": {"tier": "hot", "app": "vllm"}}}
            await seen.names("a")


async def test_pods_of_a_service_that_changes_its_mind() -> None:
    """It is asked again with each watch; another selector or port means other pods."""
    async with kube_peer() as peer:
        peer.put(pod("a", "10.0.0.1", labels={"app": "vllm"}, containers=[{"http": 8100}]))
        peer.put(pod("b", "10.0.0.2", labels={"app": "other"}))
        peer.services["vllm"] = {"spec": {"selector": {"app": "vllm"}, "ports": [{"port": 80, "targetPort": "http"}]}}
        async with following(peer.address, service="vllm") as seen:
            await seen.names("a")
            assert seen.pods["uid-a/8100"].pod.address == "http://10.0.0.1:8100"
            peer.services["vllm"] = {"spec": {"selector": {"app": "other"}, "ports": [{"port": 81}]}}
            await until(lambda: peer.watches == 1)
            peer.end_watches()
            await seen.names("b")
            assert seen.pods["uid-b/81"].pod.address == "http://10.0.0.2:81"


@pytest.mark.parametrize(
    ("group", "spec"),
    [
        ("k8s.io/v1", {"selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": 8001}]}),
        ("x-k8s.io/v1alpha2", {"selector": {"app": "vllm"}, "targetPortNumber": 8001}),
    ],
)
async def test_pods_of_an_inference_pool(group: str, spec: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Of either kind; while there is none, that is told."""
    async with kube_peer() as peer:
        peer.put(pod("a", "10.0.0.1"))
        async with following(peer.address, inference_pool="chat") as seen:
            await until(lambda: len(seen.slept) > 1)
            assert seen.source.trouble is not None and "404" in seen.source.trouble
            peer.things[f"/apis/inference.networking.{group}/namespaces/inference/inferencepools/chat"] = {"spec": spec}
            await seen.names("a")
            assert seen.pods["uid-a/8001"].pod.address == "http://10.0.0.1:8001"
            assert seen.source.trouble is None


async def test_labels_that_no_pod_has(caplog: pytest.LogCaptureFixture) -> None:
    """One line says so, and it goes on: a Pod that comes is there."""
    async with kube_peer() as peer:
        peer.put(pod("other", "10.0.0.1", labels={"app": "else"}))
        with caplog.at_level(logging.INFO, "warmroute.discovery"):
            async with following(peer.address) as seen:
                await until(lambda: peer.watches == 1)
                told = "no Pod in inference has the labels app=vllm: waiting for one"
                assert (caplog.messages, seen.source.trouble) == ([f"kubernetes: {told}"], told)
                assert seen.source.synced
                peer.put(pod("a", "10.0.0.2"))
                await seen.names("a")
                assert seen.source.trouble is None


async def test_a_pod_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """What a Pod says wrongly of itself leaves it out, in one line; the others are there."""
    async with kube_peer() as peer:
        peer.put(pod("odd", "10.0.0.1", annotations={"warmroute.io/events-port": "often"}))
        peer.put(pod("fine", "10.0.0.2"))
        async with following(peer.address) as seen:
            await seen.names("fine")
            peer.put(pod("odd", "10.0.0.1", annotations={"warmroute.io/events-port": "often", "x": "y"}))
            peer.put(pod("second", "10.0.0.3"))
            await seen.names("fine", "second")
    assert len([line for line in caplog.messages if "odd" in line]) == 1


async def test_a_history_that_is_always_too_old_is_not_asked_without_a_pause() -> None:
    """A server that answers every watch with 410 gets tries that are spread."""
    async with kube_peer() as peer:
        peer.put(pod("a", "10.0.0.1"))
        async with following(peer.address) as seen:
            await seen.names("a")
            await until(lambda: peer.watches == 1)
            for _ in range(4):
                before = len(seen.slept)
                peer.oldest = peer.version + 1_000_000
                peer.put(pod("a", "10.0.0.1"))
                await until(lambda before=before: len(seen.slept) > before)
            peer.oldest = 0
            assert peer.lists < 40
            peer.put(pod("b", "10.0.0.2"))
            await seen.names("a", "b")
