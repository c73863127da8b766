"""What configs call by name: classes and functions, to which code outside lopt can add its own.

The options of a class are the parameters of its constructor: the annotation of each says what it may be.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import PydanticUserError, create_model

from lopt.config import Settings, wrong
from lopt.errors import ConfigError

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
F = TypeVar("F", bound=Callable[..., None])


class Registry(Mapping[str, T]):
    """Classes or functions of one kind by name.

    kind: what they are, in words; base: the class that classes derive from, None for functions; given: parameters of
    their constructors that no config sets; default: what a section without a name is of.
    """

    def __init__(
        self, kind: str, base: type | None = None, given: tuple[str, ...] = (), default: str | None = None
    ) -> None:
        self.kind, self.base, self.given, self.default = kind, base, given, default
        self._items: dict[str, T] = {}
        self._options: dict[str, type[Settings]] = {}

    def __getitem__(self, name: str) -> T:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def register(self, name: str) -> Callable[[C], C]:
        """A decorator that adds a class or function under a name. Raises `ConfigError` where that cannot be."""
        where = f"{self.kind} {name!r}"
        # At once: a decorator without its brackets is given the class itself, and never anything to add.
        if not (isinstance(name, str) and name.isidentifier()):
            raise ConfigError(
                f'{where}: expected a name of letters, digits and _; write it in brackets, ("mine")'
            )

        def add(item: C) -> C:
            if name in self._items:
                raise ConfigError(f"{where}: there is one already, {self._items[name]!r}; take another name")
            if not self._fits(item):
                derived = self.base and f"a class derived from {self.base.__name__}, with all its methods"
                raise ConfigError(
                    f"{where}: expected {derived or 'a function of one argument'}, found {item!r}"
                )
            if isinstance(item, type) and self.given:
                options = settings_of(item, where, self.given, name=(Literal[name], name))
                # Where pickle looks for them, which wants a rule's config whole (copies of optimizers, DDP).
                options.__module__, options.__qualname__ = item.__module__, f"{item.__qualname__}.{OPTIONS}"
                setattr(item, OPTIONS, options)
                self._options[name] = options
            self._items[name] = item  # type: ignore[assignment]
            return item

        return add

    def _fits(self, item: object) -> bool:
        if self.base is not None:
            return isinstance(item, type) and issubclass(item, self.base) and not inspect.isabstract(item)
        try:
            inspect.signature(item).bind(None)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return False
        return not isinstance(item, type)

    def options(self, name: object, *keys: object) -> type[Settings]:
        """The settings of the class of that name; raises what validators raise where there is none."""
        return self._options[self.known(name, *keys)]

    def known(self, name: object, *keys: object) -> str:
        """A name that is registered; raises what validators raise for another."""
        if isinstance(name, str) and name in self._items:
            return name
        close = difflib.get_close_matches(name, list(self), n=1) if isinstance(name, str) else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise wrong(f"one of {', '.join(self)}", name, *keys, hint=hint)

    def choose(self, value: Any) -> Settings:
        """The settings of one of the classes, out of its name or a section with its name and options.

        For pydantic's `PlainValidator`: a union told apart by `name`, of all that will ever be registered.
        """
        if isinstance(value, Settings):
            return value
        if isinstance(value, str):
            return self.options(value)()
        if not isinstance(value, Mapping):
            raise wrong(f"a name or a section with a name, one of {', '.join(self)}", value)
        return self.options(value.get("name", self.default), "name").model_validate(value)

    def make(self, settings: Any, **given: Any) -> Any:
        """An instance with the options that a config has chosen."""
        options = {key: value for key, value in settings if key != "name"}
        return self._items[settings.name](**given, **options)  # type: ignore[operator]


def settings_of(item: type, where: str, given: tuple[str, ...] = (), **more: Any) -> type[Settings]:
    """Settings with a field for each parameter of a constructor that is not given, and `more`, as pydantic has it."""
    # Of a dataclass the constructor's own annotations are names that only the modules of its bases know.
    source = item if dataclasses.is_dataclass(item) else item.__init__  # type: ignore[misc]
    try:
        hints = get_type_hints(source, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"{where}: expected annotations of names that its module knows, found: {error}"
        ) from None
    parameters = inspect.signature(item).parameters
    missing = [name for name in given if name not in parameters]
    if missing:
        raise ConfigError(
            f"{where}: expected a constructor with {', '.join(given)}, found none of the name {missing[0]}"
        )
    fields = dict(more)
    for name, parameter in parameters.items():
        if name in given:
            continue
        if name in more or name not in hints or parameter.kind in VARIADIC:
            raise ConfigError(
                f"{where}: expected options with annotations, each of a name of its own, found {parameter}"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints[name], default)
    try:
        return create_model(item.__name__, __base__=Settings, **fields)
    except PydanticUserError as error:
        raise ConfigError(f"{where}: expected options that a config can hold: {error.message}") from None


def checked(init: F) -> F:
    """A constructor that checks its arguments by their annotations. It then raises `ConfigError`."""
    names = list(inspect.signature(init).parameters)[1:]
    settings: dict[type, type[Settings]] = {}

    @functools.wraps(init)
    def checking(self: Any, *args: Any, **options: Any) -> None:
        # Not type(self): a subclass with options of its own hands these on.
        cls = next(base for base in type(self).__mro__ if vars(base).get("__init__") is checking)
        try:
            settings[cls] = settings.get(cls) or settings_of(cls, cls.__name__)
            arguments = settings[cls](**dict(zip(names, args, strict=False)), **options)
        except ConfigError as error:
            raise ConfigError(f"{cls.__name__}: {error}") from None
        init(self, **dict(arguments))

    return checking  # type: ignore[return-value]


OPTIONS = "Options"
"""The name under which a registered class holds the settings made of its constructor."""

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
