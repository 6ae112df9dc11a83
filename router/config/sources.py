"""Sources of a configuration: a file, environment variables, flags, each a layer of raw values.

A layer is what one source says, under the model's own field names, and the label by which an error names that
source. Later layers win key by key; a list is replaced as a whole. Nothing here knows which settings exist:
that is the model's business. Every error is a ConfigError with one plain line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from router.errors import ConfigError

_PREFIX = "WARMROUTE_"
FILE_BYTES_MAX = 4 << 20  # a fleet of 10,000 static pods takes about 2 MB
VALUE_SHOWN_CHARS_MAX = 80
NOT_SETTINGS = frozenset({
    "WARMROUTE_CONFIG", "WARMROUTE_URL", "WARMROUTE_OPS_URL",  # of the command line, and of programs that ask a gateway
    "WARMROUTE_HELM_SDK", "WARMROUTE_VLLM_VENV",  # of tests
})  # fmt: skip

# Kubernetes gives every container the address of each Service in its namespace. One named `warmroute` makes
# WARMROUTE_PORT=tcp://10.0.0.1:80, which is no setting of ours and must not stop the gateway.
_SERVICE_LINK = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*|\w+_PORT=\w+://.*"
)

Raw = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source says: `values` under field names, nested as the model is."""

    label: str
    values: Raw


def joined(layers: Iterable[Layer]) -> dict[str, object]:
    """All layers in one, the later ones winning."""
    result: dict[str, object] = {}
    for layer in layers:
        result = _merge(result, layer.values)
    return result


def _merge(under: Raw, over: Raw) -> dict[str, object]:
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return result


# --- where values come from


def file_layer(model: type[BaseModel], path: str) -> Layer:
    """The layer of a YAML or JSON file."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    if len(text) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes")
    try:
        values = json.loads(text, object_pairs_hook=_unique) if path.endswith(".json") else _yaml(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: {_flat(error)}") from None  # its excerpt of the file may hold a secret
    if values is None:
        values = {}
    return Layer(path, _named(model, values, path, ()))


def environment_layers(model: type[BaseModel], environ: Mapping[str, str]) -> Iterator[Layer]:
    """A layer for each `WARMROUTE_…` variable; `__` goes one level down. Sections come before their keys."""
    names = [name for name in environ if name.startswith(_PREFIX) and name not in NOT_SETTINGS]
    for name in sorted(names, key=lambda name: (name.count("__"), name)):
        if not _SERVICE_LINK.fullmatch(f"{name}={environ[name]}"):
            yield _one(model, name, name.removeprefix(_PREFIX).split("__"), environ[name])


def flag_layers(model: type[BaseModel], flags: Raw) -> Iterator[Layer]:
    """A layer for each flag: `{"gateway.port": 9000}`. None is a flag that was not given."""
    for name, value in flags.items():
        if value is not None:
            yield _one(model, flag_of(name), name.split("."), value)


_FLAGS_OF_LISTS = {"discovery.static": "--pod", "models": "--model"}


def flag_of(name: str) -> str:
    """The flag that sets `gateway.ops_port`: `--ops-port`."""
    return _FLAGS_OF_LISTS.get(name) or f"--{name.rpartition('.')[2].replace('_', '-')}"


def pairs(model: type[BaseModel], text: str, flag: str) -> dict[str, object]:
    """The keys and values of `name=pod-0,address=…`, as fields of `model`. A comma inside a value is kept."""
    result: dict[str, object] = {}
    for part in re.split(r",(?=[A-Za-z_]+=)", text.strip()):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{flag}: {part!r} is not key=value")
        for name, given in _one(model, flag, [key.strip()], value.strip()).values.items():
            if name in result:
                raise ConfigError(f"{flag}: {key}: given twice")
            result[name] = given
    return result


def _one(model: type[BaseModel], label: str, path: Sequence[str], value: object) -> Layer:
    for key in reversed(path):
        value = {key: value}
    return Layer(label, _named(model, value, label, ()))


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys: the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(f"{key.value}: given twice (line {key.start_mark.line + 1})")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml(text: bytes) -> object:
    return yaml.load(text, Loader=_Loader)


def _unique(items: Iterable[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in items:
        if key in result:
            raise ValueError(f"{key}: given twice")
        result[key] = value
    return result


# --- from the keys that people write to the model's fields


def _named(model: type[BaseModel], raw: object, label: str, path: tuple[str, ...]) -> dict[str, object]:
    """`raw` with every key, in whatever spelling, replaced by its field's name."""
    if not isinstance(raw, Mapping):
        where = f"{'.'.join(path)}: " if path else ""
        raise ConfigError(f"{label}: {where}should be a mapping of keys to values, not {_shown(raw)}")
    fields = {folded(name): name for name in model.model_fields}
    result: dict[str, object] = {}
    for key, value in raw.items():
        at = (*path, str(key))
        name = fields.get(folded(str(key)))
        if name is None:
            raise ConfigError(f"{label}: {'.'.join(at)}: unknown key; {_hint(model, at, label)}")
        if name in result:
            raise ConfigError(f"{label}: {'.'.join(at)}: given twice")
        result[name] = _value(model.model_fields[name].annotation, value, label, (*path, spelling(model, name)))
    return result


