"""Pods of a name, told by a nameserver over real sockets: addresses, services, times to live, and its absence."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError

from router.config.fleet import DnsConfig, nameserver_of
from router.discovery.dns import DnsSource
from tests.fakes.following import Follower, running
from tests.fakes.nameserver import Nameserver, nameserver
from tests.fakes.peers import until

NAME = "vllm.default.svc.cluster.local"
SERVICE = f"_http._tcp.{NAME}"


@contextlib.asynccontextmanager
async def following(server: Nameserver, **given: Any) -> AsyncIterator[Follower]:
    """A source of this nameserver that is followed."""
    section = {"name": NAME, "nameserver": server.address, "interval": 0.02, "timeout": 0.3, **given}
    follower = Follower(DnsSource(DnsConfig.model_validate(section)))
    async with running(follower):
        yield follower


def addresses(seen: Follower) -> set[str]:
    return {each.pod.address for each in seen.pods.values()}


async def test_addresses_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    """A and AAAA records are pods, IPv6 in brackets; one that is not there any more is gone; none is said once."""
    async with nameserver() as server, following(server) as seen:
        await until(lambda: seen.source.trouble is not None)
        assert caplog.messages == [f"dns: {NAME} has no addresses: waiting for one"]
        server.records = {(NAME, "A"): ["10.0.0.1", "10.0.0.2"], (NAME, "AAAA"): ["fd00::1"]}
        await until(lambda: len(seen.pods) == 3)
        assert addresses(seen) == {"http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"}
        assert {each.pod.events for each in seen.pods.values()} > {"tcp://[fd00::1]:5557"}
        server.records = {(NAME, "A"): ["10.0.0.2"]}
        await until(lambda: addresses(seen) == {"http://10.0.0.2:8000"})
        assert seen.source.synced and seen.source.trouble is None


async def test_services_tell_ports_and_names() -> None:
    """SRV records: each target's address with the record's port, named as its host; two at one address are two."""
    async with nameserver() as server:
        server.records = {
            (SERVICE, "SRV"): [f"0 50 8000 vllm-0.{NAME}.", f"0 50 8001 vllm-0.{NAME}.", f"0 50 8100 vllm-1.{NAME}."],
            (f"vllm-0.{NAME}", "A"): ["10.0.0.1"],
            (f"vllm-1.{NAME}", "A"): ["10.0.0.2"],
        }
        async with following(server, name=SERVICE, replay_port=6557) as seen:
            await until(lambda: len(seen.pods) == 3)
            assert {(each.pod.name, each.pod.address, each.pod.events) for each in seen.pods.values()} == {
                ("vllm-0", "http://10.0.0.1:8000", "tcp://10.0.0.1:5557"),
                ("vllm-0-8001", "http://10.0.0.1:8001", "tcp://10.0.0.1:5558"),
                ("vllm-1", "http://10.0.0.2:8100", "tcp://10.0.0.2:5557"),
            }
            server.records[f"vllm-1.{NAME}", "A"] = ["10.0.0.9"]  # the pod of this name is another one now
            await until(lambda: "http://10.0.0.9:8100" in addresses(seen))
            assert len(seen.pods) == 3


async def test_many_addresses() -> None:
    """An answer that is too long for a datagram is asked for over TCP."""
    async with nameserver() as server:
        server.records = {(NAME, "A"): [f"10.0.{number // 250}.{number % 250}" for number in range(500)]}
        async with following(server, timeout=10, interval=1) as seen:
            await until(lambda: len(seen.pods) == 500)
        assert {by for _, kind, by in server.asked if kind == "A"} == {"udp", "tcp"}


async def test_records_are_kept_for_as_long_as_they_say() -> None:
    """With a short time to live the name is looked up sooner than `interval` says."""
    async with nameserver() as server:
        server.records, server.ttl = {(NAME, "A"): ["10.0.0.1"]}, 0
        async with following(server, interval=3600) as seen:
            await until(lambda: len(seen.pods) == 1)
            server.records = {(NAME, "A"): ["10.0.0.2"]}
            await until(lambda: addresses(seen) == {"http://10.0.0.2:8000"})


@pytest.mark.parametrize("how", ["fails", "silent"])
async def test_a_server_that_does_not_tell(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Pods stay as they were, which is said once; when it tells again, what changed is there."""
    async with nameserver() as server:
        server.records = {(NAME, "A"): ["10.0.0.1"]}
        with caplog.at_level(logging.WARNING, "warmroute.discovery"):
            async with following(server) as seen:
                await until(lambda: len(seen.pods) == 1)
                setattr(server, how, True)
                await until(lambda: not seen.source.synced)
                asked = len(server.asked)
                await until(lambda: len(server.asked) > asked + 4)
                assert addresses(seen) == {"http://10.0.0.1:8000"}
                assert len(caplog.messages) == 1 and caplog.messages[0].endswith("; pods stay as they were")
                setattr(server, how, False)
                server.records = {(NAME, "A"): ["10.0.0.2"]}
                await until(lambda: addresses(seen) == {"http://10.0.0.2:8000"})


async def test_a_name_of_this_machine() -> None:
    """What only the hosts file knows is found, too."""
    source = DnsSource(DnsConfig(name="localhost", timeout=0.5))
    async with contextlib.aclosing(source.changes()) as changes:
        assert {change.pod.address for change in await anext(changes)} & {"http://127.0.0.1:8000", "http://[::1]:8000"}


@pytest.mark.parametrize(
    ("text", "is_said"),
    [
        ("10.0.0.10", ("10.0.0.10", 53)), ("10.0.0.10:5353", ("10.0.0.10", 5353)), ("fd00::a", ("fd00::a", 53)),
        ("[fd00::a]:5353", ("fd00::a", 5353)), ("[fd00::a]", ("fd00::a", 53)),
    ],
)  # fmt: skip
def test_nameservers(text: str, is_said: tuple[str, int]) -> None:
    """As they are written."""
    assert nameserver_of(text) == is_said
    assert DnsConfig(name="n", nameserver=text).nameserver == text


@pytest.mark.parametrize("text", ["dns.example", "10.0.0.10:0", "10.0.0.10:dns", "[fd00::a"])
def test_what_is_no_nameserver(text: str) -> None:
    """It has to be an address: who would look up its name?"""
    with pytest.raises(ValidationError):
        DnsConfig(name="n", nameserver=text)
