"""What only a learned optimizer promises; what it shares with AdamW is in `test_optim_compatibility.py`."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad

import lopt
from lopt.errors import ConfigError, GradientError, GraphError
from lopt.optim.step import chosen
from lopt.rules.classical import Adam, TorchOptim
from tests.optim.kit import (
    RULE,
    batches,
    coupling_rule,
    give_gradients,
    learned,
    mlp,
    mlp_graph,
    same,
    train,
    values,
)


def unrolled(rule, model, graph, steps, total_steps=None):
    """The parameters after training with the pure rule, as in meta-training."""

    def loss(params, x, y):
        return nn.functional.mse_loss(functional_call(model, params, (x,)), y)

    bound = rule.on(graph)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = bound.init(params, total_steps)
    for x, y in batches(steps):
        params, state = bound.update(grad(loss)(params, x, y), state, params)
    return params


@pytest.mark.parametrize("name", ["axisnet", "adam", "sgd"])
@pytest.mark.parametrize("total_steps", [None, 50])
def test_equals_the_rule_in_the_unroll(name, total_steps):
    rule = RULE if name == "axisnet" else lopt.make_rule(name)
    model, graph = mlp(), mlp_graph()
    expected = unrolled(rule, model, graph, 50, total_steps)
    before = values(model)
    train(model, learned(model.parameters(), rule=rule, graph=graph, total_steps=total_steps), 50)
    for (parameter, old), value in zip(
        zip(model.parameters(), before, strict=True), expected.values(), strict=True
    ):
        assert (parameter - old).abs().max() > 1e-3
        assert (parameter - value).abs().max() <= 1e-6


def test_total_steps_reaches_the_rule():
    models = [mlp(), mlp()]
    for model, total_steps in zip(models, (None, 10), strict=True):
        train(model, learned(model.parameters(), total_steps=total_steps), 5)
    assert not same(values(models[0]), values(models[1]))


def test_tensors_are_coupled():
    """Without the gradient of one tensor the others move differently, so parameters must be stepped together."""
    models = [mlp(), mlp()]
    for model in models:
        give_gradients(model)
    models[1][2].weight.grad = None
    for model in models:
        learned(model.parameters()).step()
    assert not torch.equal(models[0][0].weight, models[1][0].weight)


def test_groups_are_stepped_together():
    together, apart = mlp(), mlp()
    groups = [{"params": list(layer.parameters())} for layer in apart if list(layer.parameters())]
    train(together, learned(together.parameters(), graph=mlp_graph()))
    train(apart, learned(groups, graph=mlp_graph()))
    assert same(values(together), values(apart))


def test_order_of_named_parameters_does_not_matter():
    models = [mlp(), mlp()]
    for model, step in zip(models, (1, -1), strict=True):
        train(model, learned(list(model.named_parameters())[::step], graph=mlp_graph()))
    assert same(values(models[0]), values(models[1]))


def test_adam_with_decay_equals_adamw():
    """`weight_decay` is relative to a learning rate of 1e-3, Adam's own here."""
    models = [mlp(), mlp()]
    train(models[0], learned(models[0].parameters(), rule=Adam(1e-3), weight_decay=0.5), 100)
    train(models[1], torch.optim.AdamW(models[1].parameters(), 1e-3, weight_decay=0.5), 100)
    for ours, theirs in zip(*map(values, models), strict=True):
        assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)])
def test_lr_multiplies_the_update(lr):
    models = [mlp(), mlp()]
    before = values(models[0])
    for model, rate in zip(models, (1.0, lr), strict=True):
        give_gradients(model)
        learned(model.parameters(), lr=rate).step()
    for old, full, half in zip(before, *map(values, models), strict=True):
        assert torch.allclose(half - old, (full - old) / 2, atol=1e-7)


