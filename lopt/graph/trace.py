"""Derive the parameter graph of a network from the operations that it runs.

The network runs once on fake tensors (shapes and dtypes without storage) under a dispatch mode that sees every
ATen operation as it executes. Of the mechanisms tried this is the one that takes most networks as they are:
`torch.export` (strict or not) rejects modules that cache tensors, mutate attributes, return objects it does not
know or read `.shape` in loops it cannot prove, and costs tens of seconds on a deep network; `make_fx` gives the
same operations but must also wrap every argument. A dispatch mode only watches, so Python control flow, hooks
and in-place updates simply happen.

Ladder: "traced" on fake tensors; "recorded" from one forward pass on the real values, where values steer the
control flow; "untied", where neither works.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from lopt.errors import GraphError, GraphWarning
from lopt.graph.spec import GraphSpec
from lopt.graph.tracing.assemble import assemble
from lopt.graph.tracing.choices import EveryChoice
from lopt.graph.tracing.interpreter import interpret
from lopt.graph.tracing.isolation import called, input_tensors, output_tensors, plain_kernels, untouched
from lopt.graph.tracing.leftovers import clear_frames, forget
from lopt.graph.tracing.tape import Tape, recording
from lopt.graph.tracing.values import Knowledge
from lopt.graph.tracing.world import World
from lopt.graph.untied import untied_graph


class _CannotRecordError(Exception):
    """The forward pass would change the model's parameters."""


def trace(
    model: nn.Module, example_args: tuple[Any, ...], example_kwargs: Mapping[str, Any] | None = None
) -> GraphSpec:
    """Derive the graph of `model` from its operations on the example inputs; the model is left unchanged.

    Warns once (`GraphWarning`) where axes had to be left untied, naming the operations and parameters.
    Raises `GraphError` for a model without parameters, with sparse, uninitialised or trained complex ones, one
    without Python code (`torch.jit`, `DataParallel`), or one that fails on the example inputs, and inside a
    transform of `torch.func`.
    """
    if inside_transform():
        raise GraphError(
            "expected a trace outside of torch.func's transforms, found one inside grad, vmap or alike"
        )
    check_model(model)
    check_inputs(example_args, example_kwargs)
    kwargs = dict(example_kwargs or {})
    try:
        tape = _run_fake(model, example_args, kwargs)
    except GraphError:
        raise
    except Exception as fake_error:
        return _without_fakes(model, example_args, kwargs, fake_error)
    return _graph(model, tape, "traced", None)


def _without_fakes(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], fake_error: Exception
) -> GraphSpec:
    """The lower rungs of the ladder."""
    why = f"tracing without values failed ({_last_line(fake_error)})"
    if any(t.is_meta for t in [*model.parameters(), *model.buffers(), *input_tensors((args, kwargs))]):
        if type(fake_error).__name__ not in _NEEDS_VALUES:
            raise _does_not_fit(model, fake_error) from fake_error
        return _untied(model, f"{why}, and there are no values on the meta device")
    try:
        tape = _run_real(model, args, kwargs, record=True)
    except Exception as record_error:
        try:
            _run_real(model, args, kwargs, record=False)
        except _CannotRecordError:
            pass
        except Exception as own_error:
            raise _does_not_fit(model, own_error) from own_error
        return _untied(model, f"{why}, and so did recording a forward pass ({_last_line(record_error)})")
    return _graph(
        model, tape, "recorded", f"{why}; its structure was read from one forward pass on the example inputs"
    )


_NEEDS_VALUES = {
    "DataDependentOutputException", "DynamicOutputShapeException", "UnsupportedOperatorException",
    "UnsupportedFakeTensorException", "GuardOnDataDependentSymNode", "UnsupportedMutationAliasingException",
    "NotImplementedError",
}  # fmt: skip
"""Errors of which fake tensors are at fault, not the model: by name, since PyTorch moves the classes about."""


