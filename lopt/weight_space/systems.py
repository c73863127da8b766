"""Readers by name: the metanets of the papers, and what they must beat.

    reader = make_reader("ng_t", networks, outputs=10, probes=64)

With `+64` in tables, a metanet also has 64 learned probes of every neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.readers import FlatMlp, MetanetReader, ProbeInputs, ProbeReader, Reader, StatNn
from lopt.weight_space.sirens import SirenShape, grid

Options = Callable[[SirenShape], dict[str, Any]]

METANET_READERS: dict[str, tuple[str, Options]] = {
    "ng_gnn": ("ng_gnn", lambda shape: {"width": 16, "layers": 2}),
    "ng_t": ("ng_t", lambda shape: {"node_width": 32, "edge_width": 8, "attention_width": 16, "layers": 2}),
    "nfn_np": ("nfn", lambda shape: {"width": 16, "layers": 3, "depth": len(shape.names)}),
    "nfn_hnp": ("nfn", lambda shape: {"width": 12, "layers": 3, "symmetry": "hnp", **_chain(shape)}),
    "dwsnet": ("dwsnet", lambda shape: {"width": 12, "layers": 4, **_chain(shape)}),
    "gmn": ("gmn", lambda shape: {"width": 16, "layers": 2}),
    "deepsets": ("deepsets", lambda shape: {"width": 32, "layers": 3}),
}
"""The metanet, and its options for networks of a shape."""

PROBED = ("ng_gnn", "ng_t")
"""Metanets that can read probes."""

NAMES = (*METANET_READERS, "flat_mlp", "statnn", "probes", "probegen", "pixels")


def make_reader(name: str, networks: NetworkSet, outputs: int, probes: int = 0, size: int = 28) -> Reader:
    """A fresh reader of SIRENs such as these, which set its scales.

    probes: learned inputs whose answers it reads, 64 for "probes" and "probegen" if it isn't said; size: of each
    axis of the grid of given inputs that "pixels" has. Raises `ConfigError` for an unknown name, or probes for a
    reader that has no place for them.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no reader {name!r}; there are {', '.join(NAMES)}")
    if probes and name not in (*PROBED, "probes", "probegen"):
        raise ConfigError(f"reader {name}: expected no probes, found {probes}; {', '.join(PROBED)} read them")
    shape = SirenShape(**networks.header["architecture"])
    if name == "flat_mlp":
        return FlatMlp(networks, outputs)
    if name == "statnn":
        return StatNn(networks, outputs)
    model, reads = shape.build(), shape.sizes[-1]
    if name in METANET_READERS:
        metanet, options = METANET_READERS[name]
        inputs = _scattered(probes, shape) if probes else None
        graph = graph_of(model, shape)
        return MetanetReader(model, graph, networks, outputs, metanet, options(shape), inputs=inputs)
    if name == "pixels":
        return ProbeReader(model, ProbeInputs(grid(*[size] * shape.sizes[0]), "given"), reads, outputs)
    inputs = _scattered(probes or 64, shape, generated=name == "probegen")
    return ProbeReader(model, inputs, reads, outputs)


def graph_of(model: nn.Module, shape: SirenShape) -> ParameterGraph:
    """Of a SIREN."""
    return ParameterGraph.trace(model, (torch.zeros(2, shape.sizes[0]),))


def _scattered(count: int, shape: SirenShape, generated: bool = False) -> ProbeInputs:
    return ProbeInputs(2 * torch.rand(count, shape.sizes[0]) - 1, "generated" if generated else "learned")


def _chain(shape: SirenShape) -> dict[str, Any]:
    return {"depth": len(shape.names), "ends": (shape.sizes[0], shape.sizes[-1])}
