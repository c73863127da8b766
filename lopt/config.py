"""Settings: frozen, typed pydantic models, read from YAML. A wrong value is one `ConfigError` that says where.

class Schedule(Settings):
    steps: Count = 100
    decay: Decay = 0.9

load(Schedule, "schedule.yaml", {"steps": 3})
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError, to_json

from lopt.errors import ConfigError

T = TypeVar("T")
S = TypeVar("S", bound="Settings")

Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of steps and the like."""
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Several = Annotated[tuple[T, ...], Strict(False)]
"""YAML has lists alone, and frozen settings hold tuples."""
Pair = Annotated[tuple[T, T], Strict(False)]

LARGEST_FILE, DEEPEST, LONGEST_NUMBER = 200_000, 24, 40
"""Bytes of a config, sections within sections, and characters of a number: far above any that people write."""

EXPECTED = {
    "missing": "a value",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a section",
    "literal_error": "one of {expected}",
    "union_tag_invalid": "a value or a list of values",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number at most {le:g}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "text",
    "string_too_long": "text of at most {max_length} characters",
}
"""What is to be said of each kind of pydantic's errors."""


class Settings(BaseModel):
    """Base of everything that configs and rule files say. Raises `ConfigError` for a value that is not allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_line(error)) from None

    # Else pydantic would call it for nested sections, too, and lose where in the whole the error stands.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise wrong(f"a section with the keys {', '.join(cls.model_fields)}", values)
        for key in values:
            if key not in cls.model_fields:
                raise unknown(key, cls.model_fields)
        return {key: _plain(value) for key, value in values.items()}

    def but(self: S, **changes: Any) -> S:
        """A copy with some values changed, checked again."""
        return type(self)(**{**dict(self), **changes})


def _plain(value: Any) -> Any:
    """What YAML has, for what a caller in Python may write in its place: numbers of numpy, ranges and paths."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, range)):
        return list(map(_plain, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def wrong(expected: str, found: Any, *keys: object, hint: str = "") -> PydanticCustomError:
    """What a validator raises: `keys` lead from its own value to the wrong one, and the hint says what to do."""
    return _problem(f"expected {expected}, found {say(found)}{hint}", *keys)


def unknown(key: object, known: Iterable[str]) -> PydanticCustomError:
    """What a validator raises for a key that is none of the known ones."""
    return _problem(f"unknown key; {suggest(str(key), known)}", key)


def suggest(name: str, known: Iterable[str]) -> str:
    """The known name that was meant, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"


def say(value: Any) -> str:
    """A value of a config in words, short."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        text = f"a section with the keys {', '.join(map(str, value))}" if value else "an empty section"
    elif isinstance(value, int) and value.bit_length() > 128:
        text = "a whole number of more than 38 digits"  # Python refuses to print thousands of digits
    else:
        text = repr(value).lower() if isinstance(value, bool) else repr(value)
    text = short(text)
    return f"the list {text}" if isinstance(value, (list, tuple)) else text


def load(
    cls: type[S],
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
) -> S:
    """Settings from a YAML file or nested dicts; `overrides` replaces values by dotted key.

    It must be complete without the overrides. Raises `ConfigError`, naming file and key ("meta.steps").
    """
    if isinstance(source, (str, os.PathLike)):
        mapping, where = read_yaml(source), str(source)
    else:
        mapping, where = source, "config"
    config = from_mapping(cls, mapping, where)
    if not overrides:
        return config
    for key, value in overrides.items():
        mapping = _replaced(mapping, key.split("."), value, f"command line: {key}")
    return from_mapping(cls, mapping, "command line")


def from_mapping(cls: type[S], mapping: object, where: str) -> S:
    """Settings from nested dicts and lists; `where` names their origin in errors."""
    try:
        return cls.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_line(error)}") from None


def check(values: Any) -> None:
    """Raise a `ConfigError` unless a (nested) dataclass holds what its annotations say."""
    try:
        meant = TypeAdapter(type(values)).validate_json(to_json(values))
    except ValidationError as error:
        raise ConfigError(_line(error)) from None
    if meant != values:  # "3" for 3: to be strict would refuse the lists that stand for tuples in `Several`
        raise ConfigError("a value of another type")


def to_mapping(config: BaseModel) -> dict[str, Any]:
    """Nested dicts, lists and scalars from which `from_mapping` makes equal settings."""
    return config.model_dump(mode="json", serialize_as_any=True)


def dump(config: BaseModel | Mapping[str, Any]) -> str:
    """The settings as YAML that `load` reads back."""
    mapping = to_mapping(config) if isinstance(config, BaseModel) else dict(config)
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


def _problem(message: str, *keys: object) -> PydanticCustomError:
    return PydanticCustomError("problem", "{message}", {"message": message, "keys": keys})


def short(value: object) -> str:
    """As one line that is safe to print, whatever a foreign file holds."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    place = ".".join(short(key) for key in (*first["loc"], *context.get("keys", ())) if str(key)[:1] != "[")
    if first["type"] in EXPECTED:
        found = "nothing" if first["type"] == "missing" else say(first["input"])
        message = f"expected {EXPECTED[first['type']].format(**context)}, found {found}"
    else:
        message = context.get("message") or str(context.get("error", first["msg"]))
    return f"{place}: {message}" if place else message


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.2 as people mean it.

    1e-3 is a number; what YAML 1.1 reads as something else than it looks like (010 is 8, 1:30 is 90, no is false), a
    key given twice, and what makes a small file large or runs anything (aliases, tags) are errors.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise _yaml_error("an alias; write out what it stands for", mark)
        if self.depth >= DEEPEST:
            raise _yaml_error(f"more than {DEEPEST} sections within each other", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind in ("map", "seq", "str", "null") and not (kind == "null" and node.value not in NULLS):
            return super().construct_object(node, deep)
        plain = PLAIN.get(kind)
        if plain is None or not isinstance(node, yaml.ScalarNode):
            raise _yaml_error(f"the tag {node.tag!r}; write plain values, or text in quotes", node.start_mark)
        if len(node.value) > LONGEST_NUMBER or not plain.fullmatch(node.value):
            shown = node.value if len(node.value) <= LONGEST_NUMBER else node.value[:LONGEST_NUMBER] + "..."
            raise _yaml_error(
                f"{shown}; write a number in decimals, true or false, or text in quotes", node.start_mark
            )
        return READ[kind](node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise _yaml_error("a key that is not text", key.start_mark)
            if key.value in seen:
                raise _yaml_error(f"key {key.value!r} given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )

NULLS = ("", "~", "null", "Null", "NULL")
PLAIN = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "float": re.compile(
        r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
}
"""What YAML 1.1 and 1.2 agree on."""
READ: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "bool": lambda text: text.lower() == "true",
}


def _yaml_error(found: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, found, mark)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file as dicts, lists and scalars. Raises `ConfigError`."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a YAML config, found no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a YAML config, found one that cannot be read: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises `ConfigError`, naming `where` and the line."""
    if len(text) > LARGEST_FILE:
        raise ConfigError(
            f"{where}: expected a config of at most {LARGEST_FILE} characters, found a longer one"
        )
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(
            f"{where}:{line} expected valid YAML, found: {error.problem or error.context}"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: expected valid YAML, found: {reason}") from None


def _replaced(node: Any, keys: Sequence[str], value: Any, place: str) -> Any:
    """A copy of nested dicts and lists with the value at `keys` replaced or added."""
    if len(keys) > DEEPEST:
        raise ConfigError(
            f"{place[:80]}: expected a dotted key of at most {DEEPEST} names, found {len(keys)}"
        )
    if not keys:
        return value
    key, *rest = keys
    if isinstance(node, Sequence) and not isinstance(node, str):
        if key not in map(str, range(len(node))):
            raise ConfigError(f"{place}: expected an index below {len(node)}, found {key!r}")
        return [_replaced(old, rest, value, place) if key == str(i) else old for i, old in enumerate(node)]
    if node is not None and not isinstance(node, Mapping):
        raise ConfigError(f"{place}: expected a section above {key!r}, found {say(node)}")
    node = node or {}
    return {**node, key: _replaced(node.get(key), rest, value, place)}