def _graph(model: nn.Module, tape: Tape, rung: str, remark: str | None) -> GraphSpec:
    if not tape.outputs:
        raise GraphError(
            f"expected tensors in what {type(model).__name__} returns, found none: without outputs nothing is known of"
            " what its parameters do"
        )
    kinds = {name: "parameter" if p.is_floating_point() else "fixed" for name, p in model.named_parameters()}
    kinds.update({name: "buffer" for name, _ in model.named_buffers()})
    interpreter = interpret(tape, kinds)
    remarks = [*filter(None, [remark]), *_remarks(interpreter.know)]
    if remarks:
        # The level of whoever called `ParameterGraph.trace`: a remark comes by way of `_without_fakes`.
        warnings.warn("; ".join(remarks), GraphWarning, stacklevel=5 if remark else 4)
    return assemble(interpreter, aliases(model), rung)


def _remarks(know: Knowledge) -> Iterator[str]:
    """What users should know of operations that nothing could be said of."""
    for op, error in sorted(know.failed.items()):
        yield f"the rule for the operation {op} has a mistake ({error}): what it touches stays in place"
    unknown = {op: names for op, names in know.unknown.items() if names and op not in know.failed}
    if unknown:
        parts = [f"{op} (parameters {_listed(sorted(names))})" for op, names in sorted(unknown.items())]
        yield f"no rule for the operation {'; '.join(parts)}: the axes that it touches stay in place"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _untied(model: nn.Module, why: str) -> GraphSpec:
    listed = _listed([name for name, _ in model.named_parameters()])
    message = f"the axes of all parameters ({listed}) of {type(model).__name__} stay untied: {why}"
    warnings.warn(message, GraphWarning, stacklevel=5)
    return untied_graph(model.named_parameters())


# -- what is accepted --------------------------------------------------------------------------------------------


def check_model(model: nn.Module) -> None:
    """Raise `GraphError` if no graph can be made of the model's parameters."""
    check_code(model)
    parameters = dict(model.named_parameters())
    if not parameters:
        raise GraphError(
            f"expected a model with parameters, found none in {type(model).__name__}: nothing to optimize"
        )
    for name, p in parameters.items():
        fault = _unsuitable(p)
        if fault:
            raise GraphError(f"expected dense real floating-point parameters, found {name} which is {fault}")
    fsdp = sys.modules.get("torch.distributed.fsdp")  # imported by whoever has sharded anything
    if fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules()):
        raise GraphError(
            f"expected whole parameters, found those of {type(model).__name__} sharded by fully_shard: make the graph"
            " before, with ParameterGraph.trace, and pass it to the optimizer"
        )


def check_code(model: nn.Module) -> None:
    """Raise `GraphError` for a model whose forward pass is not Python code of its own, telling what to pass."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise GraphError(f"expected a torch.nn.Module, found {kind}: pass the model itself")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise GraphError(f"expected the network itself, found it wrapped in {kind}: pass model.module")
    scripted = next(
        (name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)), None
    )
    if scripted is not None:
        raise GraphError(
            f"expected a network of Python code, found {scripted or 'the network itself'} ({kind}) compiled by"
            " torch.jit: pass the module that it was made from, or train without a graph, which works"
        )


def _unsuitable(p: Tensor) -> str | None:
    if isinstance(p, nn.parameter.UninitializedParameter):
        return "not initialised yet: run one forward pass through the lazy module first, or use trace_on_first_forward"
    if p.layout is not torch.strided:
        return f"sparse ({p.layout}): store it densely, with sparse=False"
    if p.is_complex() and p.requires_grad:
        return (
            f"complex ({p.dtype}) and trained: store its real and imaginary parts as one real parameter and join them"
            " in the forward pass with torch.view_as_complex, or freeze it"
        )
    return None


def inside_transform() -> bool:
    """Whether a transform of `torch.func` is at work: fake tensors made inside of one outlive it, and crash Python."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def check_inputs(example_args: Any, example_kwargs: Any) -> None:
    """Raise `GraphError` unless the example inputs are a tuple of positional arguments, and a mapping of named ones."""
    if not isinstance(example_args, tuple):
        found = type(example_args).__name__
        hint = "them after () if they have names" if isinstance(example_args, Mapping) else "(x,) for x"
        raise GraphError(
            f"expected example inputs as a tuple of positional arguments, found {found}: write {hint}"
        )
    if not isinstance(example_kwargs, Mapping | None):
        found = type(example_kwargs).__name__
        raise GraphError(f"expected named example inputs as a dict, found {found}: write {{'x': x}} for x=x")


