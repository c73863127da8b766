"""What command lines are parsed with."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

USER_ERROR = 2


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the lines of its description, and whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"lopt: error: {message} (see `{self.prog} --help`)\n")


MOST = 1_000_000
"""As high as counts in a config go: more networks or steps than that would never be done."""


def positive(text: str) -> int:
    """A whole number from 1 to `MOST`."""
    if not text.isdecimal() or len(text) > len(str(MOST)) or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MOST}, found {text!r:.60}")
    return int(text)


def hours(text: str) -> float:
    """A finite number above 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of hours above 0, found {text!r}")
    return found
