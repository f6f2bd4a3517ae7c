"""Configurations as files: the options of the command line by the same names, in YAML or JSON."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from .config import TrainConfig
from .errors import ConfigError, require
from .presets import default_setup, problem_name
from .problems import Problem

T = TypeVar("T")


def to_options(problem: Problem, config: TrainConfig) -> dict[str, Any]:
    """All options by their names, the name of the task first; numbers, strings, None and lists of these."""
    return {"task": problem_name(problem), **_flat(problem), **_flat(config)}


def from_options(options: dict[str, Any], where: str = "the configuration") -> tuple[Problem, TrainConfig]:
    """The reverse; options that are missing have the task's defaults.

    Args:
        options: see :func:`to_options`.
        where: they come from, for messages.

    Raises:
        ConfigError: an unknown option, or a wrong value.
    """
    rest = dict(options)
    if "task" not in rest:
        raise ConfigError(f"{where} must name a task, such as `task: copy`")
    try:
        problem, config = default_setup(str(rest.pop("task")))
        problem, config = _replaced(problem, rest), _replaced(config, rest)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if rest:
        raise ConfigError(f"{where}: unknown option {', '.join(map(str, rest))}")
    return problem, config


def read_config(path: str | Path) -> tuple[Problem, TrainConfig]:
    """Of a file in YAML, or in JSON if its name ends with .json.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read, or has a wrong option.
        MissingPackage: PyYAML is needed, and is not installed.
    """
    path = Path(path)
    try:
        text = path.read_text()
        options = json.loads(text) if path.suffix == ".json" else _load_yaml(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no valid file of options: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict):
        raise ConfigError(f"{path} must hold options by their names, got {type(options).__name__}")
    return from_options(options, str(path))


def write_config(path: str | Path, problem: Problem, config: TrainConfig) -> None:
    """Writes all options, in YAML, or in JSON if the name ends with .json; whole, or not at all.

    Args:
        path: of the file.
        problem: one of ours.
        config: how to train.
    """
    path, options = Path(path), to_options(problem, config)
    if path.suffix == ".json":
        text = json.dumps(options, indent=2) + "\n"
    else:
        text = require("yaml", "PyYAML").safe_dump(options, sort_keys=False)
    part = path.with_name(f".{path.name}.part")  # on a full disk, the file that was there must stay
    try:
        part.write_text(text)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _load_yaml(text: str) -> Any:
    yaml: Any = require("yaml", "PyYAML")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _flat(value: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        if dataclasses.is_dataclass(content):
            options |= _flat(content)
        else:
            options[field.name] = _plain(content)
    return options


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _replaced(value: T, options: dict[str, Any]) -> T:
    """`value` with those of its options that are given, which are taken out."""
    hints, changes = typing.get_type_hints(type(value)), {}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        content = getattr(value, field.name)
        if dataclasses.is_dataclass(content):
            changes[field.name] = _replaced(content, options)
        elif field.name in options:
            changes[field.name] = _converted(field.name, hints[field.name], options.pop(field.name))
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def _converted(name: str, hint: Any, value: Any) -> Any:
    try:
        return _as(hint, value)
    except (TypeError, ValueError):
        kinds = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        expected = f"one of {', '.join(map(str, kinds))}" if kinds else getattr(hint, "__name__", None) or str(hint)
        raise ValueError(f"{name} must be {expected}, got {value!r}") from None


def _as(hint: Any, value: Any) -> Any:
    """`value`, as YAML and JSON give it, as the type of a field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _as(next(a for a in arguments if a is not type(None)), value)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(_as(kind, v) for kind, v in zip(kinds, value, strict=True))
    if hint is float and not isinstance(value, bool):
        return float(value)  # YAML reads 1e-4 as a string
    if hint is Path and isinstance(value, str):
        return Path(value)
    if type(value) is not hint:
        raise TypeError
    return value