def _does_not_fit(model: nn.Module, error: Exception) -> GraphError:
    return GraphError(
        f"expected example inputs that {type(model).__name__} accepts, but its forward pass raised "
        f"{_last_line(error)}{_place(error)}: check the number, shapes and dtypes of the example inputs"
    )


def _last_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _place(error: Exception) -> str:
    """Where in code outside of PyTorch and this package the model failed."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if "/torch/" not in f.filename and "/lopt/graph/" not in f.filename]
    return f" (in {outside[-1].name}: {outside[-1].line})" if outside else ""


# -- running the model -------------------------------------------------------------------------------------------


def aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each tied parameter -> its further names."""
    first = {id(p): name for name, p in model.named_parameters()}
    further: dict[str, tuple[str, ...]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if first[id(p)] != name:
            further[first[id(p)]] = (*further.get(first[id(p)], ()), name)
    return further


def _run_fake(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tape:
    tape = Tape()
    try:
        with untouched(model, World(model, args, kwargs)), plain_kernels(), _quiet():
            _record_fake(model, tape, args, kwargs)
    except Exception as error:
        clear_frames(error)
        raise
    finally:
        # After `untouched` has put back what it knows of: what still holds a fake tensor now was out of its reach.
        forget(tape.release())
    return tape


def _record_fake(model: nn.Module, tape: Tape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # Real tensors may turn up: constants that the forward pass makes of lists, or keeps in closures.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    stand_ins = {name: _fake(mode, t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    real = input_tensors((args, kwargs))
    fakes = {id(t): _fake(mode, t) for t in real}
    args, kwargs = tree_map(lambda x: fakes.get(id(x), x) if isinstance(x, Tensor) else x, (args, kwargs))
    with mode, EveryChoice(), recording(tape):
        _call(model, tape, stand_ins, args, kwargs, [*fakes.values(), *real])


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A tensor without storage, one on the meta device taken to be on the CPU, with the attributes of the real one."""
    fake = _without_storage(mode, tensor)
    vars(fake).update({**vars(tensor), **vars(fake)})
    return fake


def _without_storage(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    if not tensor.is_meta:
        return mode.from_tensor(tensor, static_shapes=True)
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake


def _run_real(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], record: bool) -> Tape:
    """One forward pass on the real values, with copies of the buffers and inputs only."""
    parameters = dict(model.named_parameters())
    # By storage, since a view of a parameter may be written to; copies of them could be more than fits in memory.
    storages = {p.untyped_storage().data_ptr() for p in parameters.values()}

    def refuse(written: list[Tensor]) -> None:
        if any(t.untyped_storage().data_ptr() in storages for t in written):
            raise _CannotRecordError("the forward pass writes to its parameters in place")

    stand_ins = {**parameters, **{name: b.clone() for name, b in model.named_buffers()}}
    tape, world = Tape(real=True), World(model, args, kwargs)
    args, kwargs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
    with (
        untouched(model, world),
        plain_kernels(),
        _quiet(),
        torch.no_grad(),
        recording(tape, refuse, not record),
    ):
        if record:
            _call(model, tape, stand_ins, args, kwargs, input_tensors((args, kwargs)))
        else:
            called(model, stand_ins, args, kwargs)
    tape.release()
    return tape


def _call(
    model: nn.Module, tape: Tape, stand_ins: dict[str, Tensor], args: Any, kwargs: Any, inputs: list[Tensor]
) -> None:
    for name, tensor in stand_ins.items():
        tape.names[tape.ref(tensor).index] = name
    tape.inputs.update(tape.ref(t).index for t in inputs)
    output = called(model, stand_ins, args, kwargs)
    tape.outputs = [tape.ref(t).index for t in output_tensors(output)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The model's own warnings are for its own runs, and what fake tensors cannot do shows in the rung."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
