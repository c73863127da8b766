"""`lopt report`: a training run as one HTML page."""

from __future__ import annotations

import argparse

DESCRIPTION = """Write a training run as one HTML page: learning curves, validation by task, step sizes by class of
tensor, where the time goes, what went wrong, the config, and how the rule was made. The page holds all
that it shows, so it can be mailed; a run in progress can be looked at as well as one that has ended.

examples:
  lopt report runs/demo
  lopt report runs/demo --out demo.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--out", metavar="FILE", help="the page (default: RUN/report.html)")


def run(args: argparse.Namespace) -> int:
    from lopt import config as configs
    from lopt.files import output_path, write_atomically
    from lopt.rules.io import RULE, provenance_of
    from lopt.runs.history import CONFIG_FILE, History, files_of, run_folder
    from lopt.runs.page import page
    from lopt.training.run_config import RunConfig

    folder = run_folder(args.run)
    config = configs.load(RunConfig, folder / CONFIG_FILE, {})
    made = provenance_of(folder / RULE) if (folder / RULE).is_file() else None
    out = output_path(args.out or folder / "report.html", *files_of(folder))
    text = page(config.name, config.meta.steps, History.read(folder), configs.dump(config), made)
    write_atomically(out, text.encode())
    print(f"report: {out}")
    return 0