def test_the_rule_is_the_optimizers_own():
    rule, model = coupling_rule(), mlp()
    optimizer = learned(model.parameters(), rule=rule)
    before = values(rule)
    train(model, optimizer)
    assert same(values(rule), before)
    assert all(parameter.requires_grad for parameter in rule.parameters())
    with torch.no_grad():
        next(rule.parameters()).fill_(torch.nan)
    assert all(torch.isfinite(p).all() for p in optimizer.rule.parameters())
    own = {id(p) for p in optimizer.rule.parameters()}
    assert not own & {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_rule_by_path(tmp_path):
    lopt.save_rule(RULE, tmp_path / "rule.safetensors")
    models = [mlp(), mlp()]
    train(models[0], learned(models[0].parameters()))
    train(models[1], learned(models[1].parameters(), rule=tmp_path / "rule.safetensors"))
    assert same(values(models[0]), values(models[1]))


def test_added_group_outside_the_graph_is_untied():
    model, extra = mlp(), nn.Linear(3, 3)
    optimizer = learned(model.parameters(), graph=mlp_graph())
    train(model, optimizer)
    optimizer.add_param_group({"params": extra.parameters()})
    before = values(extra)
    train(nn.Sequential(model, extra), optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(before, extra.parameters(), strict=True))
    assert len(optimizer.graph.parameters) == 6


def test_added_group_inside_the_graph_takes_its_place():
    model = mlp()
    optimizer = learned(model[0].parameters(), graph=mlp_graph())
    optimizer.add_param_group({"params": model[2].parameters()})
    other = mlp()
    train(model, optimizer)
    train(other, learned(other.parameters(), graph=mlp_graph()))
    assert same(values(model), values(other))


def test_added_groups_with_equal_names():
    first, second, third = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)
    optimizer = learned(first.named_parameters())
    optimizer.add_param_group({"params": list(second.named_parameters())})
    optimizer.add_param_group({"params": list(third.named_parameters())})
    for layer in (first, second, third):
        give_gradients(layer)
    optimizer.step()
    assert len(optimizer.graph.parameters) == 6


def test_an_added_group_whose_numbered_names_are_taken():
    """The second group's "0.weight" becomes "1.0.weight", which the first has already."""
    first = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 3)))
    second = nn.Sequential(nn.Linear(6, 3))
    optimizer = learned(first.named_parameters())
    optimizer.add_param_group({"params": list(second.named_parameters())})
    before = values(nn.ModuleList([first, second]))
    for model in (first, second):
        give_gradients(model)
    optimizer.step()
    assert len(optimizer.graph.parameters) == 6
    after = values(nn.ModuleList([first, second]))
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("named", [False, True])
def test_a_group_outside_the_graph_added_before_the_first_forward(named):
    models = []
    for early in (False, True):
        model, extra = mlp(), nn.Linear(3, 3)
        extra.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
        params = model.named_parameters() if named else model.parameters()
        optimizer = learned(params, graph=lopt.trace_on_first_forward(model))
        if not early:
            model(torch.zeros(1, 6))
            optimizer.step()
        optimizer.add_param_group({"params": list(extra.named_parameters() if named else extra.parameters())})
        models.append(nn.Sequential(model, extra))
        train(models[-1], optimizer)
    assert same(values(models[0]), values(models[1]))


def test_trace_on_first_forward():
    models = [mlp(), mlp()]
    x, _ = next(batches(1))
    traced = lopt.ParameterGraph.trace(models[0], (x,))
    train(models[0], learned(models[0].parameters(), graph=traced))
    optimizer = learned(models[1].parameters(), graph=lopt.trace_on_first_forward(models[1]))
    train(models[1], optimizer)
    assert optimizer.graph.rung == traced.rung
    assert not models[1]._forward_pre_hooks
    assert same(values(models[0]), values(models[1]))


def test_copy_before_the_first_forward():
    model = mlp()
    optimizer = learned(model.parameters(), graph=lopt.trace_on_first_forward(model))
    for twin_model, twin in (
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ):
        train(twin_model, twin)
        assert twin.graph.rung == "traced"
        assert optimizer.graph is None


