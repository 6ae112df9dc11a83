"""Many simulated pods in one process: `python -m tests_page.fleet 256` prints their addresses as one line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
from typing import Any

import uvicorn
import uvloop

from simulator.api import Api
from simulator.engine import Limits
from simulator.events import Dialect, parse_version
from simulator.model import Model
from simulator.pace import Pace
from simulator.pod import Settings
from simulator.server import listen, running
from tests.fakes.processes import BLOCK, MODEL, TOKENIZER

_VERSION = "0.32.0"
_BLOCKS = 1024


async def serve(count: int) -> None:
    """All of them, until a signal."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    version = parse_version(_VERSION)
    model = Model.load(TOKENIZER, MODEL, (_BLOCKS - 1) * BLOCK, version, _VERSION)
    limits = Limits(block_size=BLOCK, blocks_max=_BLOCKS)
    async with contextlib.AsyncExitStack() as stack:
        pods: list[dict[str, Any]] = []
        servers: list[uvicorn.Server] = []
        for number in range(count):
            settings = Settings(Dialect.of(version), limits, Pace(time_scale=0.05), topic=f"kv@pod-{number}")
            pod = await stack.enter_async_context(running(model, settings))
            sock = stack.enter_context(listen("127.0.0.1", 0))
            config = uvicorn.Config(
                Api(pod), loop="none", lifespan="off", access_log=False, log_level="error", ws="none"
            )
            server = uvicorn.Server(config)
            servers.append(server)
            config.load()
            server.lifespan = config.lifespan_class(config)
            await server.startup([sock])
            publisher = pod.engines[0].publisher
            pods.append(
                {
                    "name": f"pod-{number}",
                    "address": f"http://127.0.0.1:{sock.getsockname()[1]}",
                    "events": publisher.endpoint,
                    "replay": publisher.replay_endpoint,
                }
            )
        print(json.dumps(pods), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
