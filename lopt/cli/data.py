"""`lopt data`: what is there, what is missing, and where it is published."""

from __future__ import annotations

import argparse
import textwrap

from lopt.errors import DataError

DESCRIPTION = """List the data sets that tasks can use: whether each is there, and if not,
which files are expected and where they are published. Nothing is downloaded."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="the data folder (default: $LOPT_DATA)")


def run(args: argparse.Namespace) -> int:
    from meta_tasks.data import catalogue
    from meta_tasks.data.sources import ROOT_VARIABLE, data_root

    folder = data_root(args.data)
    if folder and not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: expected the data folder, found {found}")
    print(f"data folder: {folder or f'none; give --data DIR or set {ROOT_VARIABLE}=DIR'}")
    for status in catalogue(args.data):
        source = status.source
        print(f"\n{source.name:16s} {'present' if status.present else 'MISSING'}  {source.title}")
        print(f"    licence  {source.licence}")
        print(_field("found" if status.present else "missing", status.where))
    return 0


def _field(name: str, text: str) -> str:
    return textwrap.fill(
        text, 110, initial_indent=f"    {name:8s} ", subsequent_indent=" " * 13, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
