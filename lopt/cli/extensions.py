"""Code of others that adds metanets, directions, estimators, operations or task families, before a command runs.

It comes from the command line or from installed packages alone, never from a config: a foreign one must run nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType

from lopt.errors import ConfigError
from lopt.files import user_path

GROUP = "lopt.extensions"
"""Of entry points, each the name of a module that registers something when it is imported."""


def load_extensions(names: Iterable[str]) -> None:
    """Import what installed packages announce, then the modules and files named. Raises `ConfigError`."""
    for point in metadata.entry_points(group=GROUP):
        _load(f"extension {point.name!r} ({point.value})", point.module)
    for name in names:
        _load(f"--import {name}", name)


def import_code(name: str) -> ModuleType:
    """A module by its dotted name, as seen from the current folder, or a file by its path."""
    if not name.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    path = user_path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    sys.path.insert(0, str(path.resolve().parent))  # as if it were run: it may import its neighbours
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _load(what: str, name: str) -> None:
    try:
        import_code(name)
    except (Exception, SystemExit) as error:  # a script may end the program as it is imported
        raise ConfigError(
            f"{what}: expected code that can be imported, found {type(error).__name__}: {error}"
        ) from error
