"""What a gateway knows outlives it: on disk, and in other gateways; what is no longer true does not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.frames import MAGIC
from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, eventually, free_ports, gateway, pods

SHORT = ("--buffer-steps", "3")
"""A pod whose own history is soon too short to know it by."""
OFTEN = {"interval": "1s"}


def _prompt(number: int) -> list[int]:
    """A prompt of its own: nine blocks."""
    return [5 + number, *(5 + place * (number + 3) % 200 for place in range(149))]


def _ask(url: str, numbers: range) -> None:
    """Have these prompts computed."""
    for number in numbers:
        body = {"model": MODEL, "prompt": _prompt(number), "max_tokens": 1}
        httpx.post(f"{url}/v1/completions", json=body, **PLAIN).raise_for_status()


def _known(served: GatewayProcess, numbers: range) -> dict[int, dict[str, int]]:
    """Of each prompt, the cached tokens that are promised of each pod."""
    known = {}
    for number in numbers:
        body = {"model": MODEL, "token_ids": _prompt(number)}
        answer = httpx.post(f"{served.url}/score", json=body, **PLAIN).json()
        known[number] = {each["pod"]: each["matched_tokens"] for each in answer["pods"]}
    return known


def _truth(fleet: list[PodProcess], numbers: range) -> dict[int, dict[str, int]]:
    """The same, as the pods themselves would say."""
    return {
        number: {
            pod.name: httpx.post(f"{pod.address}/simulator/state", json={"token_ids": _prompt(number)}, **PLAIN).json()[
                "ranks"
            ][0]["cached_tokens"]
            for pod in fleet
        }
        for number in numbers
    }


def _right(served: GatewayProcess, fleet: list[PodProcess], numbers: range) -> bool:
    """Is all that is promised true, and some of it more than nothing?"""
    known = _known(served, numbers)
    return known == _truth(fleet, numbers) and any(sum(each.values()) for each in known.values())


def _saved(served: GatewayProcess) -> dict[str, Any]:
    answer = httpx.post(f"{served.ops_url}/index/snapshot", **PLAIN)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def _status(served: GatewayProcess, path: str = "/index/snapshot", method: str = "GET", **options: Any) -> int:
    """Of an answer of the operators' plane."""
    return httpx.request(method, f"{served.ops_url}{path}", **PLAIN, **options).status_code


@pytest.mark.parametrize("workers", [1, 2])
async def test_killed_and_started_again(tmp_path: Path, workers: int) -> None:
    """It knows what it knew, and what happened since, though its pods' own histories are short."""
    fleet, numbers = [PodProcess("pod-0", SHORT), PodProcess("pod-1", SHORT)], range(12)
    file = tmp_path / "state"
    given: Any = {"state": {"path": str(file)}, "gateway": {"workers": workers}}
    with pods(*fleet):
        static = [pod.configured for pod in fleet]
        with gateway(tmp_path, static, **given) as served:
            _ask(served.url, numbers)
            await eventually(lambda: _right(served, fleet, numbers))
            await eventually(lambda: workers == 1 or served.logged().count(" serves\n") == workers)
            told = _saved(served)
            assert told["saved"] and told["feeds"] == 2 and told["blocks"] >= 9 * 12
            assert file.stat().st_mode & 0o77 == 0, "it has our seed"
            served.process.kill()
            served.process.wait()
        _ask(fleet[0].address, range(12, 13))  # something happens meanwhile
        with gateway(tmp_path, static, **given) as served:
            await eventually(lambda: _right(served, fleet, range(13)))
            assert {rank["state"] for ranks in served.ranks().values() for rank in ranks} == {"exact"}
            assert served.get("/peers").json()["restored"]["blocks"] >= 9 * 12


async def test_a_pod_that_was_started_anew_is_not_believed(tmp_path: Path) -> None:
    """Its cache is empty; the other's is not."""
    fleet, numbers = [PodProcess("pod-0", SHORT), PodProcess("pod-1", SHORT)], range(12)
    given: Any = {"state": {"path": str(tmp_path / "state")}, "scoring": {"policy": "round-robin"}}
    with pods(*fleet):
        static = [pod.configured for pod in fleet]
        with gateway(tmp_path, static, **given) as served:
            _ask(served.url, numbers)
            await eventually(lambda: _right(served, fleet, numbers))
            assert all(pod.state()["ranks"][0]["seq"] > 3 for pod in fleet)
        fleet[0].kill()
        fleet[0].start()
        fleet[0].wait()
        with gateway(tmp_path, static, **given) as served:
            await eventually(lambda: _right(served, fleet, numbers))
            assert not any(each["pod-0"] for each in _known(served, numbers).values())


async def test_a_file_that_is_not_right_is_set_aside(tmp_path: Path) -> None:
    """With a warning; the gateway starts as if there was none, and saves a new one."""
    fleet, file = [PodProcess("pod-0")], tmp_path / "state"
    file.write_bytes(MAGIC + b"something else")
    with pods(*fleet), gateway(tmp_path, [fleet[0].configured], state={"path": str(file), **OFTEN}) as served:
        assert "is not used" in served.logged() and (tmp_path / "state.refused").is_file()
        _ask(served.url, range(3))
        await eventually(lambda: _right(served, fleet, range(3)))
        await eventually(lambda: served.metric('warmroute_snapshot_saves_total{result="done"}') >= 1)
        assert 0 <= served.metric("warmroute_snapshot_age_seconds") < 10 and file.is_file()


