"""`lopt benchmark`: `python -m benchmarks` in a checkout of the repository."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from lopt.errors import ConfigError

DESCRIPTION = """Reproduce a published table, as `python -m benchmarks NAME ...` does, in a checkout of the
repository: the benchmarks are not in the package. Without a name: which there are, and what they take."""

CHECKOUT = Path(__file__).parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arguments",
        metavar="NAME ...",
        nargs=argparse.REMAINDER,
        help="which benchmark, and its own arguments",
    )


def run(args: argparse.Namespace) -> int:
    if not (CHECKOUT / "benchmarks" / "runner").is_dir():
        raise ConfigError(
            "lopt benchmark needs a checkout of lopt's repository, found an installed package without the folder"
            " benchmarks; clone the repository and install it with `pip install -e .`"
        )
    # First, so that no other package of that name is imported.
    sys.path.insert(0, str(CHECKOUT))
    code: int = import_module("benchmarks.__main__").main(args.arguments)
    return code
