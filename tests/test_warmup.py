"""Prompts that are warm before anybody asks: by the configuration, an operator, the command; before real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.command import run
from tests.fakes.processes import MODEL, PLAIN, GatewayProcess, PodProcess, eventually, gateway, pods

TEXT = "All happy families are alike; each unhappy family is unhappy in its own way. "
DOCUMENTS = [f"Document {number}. " + TEXT * 12 for number in range(3)]


@contextlib.asynccontextmanager
async def served(tmp_path: Path, *fleet: PodProcess, **sections: Any) -> AsyncIterator[GatewayProcess]:
    """A gateway before these pods, of which those run that were started."""
    with pods(*fleet), contextlib.ExitStack() as stack:
        static = [each.configured for each in fleet]
        yield await asyncio.to_thread(stack.enter_context, gateway(tmp_path, static, **sections))


def matched(gate: GatewayProcess, document: str) -> dict[str, int]:
    """Tokens of a document that each pod holds, of a prompt that begins with it."""
    body = {"model": MODEL, "prompt": f"{document}\n\nAnd then?"}
    answer = httpx.post(f"{gate.url}/score", json=body, **PLAIN).raise_for_status().json()
    return {pod["pod"]: pod["matched_tokens"] for pod in answer["pods"]}


def told(gate: GatewayProcess, where: str, body: dict[str, Any], **query: str) -> httpx.Response:
    """A POST to the gateway."""
    return httpx.post(f"{gate.url}{where}", json=body, params=query, **PLAIN)


def a_file(tmp_path: Path) -> Path:
    """A text of three documents."""
    file = tmp_path / "documents.txt"
    file.write_text("\n---\n".join(DOCUMENTS), encoding="utf-8")
    return file


async def test_the_configuration_warms_pods_and_those_that_join(tmp_path: Path) -> None:
    """Each document is held by two pods soon, and by the second one again after it came back empty."""
    fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
    files = {"files": [str(a_file(tmp_path))], "delimiter": "---", "prefill_pods": 2}
    async with served(tmp_path, *fleet, warmup=files) as gate:

        def everywhere() -> bool:
            return all(tokens > 200 for document in DOCUMENTS for tokens in matched(gate, document).values())

        assert await eventually(everywhere)
        fleet[1].kill()
        assert await eventually(lambda: not gate.get("/readyz").json()["pods"]["pod-1"]["fit"])
        before = fleet[0].served()
        fleet[1].start()
        fleet[1].wait()
        assert await eventually(lambda: fleet[1].served() == len(DOCUMENTS), 30.0)
        assert await eventually(everywhere)
        assert fleet[0].served() == before  # it held them all along


async def test_the_command_fills_the_store_and_as_many_pods_as_asked(tmp_path: Path) -> None:
    """Without --prefill no pod computes anything, and texts are known; with it one pod does, once."""
    fleet = [PodProcess("pod-0"), PodProcess("pod-1")]
    async with served(tmp_path, *fleet) as gate:
        file = a_file(tmp_path)

        def warmed(*options: str) -> dict[str, Any]:
            ended = run("warmup", file, "--url", gate.url, "--delimiter", "---", "--json", *options)
            assert ended.exit_code == 0, ended.stderr
            summary: dict[str, Any] = json.loads(ended.stdout)
            return summary

        first = await asyncio.to_thread(warmed)
        assert (first["prompts"], first["computed"], first["problems"]) == (3, 0, []) and first["tokens"] > 600
        assert [pod.served() for pod in fleet] == [0, 0]
        again = told(gate, "/warmup", {"prompt": DOCUMENTS[0], "model": MODEL}, path="/v1/completions")
        assert (again.json()["known"], again.json()["pods"]) == ("partial", [])
        assert (await asyncio.to_thread(warmed, "--prefill", "1"))["computed"] == 3
        for document in DOCUMENTS:
            assert await eventually(lambda text=document: sum(1 for n in matched(gate, text).values() if n > 200) == 1)
        assert (await asyncio.to_thread(warmed, "--prefill", "1"))["computed"] == 0
        assert (await asyncio.to_thread(warmed, "--prefill", "9"))["computed"] == 3  # two pods are all there are


async def test_chats_and_what_is_wrong(tmp_path: Path) -> None:
    """A system prompt with chunks is warm as a chat; what can't be warmed is named, and the exit code says so."""
    fleet = [PodProcess("pod-0")]
    async with served(tmp_path, *fleet) as gate:
        chunks = tmp_path / "chunks.json"
        chunks.write_text(json.dumps({"system_prompt": TEXT, "chunks": [{"name": "a", "content": DOCUMENTS[1]}]}))
        lines = tmp_path / "chats.jsonl"
        lines.write_text(json.dumps({"model": "nobody", "messages": [{"role": "user", "content": "x"}]}) + "\n")
        ended = await asyncio.to_thread(run, "warmup", chunks, lines, "--url", gate.url, "--prefill", "1")
        assert ended.exit_code == 1
        assert "2 prompts" in ended.stdout and "computed 1 time by pods" in ended.stdout
        assert "chats.jsonl:1: " in ended.stderr and "nobody" in ended.stderr
        messages = [{"role": "system", "content": TEXT}, {"role": "user", "content": DOCUMENTS[1] + "\nSo?"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 1}
        usage = told(gate, "/v1/chat/completions", body).raise_for_status().json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 200


async def test_only_operators_warm(tmp_path: Path) -> None:
    """With a key it is asked for."""
    async with served(tmp_path, PodProcess("pod-0"), gateway={"operator_key": "secret"}) as gate:
        assert told(gate, "/warmup", {"messages": []}).status_code == 401
