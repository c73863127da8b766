"""`lopt graph`: the parameter graph of a user's model, printed, verified and drawn."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopt.cli import extensions
from lopt.cli.extensions import import_code
from lopt.errors import GraphError
from lopt.files import output_path

if TYPE_CHECKING:
    from torch import nn

DESCRIPTION = """Derive the parameter graph of a model, print it, and verify that permuting its neurons
leaves the model's function as it is. The exit code is 1 if it does not.

MODULE:FACTORY names a function without arguments, in an importable module or a .py file, that
returns (model, example_args), or (model, example_args, example_kwargs). It may also return, or
be, a model or its class, if --input gives the shape of its input.

examples:
  lopt graph models.py:build
  lopt graph models.py:Net --input 1,3,32,32 --draw net.svg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("factory", metavar="MODULE:FACTORY", help="where the model comes from")
    parser.add_argument(
        "--input",
        metavar="SHAPE",
        action="append",
        default=[],
        type=_shape,
        help="shape of a float input such as 1,3,32,32, if the factory returns no example_args; once per argument",
    )
    parser.add_argument("--draw", metavar="FILE", help="write a picture: .png, .svg or .pdf")
    parser.add_argument("--no-verify", action="store_true", help="skip the verification")


def run(args: argparse.Namespace) -> int:
    from lopt.graph import ParameterGraph

    picture = output_path(args.draw) if args.draw else None
    model, example_args, example_kwargs = _with_inputs(load(args.factory), args.factory, args.input)
    # torch logs a traceback before it raises what becomes one line here.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    graph = ParameterGraph.trace(model, example_args, example_kwargs)
    print(graph.summary())
    if picture:
        from lopt.graph.draw import draw

        draw(graph, picture, type(model).__name__)
        print(f"\npicture: {picture}")
    if args.no_verify:
        return 0
    report = graph.verify(model, example_args, example_kwargs=example_kwargs, progress=True)
    print(f"\n{report}")
    return 0 if report.ok else 1


def load(name: str) -> Any:
    """What MODULE:FACTORY is or returns. Raises `GraphError`, naming the line where the user's code failed."""
    from torch import nn

    module_name, colon, attribute = name.rpartition(":")
    if not (colon and module_name and attribute):
        raise GraphError(f"expected MODULE:FACTORY, for example models.py:build, found {name!r}")
    try:
        module = import_code(module_name)
    except (Exception, SystemExit) as error:
        raise GraphError(f"{name}: importing {module_name} failed: {_account(error)}") from None
    if not hasattr(module, attribute):
        raise GraphError(
            f"{name}: expected a function or model named {attribute!r} in {module_name}, found none"
        )
    made = getattr(module, attribute)
    if isinstance(made, nn.Module) or not callable(made):
        return made
    try:
        return made()
    except (Exception, SystemExit) as error:
        raise GraphError(f"{name}: calling {attribute}() failed: {_account(error)}") from None


def _account(error: BaseException) -> str:
    """The error in one line, with the place in the user's code that raised it."""
    machinery = (__file__, extensions.__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in machinery and not frame.filename.startswith("<frozen")
    ]
    place = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _with_inputs(
    found: Any, name: str, shapes: list[tuple[int, ...]]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """(model, example_args, example_kwargs) out of what the factory gave."""
    import torch
    from torch import nn

    model, *inputs = found if isinstance(found, tuple) else (found,)
    if not isinstance(model, nn.Module) or len(inputs) > 2:
        raise GraphError(f"{name}: expected a model or (model, example_args), found {_describe(found)}")
    if shapes:
        return model, tuple(torch.randn(shape) for shape in shapes), {}
    if not inputs:
        raise GraphError(
            f"{name}: expected (model, example_args), found a model alone; give --input, e.g. 1,3,32,32"
        )
    args, kwargs = inputs[0], (inputs[1] if len(inputs) == 2 else {})
    if not isinstance(kwargs, Mapping):
        raise GraphError(
            f"{name}: expected (model, example_args, example_kwargs), found {_describe(found)}; write"
            " (model, (x, y)) for two inputs"
        )
    return model, tuple(args) if isinstance(args, tuple | list) else (args,), dict(kwargs)


def _describe(found: Any) -> str:
    if isinstance(found, tuple):
        return f"({', '.join(type(part).__name__ for part in found)})"
    return f"{type(found).__name__}"


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected sizes such as 1,3,32,32, found {text!r}") from None
    if not all(1 <= size < 2**31 for size in shape):
        raise argparse.ArgumentTypeError(f"expected sizes from 1 to {2**31 - 1}, found {text!r}")
    return shape
