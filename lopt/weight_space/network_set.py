"""Many trained networks of one architecture as data: their weights, and what is known of each.

networks = load("mnist.safetensors")
networks.split("train").columns["label"]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lopt import files
from lopt.errors import DataError, RuleFileError
from lopt.graph import ParameterGraph
from lopt.numerics.defaults import torchs_defaults
from lopt.optim.matching import unwrapped

Tensors = dict[str, Tensor]

FORMAT, VERSION = "lopt-networks", 1
SPLITS = ("train", "validation", "test")
PARAMETER = "parameter:"
"""Before the names of parameters in a file; columns have their own."""


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no one truth, and are no line to read
class NetworkSet:
    """N networks."""

    params: Tensors
    """(N, *shape) of every parameter."""
    columns: Tensors
    """(N) each: "label", "seed", "image", "psnr", "accuracy"..., whatever is known of them."""
    splits: Tensor
    """(N) index in `SPLITS`. Networks that share their data are in one split."""
    header: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able: the architecture, how they were made, and where they come from."""
    graph: ParameterGraph | None = None
    """Of all of them, for networks of your own; lopt has the code of those that it made."""

    def __len__(self) -> int:
        return len(self.splits)

    def __repr__(self) -> str:
        scalars = sum(value.shape[1:].numel() for value in self.params.values())
        return f"NetworkSet({told_of(self.splits, self.columns)}; {scalars:,} scalars each)"

    def select(self, index: Tensor) -> NetworkSet:
        """Those that an index or a mask chooses."""
        params = {name: value[index] for name, value in self.params.items()}
        columns = {name: value[index] for name, value in self.columns.items()}
        return replace(self, params=params, columns=columns, splits=self.splits[index])

    def split(self, name: str) -> NetworkSet:
        """Those of one of the `SPLITS`. Raises `DataError` if there are none."""
        return self.select(in_split(self.splits, name))

    def joined(self, other: NetworkSet) -> NetworkSet:
        """These and then the others, of which the same is known. Raises `DataError` for those of another kind."""
        for what, own, found in (
            ("params", self.params, other.params),
            ("columns", self.columns, other.columns),
        ):
            if (expected := shapes_of(own)) != (there := shapes_of(found)):
                raise DataError(f"{what}: expected those of the first networks, {expected}, found {there}")
        params = {name: torch.cat([value, other.params[name]]) for name, value in self.params.items()}
        columns = {name: torch.cat([value, other.columns[name]]) for name, value in self.columns.items()}
        return replace(self, params=params, columns=columns, splits=torch.cat([self.splits, other.splits]))

    def states(self) -> list[Tensors]:
        """The tensors of each network."""
        return [{name: value[n] for name, value in self.params.items()} for n in range(len(self))]

    def headed(self, header: Mapping[str, Any]) -> NetworkSet:
        """The same with another header, tensors in the order in which a file has them: readers are drawn by it."""
        return replace(self, params=dict(sorted(self.params.items())), header=header)

    def batch(self, index: Tensor) -> Tensors:
        """The parameters of those that an index chooses, for a reader."""
        return {name: value[index] for name, value in self.params.items()}

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """(N): all in a random order."""
        return torch.randperm(len(self), generator=generator)

    @cached_property
    def finite(self) -> Tensor:
        """(N): whether all weights are."""
        return torch.stack([rows_of(value).isfinite().all(1) for value in self.params.values()]).all(0)

    def tensors(self) -> Tensors:
        """Of a file."""
        params = {PARAMETER + name: value for name, value in self.params.items()}
        return {**params, **self.columns, "split": self.splits}

    def told(self) -> dict[str, Any]:
        """What a file's header says of the graph."""
        return {} if self.graph is None else {GRAPH: GRAPHS.dump_python(self.graph, mode="json")}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        files.write(path, self.tensors(), FORMAT, {**self.header, **self.told(), "version": VERSION})


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Of what each network has of tensors (N, *shape)."""
    return {name: tuple(value.shape[1:]) for name, value in tensors.items()}


def rows_of(tensor: Tensor) -> Tensor:
    """(N, *shape) -> (N, n): what each network has in a row, also of one number each."""
    return tensor[:, None].flatten(1)


def told_of(splits: Tensor, columns: Tensors) -> str:
    """How many networks there are, in which splits, and what is known of them."""
    counts = [f"{int((splits == number).sum())} {name}" for number, name in enumerate(SPLITS)]
    return f"{len(splits)} networks, {', '.join(counts)}; columns: {', '.join(columns) or 'none'}"


def in_split(splits: Tensor, name: str) -> Tensor:
    """(N): which networks are in one of the `SPLITS`, by the split of each. Raises `DataError` if none are."""
    if name not in SPLITS:
        raise DataError(f"networks: expected a split out of {', '.join(SPLITS)}, found {name!r}")
    chosen = splits == SPLITS.index(name)
    if not chosen.any():
        raise DataError(
            f"networks: expected some of the split {name!r}, found none among {len(splits)}; take more: `collect` gives"
            " all splits from ten groups on, `lopt weights make` from sixteen networks (or architectures)"
        )
    return chosen


Network: TypeAlias = "Mapping[str, Tensor] | nn.Module | str | os.PathLike[str]"
"""A state dict, a model, or a file of either."""


@torchs_defaults()
def collect(
    networks: str | os.PathLike[str] | Sequence[Network],
    columns: Mapping[str, Sequence[float]] | None = None,
    groups: Sequence[object] | Tensor | None = None,
    factory: Callable[[], nn.Module] | None = None,
    example: tuple[Any, ...] | None = None,
) -> NetworkSet:
    """Networks of your own as a set: models, state dicts, or files of these (safetensors, or what torch.save wrote).

    A folder stands for its files in the order of their names. example: inputs of the network, for its graph, which all
    metanets read by; it is traced on `factory()`, or on the first of the networks if this is a model.

    columns: what is known of each, such as {"accuracy": [.91, .87, ...]}. groups: which networks belong together, such
    as the run that a checkpoint is of: each group is in one split, of ten groups seven for training, one for
    validation, two for testing, in the order of their first network. All must have the same parameters, but for what
    wrappers such as DataParallel and torch.compile insert into names; buffers that are no floating-point numbers are
    left out. Raises `DataError` for networks that do not go together.
    """
    networks = listed(networks)
    states = [state_of(network) for network in networks]
    graph = None if example is None else _traced(factory, networks[0], example)
    states = [renamed(state, states[0] if graph is None else graph.parameters) for state in states]
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise DataError(
                f"networks: expected all as the first, {shapes[0]}, found number {number} with {shape}; "
                "`park_collecting.collect_park` takes several architectures"
            )
    own = list(range(len(states))) if groups is None else _hashable(groups)
    table = tabled(columns or {}, len(states))
    if len(own) != len(states):
        raise DataError(f"groups: expected one for each of {len(states)} networks, found {len(own)}")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(own))}
    splits = torch.tensor([TURNS[numbers[group] % len(TURNS)] for group in own], dtype=torch.uint8)
    params = {name: torch.stack([state[name] for state in states]) for name in shapes[0]}
    for name, spec in graph.parameters.items() if graph is not None else ():
        found = shapes[0].get(name)
        if found != spec.shape:
            raise DataError(f"{name}: expected the model's shape {spec.shape}, found {found} in the networks")
    return NetworkSet(params, table, splits, graph=graph)


def _hashable(groups: Sequence[object] | Tensor) -> list[object]:
    """Groups that are equal where they look so: two tensors of one number are not. Raises `DataError` for others."""
    if isinstance(groups, Tensor):
        groups = groups.tolist()
    groups = [group.item() if isinstance(group, Tensor) and not group.dim() else group for group in groups]
    for group in groups:
        if isinstance(group, Tensor) or not isinstance(group, Hashable):
            raise DataError(f"groups: expected numbers or names, found {type(group).__name__}")
    return groups


def listed(networks: str | os.PathLike[str] | Sequence[Network]) -> Sequence[Network]:
    """Networks, or the files of a folder that may be some, in the order of their names. Raises `DataError` for none."""
    if isinstance(networks, str | os.PathLike):
        folder = files.user_path(networks)
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of networks, found none; write [path] for one file")
        networks = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
        if not networks:
            raise DataError(f"{folder}: expected files of networks ({', '.join(SUFFIXES)}), found none")
    if isinstance(networks, nn.Module | Mapping):
        raise DataError("networks: expected several, found one; write [network] for a set of it alone")
    if not networks:
        raise DataError("networks: expected one or more, found none")
    return networks


def tabled(columns: Mapping[str, Sequence[float]], count: int) -> Tensors:
    """What is known of so many networks, as tensors. Raises `DataError` for a column that is none."""
    table = {name: _column(name, values) for name, values in columns.items()}
    for name, value in table.items():
        if len(value) != count:
            raise DataError(f"{name}: expected one for each of {count} networks, found {len(value)}")
    return table


def _column(name: str, values: Any) -> Tensor:
    if name == "split" or name.startswith(PARAMETER):
        raise DataError(f"{name}: expected another name for a column, which files of networks use themselves")
    if hasattr(values, "__array__") and not isinstance(values, Tensor):
        values = np.array(values)  # torch takes neither a reversed array nor a filtered column of pandas
    try:
        column = torch.as_tensor(values).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError):
        column = torch.empty(0, 0)
    if column.dim() != 1 or column.is_complex():
        raise DataError(f"{name}: expected one number for each network, found others")
    return column


def _traced(
    factory: Callable[[], nn.Module] | None, first: object, example: tuple[Any, ...]
) -> ParameterGraph:
    model = first if factory is None else factory()
    if not isinstance(model, nn.Module):
        raise DataError("networks: expected a factory of the model, or models, beside the example inputs")
    return ParameterGraph.trace(model, example)


SUFFIXES = (".safetensors", ".pt", ".pth")
GRAPH, GRAPHS = "graph", TypeAdapter(ParameterGraph)
TURNS = (0, 0, 0, 2, 0, 0, 0, 0, 1, 2)
"""Split of each of ten groups of `collect`."""


def state_of(network: Network) -> Tensors:
    """The floating-point tensors of a model, a state dict or a file. Raises `DataError` for another file."""
    place = network if isinstance(network, str | os.PathLike) else "networks"
    if isinstance(network, str | os.PathLike):
        network = files.user_path(network)
        try:
            network = loaded(network)
        except (OSError, SafetensorError) as error:
            raise _no_network(place, str(error).strip().split("\n")[0]) from None
        except Exception:
            # A damaged pickle raises anything, and torch's own words advise to run whatever is in the file.
            raise _no_network(place, "a file that torch.load does not read with weights_only=True") from None
    state = network.state_dict() if isinstance(network, nn.Module) else network
    if not isinstance(state, Mapping):
        raise _no_network(place, type(state).__name__)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise _no_network(place, f"{type(value).__name__} at {name!r}")
        if value.is_meta or value.layout is not torch.strided:
            raise _no_network(place, f"a tensor without values or a sparse one at {name!r}")
    return {name: value.detach().float() for name, value in state.items() if value.is_floating_point()}


def renamed(state: Tensors, wanted: Collection[str]) -> Tensors:
    """With the names that are wanted, where these differ by what wrappers insert, such as DataParallel's "module."."""
    if all(name in state for name in wanted):
        return state
    plain = {unwrapped(name): name for name in wanted}
    return {plain.get(bare := unwrapped(name), bare): value for name, value in state.items()}


def loaded(path: Path) -> Any:
    """What a safetensors file holds, or one of torch.load, of which nothing is run. Raises what they raise."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _no_network(place: object, found: str) -> DataError:
    return DataError(
        f"{place}: expected a file of a network's tensors, found {found}; save model.state_dict() alone"
    )


def load(path: str | os.PathLike[str]) -> NetworkSet:
    """What `NetworkSet.save` wrote. Raises `DataError` if it isn't there, `RuleFileError` if it is damaged."""
    path = files.user_path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a file of networks, found none; `lopt weights make` makes one")
    tensors, header = files.read(path, FORMAT, VERSION)
    params = {n.removeprefix(PARAMETER): v for n, v in tensors.items() if n.startswith(PARAMETER)}
    columns = {n: v for n, v in tensors.items() if not n.startswith(PARAMETER) and n != "split"}
    try:
        graph = GRAPHS.validate_python(header.pop(GRAPH)) if GRAPH in header else None
    except ValidationError:
        raise RuleFileError(f"{path}: the graph of these networks is damaged") from None
    return NetworkSet(params, columns, tensors["split"], header, graph)
