from __future__ import annotations

import pytest
import torch
from torch import nn

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.optim.matching import Binding, extended, match


def equal_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))


def graph_of(model: nn.Module) -> ParameterGraph:
    return ParameterGraph.untied(model.named_parameters())


def unnamed(*tensors: torch.Tensor) -> list[tuple[None, torch.Tensor]]:
    return [(None, tensor) for tensor in tensors]


def named(**tensors: torch.Tensor) -> dict:
    return {"params": list(tensors.values()), "param_names": list(tensors)}


def test_all_parameters_in_order():
    model = equal_layers()
    names = match([unnamed(*model.parameters())], graph_of(model))
    assert names == [name for name, _ in model.named_parameters()]


def test_names_beat_order():
    model = equal_layers()
    entries = list(model.named_parameters())[::-1]
    assert match([entries], graph_of(model)) == [name for name, _ in entries]


@pytest.mark.parametrize(
    "wrapped", ["module.0.weight", "_orig_mod.module.0.weight", "0._checkpoint_wrapped_module.weight"]
)
def test_names_lose_what_wrappers_added(wrapped):
    model = equal_layers()
    assert match([[(wrapped, model[0].weight)]], graph_of(model)) == ["0.weight"]


def test_a_graph_of_the_wrapped_model_fits_the_model_itself():
    model = equal_layers()
    graph = graph_of(nn.ModuleDict({"_orig_mod": model}))
    entries = list(model.named_parameters())
    assert match([entries], graph) == [f"_orig_mod.{name}" for name, _ in entries]


def test_a_module_that_is_called_module_keeps_its_name():
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert match([list(model.named_parameters())], graph_of(model)) == ["module.weight", "module.bias"]


def test_aliases_of_tied_parameters():
    model = equal_layers()
    graph = graph_of(model)
    object.__setattr__(graph.parameters["0.weight"], "aliases", ("decoder.weight",))
    assert match([[("decoder.weight", model[0].weight)]], graph) == ["0.weight"]


def test_frozen_parameters_left_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2))
    names = match([unnamed(*model[1:].parameters())], graph_of(model))
    assert names == ["1.weight", "1.bias", "2.weight", "2.bias"]


def test_decay_and_no_decay_groups():
    model = equal_layers()
    weights = [p for p in model.parameters() if p.dim() == 2]
    biases = [p for p in model.parameters() if p.dim() == 1]
    names = match([unnamed(*weights), unnamed(*biases)], graph_of(model))
    assert names == ["0.weight", "1.weight", "2.weight", "0.bias", "1.bias", "2.bias"]


def test_one_group_for_each_layer():
    model = equal_layers()
    names = match([unnamed(*layer.parameters()) for layer in model], graph_of(model))
    assert names == [name for name, _ in model.named_parameters()]


def test_ambiguous_subset_asks_for_names():
    model = equal_layers()
    with pytest.raises(GraphError, match=r"found several; pass model.named_parameters\(\)"):
        match([unnamed(*model[1:].parameters())], graph_of(model))


@pytest.mark.parametrize("groups", [1, 2])
def test_foreign_parameters_say_where_they_differ(groups):
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 7))
    entries = (
        [unnamed(*layer.parameters()) for layer in other] if groups == 2 else [unnamed(*other.parameters())]
    )
    with pytest.raises(GraphError, match=r"expected 0 parameters of shape \(7, 4\) as in the graph, found 1"):
        match(entries, graph_of(equal_layers()))


def test_more_parameters_than_the_graph_holds():
    model = equal_layers()
    with pytest.raises(GraphError, match=r"expected 1 parameters of shape \(2,\) as in the graph, found 2"):
        match([unnamed(*model.parameters(), nn.Parameter(torch.ones(2)))], graph_of(model))


def test_another_order():
    model = equal_layers()
    with pytest.raises(GraphError, match="expected the parameters in the graph's order, found another"):
        match([unnamed(*list(model.parameters())[::-1])], graph_of(model))


def test_unknown_name_and_changed_shape():
    graph = graph_of(equal_layers())
    with pytest.raises(GraphError, match=r"'head.weight' is not in the graph, which holds 0.weight"):
        match([[("head.weight", torch.ones(4, 4))]], graph)
    with pytest.raises(
        GraphError, match=r"'0.weight': expected shape \(4, 4\) from the graph, found \(4, 5\)"
    ):
        match([[("0.weight", torch.ones(4, 5))]], graph)


def test_one_parameter_of_the_graph_given_twice():
    model = equal_layers()
    with pytest.raises(GraphError, match=r"found '0.weight' for several"):
        match([[("0.weight", model[0].weight), ("module.0.weight", model[1].weight)]], graph_of(model))


def names_of(*groups: dict) -> list[str | None]:
    return Binding(None, groups, (), {}).names


def test_names_without_a_graph_are_distinct():
    one, two = torch.ones(1), torch.ones(2)
    assert names_of(named(a=one), named(b=two)) == ["a", "b"]
    assert names_of(named(a=one), named(a=two)) == ["a", "1.a"]
    assert names_of({"params": [one, two]}, {"params": [torch.ones(1)]}) == ["0.0", "0.1", "1.0"]
    twice = {"params": [one, two], "param_names": ["a", "a"]}
    assert len(set(names_of(twice))) == 2


def test_extended_graph_holds_both_parts():
    graph = extended(graph_of(nn.Linear(3, 2)), [("scale", torch.ones(5)), ("head", torch.ones(4, 2))])
    assert list(graph.parameters) == ["weight", "bias", "scale", "head"]
    assert [group.id for group in graph.groups] == list(range(len(graph.groups)))
    for spec in graph.parameters.values():
        assert tuple(graph.groups[axis[0][0]].size for axis in spec.axes) == spec.shape
    assert sum(block.shape == (4, 2) for block in graph.blocks) == 1
