"""Parameters that are replaced, removed, put back and assigned anew while the optimizer lives."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import lopt
from lopt.errors import ConfigError
from lopt.optim.matching import Binding
from tests.optim.kit import learned, mlp, same, train, values


def deep() -> nn.Sequential:
    """Three layers whose shapes do not tell them apart."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 3))


def traced(model: nn.Module) -> lopt.ParameterGraph:
    return lopt.ParameterGraph.trace(model, (torch.zeros(2, 6),))


def names(optimizer: lopt.LearnedOptimizer) -> dict[int, str]:
    optimizer._follow()
    return {id(p): name for name, p in optimizer._binding.named()}


def step_on(optimizer: lopt.LearnedOptimizer) -> list[bool]:
    """One step with gradients of one everywhere; which parameters moved in all of their entries."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return [bool((p != old).all()) for p, old in zip(params, before, strict=True)]


@pytest.mark.parametrize("rows", [14, 4, 10])
def test_points_grow_are_pruned_and_reset(rows):
    """As Gaussian splatting does: the tensor is another one, and the user carries its state over or drops it."""
    points, color = nn.Parameter(torch.randn(10, 3)), nn.Parameter(torch.randn(10, 1))
    optimizer = learned([{"params": [points], "name": "points"}, {"params": [color], "name": "color"}])
    step_on(optimizer)
    for group in optimizer.param_groups:
        old = group["params"][0]
        state = optimizer.state.pop(old)
        new = nn.Parameter(torch.randn(rows, *old.shape[1:]))
        if rows == 10:
            optimizer.state[new] = state
        group["params"][0] = new
    assert step_on(optimizer) == [True, True]
    steps = {float(state["step"]) for state in optimizer.state.values()}
    assert steps == ({2.0} if rows == 10 else {1.0})
    assert len(optimizer.state_dict()["state"]) == 2


def test_a_tensor_that_grows_in_place_has_to_lose_its_state():
    points = nn.Parameter(torch.randn(4, 3))
    optimizer = learned([points])
    step_on(optimizer)
    points.data = torch.randn(7, 3)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"for '0.0' of \(7, 3\).*delete that of a parameter that has another"
        ):
            step_on(optimizer)
    optimizer.state.pop(points)
    assert step_on(optimizer) == [True]


def test_a_name_follows_its_tensor():
    model = deep()
    optimizer = learned([{"params": layer.parameters()} for layer in model], graph=traced(model))
    expected = names(optimizer)
    step_on(optimizer)
    backwards = optimizer.param_groups[::-1]
    optimizer.param_groups = backwards
    assert names(optimizer) == expected
    del optimizer.param_groups[1]
    left = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert names(optimizer) == {key: name for key, name in expected.items() if key in left}
    assert all(step_on(optimizer))


@pytest.mark.parametrize("named", [False, True])
def test_a_step_after_groups_changed_is_that_of_the_untouched(named):
    models = [deep(), deep()]
    for model, changed in zip(models, (False, True), strict=True):
        params = model.named_parameters() if named else model.parameters()
        optimizer = learned(params, graph=traced(model))
        train(model, optimizer, 3)
        if changed:  # the same parameters in other groups, in another order
            group = optimizer.param_groups.pop()
            for part in (slice(5, None), slice(0, 2), slice(2, 5)):
                cut = {key: group[key][part] for key in ("params", "param_names") if key in group}
                optimizer.param_groups.append({**group, **cut})
        train(model, optimizer, 3, seed=2)
    assert same(values(models[0]), values(models[1]))


def test_a_layer_put_back_goes_on_with_its_state_and_name():
    model = deep()
    optimizer = learned([{"params": layer.parameters()} for layer in model], graph=traced(model))
    expected = names(optimizer)
    step_on(optimizer)
    group = optimizer.param_groups.pop(1)
    step_on(optimizer)
    assert len(optimizer.state) == 6  # and so state_dict, which torch makes of it, has no stranger
    assert len(optimizer.state_dict()["state"]) == 6
    optimizer.add_param_group(group)
    assert names(optimizer) == expected
    assert float(optimizer.state[model[1].weight]["step"]) == 1


def test_a_stranger_takes_no_place_of_a_living_tensor():
    model = deep()
    optimizer = learned([{"params": layer.parameters()} for layer in model], graph=traced(model))
    group = optimizer.param_groups.pop(1)
    optimizer._follow()
    stranger = nn.Linear(6, 6)
    optimizer.add_param_group({"params": stranger.parameters()})
    found = names(optimizer)
    assert found[id(stranger.weight)] not in traced(model).parameters
    optimizer.add_param_group(group)
    assert names(optimizer)[id(model[1].weight)] == "1.weight"


def test_a_successor_of_the_same_shape_takes_the_place():
    model = deep()
    optimizer = learned(model.parameters(), graph=traced(model))
    old = optimizer.param_groups[0]["params"][2]
    optimizer.param_groups[0]["params"][2] = new = nn.Parameter(torch.zeros(6, 6))
    assert names(optimizer)[id(new)] == "1.weight"
    optimizer.param_groups[0]["params"][2] = wider = nn.Parameter(torch.zeros(9, 6))
    assert names(optimizer)[id(wider)] not in traced(model).parameters
    assert id(old) not in names(optimizer)


def test_a_removed_parameter_shifts_no_name():
    model = mlp()
    optimizer = learned(model.named_parameters(), graph=traced(model))
    expected = names(optimizer)
    del optimizer.param_groups[0]["params"][1]
    found = names(optimizer)
    assert found == {key: name for key, name in expected.items() if name != "0.bias"}
    assert all(step_on(optimizer))


def test_groups_assigned_before_a_checkpoint_is_loaded():
    backbone, head = nn.Linear(6, 6), nn.Linear(6, 6)
    whole = learned(head.parameters())
    step_on(whole)
    whole.add_param_group({"params": backbone.parameters()})
    step_on(whole)
    twins = copy.deepcopy((head, backbone))
    resumed = learned(twins[0].parameters())
    options = {key: value for key, value in resumed.param_groups[0].items() if key != "params"}
    resumed.param_groups = [{**options, "params": list(twin.parameters())} for twin in twins]
    resumed.load_state_dict(whole.state_dict())
    step_on(whole), step_on(resumed)
    assert same(values(nn.ModuleList([head, backbone])), values(nn.ModuleList(twins)))


@pytest.mark.parametrize("graph", [False, True])
def test_nothing_of_what_is_gone_is_kept_alive(graph):
    model = deep()
    optimizer = learned(model.parameters(), graph=traced(model) if graph else None)
    gone = []
    for _ in range(3):
        step_on(optimizer)
        params = optimizer.param_groups[0]["params"]
        for index, p in enumerate(params):
            gone += [weakref.ref(p), weakref.ref(optimizer.state[p]["momenta"])]
            params[index] = nn.Parameter(torch.zeros_like(p))
        del p, params
    model = None
    optimizer.zero_grad()
    optimizer.step()
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)
    assert len(optimizer.graph.parameters) == 8


def test_lazy_modules_learn_their_shapes_later():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 4), nn.LazyLinear(3))
    optimizer = learned(model.parameters())
    assert len(optimizer.graph.parameters) == 2
    losses = train(model, optimizer, 30)
    assert losses[-1] < losses[0]
    assert len(optimizer.graph.parameters) == 6


def test_a_model_unfrozen_later():
    model = deep()
    model[:2].requires_grad_(False)
    optimizer = learned([(n, p) for n, p in model.named_parameters() if p.requires_grad], graph=traced(model))
    train(model, optimizer, 2)
    model[:2].requires_grad_(True)
    optimizer.add_param_group({"params": [(n, p) for n, p in model.named_parameters() if n[0] in "01"]})
    assert names(optimizer) == {id(p): name for name, p in model.named_parameters()}
    before = values(model)
    train(model, optimizer, 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_parameters_can_still_be_swapped():
    """`Module.to` moves tensor subclasses by `torch.utils.swap_tensors`, which refuses what weak references watch."""
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = learned([p])
    step_on(optimizer)
    torch.utils.swap_tensors(p, nn.Parameter(torch.zeros(2, 3)))
    assert step_on(optimizer) == [True]


def test_a_binding_takes_what_a_user_names():
    model = deep()
    graph = traced(model)
    head = {"params": list(model[3].parameters()), "param_names": ["3.weight", "3.bias"]}
    binding = Binding(graph, [head], head["params"], {})
    late = {
        "params": [
            nn.Parameter(torch.zeros(6, 6)),
            nn.Parameter(torch.zeros(7, 6)),
            nn.Parameter(torch.zeros(2)),
        ],
        "param_names": ["module.1.weight", "2.weight", "gate.bias"],
    }
    assert binding.follow([head, late], {})
    assert binding.names == ["3.weight", "3.bias", "1.weight", "1.2.weight", "gate.bias"]
    assert not binding.follow([head, late], {})
    assert list(binding.graph.parameters) == [*graph.parameters, "1.2.weight", "gate.bias"]
