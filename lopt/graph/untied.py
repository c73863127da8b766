"""The graph that ties nothing, for networks whose structure is not known."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from lopt.graph.spec import AxisGroup, GraphSpec, ParameterSpec


def untied_graph(named_parameters: Iterable[tuple[str, Tensor]]) -> GraphSpec:
    """Every axis of every tensor is a fixed group of its own; kinds are guessed from the shape alone.

    Axis 0 is taken as out, axis 1 as in, the others as taps, as in every weight of `torch.nn`.
    """
    parameters: dict[str, ParameterSpec] = {}
    groups: list[AxisGroup] = []
    for name, tensor in named_parameters:
        first = len(groups)
        groups += [
            AxisGroup(first + dim, size, "untied", False, members=((name, dim),))
            for dim, size in enumerate(tensor.shape)
        ]
        parameters[name] = ParameterSpec(
            name=name,
            shape=tuple(tensor.shape),
            axes=tuple(((first + dim,),) for dim in range(tensor.dim())),
            kind="weight" if tensor.dim() > 1 else "bias" if name.rpartition(".")[2] == "bias" else "other",
            roles=default_roles(tensor.dim()),
        )
    return GraphSpec(parameters, tuple(groups), {}, rung="untied")


def default_roles(dims: int) -> tuple[str, ...]:
    """(out, in, tap, tap...), cut to `dims` axes."""
    return ("out", "in", *["tap"] * max(dims - 2, 0))[:dims]
