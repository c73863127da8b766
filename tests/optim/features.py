"""What a user of `torch.optim.AdamW` relies on, one function each; `python -m tests.optim.features` makes the table.

A feature is a function of `make(params, **options) -> Optimizer` that raises if the optimizer lacks it.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

from tests.optim.kit import adamw, batches, give_gradients, learned, mlp, same, train, values

Make = Callable[..., Optimizer]
Feature = Callable[[Make], None]

MAKERS: dict[str, Make] = {"AdamW": adamw, "LearnedOptimizer": learned}

FEATURES: dict[str, Feature] = {}

REASONS: dict[tuple[str, str], str] = {
    ("complex parameters", "LearnedOptimizer"): "refused with one clear error: rules know real numbers only",
    ("cycled momentum", "LearnedOptimizer"): "the rule chooses its own momenta; pass `cycle_momentum=False`",
    ("float32 state under bfloat16 parameters", "AdamW"): "its state has the parameters' dtype",
    ("float16 parameters", "AdamW"): "its float16 second moment underflows to NaN",
    ("non-finite gradients do no harm", "AdamW"): "it writes NaN into the parameters",
    (
        "differentiable step",
        "LearnedOptimizer",
    ): "unroll the rule itself: `rule.on(graph).update` is differentiable",
    ("sparse gradients", "AdamW"): "refused, as in every dense torch optimizer",
    ("sparse gradients", "LearnedOptimizer"): "refused, as in every dense torch optimizer",
}
"""Why an optimizer lacks a feature; the tests demand that it really does."""


def feature(name: str) -> Callable[[Feature], Feature]:
    def register(function: Feature) -> Feature:
        FEATURES[name] = function
        return function

    return register


def moved(model: nn.Module, before: list[torch.Tensor]) -> list[bool]:
    return [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]


def snapshot(optimizer: Optimizer) -> dict:
    return copy.deepcopy(optimizer.state_dict())


@feature("trains")
def trains(make: Make) -> None:
    model = mlp()
    losses = train(model, make(model.parameters()), 60)
    assert sum(losses[-5:]) < sum(losses[:5])


@feature("parameter groups with their own options")
def groups(make: Make) -> None:
    model = mlp()
    optimizer = make([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}])
    before = values(model)
    train(model, optimizer)
    assert moved(model, before) == [False, False, True, True]


@feature("generators, lists and dicts of parameters")
def containers(make: Make) -> None:
    for wrap in (iter, list, tuple, lambda params: [{"params": params}]):
        model = mlp()
        before = values(model)
        train(model, make(wrap(model.parameters())), 1)
        assert all(moved(model, before))


@feature("empty and wrong parameter lists are refused")
def refused(make: Make) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(TypeError):
        make(torch.ones(2, requires_grad=True))
    with pytest.raises(ValueError, match="non-leaf"):
        make([torch.ones(2, requires_grad=True) * 2])
    with pytest.raises(ValueError, match=r"lr|learning rate"):
        make(mlp().parameters(), lr=-1.0)


@feature("add_param_group")
def added(make: Make) -> None:
    model = mlp()
    optimizer = make(model[0].parameters())
    train(model, optimizer)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 1e-2})
    before = values(model)
    train(model, optimizer)
    assert all(moved(model, before))
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": model[2].parameters()})


@feature("named parameters")
def named(make: Make) -> None:
    model = mlp()
    optimizer = make(model.named_parameters())
    train(model, optimizer)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == [
        n for n, _ in model.named_parameters()
    ]


@feature("frozen parameters")
def frozen(make: Make) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = make(model.parameters())
    before = values(model)
    train(model, optimizer)
    assert moved(model, before) == [False, False, True, True]
    model[0].requires_grad_(True)
    train(model, optimizer)
    assert all(moved(model, before))


@feature("parameters without a gradient keep value and state")
def unused(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters(), weight_decay=0.1)
    train(model, optimizer)
    optimizer.zero_grad()
    model[2].bias.grad = torch.ones(3)
    before, state = values(model), snapshot(optimizer)["state"]
    optimizer.step()
    assert moved(model, before) == [False, False, False, True]
    assert same([optimizer.state_dict()["state"][i] for i in range(3)], [state[i] for i in range(3)])


@feature("a step without any gradient does nothing")
def no_gradients(make: Make) -> None:
    model = mlp()
    before = values(model)
    make(model.parameters()).step()
    assert not any(moved(model, before))


@feature("shared parameters")
def shared(make: Make) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second, nn.Linear(6, 3))
    before = values(model)
    train(model, make(model.parameters()))
    assert all(moved(model, before))
    assert second.weight is first.weight


@feature("closures")
def closure(make: Make) -> None:
    models = [mlp(), mlp()]
    (x, y), optimizer = next(batches(1)), make(models[0].parameters())

    def loss_of() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(models[0](x), y)
        loss.backward()
        return loss

    loss = optimizer.step(loss_of)
    assert same([loss.item()], train(models[1], make(models[1].parameters()), 1))
    assert same(values(models[0]), values(models[1]))


@feature("gradients are left untouched")
def gradients(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters(), maximize=True, weight_decay=0.1)
    give_gradients(model)
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert same([p.grad for p in model.parameters()], before)


@feature("zero_grad")
def zero_grad(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    give_gradients(model)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@feature("gradient clipping")
def clipping(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    give_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@feature("gradient accumulation")
def accumulation(make: Make) -> None:
    models = [mlp(), mlp()]
    for model, parts in zip(models, (1, 2), strict=True):
        optimizer = make(model.parameters())
        for x, y in batches(3):
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.mse_loss(model(a), b) / parts).backward()
            optimizer.step()
    for a, b in zip(*map(values, models), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


SCHEDULERS: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=10, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingLR(o, 10)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: swa_utils.SWALR(o, 1e-3, 3),
}


def scheduler_feature(kind: str) -> Feature:
    def check(make: Make) -> None:
        model = mlp()
        optimizer = make(model.parameters(), lr=1e-2)
        scheduler, rates = SCHEDULERS[kind](optimizer), set()
        for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
            before = values(model)
            train(model, optimizer, 1)
            assert all(moved(model, before))
            rates.add(float(optimizer.param_groups[0]["lr"]))
            scheduler.step(*([loss] if kind == "ReduceLROnPlateau" else []))
        assert len(rates) > 1

    return check


for kind in SCHEDULERS:
    feature(f"scheduler {kind}")(scheduler_feature(kind))


@feature("schedulers multiply the update")
def scheduled_update(make: Make) -> None:
    changes = []
    for factor in (1.0, 0.25):
        model = mlp()
        optimizer = make(model.parameters(), lr=1e-2)
        lr_scheduler.LambdaLR(optimizer, lambda step, factor=factor: factor)
        before = values(model)
        train(model, optimizer, 1)
        changes.append([p.detach() - old for p, old in zip(model.parameters(), before, strict=True)])
    for full, quarter in zip(*changes, strict=True):
        assert torch.allclose(quarter, full / 4, atol=1e-7)


@feature("cycled momentum")
def cycled_momentum(make: Make) -> None:
    optimizer = make(mlp().parameters())
    lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=10)


@feature("lr as a tensor")
def tensor_lr(make: Make) -> None:
    models = [mlp(), mlp()]
    for model, lr in zip(models, (0.01, torch.tensor(0.01)), strict=True):
        optimizer = make(model.parameters(), lr=lr)
        scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
        for seed in range(3):
            train(model, optimizer, 1, seed)
            scheduler.step()
    for a, b in zip(*map(values, models), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


@feature("averaged weights (SWA, EMA)")
def averaged(make: Make) -> None:
    model = mlp()
    average, optimizer = swa_utils.AveragedModel(model), make(model.parameters())
    for seed in range(3):
        train(model, optimizer, 1, seed)
        average.update_parameters(model)
    assert all(torch.isfinite(p).all() for p in average.parameters())


@feature("state_dict continues bit for bit")
def resume(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters(), weight_decay=0.1)
    train(model, optimizer)
    other = copy.deepcopy(model)
    resumed = make(other.parameters(), lr=0.5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(resumed.state_dict(), optimizer.state_dict())
    train(model, optimizer, seed=2)
    train(other, resumed, seed=2)
    assert same(values(model), values(other))
    assert same(resumed.state_dict(), optimizer.state_dict())


@feature("load_state_dict leaves the caller's dict alone")
def load_is_pure(make: Make) -> None:
    model = mlp()
    saved = make(model.parameters())
    train(model, saved)
    state = snapshot(saved)
    kept = copy.deepcopy(state)
    optimizer = make(model.parameters())
    optimizer.load_state_dict(state)
    assert same(state, kept)
    optimizer.param_groups[0]["lr"] = 7.0
    assert same(state, kept)


@feature("load_state_dict refuses other groups")
def load_is_strict(make: Make) -> None:
    model = mlp()
    saved = make([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        make(model.parameters()).load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        make(model[0].parameters()).load_state_dict(make(model.parameters()).state_dict())


@feature("state of parameters not stepped yet is made after loading")
def partial_state(make: Make) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    saved = make(model.parameters())
    train(model, saved)
    optimizer = make(model.parameters())
    optimizer.load_state_dict(saved.state_dict())
    model[0].requires_grad_(True)
    before = values(model)
    train(model, optimizer)
    assert all(moved(model, before))


@feature("step, state_dict and load_state_dict hooks")
def hooks(make: Make) -> None:
    model, calls = mlp(), []
    optimizer = make(model.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append("step pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("step post"))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("save pre"))
    optimizer.register_state_dict_post_hook(lambda _, state: calls.append("save post"))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: calls.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("load post"))
    train(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["step pre", "step post", "save pre", "save post", "load pre", "load post"]


@feature("a load hook may replace the state")
def replacing_hook(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer)
    saved = snapshot(optimizer)
    wrapped = {"state": {}, "param_groups": saved["param_groups"]}
    other = make(model.parameters())
    other.register_load_state_dict_pre_hook(lambda _, state: {**state, "state": saved["state"]})
    other.load_state_dict(wrapped)
    assert same(other.state_dict()["state"], saved["state"])


@feature("deepcopy")
def deepcopy(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer)
    twin_model, twin = copy.deepcopy((model, optimizer))
    train(model, optimizer, seed=2)
    assert not same(values(model), values(twin_model))
    train(twin_model, twin, seed=2)
    assert same(values(model), values(twin_model))


@feature("pickle")
def pickled(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer)
    twin_model, twin = pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, seed=2)
    train(twin_model, twin, seed=2)
    assert same(values(model), values(twin_model))
    assert str(twin) == str(optimizer)


def dtype_feature(dtype: torch.dtype) -> Feature:
    def check(make: Make) -> None:
        model = mlp().to(dtype)
        optimizer = make(model.parameters(), lr=0.5, weight_decay=0.1)
        before = values(model)
        train(model, optimizer)
        assert all(moved(model, before))
        assert all(p.dtype == dtype and torch.isfinite(p).all() for p in model.parameters())

    return check


for dtype in (torch.bfloat16, torch.float16, torch.float64):
    feature(f"{str(dtype).removeprefix('torch.')} parameters")(dtype_feature(dtype))


@feature("parameters of several dtypes")
def mixed_dtypes(make: Make) -> None:
    for dtypes in itertools.permutations((torch.bfloat16, torch.float32, torch.float64)):
        params = [nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in dtypes]
        optimizer = make(params)
        for count in (1, 2, 3):
            for p in params[:count]:
                p.grad = torch.ones_like(p)
            optimizer.step()
        assert all((p != 0).all() for p in params)


@feature("state of another precision")
def other_precision(make: Make) -> None:
    for old, new in itertools.permutations((torch.bfloat16, torch.float32, torch.float64), 2):
        model = mlp().to(old)
        optimizer = make(model.parameters())
        train(model, optimizer)
        model.to(new)
        resumed = make(model.parameters())
        resumed.load_state_dict(optimizer.state_dict())
        before = values(model)
        train(model, resumed)
        assert all(moved(model, before))


@feature("parameters with equal names")
def equal_names(make: Make) -> None:
    one, two = mlp(), mlp()
    optimizer = make([*one.named_parameters(), *two.named_parameters()])
    optimizer.add_param_group({"params": list(mlp().named_parameters())})
    both = nn.ModuleList([one, two])
    before = values(both)
    for model in both:
        give_gradients(model)
    optimizer.step()
    assert all(moved(both, before))


@feature("float32 state under bfloat16 parameters")
def float32_state(make: Make) -> None:
    model = mlp().bfloat16()
    optimizer = make(model.parameters())
    train(model, optimizer)
    other = make(model.parameters())
    other.load_state_dict(snapshot(optimizer))
    for state in (optimizer.state_dict()["state"], other.state_dict()["state"]):
        assert all(t.dtype == torch.float32 for entry in state.values() for t in entry.values())


@feature("autocast")
def autocast(make: Make) -> None:
    models = [mlp(), mlp()]
    for model, inside in zip(models, (False, True), strict=True):
        optimizer = make(model.parameters())
        for x, y in batches(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                optimizer.step()
    assert same(values(models[0]), values(models[1]))


@feature("GradScaler")
def grad_scaler(make: Make) -> None:
    model = mlp()
    optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=8.0)
    for poison in (False, True, False):
        optimizer.zero_grad()
        x, y = next(batches(1))
        scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
        if poison:
            model[0].weight.grad[0, 0] = math.inf
        scaler.unscale_(optimizer)
        before = values(model)
        scaler.step(optimizer)
        scaler.update()
        assert any(moved(model, before)) != poison
    assert scaler.get_scale() == 4.0


@feature("maximize")
def maximize(make: Make) -> None:
    models = [mlp(), mlp()]
    for model, flag in zip(models, (False, True), strict=True):
        give_gradients(model)
        if flag:
            for p in model.parameters():
                p.grad = -p.grad
        make(model.parameters(), maximize=flag).step()
    assert same(values(models[0]), values(models[1]))


@feature("torch.compile of the step")
def compiled(make: Make) -> None:
    models = [mlp(), mlp()]
    optimizers = [make(model.parameters(), weight_decay=0.1) for model in models]
    step = torch.compile(optimizers[1].step, backend="eager")
    for seed in range(3):
        for model, act in zip(models, (optimizers[0].step, step), strict=True):
            model.zero_grad()
            give_gradients(model, seed)
            act()
    for a, b in zip(*map(values, models), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@feature("channels-last parameters")
def channels_last(make: Make) -> None:
    models = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        model = model.to(memory_format=memory_format)
        optimizer = make(model.parameters())
        for seed in range(3):
            optimizer.zero_grad()
            x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            model(x.to(memory_format=memory_format)).square().mean().backward()
            optimizer.step()
        models.append(model)
    assert models[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(*map(values, models), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@feature("scalar, one-element and empty parameters")
def odd_shapes(make: Make) -> None:
    params = [nn.Parameter(torch.ones(shape)) for shape in ((), (1,), (1, 1), (0,), (3, 0), (2, 3))]
    optimizer = make(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert all(torch.isfinite(p).all() and (p != 1).all() for p in params)


@feature("zero gradients")
def zero_gradients(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@feature("one optimizer per parameter, stepped in the backward pass")
def in_backward(make: Make) -> None:
    model = mlp()
    optimizers = {p: make([p]) for p in model.parameters()}

    def step(p: nn.Parameter) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    before = values(model)
    give_gradients(model)
    assert all(moved(model, before))


@feature("torch.distributed.checkpoint.state_dict")
def checkpoint_state_dict(make: Make) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert "0.weight" in saved["state"]
    other = copy.deepcopy(model)
    resumed = make(other.parameters())
    set_optimizer_state_dict(other, resumed, saved)
    assert same(values(model), values(other))
    train(model, optimizer, seed=2)
    train(other, resumed, seed=2)
    assert same(values(model), values(other))


@feature("non-finite gradients do no harm")
def non_finite(make: Make) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    give_gradients(model)
    model[0].weight.grad[0, 0] = math.nan
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@feature("complex parameters")
def complex_parameters(make: Make) -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = make([p])
    p.grad = torch.ones_like(p)
    optimizer.step()


@feature("sparse gradients")
def sparse(make: Make) -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = make(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    optimizer.step()


@feature("differentiable step")
def differentiable(make: Make) -> None:
    make(mlp().parameters(), differentiable=True)


def table() -> str:
    """The compatibility table in Markdown; runs every feature with every optimizer."""
    lines = [
        "# Compatibility",
        "",
        "What users of `torch.optim.AdamW` rely on, and whether each optimizer has it. Made by",
        "`python -m tests.optim.features`; the same functions are the tests in `tests/optim/test_compatibility.py`.",
        "Trainers and sharding have tests of their own: `tests/trainers`.",
        "",
        f"| feature | {' | '.join(MAKERS)} |",
        f"|---|{'---|' * len(MAKERS)}",
    ]
    for name, check in FEATURES.items():
        lines.append(f"| {name} | {' | '.join(verdict(name, check, maker) for maker in MAKERS)} |")
    return "\n".join(lines) + "\n"


def verdict(name: str, check: Feature, maker: str) -> str:
    try:
        check(MAKERS[maker])
    except Exception as error:  # any failure is a "no"
        return f"no: {REASONS.get((name, maker), f'{type(error).__name__}: {error}')}"
    return "yes"


if __name__ == "__main__":
    Path("docs/compatibility.md").write_text(table())
