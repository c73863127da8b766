"""Readers by name: the metanets of the papers, and what they must beat.

    reader = make_reader("ng_t", networks, outputs=10, probes=64)

With `+64` in tables, a metanet stands beside a reader of the outputs' answers to 64 probes, generated points or learned
images; one in `PROBED` is also told every neuron's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.metanets.published.chain import chain_of
from lopt.metanets.published.wiring import SLOTS
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space.architecture import Architecture, architecture_of
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.readers import (
    ConvHead,
    FlatMlp,
    MetanetReader,
    ProbeInputs,
    ProbeReader,
    Reader,
    StatNn,
)
from lopt.weight_space.scale_gmn import ScaleGmn
from lopt.weight_space.signals import Signals
from lopt.weight_space.sirens import Siren, grid

Options = Callable[[ParameterGraph], dict[str, Any]]

METANET_READERS: dict[str, tuple[str, Options]] = {
    "ng_gnn": ("ng_gnn", lambda graph: {"width": 16, "layers": 2}),
    "ng_t": ("ng_t", lambda graph: {"node_width": 32, "edge_width": 8, "attention_width": 16, "layers": 2}),
    "nfn_np": ("nfn", lambda graph: {"width": 16, "layers": 3, "depth": _chain(graph)["depth"]}),
    "nfn_hnp": ("nfn", lambda graph: {"width": 12, "layers": 3, "symmetry": "hnp", **_chain(graph)}),
    "dwsnet": ("dwsnet", lambda graph: {"width": 12, "layers": 4, **_chain(graph)}),
    "gmn": ("gmn", lambda graph: {"width": 16, "layers": 2}),
    "deepsets": ("deepsets", lambda graph: {"width": 32, "layers": 3}),
}
"""The metanet, and its options for networks with a graph."""

FUNCTIONS = ("probes", "probegen", "pixels", "pixels_cnn")
"""Readers of functions alone. Pixels are shown to an MLP, and to convolutions, which know where neighbours are."""

NAMES = (*METANET_READERS, "scale_gmn", "signals", "flat_mlp", "statnn", *FUNCTIONS)


@torchs_defaults()
def make_reader(
    name: str,
    networks: NetworkSet,
    outputs: int,
    probes: int = 0,
    size: int = 28,
    functions: ProbeReader | None = None,
) -> Reader:
    """A fresh reader of networks such as these, which set its scales.

    probes: learned inputs whose answers it reads, 64 for "probes" and "probegen" if it isn't said; size: of each
    axis of the grid of given inputs that "pixels" and "pixels_cnn" have, of SIRENs; functions: a reader of functions in
    the place of probes beside a metanet. Raises `ConfigError` for an unknown name, probes or functions for a reader
    that has no place for them or networks without code, `GraphError` for one that cannot read the graph.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no reader {name!r}; there are {', '.join(NAMES)}")
    if probes and name not in (*METANET_READERS, "probes", "probegen"):
        raise ConfigError(f"reader {name}: expected no probes, found {probes}; metanets read them")
    if functions is not None and (probes or name not in METANET_READERS):
        raise ConfigError(f"reader {name}: expected no functions, found some; metanets read them, or probes")
    if name == "flat_mlp":
        return FlatMlp(networks, outputs)
    if name == "statnn":
        return StatNn(networks, outputs)
    of = architecture_of(networks)
    siren = of.model.shape if isinstance(of.model, Siren) else None
    if name == "scale_gmn":
        return ScaleGmn(of.graph, networks, outputs, siren)
    if name == "signals":
        return Signals(of.graph, networks, outputs, siren)
    if name in METANET_READERS:
        metanet, options = METANET_READERS[name]
        if functions is None and probes:
            functions = _functions(of, "probegen" if siren else "probes", probes, outputs)
        return MetanetReader(of.graph, networks, outputs, metanet, options(of.graph), functions, siren)
    return _functions(of, name, probes, outputs, size)


def _functions(of: Architecture, name: str, probes: int, outputs: int, size: int = 0) -> ProbeReader:
    model = of.runnable
    if name == "pixels_cnn" and of.inputs != (2,):
        raise ConfigError(
            f"reader {name}: expected networks of images, with 2 inputs, found some with {of.inputs}"
        )
    if name in ("pixels", "pixels_cnn"):
        inputs = ProbeInputs(grid(*[size] * of.inputs[0]), "given")
        head = ConvHead(size, of.reads, outputs) if name == "pixels_cnn" else None
        return ProbeReader(model, inputs, of.reads, outputs, head)
    inputs = ProbeInputs(of.examples(probes or 64), "generated" if name == "probegen" else "learned")
    return ProbeReader(model, inputs, of.reads, outputs)


def _chain(graph: ParameterGraph) -> dict[str, Any]:
    links = chain_of(graph, SLOTS)
    return {"depth": len(links), "ends": (links[0].weight.grid[1], links[-1].weight.grid[0])}
