"""The demo's processes: simulated pods and the gateway, started on free ports and surely stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from types import MappingProxyType

import httpx

from router.errors import RouterError
from router.server.listening import must_be_free
from router.workers.own_python import command_of, environment_of_ours

MODEL = "tiny-qwen"
POD = ("--num-blocks", "1300", "--prefill-tokens-per-s", "6000", "--max-num-seqs", "64", "--hash-seed", "demo")
"""A small pod, so that a fleet of them does not hold all."""
_START_S = 30.0  # a process that is not up by then has failed
_STOP_S = 5.0


class DemoFailed(RouterError):
    """A process of the demo did not start."""


@dataclass(slots=True, frozen=True)
class SimulatedPod:
    """Where one simulated pod listens."""

    name: str
    address: str
    events: str
    replay: str

    @property
    def flag(self) -> str:
        return f"name={self.name},address={self.address},events={self.events},replay={self.replay}"


@contextlib.asynccontextmanager
async def fleet(count: int, arguments: list[str]) -> AsyncIterator[list[SimulatedPod]]:
    """`count` pods of the bundled model; `arguments` go to each simulator."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(as_file(files("simulator") / "tiny"))
        pods = []
        command = ["simulator", "--model-path", str(folder), "--served-model-name", MODEL]
        ports = ["--port", "0", "--events-port", "0", "--replay-port", "0"]
        started = [await stack.enter_async_context(_process([*command, *ports, *arguments])) for _ in range(count)]
        for number, process in enumerate(started):
            place = json.loads(await _first_line(process))
            pods.append(SimulatedPod(f"pod-{number}", place["address"], place["events"][0], place["replay"][0]))
        yield pods


@contextlib.asynccontextmanager
async def gateway(
    pods: list[SimulatedPod], policy: str, port: int, environ: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[str]:
    """A gateway in front of the pods, ready; yields its address. Raises `ConfigError` where the port is taken.
    `environ`: more of its settings."""
    with as_file(files("simulator") / "tiny") as folder:
        flags = [flag for pod in pods for flag in ("--pod", pod.flag)]
        flags += ["--model", f"name={MODEL},tokenizer={Path(folder)}", "--policy", policy]
        flags += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]  # alerts are for operators
        must_be_free("127.0.0.1", port)  # else whoever listens there would be taken for it
        async with _process(["router", "serve", *flags], environ) as process:
            address = f"http://127.0.0.1:{port}"
            await _ready(address, process)
            yield address


async def forget_all(pods: list[SimulatedPod]) -> None:
    """Empty all pods' caches, as a restart would."""
    async with httpx.AsyncClient(trust_env=False) as client:
        for pod in pods:
            (await client.post(f"{pod.address}/simulator/fault", json={"restart": True})).raise_for_status()


@contextlib.asynccontextmanager
async def _process(arguments: list[str], more: Mapping[str, str] = MappingProxyType({})) -> AsyncIterator[Process]:
    settings = "WARMROUTE_"  # somebody's own gateway has those
    environ = {name: value for name, value in environment_of_ours().items() if not name.startswith(settings)}
    environ.update(more)
    process = await asyncio.create_subprocess_exec(*command_of(*arguments), env=environ, stdin=DEVNULL, stdout=PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _first_line(process: Process) -> bytes:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    if not line:
        raise DemoFailed("A simulated pod did not start; what it said is above.")
    return line


async def _ready(address: str, process: Process) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            async with asyncio.timeout(_START_S):
                while process.returncode is None:
                    with contextlib.suppress(httpx.HTTPError):
                        if (await client.get(f"{address}/readyz")).is_success:
                            return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
    raise DemoFailed("The gateway did not become ready; what it said is above.")
