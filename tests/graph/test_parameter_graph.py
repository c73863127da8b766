from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.graph.spec import axis_index


def random_values(graph: ParameterGraph, *leading: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn((*leading, *spec.shape), generator=generator)
        for name, spec in graph.parameters.items()
    }


def random_permutation(graph: ParameterGraph) -> dict[int, Tensor]:
    """One that moves every permutable group."""
    return {g.id: torch.arange(g.size).roll(1) for g in graph.groups if g.permutable}


def test_flatten_and_unflatten_are_inverse_with_and_without_batch(graph: ParameterGraph) -> None:
    for leading in ((), (3,), (2, 5)):
        values = random_values(graph, *leading)
        flat = graph.flatten(values)
        assert flat.shape == (*leading, graph.numel)
        back = graph.unflatten(flat)
        assert all(torch.equal(back[name], value) for name, value in values.items())


def test_offsets_point_into_the_flat_vector(graph: ParameterGraph) -> None:
    values = random_values(graph)
    flat = graph.flatten(values)
    for name, spec in graph.parameters.items():
        start = graph.offsets[name]
        assert torch.equal(flat[start : start + spec.numel], values[name].reshape(-1))


def test_blocks_cover_every_scalar_once(graph: ParameterGraph) -> None:
    seen = {name: torch.zeros(spec.shape) for name, spec in graph.parameters.items()}
    for block in graph.blocks:
        part = seen[block.parameter][block.slices]
        assert part.numel() == torch.Size(block.shape).numel()
        assert block.shape == tuple(graph.groups[g].size for g in block.groups)
        assert len(block.roles) == len(block.groups)
        part += 1
    assert all((count == 1).all() for count in seen.values())


def test_blocks_of_a_fused_projection_have_their_own_kinds(attention_graph: ParameterGraph) -> None:
    blocks = [b for b in attention_graph.blocks if b.parameter == "qkv.weight"]
    assert [b.kind for b in blocks] == ["query", "key", "value"]
    assert [b.slices[0] for b in blocks] == [slice(0, 6), slice(6, 12), slice(12, 18)]
    assert [b.shape for b in blocks] == [(2, 3, 4)] * 3


def test_permuting_a_product_axis_equals_permuting_its_atoms(cnn_graph: ParameterGraph) -> None:
    weight = random_values(cnn_graph)["head.weight"]
    p = torch.tensor([2, 0, 1])
    expected = weight.reshape(2, 3, 4)[:, p].reshape(2, 12)
    assert torch.equal(cnn_graph.permute({"head.weight": weight}, {1: p})["head.weight"], expected)


def test_permuting_a_concatenated_axis_permutes_each_part(attention_graph: ParameterGraph) -> None:
    bias = random_values(attention_graph)["qkv.bias"]
    heads, query = torch.tensor([1, 0]), torch.tensor([2, 0, 1])
    parts = bias.reshape(3, 2, 3)[:, heads]
    expected = torch.cat([parts[0][:, query], parts[1][:, query], parts[2]]).reshape(-1)
    assert torch.equal(
        attention_graph.permute({"qkv.bias": bias}, {1: heads, 2: query})["qkv.bias"], expected
    )


def test_permute_by_the_inverse_is_the_way_back(graph: ParameterGraph) -> None:
    values, permutation = random_values(graph), random_permutation(graph)
    inverse = {group: p.argsort() for group, p in permutation.items()}
    there = graph.permute(values, permutation)
    assert any(not torch.equal(there[name], values[name]) for name in values)
    back = graph.permute(there, inverse)
    assert all(torch.equal(back[name], values[name]) for name in values)


def test_permute_leaves_unknown_names_alone(cnn_graph: ParameterGraph) -> None:
    step = torch.tensor(3)
    assert cnn_graph.permute({"norm.num_batches_tracked": step}, random_permutation(cnn_graph)) == {
        "norm.num_batches_tracked": step
    }


def test_what_permutes_no_group_is_refused(cnn_graph: ParameterGraph) -> None:
    name, spec = next(iter(cnn_graph.parameters.items()))
    tensor = torch.zeros(spec.shape)
    group = next(group for group in cnn_graph.groups if group.permutable)
    for number, order in (
        (group.id, torch.arange(group.size - 1)),
        (group.id, torch.zeros(group.size, dtype=torch.long)),
        (len(cnn_graph.groups), torch.arange(3)),
    ):
        with pytest.raises(GraphError, match="permutation: expected every number below"):
            cnn_graph.permute({name: tensor}, {number: order})
    with pytest.raises(GraphError, match=rf"{name}: expected shape .* found \(2, 2\)"):
        cnn_graph.permute({name: torch.zeros(2, 2)}, cnn_graph.random_permutation())


def test_random_permutation_moves_permutable_groups_only_and_is_seeded(graph: ParameterGraph) -> None:
    first = graph.random_permutation(torch.Generator().manual_seed(3))
    second = graph.random_permutation(torch.Generator().manual_seed(3))
    assert set(first) == {g.id for g in graph.groups if g.permutable}
    for group, p in first.items():
        assert torch.equal(p, second[group])
        assert p.sort().values.tolist() == list(range(graph.groups[group].size))


def test_axis_index_of_an_axis_that_nothing_moves_is_the_identity(graph: ParameterGraph) -> None:
    for spec in graph.parameters.values():
        for axis, size in zip(spec.axes, spec.shape, strict=True):
            assert axis_index(axis, graph.groups, {}).tolist() == list(range(size))


def test_a_subset_keeps_axes_groups_and_sizes_of_what_remains(attention_graph: ParameterGraph) -> None:
    part = attention_graph.subset(["out.weight", "filter"])
    assert list(part.parameters) == ["out.weight", "filter"]
    assert [g.id for g in part.groups] == list(range(len(part.groups)))
    assert sorted(g.size for g in part.groups) == [2, 3, 4, 5]
    stream = part.parameters["out.weight"].axes[0]
    assert stream == part.parameters["filter"].axes[0]
    assert part.groups[stream[0][0]].members == (("out.weight", 0), ("filter", 0))
    values = random_values(attention_graph)
    p = torch.tensor([3, 0, 1, 2])
    whole = attention_graph.permute(values, {0: p})["filter"]
    assert torch.equal(part.permute({"filter": values["filter"]}, {stream[0][0]: p})["filter"], whole)


def test_the_untied_graph_ties_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    graph = ParameterGraph.untied(model.named_parameters())
    assert graph.rung == "untied"
    assert not any(group.permutable for group in graph.groups)
    assert [len(group.members) for group in graph.groups] == [1] * len(graph.groups)
    assert graph.random_permutation() == {}
    assert graph.numel == sum(p.numel() for p in model.parameters())
