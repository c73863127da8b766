"""Trained readers and editors as one safetensors file each: their tensors, and what they are built from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, ValidationError
from torch import nn

from lopt import files
from lopt.config import Settings, Several
from lopt.errors import ConfigError, RuleFileError
from lopt.graph import ParameterGraph
from lopt.runs.provenance import provenance
from lopt.weight_space import network_park, network_set
from lopt.weight_space.network_set import GRAPH, GRAPHS, Network, NetworkSet, Tensors, renamed, state_of

FORMAT, VERSION = "lopt-reader", 1
LARGEST = 100_000_000
"""Scalars of a network that is read."""

Module = TypeVar("Module", bound=nn.Module)


class Description(Settings):
    """What a reader or an editor is built from, and for which networks."""

    kind: Literal["predictor", "editor"]
    target: str
    """The column that is predicted, or the name of the edit."""
    reader: str
    probes: Annotated[int, Field(ge=0, le=4096)] = 0
    copies: Annotated[int, Field(ge=1, le=64)] = 1
    steps: Annotated[int, Field(ge=0, le=4096)] = 0
    pixels: Several[Annotated[int, Field(ge=1, le=4096)]] = ()
    """Height and width of the image that steps look at."""
    many: bool = False
    """Whether it reads networks of any architecture; shapes and architecture are then of one that it was trained on."""
    shapes: dict[str, Several[Annotated[int, Field(ge=0)]]]
    """Of the parameters of a network, in their order."""
    architecture: dict[str, Any] = Field(default_factory=dict)
    """Of networks that lopt has the code of; others may have a graph."""
    card: dict[str, Any] = Field(default_factory=dict)
    """What it was trained and tested on."""

    def like(self, graph: ParameterGraph | None) -> NetworkSet:
        """A set of such networks, all zeros, to build on. Raises `ConfigError` for networks beyond all measure."""
        total = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        if not 0 < total <= LARGEST:
            raise ConfigError(f"shapes: expected 1 to {LARGEST:,} scalars in a network, found {total:,}")
        params = {name: torch.zeros(2, *shape) for name, shape in self.shapes.items()}
        header = {"architecture": self.architecture}
        return NetworkSet(params, {}, torch.zeros(2, dtype=torch.uint8), header, graph)

    def state_of(self, network: Network, number: int = 0) -> Tensors:
        """The tensors of a network. Raises `ConfigError`, in one line, if it is none of those that are read."""
        state = renamed(state_of(network), self.shapes)
        name = network if isinstance(network, str | os.PathLike) else f"network {number}"
        if isinstance(network, str | os.PathLike) and _holds_many(files.user_path(network)):
            raise ConfigError(
                f"{name}: expected the tensors of one network, which this {self.kind} is for; found a file of many:"
                " write the state dict of each to a file of its own"
            )
        for parameter, shape in self.shapes.items():
            if parameter not in state:
                raise ConfigError(
                    f"{name}: expected the tensors {', '.join(self.shapes)}, which this {self.kind} is for; "
                    f"found none named {parameter}"
                )
            found = tuple(state[parameter].shape)
            if found != shape:
                raise ConfigError(
                    f"{name}: expected {parameter} with the shape {shape}, which this {self.kind} is for; "
                    f"found {found}"
                )
            if not state[parameter].isfinite().all():
                raise ConfigError(f"{name}: expected finite numbers in {parameter}, found others")
        for parameter in state:
            if parameter not in self.shapes:
                raise ConfigError(
                    f"{name}: expected the tensors {', '.join(self.shapes)}, which this {self.kind} is for; "
                    f"found {parameter} beside them"
                )
        return state


def _holds_many(path: Path) -> bool:
    return any(files.is_of(path, kind) for kind in (network_set.FORMAT, network_park.FORMAT))


def write(
    path: str | os.PathLike[str], module: nn.Module, description: Description, graph: ParameterGraph | None
) -> None:
    """Write a file, atomically."""
    header: dict[str, Any] = {
        "version": VERSION,
        "described": description.model_dump(mode="json"),
        "provenance": provenance(),
    }
    if graph is not None:
        header[GRAPH] = GRAPHS.dump_python(graph, mode="json")
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    files.write(path, tensors, FORMAT, header)


def read(
    path: Path, kind: Literal["predictor", "editor"]
) -> tuple[Tensors, Description, ParameterGraph | None]:
    """What `write` wrote. Raises `RuleFileError` for a file that is missing, damaged or of another kind."""
    if not path.is_file():
        raise RuleFileError(
            f"{path}: expected a trained {kind}, found no file; `lopt weights train` makes one"
        )
    tensors, header = files.read(path, FORMAT, VERSION)
    try:
        description = Description(**_mapping(header.get("described")))
        graph = GRAPHS.validate_python(header[GRAPH]) if GRAPH in header else None
    except (ConfigError, ValidationError) as error:
        reason = str(error).split("\n")[0]
        raise RuleFileError(f"{path}: this file describes nothing that can be built: {reason}") from None
    if description.kind != kind:
        raise RuleFileError(f"{path}: expected a trained {kind}, found one of the kind {description.kind}")
    return tensors, description, graph


def filled(path: Path, module: Module, tensors: Tensors) -> Module:
    """The module with the tensors of a file, in evaluation mode. Raises `RuleFileError` if they do not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RuleFileError(f"{path}: its tensors are not those that it describes: {reason:.200}") from None
    return module.eval()


def _mapping(value: object) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}
