"""TLS to pods: whom we believe to be a pod, and as whom we show ourselves; made anew when a file of it has changed."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable

from router.config.fleet import StaticPod
from router.config.upstream import PodTlsConfig, UpstreamConfig
from router.errors import ConfigError
from router.upstream.pool import Tls

log = logging.getLogger("warmroute.pods")


class PodCertificates:
    """The certificates of connections to pods that have the same settings."""

    def __init__(
        self, given: PodTlsConfig, where: str, look_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`where`: what errors begin with; `look_s`: between two looks at the files. Raises `ConfigError`."""
        self._given = given
        self._where = where
        self._look_s = look_s
        self._clock = clock
        self._files = [file for file in (given.ca_file, given.cert_file, given.key_file) if file is not None]
        self._look_at = clock() + look_s
        self._broken = False
        self._seen = self._look()
        self._context = _context(given, where)

    def context(self) -> ssl.SSLContext:
        """For a new connection. Files that have become unusable leave it as it was."""
        now = self._clock()
        if self._files and now >= self._look_at:
            self._look_at = now + self._look_s
            self._renew()
        return self._context

    def _renew(self) -> None:
        """Where a file has changed, read all: some milliseconds, which connections wait for, at a rotation only."""
        seen = self._look()
        if seen == self._seen:
            return
        try:
            self._context = _context(self._given, self._where)
        except ConfigError as error:  # perhaps half of it is written: look again
            if not self._broken:
                log.error("certificates stay as they were: %s", error.message)
            self._broken = True
            return
        self._seen, self._broken = seen, False
        log.info("%s: certificates are read anew", self._where)

    def _look(self) -> list[tuple[int, int, int] | None]:
        """What changes with the files; None for one that is not there."""
        return [_stamp(file) for file in self._files]


class Certificates:
    """The trust of every pod; the system's certificates take 20 ms to load, so pods with equal settings share one."""

    def __init__(self, upstream: UpstreamConfig) -> None:
        self._default = upstream.tls
        self._look_s = upstream.tls_reload_interval
        self._known: dict[PodTlsConfig, PodCertificates] = {}

    def of(self, pod: StaticPod) -> Tls | None:
        """None for a pod without TLS. Raises `ConfigError` naming the pod, the key and the file that can't be used."""
        if not pod.address.startswith("https://"):
            return None
        given = pod.tls.over(self._default)
        files = given.model_copy(update={"server_name": None})
        trust = self._known.get(files)
        if trust is None:
            trust = self._known[files] = PodCertificates(files, f"{pod.name}: tls", self._look_s)
        return Tls(trust.context, given.server_name, given.verify)


def _context(given: PodTlsConfig, where: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=given.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{where}.ca_file: {given.ca_file}: can't be used: {_reason(error)}") from None
    if not given.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if given.cert_file is not None:
        _show(context, given.cert_file, given.key_file or "", where)
    return context


def _show(context: ssl.SSLContext, certificate: str, key: str, where: str) -> None:
    """Load what pods are shown. OpenSSL does not say which of the files is wrong: both are named."""
    for name, file in (("cert_file", certificate), ("key_file", key)):
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{where}.{name}: {file}: can't be used: {_reason(error)}") from None
    try:
        context.load_cert_chain(certificate, key, password="")  # without one, OpenSSL would ask at the terminal
    except OSError as error:
        files = f"cert_file {certificate} with key_file {key}"
        raise ConfigError(f"{where}: {files}: can't be used: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no PEM file").replace("_", " ").lower()
    return error.strerror or str(error)


def _stamp(file: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
