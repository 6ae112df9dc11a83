"""The keys that pods ask for (vLLM's `--api-key`): of each pod, or of all; from a file as it is now."""

from __future__ import annotations

import time
from collections.abc import Callable

from router.config.fleet import StaticPod
from router.config.keys import KeyFile
from router.config.upstream import PodKeysConfig


class PodKey:
    """What a pod is shown."""

    def __init__(self, key: str | None, path: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`key`, or the first key of the file `path`."""
        self._file = KeyFile(path) if path is not None else None
        self._clock = clock
        self._headers = _shown(key)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """For a request to it; empty where its file has no key."""
        file = self._file
        if file is not None and file.look(self._clock()) and file.keys:
            self._headers = _shown(file.keys[0])
        return self._headers


class Keyring:
    """The keys of all pods; those with the same settings share one, and a look at its file."""

    def __init__(self, given: PodKeysConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._given = given
        self._clock = clock
        self._known: dict[tuple[str | None, str | None], PodKey] = {}

    def of(self, pod: StaticPod) -> PodKey | None:
        """Its own, else that of all; None where there is neither."""
        own = pod.api_key is not None or pod.api_key_file is not None
        secret, path = (pod.api_key, pod.api_key_file) if own else (self._given.api_key, self._given.api_key_file)
        key = secret.get_secret_value() if secret is not None else None
        if key is None and path is None:
            return None
        known = self._known.get((key, path))
        if known is None:
            known = self._known[key, path] = PodKey(key, path, self._clock)
        return known


def _shown(key: str | None) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + key.encode())] if key is not None else []
