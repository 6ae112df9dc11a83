"""Keys that clients show: from the configuration, and from a file that is read again when it changes."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from router.core.fair_queue import PRIORITY_MAX, PRIORITY_MIN

log = logging.getLogger("warmroute")

KEY_CHARS_MAX = 4096
KEYS_MAX = 100_000
_FILE_BYTES_MAX = 16 * 2**20
_LOOK_S = 1.0  # between two looks at the file
_BOUNDED = re.compile(r"(\S+)[ \t]+(-?\d{1,3})").fullmatch


def check_key(key: str, what: str = "a key") -> None:
    """ValueError unless `key` can stand in an HTTP header."""
    if not 1 <= len(key) <= KEY_CHARS_MAX or not all("!" <= character <= "~" for character in key):
        raise ValueError(f"{what} should be 1 to {KEY_CHARS_MAX} printable ASCII characters without spaces")


class ApiKey(NamedTuple):
    """A key of the data plane. `priority_min`: the most urgent priority that it may claim; None: as all."""

    key: str
    priority_min: int | None = None


def api_key(text: str) -> ApiKey:
    """A key, and after a blank maybe its `priority_min`: `KEY -4`. Raises ValueError."""
    bounded = _BOUNDED(text)
    found = ApiKey(text) if bounded is None else ApiKey(bounded[1], int(bounded[2]))
    check_key(found.key, "an API key")
    if found.priority_min is not None and not PRIORITY_MIN <= found.priority_min <= PRIORITY_MAX:
        raise ValueError(f"the priority of an API key should be from {PRIORITY_MIN} to {PRIORITY_MAX}")
    return found


def read_keys(path: str, check: Callable[[str], object] = check_key) -> list[str]:
    """The keys of a file, one a line; empty lines and those that begin with # are none. `check` raises ValueError.

    Raises OSError, or ValueError for what is no file of keys; no text of an error holds a key.
    """
    with Path(path).open("rb") as file:
        content = file.read(_FILE_BYTES_MAX + 1)
    if len(content) > _FILE_BYTES_MAX:
        raise ValueError(f"is larger than {_FILE_BYTES_MAX} bytes")
    try:
        lines = [line.strip() for line in content.decode("ascii").splitlines()]
    except UnicodeDecodeError:
        raise ValueError("is not ASCII text") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) > KEYS_MAX:
        raise ValueError(f"holds more than {KEYS_MAX} keys")
    for key in keys:
        check(key)
    return keys


class KeyFile:
    """The keys of a file, as of the newest `look`. Where it can't be read, they stay as they were."""

    def __init__(self, path: str, check: Callable[[str], object] = check_key) -> None:
        self._path = path
        self._check = check
        self._look_at = float("-inf")
        self._seen: tuple[int, int, int] | None = None
        self.keys: list[str] = []

    def look(self, now: float) -> bool:
        """Read it, if it has changed; it is looked at once in a second of `now`. True: it was read."""
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_S
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return False
            keys = read_keys(self._path, self._check)
        except (OSError, ValueError) as error:
            if self._seen != (0, 0, 0):  # said once
                log.error("keys stay as they were: %s: %s", self._path, getattr(error, "strerror", None) or error)
            self._seen = (0, 0, 0)
            return False
        if self._seen is not None:
            log.info("%d keys read anew from %s", len(keys), self._path)
        self._seen, self.keys = seen, keys
        return True


class ShownKey(NamedTuple):
    """A good key, as others may know it. `priority_min`: see `ApiKey`."""

    digest: bytes
    """The same for the same key, as long as this process lives."""
    priority_min: int | None = None


class KeyRing:
    """Which keys are good. A file that can't be read leaves them as they were; an empty one takes all of its away.

    Keys are kept and looked up as digests under a secret of this process: how long a look-up takes tells nothing
    about a key, however many there are.
    """

    def __init__(self, keys: Iterable[str], path: str | None = None, parse: Callable[[str], ApiKey] = ApiKey) -> None:
        """`parse`: what stands for a key, here and in the file; plain keys, unless it is `api_key`."""
        self._secret = secrets.token_bytes(32)
        self._parse = parse
        self._given = self._known(keys)
        self._good = self._given
        check: Callable[[str], object] = check_key if parse is ApiKey else parse
        self._file = KeyFile(path, check) if path is not None else None

    def __repr__(self) -> str:
        return f"<KeyRing keys={len(self._good)}>"

    def allows(self, headers: Iterable[tuple[bytes, bytes]], now: float) -> bool:
        """Whether a good key is shown, as `Authorization: Bearer` or `x-api-key`. `now`: monotonic seconds."""
        return self.shown(headers, now) is not None

    def shown(self, headers: Iterable[tuple[bytes, bytes]], now: float) -> ShownKey | None:
        """The good key that is shown."""
        if self._file is not None and self._file.look(now):
            self._good = {**self._known(self._file.keys), **self._given}
        digests = map(self._digest, shown_keys(headers))
        return next((self._good[digest] for digest in digests if digest in self._good), None)

    def _known(self, keys: Iterable[str]) -> dict[bytes, ShownKey]:
        digests = {self._digest(each.key.encode()): each.priority_min for each in map(self._parse, keys)}
        return {digest: ShownKey(digest, bound) for digest, bound in digests.items()}

    def _digest(self, key: bytes) -> bytes:
        return blake2b(key, key=self._secret, digest_size=32).digest()


def shown_keys(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    """The keys that a request shows; header names are in lower case."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()
        elif name == b"x-api-key":
            yield value.strip()
