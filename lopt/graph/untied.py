"""The graph that ties nothing, for networks whose structure is not known."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import Tensor

from lopt.errors import GraphWarning
from lopt.graph.spec import AxisGroup, GraphSpec, ParameterSpec


def untied_graph(named_parameters: Iterable[tuple[str, Tensor]]) -> GraphSpec:
    """Every axis of every tensor is a fixed group of its own; kinds and roles are guessed from shapes.

    Axis 0 is taken as out, axis 1 as in, the others as taps, as in every weight of `torch.nn`; a tensor of three axes
    or more of which only one is longer than one (a gain, a token) as a vector; (1, N, D) with a wide D as a table of
    positions; and stacks (`_is_stack`) as their members. Where all tensors look like those of a stacked ensemble
    (`torch.func.stack_module_state`) they are read so, and a `GraphWarning` says it.
    """
    named = list(named_parameters)
    ensemble = _is_ensemble([tuple(tensor.shape) for _, tensor in named])
    if ensemble:
        warnings.warn(
            f"all {len(named)} parameters have {named[0][1].shape[0]} entries along their first axis: they are read as"
            " those of a stacked ensemble, each member by itself; pass a graph if they are not",
            GraphWarning,
            stacklevel=3,
        )
    parameters: dict[str, ParameterSpec] = {}
    groups: list[AxisGroup] = []
    for name, tensor in named:
        first, shape = len(groups), tuple(tensor.shape)
        groups += [
            AxisGroup(first + dim, size, "untied", False, members=((name, dim),))
            for dim, size in enumerate(shape)
        ]
        stacked = int(ensemble or _is_stack(name, shape))
        matrix = len(shape) - stacked > 1 and not _is_vector(shape)
        parameters[name] = ParameterSpec(
            name=name,
            shape=shape,
            axes=tuple(((first + dim,),) for dim in range(len(shape))),
            kind="position" if _is_table(shape) else "weight" if matrix else _kind_of_vector(name),
            roles=("tap",) * stacked + default_roles(len(shape) - stacked),
        )
    return GraphSpec(parameters, tuple(groups), {}, rung="untied")


WIDEST_KERNEL = 16
"""Taps of a one-dimensional convolution beyond which three axes are rather those of stacked matrices."""


def _is_stack(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds a matrix for each expert: (experts, out, in), where both are wide; or its name says so."""
    if len(shape) != 3 or _is_vector(shape) or _is_table(shape):
        return False
    experts, rows, columns = shape
    return "expert" in name.lower() or (
        rows > 1 and columns > WIDEST_KERNEL and min(rows, columns) >= experts
    )


def _is_table(shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds a vector for each position, (1, N, D): a kernel of one output has few taps."""
    return len(shape) > 2 and shape[0] == 1 and shape[-1] > WIDEST_KERNEL and not _is_vector(shape)


def _is_ensemble(shapes: list[tuple[int, ...]]) -> bool:
    """Whether all tensors share a first axis, with matrices and vectors behind it."""
    ranks = {len(shape) for shape in shapes}
    return {2, 3} <= ranks and 1 not in ranks and 0 not in ranks and len({shape[0] for shape in shapes}) == 1


def _kind_of_vector(name: str) -> str:
    return "bias" if name.rpartition(".")[2] == "bias" else "other"


def _is_vector(shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and sum(size > 1 for size in shape) <= 1


def default_roles(dims: int) -> tuple[str, ...]:
    """(out, in, tap, tap...), cut to `dims` axes."""
    return ("out", "in", *["tap"] * max(dims - 2, 0))[:dims]
