"""GraphSpec and values -> `torch_geometric` data, and exactly back.

Three styles, each with a place for every scalar, zero or not (laid out in `lopt.graph.pyg_styles`):

    "axes"            A node for each element of each axis group. A parameter of two or more axes gives one
                      edge per scalar, from an in-neuron to an out-neuron; its other atomic axes (kernel taps,
                      head size, position behind a flatten) are nodes too, named by `edge_tap_index`. A bias
                      or scale is an attribute of its node. All keep the order of `graph.flatten`, so that
                      an edge-list metanet can equal a dense one.
    "neural_graphs"   A node for each neuron; one edge per pair of neurons with its taps folded into the edge
                      features, biases and scales folded into `x` (Kofinas et al. 2024, arXiv 2403.12143);
                      parallel edges where a few wide kernels would pad all other edges many times over.
    "gmn"             A node for each neuron and one for each bias or scale; a parallel edge for each tap
                      (Lim et al. 2024, arXiv 2312.04501).

`edge_scalar` and `node_scalar` say which scalar of the flat vector an entry holds (-1: padding), so the way
back is exact even after edges have been reordered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from lopt.errors import GraphError
from lopt.graph.pyg_styles import NODE_KINDS, STYLES
from lopt.graph.spec import PARAMETER_KINDS, GraphSpec
from lopt.numerics.defaults import torchs_defaults


@torchs_defaults()
def to_pyg(graph: GraphSpec, values: Mapping[str, Tensor], style: str = "axes") -> Data:
    """Values (*shape) or (F, *shape) of each parameter -> `Data` in one of the styles.

    Every style has `edge_index` (2, E), `edge_attr`, `edge_type` (E,) counted in `PARAMETER_KINDS`,
    `edge_parameter` (E,) and `node_type` (N,) counted in `NODE_KINDS`. Further:

        "axes"            edge_attr (E, F); edge_tap_index (K, E), padded with node 0; node_group (N,);
                          node_attr (M, F) of nodes node_index (M,), node_tap_index, node_attr_type,
                          node_attr_parameter
        "neural_graphs"   edge_attr (E, K F); x (N, S F); x_type (N, S), -1 for an empty slot
        "gmn"             edge_attr (E, F); edge_tap (E,), the row-major number of the tap

    with E edges, N nodes, M node attributes, F features per scalar, K taps and S attributes per node.
    Node 0 is the constant 1, which parameters without axes belong to.

    Raises `GraphError` for an unknown style or values that don't fit the graph.
    """
    if style not in STYLES:
        raise GraphError(f"expected a style out of {', '.join(STYLES)}, found {style!r}")
    features, stacked = _feature_matrix(graph, values)
    data = Data(**STYLES[style](graph)).to(str(features.device))
    data.edge_attr = _gather(features, data.edge_scalar)
    if "node_scalar" in data:
        data["x" if style == "neural_graphs" else "node_attr"] = _gather(features, data.node_scalar)
    data.stacked = stacked
    return data


@torchs_defaults()
def from_pyg(data: Data | HeteroData, graph: GraphSpec) -> dict[str, Tensor]:
    """The exact inverse of `to_pyg` (in any style) and of `to_hetero`.

    Raises `GraphError` if `data` lacks edges or nodes, or belongs to another graph.
    """
    scalars, features = zip(*_entries(data), strict=True)
    scalar = torch.cat(scalars)
    if scalar.numel() != graph.numel or not (scalar.bincount(minlength=graph.numel) == 1).all():
        raise GraphError(
            f"expected each of the graph's {graph.numel} scalars once, found {scalar.unique().numel()} of "
            f"them in {scalar.numel()} entries; pass data from to_pyg of the same graph, with no edge removed"
        )
    feature = torch.cat(features)
    flat = torch.empty_like(feature).index_copy(0, scalar, feature).T
    return graph.unflatten(flat if data.stacked else flat.squeeze(0))


@torchs_defaults()
def to_hetero(graph: GraphSpec, values: Mapping[str, Tensor]) -> HeteroData:
    """The "gmn" style as `HeteroData`: edges typed (kind of source, kind of parameter, kind of target)."""
    data = to_pyg(graph, values, style="gmn")
    ends = data.node_type[data.edge_index]
    triples, edge_type = torch.stack([ends[0], data.edge_type, ends[1]]).unique(dim=1, return_inverse=True)
    names = [(NODE_KINDS[s], PARAMETER_KINDS[k], NODE_KINDS[t]) for s, k, t in triples.T.tolist()]
    hetero = data.to_heterogeneous(data.node_type, edge_type, list(NODE_KINDS), names)
    ends_named = {kind for source, _, target in names for kind in (source, target)}
    for kind in set(NODE_KINDS) - ends_named:
        del hetero[kind]
    return hetero


def _feature_matrix(graph: GraphSpec, values: Mapping[str, Tensor]) -> tuple[Tensor, bool]:
    """Values -> features (P, F), and whether the values had a feature axis."""
    leading = set()
    for name, spec in graph.parameters.items():
        if name not in values:
            raise GraphError(f"expected a value for every parameter of the graph, found none for {name!r}")
        shape = tuple(values[name].shape)
        split = len(shape) - len(spec.shape)
        if split not in (0, 1) or shape[split:] != spec.shape:
            raise GraphError(
                f"expected {name!r} with shape {spec.shape}, or that behind one feature axis, found {shape}"
            )
        leading.add(shape[:split])
    if len(leading) > 1:
        raise GraphError(f"expected the same feature axis for every parameter, found {sorted(leading)}")
    flat = graph.flatten(values)
    return flat.reshape(-1, graph.numel).T, flat.dim() == 2


def _gather(features: Tensor, scalar: Tensor) -> Tensor:
    """Features (P, F) at the scalars (rows,) or (rows, slots) -> (rows, slots F), zero where padded."""
    gathered = features[scalar.clamp(min=0)].masked_fill((scalar < 0).unsqueeze(-1), 0)
    return gathered.reshape(len(scalar), math.prod(gathered.shape[1:]))


def _entries(data: Data | HeteroData) -> Iterator[tuple[Tensor, Tensor]]:
    """(scalar (n,), features (n, F)) of everything in `data` that holds values."""
    for store in data.edge_stores if isinstance(data, HeteroData) else [data]:
        node_attr = "x" if "x" in store else "node_attr"
        for scalar_name, attr_name in (("edge_scalar", "edge_attr"), ("node_scalar", node_attr)):
            if scalar_name in store:
                scalar, attr = store[scalar_name], store[attr_name]
                width = attr.shape[-1] // max(math.prod(scalar.shape[1:]), 1)
                yield scalar[scalar >= 0], attr.reshape(*scalar.shape, width)[scalar >= 0]
