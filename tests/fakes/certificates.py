"""Certificates made on the spot by the `openssl` command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_CURVE = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes".split()


@dataclass(frozen=True, slots=True)
class Certificate:
    """Two PEM files."""

    cert: str
    key: str


class Authority:
    """A CA of its own, in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl command here")
        self._folder = folder
        self._count = 0
        self.root = Certificate(str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
        extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign"]
        _run("req", "-x509", *_CURVE, "-days", "2", "-subj", f"/CN={name}", *extensions, *_out(self.root))

    def issue(self, name: str, alternative: str = "IP:127.0.0.1") -> Certificate:
        """A certificate for `alternative`, e.g. `DNS:pod-0`; `name` is that of its files."""
        self._count += 1
        made = Certificate(str(self._folder / f"{name}.pem"), str(self._folder / f"{name}.key"))
        request, extensions = f"{made.cert}.csr", Path(f"{made.cert}.ext")
        extensions.write_text(f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n")
        _run("req", *_CURVE, "-subj", f"/CN={name}", "-keyout", made.key, "-out", request)
        signing = ["-CA", self.root.cert, "-CAkey", self.root.key, "-set_serial", str(self._count), "-days", "2"]
        _run("x509", "-req", "-in", request, *signing, "-extfile", str(extensions), "-out", made.cert)
        return made


def _out(made: Certificate) -> list[str]:
    return ["-keyout", made.key, "-out", made.cert]


def _run(*command: str) -> None:
    subprocess.run(["openssl", *command], check=True, capture_output=True)
