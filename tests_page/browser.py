"""Chromium without a window, driven by its DevTools protocol over two pipes: nothing beside the browser is needed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_S = 30.0  # for anything that must come, on a busy machine
_CLOSE_S = 10.0
_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions", "--disable-sync",
)  # fmt: skip

KEYS = {
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Escape": {"key": "Escape", "code": "Escape", "windowsVirtualKeyCode": 27},
    "Space": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
}


class Refused(Exception):
    """The browser does not do what it was told, or its page threw."""


class Browser:
    """One tab. `problems`: what its console called an error or a warning, what was thrown, and what did not load."""

    def __init__(self, reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        self.problems: list[str] = []
        self.requested: list[str] = []
        self._reading = reading
        self._writing = writing
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self._loaded = asyncio.Event()

    async def read(self) -> None:
        """What the browser says, until it ends."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                said = json.loads((await self._reading.readuntil(b"\0"))[:-1])
                if "id" in said:
                    asked = self._asked.pop(said["id"])
                    if not asked.done():
                        asked.set_result(said)
                else:
                    self._heard(said["method"], said["params"])

    async def do(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        told = {"id": number, "method": method, "params": params}
        if self._session is not None:
            told["sessionId"] = self._session
        self._writing.write(json.dumps(told).encode() + b"\0")
        async with asyncio.timeout(WAIT_S):
            said = await asked
        if "error" in said:
            raise Refused(f"{method}: {said['error']}")
        result: dict[str, Any] = said["result"]
        return result

    async def attach(self) -> None:
        """Have a tab, and hear all of it."""
        target = await self.do("Target.createTarget", url="about:blank")
        attached = await self.do("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.do(f"{domain}.enable")
        await self.do("Performance.enable", timeDomain="threadTicks")  # of CPU: other work may run beside

    async def size(self, width: int, height: int, scale: float = 1.0) -> None:
        await self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    async def scheme(self, name: str) -> None:
        """What the browser prefers: light or dark."""
        await self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def open(self, url: str) -> None:
        self._loaded.clear()
        await self.do("Page.navigate", url=url)
        async with asyncio.timeout(WAIT_S):
            await self._loaded.wait()

    async def run(self, script: str) -> Any:
        """The value of an expression; a promise is awaited."""
        said = await self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise Refused(f"{script}: {said['exceptionDetails'].get('exception', {}).get('description')}")
        return said["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(WAIT_S):
            while not await self.run(f"Boolean({script})"):
                await asyncio.sleep(0.05)

    async def press(self, name: str, shift: bool = False) -> None:
        key = KEYS[name]
        modifiers = 8 if shift else 0
        await self.do("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **key)
        await self.do("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **key)

    async def write(self, text: str) -> None:
        await self.do("Input.insertText", text=text)

    async def picture(self, whole: bool = True) -> bytes:
        """A screenshot as PNG, of the whole page or of what is seen."""
        width, height = await self.run("[innerWidth, innerHeight]")
        if whole:  # what is not in view is not drawn
            await self.size(width, await self.run("document.documentElement.scrollHeight"))
            await self.run("new Promise((done) => setTimeout(done, 300))")
        said = await self.do("Page.captureScreenshot", format="png")
        if whole:
            await self.size(width, height)
        return base64.b64decode(said["data"])

    def _heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str([each.get("value") for each in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])


def found() -> str | None:
    """Where the browser is."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Browser]:
    """A tab of a browser of its own, with nothing remembered. `folder`: for what it keeps while it runs."""
    path = found()
    assert path is not None, "there is no chromium: apt-get install chromium"
    to_read, to_write = os.pipe(), os.pipe()
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    command = [path, *_FLAGS, *root, f"--user-data-dir={folder / 'profile'}"]
    # It reads commands from descriptor 3 and writes to 4.
    shell = f"exec {' '.join(command)} 3<&{to_read[0]} 4>&{to_write[1]}"
    process = await asyncio.create_subprocess_exec(
        "/bin/bash", "-c", shell, pass_fds=(to_read[0], to_write[1]), stdout=DEVNULL, stderr=DEVNULL
    )
    os.close(to_read[0])
    os.close(to_write[1])
    loop = asyncio.get_running_loop()
    reading = asyncio.StreamReader(limit=256 * 2**20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reading), os.fdopen(to_write[0], "rb"))
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(to_read[1], "wb"))
    tab = Browser(reading, asyncio.StreamWriter(transport, protocol, None, loop))
    listening = loop.create_task(tab.read())
    try:
        await tab.attach()
        yield tab
    finally:
        listening.cancel()
        transport.close()
        process.terminate()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
