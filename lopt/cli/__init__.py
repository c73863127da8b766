"""The command line: one module per command, each with `DESCRIPTION`, `add_arguments` and `run`."""

from lopt.cli.main import main

__all__ = ["main"]
