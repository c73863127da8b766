from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.graph.pyg import from_pyg, to_hetero, to_pyg
from lopt.graph.pyg_styles import NODE_KINDS, STYLES
from lopt.graph.spec import PARAMETER_KINDS


def random_values(graph: ParameterGraph, features: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    leading = () if features is None else (features,)
    return {
        name: torch.randn((*leading, *spec.shape), generator=generator)
        for name, spec in graph.parameters.items()
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("features", [None, 1, 3])
def test_round_trip_is_exact(graph: ParameterGraph, style: str, features: int | None) -> None:
    values = random_values(graph, features)
    assert_equal(from_pyg(to_pyg(graph, values, style), graph), values)


@pytest.mark.parametrize("features", [None, 2])
def test_hetero_round_trip_is_exact(graph: ParameterGraph, features: int | None) -> None:
    values = random_values(graph, features)
    data = to_hetero(graph, values)
    data.validate()
    assert_equal(from_pyg(data, graph), values)


@pytest.mark.parametrize("style", STYLES)
def test_the_data_is_valid_and_batches(graph: ParameterGraph, style: str) -> None:
    data = to_pyg(graph, random_values(graph), style)
    data.validate()
    both = Batch.from_data_list([data, data])
    assert both.num_nodes == 2 * data.num_nodes
    assert torch.equal(both.edge_index[:, data.num_edges :], data.edge_index + data.num_nodes)
    assert torch.equal(both[1].edge_attr, data.edge_attr)


@pytest.mark.parametrize("style", STYLES)
def test_a_network_of_zeros_keeps_its_edges(graph: ParameterGraph, style: str) -> None:
    values = random_values(graph)
    zeros = {name: torch.zeros_like(value) for name, value in values.items()}
    assert torch.equal(to_pyg(graph, zeros, style).edge_index, to_pyg(graph, values, style).edge_index)


@pytest.mark.parametrize("style", STYLES)
def test_reordered_edges_find_their_way_back(graph: ParameterGraph, style: str) -> None:
    values = random_values(graph)
    data = to_pyg(graph, values, style)
    order = torch.randperm(data.num_edges, generator=torch.Generator().manual_seed(1))
    for key in ("edge_attr", "edge_scalar"):
        data[key] = data[key][order]
    assert_equal(from_pyg(data, graph), values)


def test_weights_are_edges_and_one_axis_parameters_are_node_attributes(cnn_graph: ParameterGraph) -> None:
    values = random_values(cnn_graph)
    data = to_pyg(cnn_graph, values)
    assert torch.equal(
        data.edge_attr[:, 0], torch.cat([values["conv.weight"].flatten(), values["head.weight"].flatten()])
    )
    assert data.num_nodes == 1 + sum(group.size for group in cnn_graph.groups)
    channel = (data.node_group == 1).nonzero().squeeze(1)
    assert data.node_index.tolist() == [*channel.tolist(), *channel.tolist(), 0]
    assert [PARAMETER_KINDS[kind] for kind in data.node_attr_type] == ["bias"] * 3 + ["scale"] * 3 + ["other"]
    assert [NODE_KINDS[kind] for kind in data.node_type[channel]] == ["hidden"] * 3


def test_edges_name_the_atoms_of_their_scalar(cnn_graph: ParameterGraph) -> None:
    """head.weight[1, 2 * 4 + 3] runs from channel 2 to class 1, at position 3."""
    data = to_pyg(cnn_graph, random_values(cnn_graph))
    edge = 3 * 4 + 1 * 12 + 2 * 4 + 3
    source, target = data.edge_index[:, edge].tolist()
    first = {g.id: int((data.node_group == g.id).nonzero()[0]) for g in cnn_graph.groups}
    assert (source, target) == (first[1] + 2, first[5] + 1)
    assert data.edge_tap_index[:, edge].tolist() == [first[4] + 3, 0]


def test_messages_along_edges_equal_the_dense_sums(attention_graph: ParameterGraph) -> None:
    """The sum over a block's scalars at each atom: dense, and by scatter over the edge list."""
    values = random_values(attention_graph)
    data = to_pyg(attention_graph, values)
    block = next(b for b in attention_graph.blocks if b.parameter == "out.weight")
    number = list(attention_graph.parameters).index("out.weight")
    edges = data.edge_parameter == number
    dense = values["out.weight"].reshape(block.shape)
    rows = (data.edge_index[1, edges], data.edge_index[0, edges], data.edge_tap_index[0, edges])
    for axis, (index, group) in enumerate(zip(rows, block.groups, strict=True)):
        summed = torch.zeros(data.num_nodes).index_add(0, index, data.edge_attr[edges, 0])
        others = [dim for dim in range(dense.dim()) if dim != axis]
        torch.testing.assert_close(summed[data.node_group == group], dense.sum(others))


@pytest.mark.parametrize("style", STYLES)
def test_query_key_and_value_are_typed_apart(attention_graph: ParameterGraph, style: str) -> None:
    data = to_pyg(attention_graph, random_values(attention_graph), style)
    kinds = {PARAMETER_KINDS[kind] for kind in data.edge_type[data.edge_parameter == 0]}
    assert kinds == {"query", "key", "value"}


def test_neural_graphs_style_folds_taps_and_biases_into_features(cnn_graph: ParameterGraph) -> None:
    values = random_values(cnn_graph)
    data = to_pyg(cnn_graph, values, "neural_graphs")
    assert data.edge_attr.shape == (3 * 1 + 3 * 2, 4)
    first_conv_edge = (data.edge_parameter == 0).nonzero()[0]
    assert torch.equal(data.edge_attr[first_conv_edge].squeeze(0), values["conv.weight"][0].flatten())
    channels = data.edge_index[1, data.edge_parameter == 0]
    assert torch.equal(data.x[channels], torch.stack([values["conv.bias"], values["norm.scale"]], dim=1))
    assert [PARAMETER_KINDS[kind] for kind in data.x_type[channels[0]]] == ["bias", "scale"]


def test_one_wide_kernel_does_not_pad_a_large_network() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16), torch.nn.Linear(100, 100))
    graph = ParameterGraph.untied(model.named_parameters())
    values = random_values(graph)
    data = to_pyg(graph, values, "neural_graphs")
    assert data.edge_attr.numel() <= 8 * graph.numel
    assert_equal(from_pyg(data, graph), values)


