"""YAML -> typed, frozen dataclasses. Unknown keys, wrong types and values out of range are errors that say where.

A config class is a plain dataclass. Its fields may be bool, int, float, str, Any, Literal, other dataclasses, and
lists, tuples, string-keyed dicts and unions of these. A number's range stands in its field's metadata:

    steps: int = field(default=100, metadata={"min": 1})
    decay: float = field(default=0.9, metadata={"min": 0, "below": 1})   # "min", "max", "above", "below"
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from lopt.errors import ConfigError

T = TypeVar("T")

BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "min": ("at least", lambda value, bound: value >= bound),
    "max": ("at most", lambda value, bound: value <= bound),
    "above": ("above", lambda value, bound: value > bound),
    "below": ("below", lambda value, bound: value < bound),
}
"""The metadata keys that bound a number, how to say them, and how to check them."""

SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Place(NamedTuple):
    """Where a value stands: a file (or "command line") and the keys that lead to it."""

    source: str
    keys: tuple[str, ...] = ()

    def __truediv__(self, key: object) -> Place:
        return Place(self.source, (*self.keys, str(key)))

    def __str__(self) -> str:
        return f"{self.source}: {'.'.join(self.keys)}" if self.keys else self.source


def load(
    cls: type[T], source: str | os.PathLike[str] | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> T:  # fmt: skip
    """A config of class `cls` from a YAML file or nested dicts; `overrides` replaces values by dotted key.

    It must be complete without the overrides. Raises `ConfigError`, naming file and key ("meta.steps").
    """
    if isinstance(source, Mapping):
        mapping, where = source, "config"
    else:
        mapping, where = read_yaml(source), str(source)
    config = from_mapping(cls, mapping, where)
    if not overrides:
        return config
    for key, value in overrides.items():
        mapping = _replaced(mapping, key.split("."), value, Place("command line", (key,)))
    return from_mapping(cls, mapping, "command line")


def from_mapping(cls: type[T], mapping: object, where: str) -> T:
    """A config of class `cls` from nested dicts and lists; `where` names their origin in errors."""
    return _build(cls, mapping, Place(where))


def to_mapping(config: Any) -> Any:
    """Nested dicts, lists and scalars from which `from_mapping` makes an equal config."""
    if is_dataclass(config):
        return {f.name: to_mapping(getattr(config, f.name)) for f in fields(config) if f.init}
    if isinstance(config, Mapping):
        return {key: to_mapping(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_mapping(value) for value in config]
    return config


def dump(config: Any) -> str:
    """The config as YAML that `load` reads back."""
    return yaml.dump(to_mapping(config), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number (YAML 1.1 wants 1.0e-3) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            scalar = isinstance(key_node, yaml.ScalarNode)
            if not scalar or key_node.value in seen:
                problem = f"key {key_node.value!r} given twice" if scalar else "a key that is not text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file as dicts, lists and scalars. Raises `ConfigError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a YAML config, found no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a YAML config, found one that cannot be read: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises `ConfigError`, naming `where` and the line."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(
            f"{where}:{line} expected valid YAML, found: {error.problem or error.context}"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: expected valid YAML, found: {reason}") from None


def _replaced(node: Any, keys: Sequence[str], value: Any, place: Place) -> Any:
    """A copy of nested dicts and lists with the value at `keys` replaced or added."""
    if not keys:
        return value
    key, *rest = keys
    if isinstance(node, Sequence) and not isinstance(node, str):
        if not (key.isdecimal() and int(key) < len(node)):
            raise ConfigError(f"{place}: expected an index below {len(node)}, found {key!r}")
        return [_replaced(old, rest, value, place) if i == int(key) else old for i, old in enumerate(node)]
    if node is not None and not isinstance(node, Mapping):
        raise ConfigError(f"{place}: expected a section above {key!r}, found {_say(node)}")
    node = node or {}
    return {**node, key: _replaced(node.get(key), rest, value, place)}


def _build(cls: type[T], mapping: object, place: Place) -> T:
    if not isinstance(mapping, Mapping):
        raise _mismatch(place, _name(cls, {}), mapping)
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            raise ConfigError(f"{place / key}: unknown key; {_suggest(str(key), known)}")
    hints = get_type_hints(cls)
    for name, f in known.items():
        if name not in mapping and _required(f):
            raise ConfigError(f"{place / name}: expected {_name(hints[name], f.metadata)}, found nothing")
    values = {
        name: _convert(hints[name], mapping[name], place / name, known[name].metadata) for name in mapping
    }
    try:
        return cls(**values)
    except ConfigError as error:  # from __post_init__; its message may start with the section's name
        section = "".join(f"{key}." for key in place.keys)
        raise ConfigError(f"{place.source}: {section}{str(error).removeprefix(section)}") from None


def _convert(hint: Any, value: Any, place: Place, bounds: Mapping[Any, Any]) -> Any:
    """`value` as what the annotation asks for; bounds hold for every number in it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else _build(hint, value, place)
    if origin in (Union, UnionType):
        return _convert_union(hint, value, place, bounds)
    if origin is list and isinstance(value, list):
        return [_convert(args[0], item, place / i, bounds) for i, item in enumerate(value)]
    if origin is tuple and isinstance(value, list) and (args[-1] is ... or len(args) == len(value)):
        items = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(
            _convert(item, v, place / i, bounds) for i, (item, v) in enumerate(zip(items, value, strict=True))
        )
    if (
        origin in (dict, Mapping)
        and isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
    ):
        return {key: _convert(args[1], item, place / key, bounds) for key, item in value.items()}
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in args):
        return value
    if _is_scalar(hint, value) and _within(value, bounds):
        return None if hint is NoneType else hint(value)
    raise _mismatch(place, _name(hint, bounds), value)


