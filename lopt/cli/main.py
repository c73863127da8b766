"""The command `lopt`: parse, run, and turn what went wrong into one line and an exit code."""

from __future__ import annotations

import codecs
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TextIO

from lopt import __version__
from lopt.cli.arguments import USER_ERROR, Parser
from lopt.cli.extensions import load_extensions
from lopt.errors import LoptError, LostProcessError

COMMANDS = {
    "train": "meta-train a rule as a config says",
    "resume": "continue an interrupted training run",
    "watch": "how a training run stands, in plain text",
    "report": "a training run as one HTML page",
    "evaluate": "train test networks with a rule and print the figures",
    "compare": "learning curves of rules and tuned baselines",
    "benchmark": "reproduce a published table",
    "graph": "derive, print and verify the parameter graph of a model",
    "weights": "networks as data: make sets of them, predict from weights, edit",
    "push": "share a rule on the Hugging Face Hub",
    "data": "which data sets are there, which are missing and where to get them",
}
"""Each is a module of this package; its `DESCRIPTION` says more."""

HUNG_UP, INTERRUPTED = 128 + 1, 128 + 2

EPILOG = """examples:
  lopt data                                       what can be trained on
  lopt graph models.py:build --draw net.png       the graph of your own network
  lopt train configs/demo.yaml --meta.steps 100   meta-train a rule
  lopt compare runs/demo --task digits-mlp        learning curves beside tuned baselines

`lopt COMMAND --help` describes each command."""


def import_parser() -> Parser:
    """The parser of what stands before or behind any command."""
    parser = Parser(prog="lopt", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--import", dest="imports", metavar="CODE", action="append", default=[],
        help="a module or file.py that registers metanets, directions... of your own; may be given again",
    )  # fmt: skip
    return parser


def build_parser() -> Parser:
    """The parser of the command line with all its commands."""
    shared = [import_parser()]
    parser = Parser(
        prog="lopt",
        description="Learned optimizers for PyTorch: meta-train graph metanetworks, compare and inspect them.",
        epilog=EPILOG,
        allow_abbrev=False,
        parents=shared,
    )
    parser.add_argument("--version", action="version", version=f"lopt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        # All of them, whichever is wanted: what one needs alone (training, comparing, pictures) it imports in `run`.
        module = _module(name)
        command = commands.add_parser(
            name,
            help=summary,
            description=module.DESCRIPTION,
            allow_abbrev=False,
            parents=shared,
        )
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code. A user's mistake is 2 and one line on stderr."""
    return in_one_line(lambda: _run(sys.argv[1:] if argv is None else argv))


def in_one_line(work: Callable[[], int]) -> int:
    """What a program's `work` returns, its exit code; one that says what went wrong, in one line, where it raises."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a test or a notebook puts there may be something else
            stream.reconfigure(errors=SPELT)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return work()
    except LostProcessError as error:
        from lopt.training.ranks import leave

        leave(_fail(str(error)))
    except LoptError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of a pipe has gone; what is still buffered has nowhere to go
        _mute(sys.stdout)
        return 0
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_too_large(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error) else "it ran out"
        return _fail(f"expected sizes and counts that fit into memory, found more: {reason}; lower them")
    except KeyboardInterrupt:
        print("\nlopt: interrupted", file=sys.stderr)
        return INTERRUPTED


SPELT = "lopt-spelt"
SPELLINGS = {"±": "+-", "×": "x", "–": "-", "—": "-", "…": "...", "→": "->"} | dict(
    zip("▁▂▃▄▅▆▇█", "_.,-~=+#", strict=True)
)


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """What a console cannot show (cp1252, ascii) in characters that it can: no figure is lost for one sign."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    plain = (SPELLINGS.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in unknown)
    return "".join(plain), error.end


codecs.register_error(SPELT, _spelt)


def _is_too_large(error: Exception) -> bool:
    """Whether memory was not enough: of torch's errors only the words tell, and the command may not have loaded it."""
    words = ("can't allocate memory", "out of memory", "calculation overflowed", "multiplication overflow")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _run(argv: Sequence[str]) -> int:
    imports, argv = import_parser().parse_known_args(argv)
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not hasattr(args, "overrides"):
        parser.error(f"unknown arguments for {args.command}: {' '.join(rest)}")
    if rest:
        args.overrides = rest
    load_extensions(imports.imports)
    code = _module(args.command).run(args)
    print(end="", flush=True)  # a reader that has gone is met here; no stdout at all is none
    return code


def _module(name: str) -> Any:
    return import_module(f"lopt.cli.{name}")


def _fail(message: str) -> int:
    try:
        print(f"lopt: error: {' '.join(message.split())}", file=sys.stderr)
    except OSError:  # the terminal has been closed, which was the error, and nobody is there to be told
        _mute(sys.stdout, sys.stderr)
        return HUNG_UP
    return USER_ERROR


def _mute(*streams: TextIO) -> None:
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"lopt: warning: {' '.join(str(message).split())}", file=sys.stderr)
