"""Reproduce a table or a claim: `python -m benchmarks NAME ...`, one module of this package each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.runner import command
from lopt.cli.arguments import Parser
from lopt.cli.main import in_one_line
from lopt.errors import ConfigError

HERE = Path(__file__).parent

TABLES = """
Tables of trained networks. Every finished run is a line in benchmarks/results/NAME/log.jsonl, and no run is done
twice: stop it whenever you like, go on later, or share it out among processes with --only. At the end tables,
pictures and the section of benchmarks/REPORT.md are made.

  neural_graphs      FM-16 and C10-32, the tasks of the Neural Graphs paper: every metanet, tuned baselines
  families           ResNet, ViT, GPT, LSTM, autoencoder, SIREN, a table: speed-ups over tuned AdamW
  transfer           widths, depths, batch sizes and a horizon far from those of meta-training
  ablation           what the graph, the base directions, the horizons and the estimator are worth
  from_adam          what meta-training makes of plain Adam, with the graph and without; no data set needed

  python -m benchmarks neural_graphs --quick --data ~/data        minutes; writes runs/benchmarks/quick
  python -m benchmarks neural_graphs --only adam muon --data ~/data
  python -m benchmarks neural_graphs --rules runs/mine --only mine --tasks fm-16 --data ~/data
  python -m benchmarks neural_graphs --report                     from the log alone"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark by name. Raises `ConfigError` for one that isn't there."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\n{TABLES}\n\nOthers, each with its own --help:\n\n  {'  '.join(others())}")
        return 0
    name, *rest = argv
    if name in others():
        sys.argv = [f"python -m benchmarks {name}", *rest]
        code: int | None = import_module(f"benchmarks.{name}").main()
        return code or 0
    if name not in command.NAMES:
        raise ConfigError(
            f"there is no benchmark {name!r}; there are {', '.join([*command.NAMES, *others()])}"
        )
    return command.run(table_parser().parse_args(argv))


def others() -> list[str]:
    """The benchmarks that are programs of their own."""
    modules = (path.stem for path in sorted(HERE.glob("*.py")))
    return [name for name in modules if not name.startswith("_") and name not in command.NAMES]


def table_parser() -> Parser:
    """The arguments of the benchmarks that are tables of trained networks."""
    parser = Parser(
        prog="python -m benchmarks",
        description=__doc__ + TABLES,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="which benchmark")
    parser.add_argument("--tasks", metavar="TASK", nargs="+", help="only these tasks")
    parser.add_argument("--only", metavar="OPTIMIZER", nargs="+", help="only these rules and baselines")
    parser.add_argument(
        "--rules", metavar="RULE", nargs="+", default=[], help="more rules: run folders or rule files"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the data sets (default: $LOPT_DATA)")
    parser.add_argument("--quick", action="store_true", help="a small version: does it run?")
    parser.add_argument("--report", action="store_true", help="run nothing, make the report from the log")
    parser.add_argument(
        "--time",
        action="store_true",
        help="train nothing: time the steps of all that was tested, in turns, so that a busy machine slows each alike",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where log and report go (default: benchmarks; runs/benchmarks/quick)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(in_one_line(main))
