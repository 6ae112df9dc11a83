"""Pods from a file: a list as under `discovery.static`, read again when it changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from router.config.fleet import StaticPod, twice
from router.discovery.found import Change, FoundPod, difference

log = logging.getLogger("warmroute.discovery")

_BYTES_MAX = 16 * 2**20
_PODS: TypeAdapter[list[StaticPod]] = TypeAdapter(list[StaticPod])


class FileSource:
    """See the module. A file that can't be read, or is wrong, leaves the pods as they were, and is told once."""

    def __init__(self, path: str, interval_s: float) -> None:
        self.name = "file"
        self.synced = False
        self._path = Path(path)
        self._interval_s = interval_s
        self._seen: tuple[int, int, int] | None = None
        self.trouble: str | None = None

    async def changes(self) -> AsyncGenerator[list[Change]]:
        known: dict[str, FoundPod] = {}
        first = True
        while True:
            now = self._read()
            if now is not None:
                yield difference(known, now)
                known, first = now, False
            elif first:
                yield []
                first = False
            await asyncio.sleep(self._interval_s)

    def _read(self) -> dict[str, FoundPod] | None:
        """The pods if the file has changed and is right."""
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                self.synced = self.trouble is None
                return None
            pods = pods_of(self._path)
        except (OSError, ValueError) as error:
            said = f"{self._path}: {getattr(error, 'strerror', None) or error}"
            self.synced = False
            if said != self.trouble:
                log.error("pods stay as they were: %s", said)
            self.trouble = said
            return None
        self._seen, self.trouble, self.synced = seen, None, True
        return {pod.name: FoundPod(pod.name, pod) for pod in pods}


def pods_of(path: Path) -> list[StaticPod]:
    """The pods of a file; raises OSError, or ValueError in one line for what is no list of pods."""
    with path.open("rb") as file:
        content = file.read(_BYTES_MAX + 1)
    if len(content) > _BYTES_MAX:
        raise ValueError(f"is larger than {_BYTES_MAX} bytes")
    try:
        listed = yaml.safe_load(content)
        if listed is None:  # as it is for a moment when it is written anew
            raise ValueError("is empty: write [] if there are no pods")
        pods = _PODS.validate_python(listed)
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place or 'it'}: {first['msg']}") from None
    for what, values in (("name", (pod.name for pod in pods)), ("address", (pod.address for pod in pods))):
        if again := twice(values):
            raise ValueError(f"two pods have the {what} {again}")
    return pods
