"""A stand-in for the API server of Kubernetes: Pods and Services of one namespace, listed in pages and watched.

It does what clients stumble over: tokens that end, history that is compacted (410 as a status and as an event),
bookmarks, watches that end, connections that are cut, and a server that is away for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit


def pod(
    name: str, ip: str | None = "127.0.0.1", *, uid: str | None = None, ready: bool = True, **more: Any
) -> dict[str, Any]:
    """A Pod object. `more`: labels, annotations, deleted, phase, containers (each its named ports)."""
    meta: dict[str, Any] = {"name": name, "uid": uid or f"uid-{name}", "labels": more.get("labels", {"app": "vllm"})}
    if more.get("annotations"):
        meta["annotations"] = more["annotations"]
    if more.get("deleted"):
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status: dict[str, Any] = {
        "phase": more.get("phase", "Running"),
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    if ip is not None:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    containers = [
        {"name": f"c{number}", "ports": [{"name": name, "containerPort": port} for name, port in ports.items()]}
        for number, ports in enumerate(more.get("containers", ()))
    ]
    return {"metadata": meta, "spec": {"containers": containers}, "status": status}


class KubePeer:
    """The state, and what was asked. Change it by `put`, `delete` and the flags."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.things: dict[str, dict[str, Any]] = {}
        """What else there is, by path."""
        self.version = 100
        self.token: str | None = None
        self.forbidden = False
        self.read_only = False
        self.instead: bytes | None = None
        """Somebody else answers, with this."""
        self.patched: list[str] = []
        self.page = 2
        self.oldest = 0  # history before this is compacted
        self.history: list[tuple[int, dict[str, Any]]] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.address = ""
        self._changed = asyncio.Event()
        self._watched = 0  # times that all watches were ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    def put(self, thing: dict[str, Any]) -> None:
        uid = thing["metadata"]["uid"]
        kind = "MODIFIED" if uid in self.pods else "ADDED"
        self.pods[uid] = self._say(kind, thing)

    def delete(self, uid: str) -> None:
        self._say("DELETED", self.pods.pop(uid))

    def bookmark(self) -> None:
        self._say("BOOKMARK", {"kind": "Pod", "metadata": {}})

    def compact(self) -> None:
        """All that was before is forgotten: watches from there are too old."""
        self.version += 1
        self.oldest = self.version
        self.history.clear()

    def end_watches(self) -> None:
        """As they do by themselves after some minutes."""
        self._watched += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _say(self, kind: str, thing: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        thing = json.loads(json.dumps(thing))
        thing["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, {"type": kind, "object": thing}))
        self._changed.set()
        self._changed = asyncio.Event()
        return thing

    async def start(self) -> None:
        """Listen, again on the same port if it was down."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Be away: nobody listens, and all connections are cut."""
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def lists(self) -> int:
        return sum(
            "watch" not in query and path.endswith("/pods") and "continue" not in query for path, query in self.asked
        )

    @property
    def watches(self) -> int:
        return sum("watch" in query for _, query in self.asked)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next(
                    (int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0
                )
                await self._answer(head, await reader.readexactly(length), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, head: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(head.split(" ")[1])
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append((parts.path, query))
        if self.instead is not None:
            return await self._say_bytes(writer, 200, self.instead)
        shown = next(
            (line[7:] for line in head.split("\r\n")[1:] if line.lower().startswith("authorization: bearer")), None
        )
        if self.token is not None and (shown or "").rpartition(" ")[2] != self.token:
            return await self._say_status(writer, 401, "Unauthorized")
        if self.forbidden:
            return await self._say_status(writer, 403, 'pods is forbidden: User "gateway" cannot list resource "pods"')
        kind, _, name = parts.path.removeprefix("/api/v1/namespaces/inference/").partition("/")
        if kind == "services":
            service = self.services.get(name)
            if service is None:
                return await self._say_status(writer, 404, f'services "{name}" not found')
            return await self._say_json(writer, 200, service)
        if parts.path in self.things:
            return await self._say_json(writer, 200, self.things[parts.path])
        if kind != "pods":
            return await self._say_status(writer, 404, "not found")
        if head.startswith("PATCH "):
            return await self._patch(name, json.loads(body), writer)
        if "watch" in query:
            return await self._watch(query, writer)
        return await self._list(query, writer)

    async def _patch(self, name: str, patch: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self.read_only:
            return await self._say_status(writer, 403, f'pods "{name}" is forbidden: User "gateway" cannot patch')
        thing = next((each for each in self.pods.values() if each["metadata"]["name"] == name), None)
        if thing is None:
            return await self._say_status(writer, 404, f'pods "{name}" not found')
        self.patched.append(name)
        thing["metadata"].setdefault("annotations", {}).update(patch["metadata"]["annotations"])
        self.put(thing)
        return await self._say_json(writer, 200, thing)

    async def _list(self, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        chosen = [thing for thing in self.pods.values() if _fits(thing, query.get("labelSelector", ""))]
        start = int(query.get("continue", "0"))
        meta: dict[str, Any] = {"resourceVersion": str(self.version)}
        if start + self.page < len(chosen):
            meta["continue"] = str(start + self.page)
        await self._say_json(writer, 200, {"metadata": meta, "items": chosen[start : start + self.page]})

    async def _watch(self, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        seen = int(query["resourceVersion"])
        if 0 < seen < self.oldest:
            return await self._say_status(writer, 410, "too old resource version")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        watched = self._watched
        while watched == self._watched:
            if seen < self.oldest:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                await self._chunk(writer, {"type": "ERROR", "object": gone})
                break
            changed = self._changed
            for version, event in [each for each in self.history if each[0] > seen]:
                seen = version
                if event["type"] == "BOOKMARK" or _fits(event["object"], query.get("labelSelector", "")):
                    await self._chunk(writer, event)
            await changed.wait()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return None

    async def _chunk(self, writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
        line = json.dumps(event).encode() + b"\n"
        half = len(line) // 2  # an event may come in pieces
        for piece in (line[:half], line[half:]):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()

    async def _say_json(self, writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
        await self._say_bytes(writer, status, json.dumps(body).encode())

    async def _say_bytes(self, writer: asyncio.StreamWriter, status: int, data: bytes) -> None:
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(data))
            + data
        )
        await writer.drain()

    async def _say_status(self, writer: asyncio.StreamWriter, status: int, message: str) -> None:
        await self._say_json(writer, status, {"kind": "Status", "code": status, "message": message})


def _fits(thing: dict[str, Any], selector: str) -> bool:
    labels = thing["metadata"].get("labels") or {}
    return all(
        labels.get(name) == value for name, _, value in (part.partition("=") for part in selector.split(",") if part)
    )


@contextlib.asynccontextmanager
async def kube_peer() -> AsyncIterator[KubePeer]:
    """One that listens."""
    peer = KubePeer()
    await peer.start()
    try:
        yield peer
    finally:
        await peer.stop()