async def test_given_by_hand(tmp_path: Path) -> None:
    """`--restore` begins with a file."""
    fleet, file = [PodProcess("pod-0", SHORT)], tmp_path / "backup"
    with pods(*fleet):
        static = [pod.configured for pod in fleet]
        with gateway(tmp_path, static) as served:
            _ask(served.url, range(9))
            await eventually(lambda: _right(served, fleet, range(9)))
            with httpx.stream("GET", f"{served.ops_url}/index/snapshot", **PLAIN) as answer:
                file.write_bytes(answer.read())
        with gateway(tmp_path, static, state={"restore": str(file)}) as served:
            await eventually(lambda: _right(served, fleet, range(9)))


async def test_one_that_joins_asks_another(tmp_path: Path) -> None:
    """It knows all at once, though the pods' own histories are too short; without the other it would know little."""
    fleet, numbers = [PodProcess("pod-0", SHORT), PodProcess("pod-1", SHORT)], range(12)
    with pods(*fleet):
        static = [pod.configured for pod in fleet]
        with gateway(tmp_path, static) as first:
            _ask(first.url, numbers)
            await eventually(lambda: _right(first, fleet, numbers))
            with gateway(tmp_path, static) as alone:
                assert _known(alone, numbers) != _truth(fleet, numbers)
            peers: Any = {"peers": {"static": [first.url, "http://127.0.0.1:9"]}}
            with gateway(tmp_path, static, **peers) as second:
                assert _right(second, fleet, numbers), "when it is ready, it knows"
                told = second.get("/peers").json()
                assert [peer["up"] for peer in told["peers"]] == [True, False]
                assert "gateway" in told["restored"]["from"] and told["restored"]["blocks"] >= 9 * 12


@contextlib.asynccontextmanager
async def _liar(answer: bytes) -> Any:
    """An HTTP server that says at /peers that it knows something, and answers anything else so; b"": never."""

    writers: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            asked = await reader.readuntil(b"\r\n\r\n")
            body = b'{"name":"1","knows":true,"port":0}' if b"/peers" in asked else answer
            if not body:
                return
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.close()


@pytest.mark.parametrize("answer", [b"lies" * 1000, b""], ids=["lies", "hangs"])
async def test_another_that_lies_or_hangs_costs_its_time_only(tmp_path: Path, answer: bytes) -> None:
    """The gateway begins by itself, after `state.load_timeout` at the latest."""
    fleet = [PodProcess("pod-0")]
    with pods(*fleet):
        static = [pod.configured for pod in fleet]
        with gateway(tmp_path, static) as first:
            _ask(first.url, range(3))
            await eventually(lambda: _right(first, fleet, range(3)))
        async with _liar(answer) as url:
            given: Any = {"peers": {"static": [url]}, "state": {"load_timeout": "1s"}}

            def begin() -> bool:
                with gateway(tmp_path, static, **given) as second:
                    return _right(second, fleet, range(3))

            assert await asyncio.to_thread(begin)


async def test_two_know_what_is_in_flight(tmp_path: Path) -> None:
    """What one has sent to a pod counts in the other, until it has ended; what strangers send changes nothing."""
    key = tmp_path / "key"
    key.write_text("a key that all gateways have\n")
    fleet, (one, two) = [PodProcess("pod-0", ("--time-scale", "1"))], free_ports(2)
    peers: Any = {"static": [f"http://127.0.0.1:{port}" for port in (one, two)], "key_file": str(key), "interval": 0.2}

    def in_flight(served: GatewayProcess) -> int:
        body = {"model": MODEL, "token_ids": _prompt(0)}
        answer = httpx.post(f"{served.url}/score", json=body, **PLAIN).json()
        return int(answer["pods"][0]["load"]["requests"])

    with pods(*fleet):
        static = [pod.configured for pod in fleet]
        with (
            gateway(tmp_path, static, gateway={"ops_port": one}, peers=peers) as first,
            gateway(tmp_path, static, gateway={"ops_port": two, "workers": 2}, peers=peers) as second,
        ):
            first.ops_url, second.ops_url = peers["static"]
            await eventually(lambda: first.metric("warmroute_peers_heard") == 2, 40.0)
            await eventually(lambda: second.metric("warmroute_peers_heard") == 1)
            stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with stranger:
                for size in range(1, 1400, 7):
                    stranger.sendto(b"wr2\n" + bytes(size), ("127.0.0.1", one))
            async with httpx.AsyncClient(base_url=second.url, **PLAIN) as client:
                body = {"model": MODEL, "prompt": _prompt(1), "max_tokens": 500, "ignore_eos": True, "stream": True}
                async with client.stream("POST", "/v1/completions", json=body) as answer:
                    chunks = answer.aiter_bytes()
                    await anext(chunks)
                    await eventually(lambda: in_flight(first) == in_flight(second) == 1)
            await eventually(lambda: in_flight(first) == in_flight(second) == 0)
            assert first.metric('warmroute_peer_datagrams_total{result="strange"}') >= 100
            second.process.kill()
            await eventually(lambda: first.metric("warmroute_peers_heard") == 0)


async def test_who_may_have_it(tmp_path: Path) -> None:
    """An operator, or another gateway that has the key."""
    key = tmp_path / "key"
    key.write_text("a key that all gateways have\n")
    fleet, numbers = [PodProcess("pod-0", SHORT)], range(9)
    own: Any = {"operator_key": "secret"}
    with pods(*fleet):
        static = [pod.configured for pod in fleet]
        with gateway(tmp_path, static, gateway=own, peers={"key_file": str(key)}) as first:
            _ask(first.url, numbers)
            await eventually(lambda: _right(first, fleet, numbers))
            assert _status(first) == _status(first, "/peers") == 401
            assert _status(first, headers={"authorization": "Bearer secret"}) == 200
            with gateway(tmp_path, static, peers={"key_file": str(key), "static": [first.url]}) as second:
                assert _right(second, fleet, numbers)
