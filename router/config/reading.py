"""Reading the configuration: from a file, the environment and flags; ConfigError with one plain line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import SecretStr, ValidationError

from router.config import sources
from router.config.fleet import ASK_THE_PODS, ModelConfig, StaticPod
from router.config.keys import KEY_CHARS_MAX, api_key, check_key, read_keys
from router.config.settings import Config
from router.config.values import Section
from router.errors import ConfigError
from scorer.policies import PolicyName

_S = TypeVar("_S", bound=Section)


def load(path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """The configuration of flags > environment > file > defaults; ConfigError with one plain line.

    `flags` has dotted keys (`gateway.port`); None is a flag that was not given. Files that the configuration
    names must exist, relative to the working directory; the operator key is read from its file.
    """
    layers = [] if path is None else [sources.file_layer(Config, path)]
    layers += sources.environment_layers(Config, environ)
    layers += sources.flag_layers(Config, flags)
    try:
        config = Config.model_validate(sources.joined(layers))
    except ValidationError as error:
        raise ConfigError(_line(Config, error, layers)) from None
    _check_files(config)
    return _with_key(config)


def parse_policy(name: str, *others: str) -> str:
    """One of the policies' names, or of `others`; ConfigError names the nearest."""
    names = [*get_args(PolicyName), *others]
    if name in names:
        return name
    near = sources.nearest(name, names)
    hint = f"did you mean {near}?" if near is not None else f"there are {', '.join(names)}"
    raise ConfigError(f"--policy: there is no policy {name[:50]!r}: {hint}")


def parse_pod(text: str) -> StaticPod:
    """A pod of `name=pod-0,address=http://…,events=tcp://…,replay=tcp://…[,data_parallel_size=2]`."""
    return _parsed(StaticPod, text, "--pod")


def parse_model(text: str) -> ModelConfig:
    """A model of `name=…,tokenizer=…`; lists and mappings are JSON (`aliases=["a","b"]`)."""
    return _parsed(ModelConfig, text, "--model")


def _parsed(model: type[_S], text: str, flag: str) -> _S:
    try:
        return model.model_validate(sources.pairs(model, text, flag))
    except ValidationError as error:
        raise ConfigError(f"{flag}: {_line(model, error, [])}") from None


def _line(model: type[Section], error: ValidationError, layers: Sequence[sources.Layer]) -> str:
    return sources.one_line(model, error, layers, frozenset({"operator_key", "api_key", "api_keys", "url"}))


def _check_files(config: Config) -> None:
    for model in config.models:
        where = f"models: {model.name}"
        if model.tokenizer != ASK_THE_PODS and not Path(model.tokenizer, "tokenizer.json").is_file():
            raise ConfigError(f"{where}: tokenizer: {_no_tokenizer(model.tokenizer)}")
        if model.chat_template is not None and not Path(model.chat_template).is_file():
            raise ConfigError(f"{where}: chat_template: there is no file {model.chat_template}")
    for what, path in (
        ("cert_file", config.gateway.tls.cert_file),
        ("key_file", config.gateway.tls.key_file),
        ("client_ca_file", config.gateway.tls.client_ca_file),
    ):
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"gateway.tls.{what}: there is no file {path}")
    for what, path in (("state.restore", config.state.restore), ("peers.key_file", config.peers.key_file)):
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{what}: there is no file {path}")
    _check_keys("gateway.api_keys_file", config.gateway.api_keys_file, api_key)
    _check_keys("pods.api_key_file", config.pods.api_key_file)
    for pod in config.discovery.static:
        _check_keys(f"discovery.static: {pod.name}: api_key_file", pod.api_key_file)


def _no_tokenizer(given: str) -> str:
    """A name on a hub looks like a folder, and vLLM takes it."""
    missing = f"there is no {given}/tokenizer.json"
    if not Path(given).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        missing += ": if that is a name on a hub, nothing is downloaded here: give the model's folder"
    return f'{missing}, or "{ASK_THE_PODS}" to have its pods tokenize'


def _check_keys(where: str, path: str | None, check: Callable[[str], object] = check_key) -> None:
    try:
        if path is not None and not read_keys(path, check):
            raise ConfigError(f"{where}: {path}: holds no key")
    except OSError as error:
        raise ConfigError(f"{where}: {path}: can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {path}: {error}") from None


def _with_key(config: Config) -> Config:
    """The same with `operator_key` read from `operator_key_file`, where that is given."""
    path = config.gateway.operator_key_file
    if path is None:
        return config
    where = f"gateway.operator_key_file: {path}"
    try:
        with Path(path).open(encoding="utf-8") as file:
            key = file.read(KEY_CHARS_MAX + 2).strip()
        check_key(key, "the operator key")
    except OSError as error:
        raise ConfigError(f"{where}: can't be read: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError is one
        reason = "is not text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigError(f"{where}: {reason}") from None
    gateway = config.gateway.model_copy(update={"operator_key": SecretStr(key)})
    return config.model_copy(update={"gateway": gateway})
