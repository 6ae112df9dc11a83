"""Values as operators write them: `30s`, `512MiB`, URLs, names. Durations are in seconds, sizes in bytes.

Each form is a type for a pydantic field; what is wrong is said by a ValueError in words for an operator.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

PORT_MAX = 65535
NAME = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"  # goes into headers, URLs and metric labels as it is
MODEL_NAME = r"^[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


class Section(BaseModel):
    """What all sections share: immutable, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def duration(value: object) -> object:
    """Seconds of a number or a string with a unit; ValueError if it is neither."""
    if isinstance(value, str):
        number, unit = _split(value, "a duration", "30s, 500ms, 2m, 1h or a number of seconds")
        if unit and unit not in SECONDS:
            raise ValueError(f"unit {unit!r} is not one of {', '.join(SECONDS)}")
        return number * SECONDS[unit or "s"]
    return number_only(value)


def size(value: object) -> object:
    """Bytes of a number or a string with a unit (KB = 1000, KiB = 1024); ValueError if it is neither."""
    if isinstance(value, str):
        number, unit = _split(value, "a size", "512MiB, 64KB or a number of bytes")
        if unit not in BYTES:
            raise ValueError(f"unit {unit!r} is not one of B, KB, KiB, MB, MiB, GB, GiB")
        return number * BYTES[unit]
    return number_only(value)


def number_only(value: object) -> object:
    """A number, or a string of one as templating engines write it (`8e+06`); no true and false: 1 and 0
    is not what their writer meant."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value)) and not match[2]:
        return float(match[1]) if "e" in match[1].lower() else match[1]
    return value


def _split(text: str, kind: str, examples: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {kind}: write {examples}")
    return float(match[1]), match[2].lower()


def _url(text: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    """`text` split, if it is scheme://host[:port] and no more; ValueError if not."""
    wanted = f"should be like {example}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error
    if parts.scheme not in schemes or not host or port == 0 or any(character.isspace() for character in text):
        raise ValueError(wanted)
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{wanted}, with nothing before the host or after the port")
    return parts


def _address(text: str) -> str:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")  # unix:///path, as URLs are written
        if not path.startswith("/"):
            raise ValueError("a Unix socket should be like unix:/run/vllm.sock or unix:///run/vllm.sock")
        return f"unix:{path}"
    _url(text, ("http", "https"), "http://10.0.0.7:8000, https://… or unix:/…")
    return text.rstrip("/")


def _endpoint(text: str) -> str:
    if text.startswith("ipc://"):
        if len(text) == len("ipc://"):
            raise ValueError("an IPC endpoint should be like ipc:///run/vllm-events")
        return text
    parts = _url(text, ("tcp",), "tcp://10.0.0.7:5557 or ipc:///…")
    if parts.port is None or parts.hostname == "*":
        raise ValueError("should name the pod's host and port: tcp://10.0.0.7:5557")
    return text.rstrip("/")


def _bind_endpoint(text: str) -> str:
    if not text.startswith("tcp://*:"):
        return _endpoint(text)
    _endpoint(text.replace("*", "0.0.0.0", 1))
    return text.rstrip("/")


def _udp_address(text: str) -> str:
    _url(f"udp://{text}", ("udp",), "0.0.0.0:9090 or [::]:9090")
    if urlsplit(f"udp://{text}").port is None:
        raise ValueError("should name host and port: 0.0.0.0:9090")
    return text


def _topic(text: str) -> str:
    if not text.isprintable():
        raise ValueError("should be printable text")
    return text


def _version(value: object) -> object:
    # Unquoted, YAML reads 0.20 as the number 0.2: another version.
    if isinstance(value, int | float):
        raise ValueError('write it in quotes: "0.20"')
    return value


Seconds = Annotated[float, BeforeValidator(duration)]
Bytes = Annotated[int, BeforeValidator(size)]
Count = Annotated[int, BeforeValidator(number_only)]
Ratio = Annotated[float, BeforeValidator(number_only)]
PortNumber = Annotated[Count, Field(ge=0, le=PORT_MAX)]
Name = Annotated[str, Field(pattern=NAME, max_length=253)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME, max_length=512)]
HttpAddress = Annotated[str, AfterValidator(_address)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
BindEndpoint = Annotated[str, AfterValidator(_bind_endpoint)]
UdpAddress = Annotated[str, AfterValidator(_udp_address)]
Topic = Annotated[str, AfterValidator(_topic), Field(min_length=1, max_length=512)]
VllmVersion = Annotated[str, BeforeValidator(_version), Field(pattern=r"^v?[0-9]+\.[0-9]+([.+a-z-].*)?$")]