def _convert_union(hint: Any, value: Any, place: Place, bounds: Mapping[Any, Any]) -> Any:
    members = get_args(hint)
    if value is None and NoneType in members:
        return None
    others = [member for member in members if member is not NoneType]
    nested = [member for member in others if _is_nested(member)]
    if len(nested) == 1 and (len(others) == 1 or isinstance(value, (Mapping, list))):
        return _convert(nested[0], value, place, bounds)
    for member in others:
        try:
            return _convert(member, value, place, bounds)
        except ConfigError:
            continue
    raise _mismatch(place, _name(hint, bounds), value)


def _is_nested(hint: Any) -> bool:
    return is_dataclass(hint) or get_origin(hint) in (list, tuple, dict, Mapping)


def _is_scalar(hint: Any, value: Any) -> bool:
    if hint is NoneType:
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return hint in SCALARS and type(value) is hint


def _within(value: Any, bounds: Mapping[Any, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return all(holds(value, bounds[key]) for key, (_, holds) in BOUNDS.items() if key in bounds)


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _name(hint: Any, bounds: Mapping[Any, Any]) -> str:
    """The annotation in words, for messages."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in (int, float):
        limits = [f"{words} {bounds[key]}" for key, (words, _) in BOUNDS.items() if key in bounds]
        return " ".join([SCALARS[hint], " and ".join(limits)]).rstrip()
    if origin in (Union, UnionType):
        return " or ".join(_name(member, bounds) for member in args)
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in (dict, Mapping):
        return "a section"
    if origin is list or (origin is tuple and args[-1] is ...):
        return f"a list, each {_name(args[0], bounds)}"
    if origin is tuple:
        return f"a list of {len(args)}: {', '.join(_name(item, bounds) for item in args)}"
    if is_dataclass(hint):
        return f"a section with the keys {', '.join(f.name for f in fields(hint) if f.init)}"
    return "null" if hint is NoneType else SCALARS.get(hint, str(hint))


def _say(value: Any) -> str:
    """A value of the config in words, short."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return f"a section with the keys {', '.join(map(str, value))}" if value else "an empty section"
    text = repr(value).lower() if isinstance(value, bool) else repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"the list {text}" if isinstance(value, (list, tuple)) else text


def _mismatch(place: Place, expected: str, found: Any) -> ConfigError:
    return ConfigError(f"{place}: expected {expected}, found {_say(found)}")


def _suggest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