def test_step_before_the_first_forward():
    model, other = mlp(), mlp()
    optimizer = learned(model.parameters(), graph=lopt.trace_on_first_forward(other))
    give_gradients(model)
    with pytest.raises(GraphError, match="expected a forward pass of the model"):
        optimizer.step()


def test_a_compiled_step_is_one_graph_even_if_it_is_the_first():
    compiled, ran = [], []

    def backend(module, inputs):
        if not inputs:  # turns gradients off and on, around the first step
            return module
        compiled.append(module)
        return lambda *args: ran.append(module) or module(*args)

    model = mlp()
    optimizer = learned(model.parameters())
    step = torch.compile(optimizer.step, backend=backend, dynamic=False)
    give_gradients(model)
    step()
    assert ran == []  # made, bound and done as it is
    for _ in range(3):
        before = values(model)
        step()
        assert not same(values(model), before)
    assert len(ran) == 3
    assert len(compiled) == 1


def poisoned(value: float, compiled: bool):
    """An optimizer after two good steps, with one bad gradient waiting, and its step function."""
    model = mlp()
    optimizer = learned(model.parameters(), weight_decay=0.1)
    step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    train(model, optimizer, 2)
    give_gradients(model)
    model[0].weight.grad[0, 0] = value
    return model, optimizer, step


