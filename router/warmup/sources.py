"""Where prompts are read from: files, and variables of the environment (`env:NAME`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from router.errors import ConfigError
from router.warmup.prompts import WarmPrompt, prompts_of

_VARIABLE = "env:"


def read_all(
    names: Sequence[str], delimiter: str | None, bytes_max: int, environ: Mapping[str, str]
) -> list[WarmPrompt]:
    """The prompts of all of them, in their order; raises `ConfigError` with one plain line."""
    found: list[WarmPrompt] = []
    for name in names:
        found += prompts_of(name, _content(name, bytes_max, environ), delimiter)
    return found


def _content(name: str, bytes_max: int, environ: Mapping[str, str]) -> bytes:
    if name.startswith(_VARIABLE):
        variable = name.removeprefix(_VARIABLE)
        if variable not in environ:
            raise ConfigError(f"{name}: there is no such variable")
        return environ[variable].encode()
    try:
        with Path(name).open("rb") as file:
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError(f"{name}: can't be read: {error.strerror}") from None
    if len(content) > bytes_max:
        raise ConfigError(f"{name}: is larger than {bytes_max} bytes")
    return content