def test_gmn_style_has_parallel_edges_and_parameter_nodes(cnn_graph: ParameterGraph) -> None:
    values = random_values(cnn_graph)
    data = to_pyg(cnn_graph, values, "gmn")
    assert data.num_edges == cnn_graph.numel
    first_pair = (data.edge_index == data.edge_index[:, :1]).all(0)
    assert torch.equal(data.edge_attr[first_pair, 0], values["conv.weight"][0].flatten())
    assert data.edge_tap[first_pair].tolist() == [0, 1, 2, 3]
    scale = data.edge_parameter == 2
    assert {NODE_KINDS[kind] for kind in data.node_type[data.edge_index[0, scale]]} == {"norm"}
    bias = data.edge_parameter == 1
    assert {NODE_KINDS[kind] for kind in data.node_type[data.edge_index[0, bias]]} == {"bias"}


def test_heads_and_their_inner_neurons_are_one_neuron_in_the_papers_styles(
    attention_graph: ParameterGraph,
) -> None:
    data = to_pyg(attention_graph, random_values(attention_graph), "neural_graphs")
    value_neurons = data.edge_index[1, data.edge_type == PARAMETER_KINDS.index("value")].unique()
    output_reads = data.edge_index[0, data.edge_type == PARAMETER_KINDS.index("output")].unique()
    assert len(value_neurons) == 2 * 3
    assert torch.equal(value_neurons, output_reads)


def test_hetero_types_name_source_parameter_and_target(cnn_graph: ParameterGraph) -> None:
    edge_types = to_hetero(cnn_graph, random_values(cnn_graph)).edge_types
    assert ("input", "weight", "hidden") in edge_types
    assert ("hidden", "weight", "output") in edge_types
    assert ("norm", "scale", "hidden") in edge_types


def test_a_graph_that_ties_nothing_round_trips() -> None:
    model = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 2), torch.nn.Bilinear(3, 4, 5))
    graph = ParameterGraph.untied(model.named_parameters())
    values = random_values(graph, 2)
    for style in STYLES:
        assert_equal(from_pyg(to_pyg(graph, values, style), graph), values)


def test_biases_alone_round_trip() -> None:
    graph = ParameterGraph.untied([("bias", torch.zeros(3)), ("scale", torch.zeros(()))])
    values = random_values(graph)
    for style in STYLES:
        assert_equal(from_pyg(to_pyg(graph, values, style), graph), values)


def test_bad_values_are_named(cnn_graph: ParameterGraph) -> None:
    values = random_values(cnn_graph)
    with pytest.raises(GraphError, match="style out of axes, neural_graphs, gmn, found 'dgl'"):
        to_pyg(cnn_graph, values, "dgl")
    with pytest.raises(GraphError, match=r"none for 'conv\.bias'"):
        to_pyg(cnn_graph, {k: v for k, v in values.items() if k != "conv.bias"})
    with pytest.raises(GraphError, match=r"'conv\.bias' with shape \(3,\)"):
        to_pyg(cnn_graph, {**values, "conv.bias": torch.zeros(4)})
    with pytest.raises(GraphError, match="same feature axis"):
        to_pyg(cnn_graph, {**values, "conv.bias": torch.zeros(2, 3)})


def test_missing_edges_and_foreign_data_are_refused(
    cnn_graph: ParameterGraph, attention_graph: ParameterGraph
) -> None:
    data = to_pyg(cnn_graph, random_values(cnn_graph))
    with pytest.raises(GraphError, match="scalars once"):
        from_pyg(data, attention_graph)
    data.edge_scalar, data.edge_attr = data.edge_scalar[1:], data.edge_attr[1:]
    with pytest.raises(GraphError, match="no edge removed"):
        from_pyg(data, cnn_graph)
