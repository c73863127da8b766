"""Networks of your own, of several architectures, as a `NetworkPark`.

park = collect_park("checkpoints", {"accuracy": [.91, .87, ...]}, factory=build, example=(images,))
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lopt.errors import DataError
from lopt.graph import ParameterGraph
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import (
    GRAPHS,
    TURNS,
    Network,
    NetworkSet,
    Tensors,
    listed,
    renamed,
    state_of,
    tabled,
)


@torchs_defaults()
def collect_park(
    networks: str | os.PathLike[str] | Sequence[Network],
    columns: Mapping[str, Sequence[float]] | None = None,
    factory: Callable[[Tensors], nn.Module] | None = None,
    example: tuple[Any, ...] = (),
) -> NetworkPark:
    """Networks as `collect` has them, but of any architectures: all networks with one graph have one architecture.

    factory: the model for a network's tensors, which it may go by the shapes of; without it networks must be models.
    example: inputs of all models, for their graphs. Each architecture is in one split: of ten seven for training, one
    for validation, two for testing, in the order of their first network. The column "number" says which of those given
    a network is, as they come back architecture by architecture. Raises `DataError` for what does not go together.
    """
    given = listed(networks)
    table = {**tabled(columns or {}, len(given)), "number": torch.arange(len(given))}
    found: dict[str, tuple[ParameterGraph, list[int]]] = {}
    states = [state_of(network) for network in given]
    for number, (network, state) in enumerate(zip(given, states, strict=True)):
        graph, state = _graphed(network, state, factory, example, number)
        states[number] = state
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        key = json.dumps([GRAPHS.dump_python(graph, mode="json"), sorted(shapes.items())])
        found.setdefault(key, (graph, []))[1].append(number)
    sets = []
    for place, (graph, numbers) in enumerate(found.values()):
        params = {name: torch.stack([states[n][name] for n in numbers]) for name in states[numbers[0]]}
        own: dict[str, Tensor] = {name: column[numbers] for name, column in table.items()}
        splits = torch.full((len(numbers),), TURNS[place % len(TURNS)], dtype=torch.uint8)
        sets.append(NetworkSet(params, own, splits, {}, graph).headed({}))
    return NetworkPark(tuple(sets))


def _graphed(
    network: Network,
    state: Tensors,
    factory: Callable[[Tensors], nn.Module] | None,
    example: tuple[Any, ...],
    number: int,
) -> tuple[ParameterGraph, Tensors]:
    """A network's graph, and its state with the names of it."""
    model = network if factory is None else factory(state)
    if not isinstance(model, nn.Module):
        raise DataError(
            f"networks: expected models, or a factory that makes one for the tensors of each, found "
            f"{type(model).__name__} for number {number}"
        )
    graph = ParameterGraph.trace(model, example)
    state = renamed(state, graph.parameters)
    for name, spec in graph.parameters.items():
        shape = tuple(state[name].shape) if name in state else None
        if shape != spec.shape:
            raise DataError(
                f"{name}: expected the model's shape {spec.shape}, found {shape} in number {number}"
            )
    return graph, state