@pytest.mark.parametrize(
    ("value", "compiled"), [(torch.nan, False), (torch.inf, False), (-torch.inf, False), (torch.nan, True)]
)
def test_non_finite_gradient_skips_and_counts(value, compiled):
    """Compiled, the skip is a branch-free selection, as it is on accelerators."""
    model, optimizer, step = poisoned(value, compiled)
    before, state = values(model), optimizer.state_dict()["state"]
    step()
    assert optimizer.skipped_steps == 1
    assert same(values(model), before)
    assert same(optimizer.state_dict()["state"], state)
    train(model, optimizer, 1)
    assert optimizer.skipped_steps == 1
    assert not same(values(model), before)
    assert optimizer.state_dict()["skipped_steps"] == 1
    fresh = learned(model.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.skipped_steps == 1


def test_huge_gradients_are_finite():
    model = mlp()
    optimizer = learned(model.parameters())
    for p in model.parameters():
        p.grad = torch.full_like(p, 3e38)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(GradientError, match=r"'weight': expected a dense gradient.*sparse=False"):
        learned(embedding.named_parameters()).step()


def test_a_sparse_gradient_after_dense_ones_is_refused_too() -> None:
    weight = nn.Parameter(torch.randn(5, 3))
    optimizer = lopt.LearnedOptimizer([("weight", weight)], rule="lopt-small")
    weight.grad = torch.randn(5, 3)
    optimizer.step()
    weight.grad = torch.randn(5, 3).to_sparse()
    with pytest.raises(GradientError, match=r"'weight': expected a dense gradient"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: expected a number from 0, found -1.0"),
        ({"lr": torch.ones(2)}, "lr: expected a number or a one-element tensor"),
        ({"weight_decay": -0.1}, "weight_decay: expected a number from 0"),
        ({"total_steps": 0}, "total_steps: expected a number above 0 or None, found 0"),
        ({"total_steps": math.inf}, "total_steps: expected a number above 0 or None, found inf"),
        ({"rule": 3}, "rule: expected a Rule, or the name or path of one, found int"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        learned(mlp().parameters(), **options)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_complex_and_tiny_parameters_are_refused(dtype):
    with pytest.raises(ConfigError, match=rf"expected real floating-point tensors of 16 .*, found {dtype}"):
        learned([nn.Parameter(torch.zeros(2, dtype=dtype))])


@pytest.mark.parametrize("graph", [mlp(), (torch.ones(1),), "graph"])
def test_what_is_no_graph_is_refused(graph):
    with pytest.raises(
        ConfigError, match=f"graph: expected a ParameterGraph, .* found '{type(graph).__name__}'"
    ):
        learned(mlp().parameters(), graph=graph)


@pytest.mark.parametrize("rule", ["lopt-small", "lopt-base"])
def test_a_step_without_values(rule):
    """On the meta device, as when the memory of a training is planned."""
    model = mlp().to("meta")
    optimizer, other = (learned(model.parameters(), rule=rule) for _ in range(2))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(2):
        optimizer.step()
    assert all(t.is_meta for state in optimizer.state.values() for t in state.values() if t.dim())
    assert optimizer.skipped_steps == 0
    other.load_state_dict(optimizer.state_dict())
    other.step()


def test_refused_group_is_not_kept():
    model = mlp()
    optimizer = learned(model.parameters())
    with pytest.raises(ConfigError, match="lr"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": -1.0})
    train(model, optimizer)


@pytest.mark.parametrize("name", lopt.rules.names())
def test_every_rule_trains_saves_and_loads(name):
    rule = lopt.make_rule(name, **({"depth": 2, "ends": (6, 3)} if name == "dwsnet" else {}))
    optimizers = []
    for _ in range(2):
        model = mlp()
        graph = lopt.ParameterGraph.trace(model, (torch.zeros(1, 6),))
        optimizers.append((model, learned(model.parameters(), rule=rule, graph=graph)))
    (model, optimizer), (other, resumed) = optimizers
    losses = train(model, optimizer, 12)
    assert all(torch.isfinite(torch.tensor(losses)))
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 2, seed=2)
    train(other, resumed, 2, seed=2)
    assert same(values(model), values(other))
    assert not same(values(model), values(mlp()))


@pytest.mark.parametrize("other", ["adam", "axisnet", "torch"])
def test_state_of_another_rule_is_refused(other):
    model = mlp()
    if other == "torch":
        saved = torch.optim.AdamW(model.parameters())
    else:
        options = {"decays": (0.5, 0.9)} if other == "axisnet" else {}
        saved = learned(model.parameters(), rule=lopt.make_rule(other, **options))
    train(model, saved)
    optimizer = learned(model.parameters())
    train(model, optimizer)
    before = optimizer.state_dict()
    with pytest.raises(ConfigError, match=r"state_dict: expected this rule's .*, found"):
        optimizer.load_state_dict(saved.state_dict())
    assert same(optimizer.state_dict(), before)


def assert_resumes(models, optimizers):
    """The second of two, from the state of the first, goes on as the first does."""
    train(models[0], optimizers[0])
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, seed=2)
    assert same(values(models[0]), values(models[1]))


def muon(model, graph):
    return learned(model.parameters(), rule=lopt.make_rule("muon"), graph=graph)


def test_state_for_another_graph_is_refused():
    """Muon orthogonalises matrices of hidden neurons, which only the graph tells; biases have the same state."""
    model = mlp()
    optimizer = muon(model, None)
    train(model, optimizer)
    traced = lopt.ParameterGraph.trace(model, (torch.zeros(1, 6),))
    with pytest.raises(ConfigError, match=r"state_dict: expected this rule's"):
        muon(model, traced).load_state_dict(optimizer.state_dict())
    late = muon(model, lopt.trace_on_first_forward(model))
    late.load_state_dict(optimizer.state_dict())
    with pytest.raises(ConfigError, match=r"state_dict: expected this rule's"):
        train(model, late)


def test_state_is_loaded_before_the_first_forward():
    models = [mlp(bias=False), mlp(bias=False)]
    optimizers = [muon(model, lopt.trace_on_first_forward(model)) for model in models]
    assert_resumes(models, optimizers)


def test_state_that_holds_no_tensors_is_refused():
    model = mlp()
    saved = torch.optim.LBFGS(model.parameters())
    x, y = next(batches(1))
    saved.step(lambda: nn.functional.mse_loss(model(x), y))
    with pytest.raises(ConfigError, match=r"state_dict: expected this rule's"):
        learned(model.parameters()).load_state_dict(saved.state_dict())


def test_torch_optim_saves_and_loads():
    """Its state is made in the first step, so a step that is gated has no old one."""
    models = [mlp(), mlp()]
    optimizers = [learned(model.parameters(), rule=TorchOptim("Adam", lr=0.01)) for model in models]
    assert_resumes(models, optimizers)
    new = {"w": {"step": torch.tensor(1.0), "exp_avg": torch.full((2,), math.nan)}}
    kept = chosen(torch.tensor(False), new, {"w": {}})["w"]
    assert same(kept, {"step": torch.tensor(0.0), "exp_avg": torch.zeros(2)})
    assert same(
        chosen(torch.tensor(True), {"w": {"step": torch.tensor(1.0)}}, {"w": {}}),
        {"w": {"step": torch.tensor(1.0)}},
    )


def test_lr_of_one_element():
    models = [mlp(), mlp()]
    for model, lr in zip(models, (0.5, torch.tensor([0.5])), strict=True):
        train(model, learned(model.parameters(), lr=lr, weight_decay=0.1))
    assert same(values(models[0]), values(models[1]))


def test_parameters_on_other_device_than_the_rule_stay_together():
    """A rule is copied to where the parameters are; moving a model before the first step is allowed."""
    model = mlp()
    optimizer = learned(model.parameters())
    assert optimizer._rule_on(torch.device("cpu")) is optimizer.rule
    moved = optimizer._rule_on(torch.device("meta"))
    assert all(p.device.type == "meta" for p in moved.parameters())
    assert all(p.device.type == "cpu" for p in optimizer.rule.parameters())


@pytest.mark.parametrize("lr", [1e-3, 0.01, torch.tensor(1e-3), np.float32(1e-3)])
def test_a_rate_left_at_adamws_is_told_of(lr):
    with pytest.warns(UserWarning, match=r"lr: expected about 1, found .*0\.0.* no learning rate of AdamW's"):
        learned(mlp().parameters(), lr=lr)
    with pytest.warns(UserWarning, match="lr: expected about 1"):
        learned([{"params": layer.parameters(), "lr": lr} for layer in (mlp()[0], mlp()[2])])


def test_a_low_rate_of_some_layers_is_none_of_these():
    model = mlp()
    learned([{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[2].parameters()}])
    learned(model.parameters(), lr=0.0)


@pytest.mark.parametrize(
    "lr", [np.float32(0.5), np.float64(0.5), np.array(0.5), np.array([0.5]), np.int64(1)]
)
def test_numbers_of_numpy(lr):
    models = [mlp(), mlp()]
    for model, wrap in zip(models, (float, lambda value: value), strict=True):
        rate = float(np.asarray(lr).item()) if wrap is float else lr
        optimizer = learned(model.parameters(), lr=rate, weight_decay=wrap(np.float32(0.25)))
        assert type(optimizer.param_groups[0]["lr"]) is float
        train(model, optimizer, 1)
        optimizer.param_groups[0]["lr"] = rate if wrap is float else np.asarray(lr).reshape(())[()]
        train(model, optimizer, 1)
    assert same(values(models[0]), values(models[1]))


@pytest.mark.parametrize("bad", ["1e-3", None, np.ones(2), 1j])
def test_what_is_no_number(bad):
    with pytest.raises(ConfigError, match=r"lr: expected a number or a one-element tensor, found"):
        learned(mlp().parameters(), lr=bad)
    if bad is not None:
        with pytest.raises(ConfigError, match=r"total_steps: expected a number above 0 or None, found"):
            learned(mlp().parameters(), total_steps=bad)


@pytest.mark.parametrize("named", [False, True])
def test_a_parameter_given_twice_is_named(named):
    model = mlp()
    params = list(model.named_parameters() if named else model.parameters())
    again = ("head", model[0].bias) if named else model[0].bias
    name, first = ("'head'", "'0.bias'") if named else (r"'0\.4'", r"'0\.1'")
    with pytest.raises(ConfigError, match=rf"found {name} \(shape \(8,\)\) also as {first}"):
        learned([*params, again])
    optimizer = learned(params)
    name = "'head'" if named else r"'1\.0'"
    with pytest.raises(ConfigError, match=rf"found {name} \(shape \(8,\)\) in more than one parameter group"):
        optimizer.add_param_group({"params": [again]})
    assert len(optimizer.param_groups) == 1


def test_everything_under_a_default_device_without_memory():
    models = [mlp(), mlp()]
    train(models[0], learned(models[0].parameters(), rule="lopt-small"))
    with torch.device("meta"):
        optimizer = learned(models[1].parameters(), rule="lopt-small")
        assert all(p.device.type == "cpu" for p in optimizer.rule.parameters())
    train(models[1], optimizer)
    assert same(values(models[0]), values(models[1]))
    for model in models:
        model.zero_grad()
        give_gradients(model)
    first = learned(models[0].parameters(), rule="lopt-base")
    with torch.device("meta"):
        second = learned(models[1].parameters(), rule="lopt-base")
        second.step()
    first.step()
    assert same(values(models[0]), values(models[1]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_frozen_parameters_of_any_dtype(dtype):
    model, frozen = mlp(), nn.Parameter(torch.zeros(3, 2, dtype=dtype), requires_grad=False)
    optimizer = learned([*model.parameters(), frozen], weight_decay=0.1)
    losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]
    assert not frozen.to(torch.complex64).any()


def test_complex_parameters_that_train_later_are_refused_by_name():
    model, turns = mlp(), nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)
    optimizer = learned([*model.named_parameters(), ("turns", turns)])
    turns.requires_grad_(True)
    turns.abs().sum().backward()
    with pytest.raises(
        GradientError, match=r"'turns': expected a real .* found torch.complex64; .*view_as_real"
    ):
        optimizer.step()


def test_scripted_models_and_data_parallel_ones():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = [torch.jit.script(mlp()), torch.jit.trace(mlp(), torch.zeros(2, 6)), nn.DataParallel(mlp())]
    plain = mlp()
    train(plain, learned(plain.parameters()))
    for model in models:
        train(model, learned(model.parameters()))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(values(model), values(plain), strict=True))
        with pytest.raises(GraphError, match=r"compiled by torch.jit: pass the module|pass model\.module"):
            lopt.ParameterGraph.trace(model, (torch.zeros(2, 6),))
    named = models[2].named_parameters()
    assert set(learned(named, graph=mlp_graph()).graph.parameters) == set(mlp_graph().parameters)


def test_made_in_inference_mode_it_steps_outside_as_adamw_does() -> None:
    steps = []
    for inside in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        with torch.inference_mode(inside):
            optimizer = lopt.LearnedOptimizer(model.parameters(), rule="lopt-small")
        for _ in range(2):
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
        steps.append(model.weight.detach().clone())
    assert torch.equal(*steps)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rule", "lopt-small"),
        ("total_steps", 100),
        ("loss_guard", True),
        ("graph", "model"),
        ("state_dtype", torch.bfloat16),
    ],
)
def test_options_of_the_whole_optimizer_are_refused_in_a_group(key: str, value: object) -> None:
    first, second = nn.Linear(3, 2), nn.Linear(2, 2)
    message = f"{key}: expected it for the whole optimizer, found it in a parameter group"
    with pytest.raises(ConfigError, match=message):
        learned([{"params": first.parameters(), key: value}])
    optimizer = learned(first.parameters())
    with pytest.raises(ConfigError, match=message):
        optimizer.add_param_group({"params": second.parameters(), key: value})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group(
        {"params": second.parameters(), "name": "head"}
    )  # what is unknown is kept, as by AdamW


def test_a_mode_of_fake_tensors_is_one_error() -> None:
    with FakeTensorMode(), pytest.raises(ConfigError, match=r"FakeTensorMode.* outside of it"):
        lopt.LearnedOptimizer(nn.Linear(3, 2).parameters())