def _value(annotation: Any, value: object, label: str, path: tuple[str, ...]) -> object:
    if isinstance(value, str):
        value = _decoded(annotation, value, label, path)
    section, many = section_of(annotation)
    if section is None or isinstance(value, BaseModel):
        return value
    if value is None:  # `gateway:` with all its keys commented out
        return None if NoneType in get_args(annotation) else [] if many else {}
    if not many:
        return _named(section, value, label, path)
    if not isinstance(value, Sequence):
        raise ConfigError(f"{label}: {'.'.join(path)}: should be a list, not {_shown(value)}")
    return [
        item if isinstance(item, BaseModel) else _named(section, item, label, (*path, str(index)))
        for index, item in enumerate(value)
    ]


def _decoded(annotation: Any, text: str, label: str, path: tuple[str, ...]) -> object:
    """A string is JSON where the field is no scalar; `null` and nothing are null where null may be."""
    if NoneType in get_args(annotation) and text in ("", "null"):
        return None
    if section_of(annotation)[0] is None and get_origin(annotation) not in (tuple, dict):
        return text
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise ConfigError(f"{label}: {'.'.join(path)}: should be JSON: {_flat(error)}") from None


def folded(key: str) -> str:
    """One form for all spellings of a key: podMappingTTL, pod_mapping_ttl, POD_MAPPING_TTL."""
    return re.sub(r"[_.-]", "", key).lower()


def section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that a field holds (or may hold), and whether it holds a list of them."""
    many, parts = get_origin(annotation) is tuple, get_args(annotation)
    kind = parts[0] if many or NoneType in parts else annotation
    return (kind, many) if isinstance(kind, type) and issubclass(kind, BaseModel) else (None, many)


def spelling(model: type[BaseModel], name: str) -> str:
    """The key by which people know a field: camelCase for those that had a name before us."""
    return model.model_fields[name].serialization_alias or name


def known_keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every key of the model, dotted, sections included; a list's items stand directly under its key."""
    for name, field in model.model_fields.items():
        yield (key := path + spelling(model, name))
        section, _ = section_of(field.annotation)
        if section is not None:
            yield from known_keys(section, f"{key}.")


def _hint(model: type[BaseModel], at: tuple[str, ...], label: str) -> str:
    """`did you mean …?` in the spelling of the source, or the keys that are known here."""
    near = _nearest(model, at)
    if near is None:
        return f"known here: {', '.join(spelling(model, name) for name in model.model_fields)}"
    if label.startswith(_PREFIX):
        near = _PREFIX + near.replace(".", "__").upper()
    return f"did you mean {near}?"


def _nearest(model: type[BaseModel], at: tuple[str, ...]) -> str | None:
    """The key of all those words, else a sibling, one that reads alike as a whole, one of that last name."""
    *above, last = (word for word in at if not word.isdigit())
    whole, prefix = folded("".join(above) + last), ".".join(above)
    siblings = {folded(name): f"{prefix}.{spelling(model, name)}".lstrip(".") for name in model.model_fields}
    everywhere = {folded(key): key for key in known_keys(model, f"{prefix}." if prefix else "")}
    leaves = {folded(key.rpartition(".")[2]): key for key in reversed(everywhere.values())}  # the first one wins
    if whole in everywhere:
        return everywhere[whole]
    for word, keys in ((folded(last), siblings), (whole, everywhere), (folded(last), leaves)):
        if close := difflib.get_close_matches(word, keys, n=1, cutoff=0.7):
            return keys[close[0]]
    return None


# --- what was wrong, in one line


def _meant(given: object, expected: str) -> str | None:
    """Of the quoted words that a literal's error lists, the one that reads like `given`."""
    return nearest(str(given), re.findall(r"'([^']+)'", expected))


def nearest(given: str, words: Iterable[str]) -> str | None:
    """The one that reads alike, however it is spelt."""
    known = {folded(word): word for word in words}
    close = difflib.get_close_matches(folded(given), known, n=1)
    return known[close[0]] if close else None


def _written(model: type[BaseModel] | None, path: Iterable[int | str]) -> str:
    """A dotted path in the keys that people know."""
    words: list[str] = []
    for step in path:
        if isinstance(step, str) and model is not None and step in model.model_fields:
            words.append(spelling(model, step))
            model = section_of(model.model_fields[step].annotation)[0]
        else:
            words.append(str(step))
    return ".".join(words)


def one_line(model: type[BaseModel], error: ValidationError, layers: Sequence[Layer], secret: frozenset[str]) -> str:
    """Source, key and reason of the first thing that is wrong; no values of keys named in `secret`."""
    errors = error.errors(include_url=False)
    first = errors[0]
    path = first["loc"]
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "missing":
        reason = "is missing"
    shown = first["type"] not in ("missing", "value_error") and not secret.intersection(map(str, path))
    reason += f", not {_shown(first['input'])}" if shown else ""
    if shown and first["type"] == "literal_error" and (near := _meant(first["input"], first["ctx"]["expected"])):
        reason += f"; did you mean {near}?"
    source, key = _source(layers, path), _written(model, path)
    parts = (source, "" if source == flag_of(".".join(map(str, path))) else key, reason)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ": ".join(part for part in parts if part) + more


def _source(layers: Sequence[Layer], path: tuple[int | str, ...]) -> str:
    """The label of the last layer that says anything about `path`; empty if none does."""
    for layer in reversed(layers):
        value: object = layer.values
        for step in path:
            if not isinstance(value, Mapping) or step not in value:
                break
            value = value[step]
            if not isinstance(value, Mapping):
                return layer.label
        else:
            return layer.label if path else ""
    return ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_SHOWN_CHARS_MAX else f"{text[:VALUE_SHOWN_CHARS_MAX]}…"


def _flat(error: Exception) -> str:
    """The reason in one line, without the excerpt of the file that YAML's own message has: it may be secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
