"""Pods are found as a real API server tells of them: list and watch, RBAC, tokens, compaction, and its own death."""

from __future__ import annotations

import asyncio
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.following import Follower, following
from tests.fakes.peers import until
from tests_kubernetes.api_server import PODS, ApiServer
from tests_kubernetes.between import between

UNCACHED = "--watch-cache=false"  # then what etcd has forgotten, the server has, too


class Hasty(random.Random):
    """Watches end after some seconds, and nobody waits long."""

    def uniform(self, a: float, b: float) -> float:
        return min(b, 5.0)


def admin(api: ApiServer, folder: Path, token: str = "admin-token") -> dict[str, Any]:
    """What a source needs to be let in."""
    file = folder / "token"
    file.write_text(token)
    return {"token_file": str(file), "ca_file": api.ca_file}


def by_name(seen: Follower) -> dict[str, str]:
    """The uids."""
    return {each.pod.name: each.uid for each in seen.pods.values()}


async def test_a_life(api: ApiServer, tmp_path: Path) -> None:
    """Created, given an address, ready, unready, told to end, gone; and the same name again is another pod."""
    async with following(api.url, **admin(api, tmp_path)) as seen:
        await until(lambda: seen.source.synced)
        assert seen.source.trouble is not None and "no Pod in inference" in seen.source.trouble
        api.put("vllm-0", "10.1.0.1", ready=False)
        api.put("other", "10.1.0.9", app="else")
        await seen.names("vllm-0")
        (first,) = seen.pods.values()
        assert (first.ready, first.pod.address) == (False, "http://10.1.0.1:8000")
        for ready in (True, False, True):
            api.stands("vllm-0", "10.1.0.1", ready)
            await until(lambda ready=ready: seen.pods[first.uid].ready is ready)
        api.end("vllm-0")
        await until(lambda: seen.pods[first.uid].leaving)
        api.delete("vllm-0")
        await seen.names()
        api.put("vllm-0", "10.1.0.1")
        await seen.names("vllm-0")
        assert by_name(seen)["vllm-0"] != first.uid
        api.put("vllm-1", "10.1.0.1")  # an address that is used again before its owner is gone
        await seen.names("vllm-0", "vllm-1")
        api.delete("vllm-0")
        await seen.names("vllm-1")
        assert seen.slept == []


async def test_many_in_pages(api: ApiServer, tmp_path: Path) -> None:
    """600 Pods come in pages; each is known once, and what happens afterwards is told."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: api.put(f"vllm-{n}", f"10.{n // 250}.1.{n % 250}"), range(600)))
    async with between(api) as door, following(door.url) as seen:
        await seen.names(*[f"vllm-{number}" for number in range(600)])
        lists = [query for query in door.asked if "watch" not in query]
        assert lists[0]["limit"] == "500"
        assert all(each.ready for each in seen.pods.values())
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: api.delete(f"vllm-{n}"), range(1, 600)))
        await seen.names("vllm-0")


async def test_bookmarks(api: ApiServer, tmp_path: Path) -> None:
    """A quiet watch is told where it is, and the next one goes on from there."""
    api.put("vllm-0", "10.1.0.1")
    async with between(api) as door, following(door.url, Hasty()) as seen:
        await seen.names("vllm-0")
        listed = api.admin.get(PODS).json()["metadata"]["resourceVersion"]
        number = 0
        async with asyncio.timeout(60):
            while not any(int(query["resourceVersion"]) > int(listed) for query in watches(door.asked)):
                number += 1
                api.put(f"other-{number}", "10.1.0.2", app="else")  # the watch does not see it
                await asyncio.sleep(0.5)
        assert len([query for query in door.asked if "watch" not in query]) == 1, "nothing was listed anew"
        assert seen.slept == []


def watches(asked: list[dict[str, str]]) -> list[dict[str, str]]:
    return [query for query in asked if "watch" in query]


async def test_an_account_without_a_role(api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """RBAC: one line says what is missing; with `get`, `list` and `watch` of pods, and no more, all is well."""
    api.put("vllm-0", "10.1.0.1")
    given = admin(api, tmp_path, api.token("of-the-role"))
    with caplog.at_level(logging.INFO, "warmroute.discovery"):
        async with following(api.url, **given) as seen:
            await until(lambda: len(seen.slept) > 3)
            (line,) = [line for line in caplog.messages if "403" in line]
            assert "cannot list resource" in line and "a Role in inference" in line
            api.allow(["get", "list", "watch"])
            await seen.names("vllm-0")
            assert seen.source.synced and seen.source.trouble is None


async def test_a_token_that_is_rotated(api: ApiServer, tmp_path: Path) -> None:
    """The old one is good for nothing: 401; what is known is kept, and the new one in the file is shown."""
    api.put("vllm-0", "10.1.0.1")
    given = admin(api, tmp_path, api.token("old"))
    async with following(api.url, **given) as seen:
        await seen.names("vllm-0")
        api.revoke("old")
        api.stop()
        await asyncio.to_thread(api.start)
        await until(lambda: "401" in (seen.source.trouble or ""))
        assert set(by_name(seen)) == {"vllm-0"} and not seen.source.synced
        admin(api, tmp_path, api.token("new"))
        api.put("vllm-1", "10.1.0.2")
        await seen.names("vllm-0", "vllm-1")
        assert seen.source.synced


async def test_the_server_is_killed_and_comes_back(api: ApiServer, tmp_path: Path) -> None:
    """What was known is kept; what happened since is found when it is there again."""
    api.put("vllm-0", "10.1.0.1")
    api.put("vllm-1", "10.1.0.2")
    async with following(api.url, **admin(api, tmp_path)) as seen:
        await seen.names("vllm-0", "vllm-1")
        api.stop()
        await until(lambda: len(seen.slept) > 5)
        assert set(by_name(seen)) == {"vllm-0", "vllm-1"} and not seen.source.synced
        await asyncio.to_thread(api.start)
        api.delete("vllm-0")
        api.put("vllm-2", "10.1.0.3")
        await seen.names("vllm-1", "vllm-2")
        assert seen.source.synced and seen.source.trouble is None


async def test_compaction(api: ApiServer, tmp_path: Path) -> None:
    """410 as an ERROR event of a watch, and as the status of a page that comes too late: all is listed anew, and who
    went meanwhile is gone.
    """
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: api.put(f"vllm-{n}", f"10.{n // 250}.1.{n % 250}"), range(501)))
    api.stop()
    await asyncio.to_thread(api.start, UNCACHED)
    statuses: list[int] = []
    try:
        async with between(api) as door:
            late = iter([True])

            def forgets(query: dict[str, str]) -> None:
                """Before the second page of the first list, and before the second watch."""
                if "continue" in query and next(late, False):
                    api.delete("vllm-500")
                    api.compact()
                    statuses.append(api.admin.get(PODS, params={**query}).status_code)
                if len(watches(door.asked)) == 2 and "watch" in query and not gone:
                    gone.append("vllm-499")
                    api.delete("vllm-499")
                    api.put("late", "10.9.9.9")
                    api.compact()

            gone: list[str] = []
            door.first = forgets
            async with following(door.url, Hasty()) as seen:
                await seen.names(*[f"vllm-{number}" for number in range(500)])
                assert statuses == [410]
                await seen.names("late", *[f"vllm-{number}" for number in range(499)])
                assert gone and len([query for query in door.asked if "watch" not in query]) >= 4
                assert seen.source.synced
    finally:
        api.stop()
        await asyncio.to_thread(api.start)
