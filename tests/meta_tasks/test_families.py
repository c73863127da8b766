"""The contract of `Task` and `TaskFamily`, for every family and variant."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from lopt.errors import ConfigError, DataError
from meta_tasks import FAMILIES, make_family, make_task
from meta_tasks.module_task import ModuleTask
from tests.meta_tasks.kit import generator, one, to_double

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {"widths": (9, 7)}),
    "mlp-layernorm": ("mlp", {"widths": (9,), "norm": "layer", "activation": "gelu"}),
    "mlp-augmented": (
        "mlp",
        {"widths": (9,), "channels": 3, "noise": 1.0, "label_noise": 0.3, "data_fraction": 0.5, "classes": 4},
    ),
    "cnn": ("cnn", {"widths": (4, 6)}),
    "cnn-batchnorm": (
        "cnn",
        {"widths": (4, 6), "norm": "batch", "activation": "tanh", "strides": "alternate"},
    ),
    "cnn-groupnorm": ("cnn", {"widths": (4, 6), "norm": "group", "activation": "silu", "head": "flatten"}),
    "cnn-cifar": (
        "cnn",
        {"dataset": "cifar10", "size": 14, "widths": (4,), "kernel": 5, "activation": "elu"},
    ),
    "resnet": ("resnet", {"widths": (4, 6)}),
    "resnet-groupnorm": ("resnet", {"widths": (4,), "blocks": 2, "norm": "group", "channels": 3}),
    "vit": ("vit", {"width": 9, "heads": 2, "depth": 2}),
    "tabular": ("tabular", {"widths": (9, 7)}),
    "tabular-values": ("tabular", {"dataset": "diabetes", "widths": (9,), "norm": "layer"}),
    "autoencoder": ("autoencoder", {"widths": (12,), "code": 3, "noise": 0.5, "activation": "tanh"}),
    "siren": ("siren", {"widths": (8, 8), "size": 16}),
    "rnn": ("char_lm", {"network": "rnn", "width": 8, "depth": 2, "context": 8}),
    "lstm": ("char_lm", {"network": "lstm", "width": 8, "depth": 2, "context": 8}),
    "transformer": ("char_lm", {"network": "transformer", "width": 9, "heads": 2, "context": 8}),
    "shakespeare": ("char_lm", {"dataset": "tinyshakespeare", "width": 8}),
    "quadratic": ("quadratic", {"dimension": 5, "noise": 0.1}),
    "rosenbrock": ("rosenbrock", {"dimension": 4, "steepness": 10.0, "noise": 0.1}),
}
SMALL_BATCH = {"batch_size": 6, "evaluation_examples": 40}


@pytest.fixture(params=VARIANTS)
def task(request: pytest.FixtureRequest, fabricated: str) -> ModuleTask:
    family, spec = VARIANTS[request.param]
    sizes = {} if family in ("quadratic", "rosenbrock") else SMALL_BATCH
    built = make_task(family, {**sizes, **spec}, fabricated)
    assert isinstance(built, ModuleTask)
    return built


def test_every_family_has_a_variant() -> None:
    assert {family for family, _ in VARIANTS.values()} == set(FAMILIES)


def test_shapes(task: ModuleTask) -> None:
    params, batch = task.init(3, generator()), task.sample("train", 3, generator())
    shapes = {name: (3, *parameter.shape) for name, parameter in task.module.named_parameters()}
    assert {name: tuple(tensor.shape) for name, tensor in params.items()} == shapes
    assert all(tensor.shape[0] == 3 for tensor in batch)
    assert task.loss(one(params), one(batch)).shape == ()
    for split in ("train", "validation", "test"):
        metrics = task.metrics(one(params), split)
        assert "loss" in metrics
        assert all(value.shape == () and value.isfinite() for value in metrics.values())


def test_vmapped_equals_looped(task: ModuleTask) -> None:
    params, batch = to_double((task.init(3, generator()), task.sample("train", 3, generator())))
    losses = vmap(task.loss)(params, batch)
    gradients = vmap(grad(task.loss))(params, batch)
    metrics = vmap(lambda p: task.metrics(p, "validation"))(params)
    for i in range(3):
        torch.testing.assert_close(losses[i], task.loss(one(params, i), one(batch, i)))
        torch.testing.assert_close(one(gradients, i), grad(task.loss)(one(params, i), one(batch, i)))
        torch.testing.assert_close(one(metrics, i), task.metrics(one(params, i), "validation"))


def test_init_is_reproducible_and_leaves_the_global_generator_alone(task: ModuleTask) -> None:
    before = torch.get_rng_state()
    first, again, other = (task.init(2, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    random = [name for name, tensor in first.items() if tensor.unique().numel() > 1]
    assert random
    for name in random:
        assert not torch.equal(first[name][0], first[name][1])
        assert not torch.equal(first[name], other[name])
    shared = generator(1)
    task.init(2, shared)
    assert not torch.equal(task.init(2, shared)[random[0]], first[random[0]])


def test_sample_is_reproducible(task: ModuleTask) -> None:
    first, again, other = (task.sample("train", 2, generator(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][0], first[0][1])


def test_second_derivative_matches_finite_differences(task: ModuleTask) -> None:
    params, batch = to_double((one(task.init(1, generator(3))), one(task.sample("train", 1, generator(3)))))
    names, values = zip(*params.items(), strict=True)
    direction = [torch.randn(v.shape, generator=generator(4), dtype=v.dtype) for v in values]

    def slope(*tensors: Tensor) -> Tensor:
        gradients = grad(task.loss)(dict(zip(names, tensors, strict=True)), batch)
        return sum((gradients[name] * d).sum() for name, d in zip(names, direction, strict=True))

    curvature = sum(
        (g * d).sum() for g, d in zip(grad(slope, tuple(range(len(values))))(*values), direction, strict=True)
    )
    # Central difference of the slope along the same direction; error O(step^2). A step small enough that
    # hardly any ReLU changes sides.
    step = 1e-6
    ahead, behind = (
        slope(*(v + s * d for v, d in zip(values, direction, strict=True))) for s in (step, -step)
    )
    assert torch.isfinite(curvature)
    torch.testing.assert_close(curvature, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-6)


def test_the_graph_is_traced_and_its_permutations_keep_the_loss(task: ModuleTask) -> None:
    graph = task.graph
    assert graph.rung == "traced"
    assert {name: spec.shape for name, spec in graph.parameters.items()} == {
        name: tuple(parameter.shape) for name, parameter in task.module.named_parameters()
    }
    params, batch = to_double((one(task.init(1, generator())), one(task.sample("train", 1, generator()))))
    # Zero biases and unit scales would hide wrong permutations.
    params = {name: p + 0.1 * torch.randn(p.shape, generator=generator(2)) for name, p in params.items()}
    permuted = graph.permute(params, graph.random_permutation(generator(3)))
    if len(params) > 1:
        assert any(not torch.equal(permuted[name], p) for name, p in params.items())
    torch.testing.assert_close(task.loss(permuted, batch), task.loss(params, batch), rtol=1e-9, atol=1e-9)


def test_initial_losses_weigh_alike(task: ModuleTask) -> None:
    losses = vmap(task.loss)(task.init(16, generator()), task.sample("train", 16, generator()))
    assert 0.2 < float(losses.mean()) < 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_adam_lowers_the_loss(variant: str, fabricated: str) -> None:
    family, spec = VARIANTS[variant]
    plain = {name: value for name, value in spec.items() if name not in ("noise", "label_noise")}
    task = make_task(family, plain, fabricated)
    params = {name: tensor.requires_grad_() for name, tensor in one(task.init(1, generator())).items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    # One batch again and again: the fabricated images are noise, on which nothing generalises.
    batch = one(task.sample("train", 1, generator(7)))
    start = task.loss(params, batch).item()
    for _ in range(60):
        optimizer.zero_grad()
        task.loss(params, batch).backward()
        optimizer.step()
    assert task.loss(params, batch).item() < 0.9 * start


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spec_rebuilds_the_same_task(name: str) -> None:
    options: dict[str, Any] = {}
    if "channels" in FAMILIES[name].spec_class.model_fields:
        options = {
            "channels": [1, 3],
            "noise": {"low": 0.0, "high": 2.0},
            "init_scale": {"low": 0.5, "high": 2.0},
        }
    family = make_family(name, options)
    spec = family.sample_spec(generator(5))
    copy = json.loads(json.dumps(spec))
    assert copy == spec
    first, second = family.build(spec), make_family(name, options).build(copy)
    assert first.name == second.name
    for draw in (lambda t: t.init(2, generator()), lambda t: t.sample("train", 2, generator())):
        torch.testing.assert_close(draw(first), draw(second), rtol=0, atol=0)
    params = one(first.init(1, generator()))
    torch.testing.assert_close(first.metrics(params, "test"), second.metrics(params, "test"), rtol=0, atol=0)


def test_init_scale_scales_the_weights_only() -> None:
    plain, scaled = (make_task("mlp", {"init_scale": scale}).init(2, generator()) for scale in (1.0, 3.0))
    for name, tensor in plain.items():
        torch.testing.assert_close(scaled[name], tensor * (3.0 if name.endswith("weight") else 1.0))


def test_siren_splits_share_no_pixel() -> None:
    task = make_task("siren", {"size": 16, "evaluation_examples": 100_000})
    pixels = {
        s: {tuple(c) for x, _ in task.evaluation(s) for c in x.tolist()}
        for s in ("train", "validation", "test")
    }  # type: ignore[attr-defined]
    assert sum(map(len, pixels.values())) == len(set.union(*pixels.values())) == 256


def test_quadratic_has_the_stated_spectrum_and_optimum() -> None:
    task = make_task("quadratic", {"dimension": 6, "condition": 50.0, "seed": 3})
    eigenvalues = torch.linalg.eigvalsh(task.hessian.double())  # type: ignore[attr-defined]
    assert float(eigenvalues[-1] / eigenvalues[0]) == pytest.approx(50.0, rel=1e-3)
    assert float(eigenvalues.sum()) == pytest.approx(1.0, rel=1e-5)
    at_optimum = task.metrics({"x": task.optimum}, "test")  # type: ignore[attr-defined]
    assert at_optimum["loss"] == at_optimum["distance"] == 0


def test_rosenbrock_is_scipys() -> None:
    from scipy.optimize import rosen

    task = make_task("rosenbrock", {"dimension": 5})
    x = torch.randn(5, generator=generator(), dtype=torch.float64)
    expected = rosen(x.numpy()) / (4 * (4 * 100 + 2))
    assert float(task.metrics({"x": x}, "test")["loss"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("cnn", {"widht": 3}, ConfigError, "cnn: widht: unknown key"),
        ("cnn", {"kernel": [3, True]}, ConfigError, "cnn: kernel.1: expected a number, found true"),
        ("cnm", {}, ConfigError, "there is no task family 'cnm'; there are autoencoder"),
        ("cnn", {"dataset": "imagenet"}, ConfigError, "cnn: dataset: expected one of 'digits', 'mnist'"),
        ("cnn", {"dataset": ["digits", "cifar10"]}, DataError, "CIFAR-10, binary version is missing"),
        (
            "cnn",
            {"size": [8, 14]},
            ConfigError,
            "cnn: size: expected at most 8, the size of the images of digits, found 14",
        ),
        ("cnn", {"noise": 2.5}, ConfigError, "cnn: noise: expected a number at most 2, found 2.5"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_family(name, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "cnn",
            {"size": [8, 4], "kernel": [3, 5]},
            "cnn: kernel: expected at most the image size, 4, found 5",
        ),
        ("siren", {"size": [8, 2]}, "siren: size: expected 0, the published size, or at least 3, found 2"),
        ("vit", {"patch": [2, 3]}, "vit: patch: expected a divisor of the image size, 8, found 3"),
        (
            "vit",
            {"size": {"low": 4, "high": 6}},
            "vit: patch: expected a divisor of the image size, 5, found 2",
        ),
    ],
)
def test_values_that_may_be_drawn_and_do_not_fit_together(
    name: str, options: dict[str, Any], message: str
) -> None:
    """Found when the family is made, not when such a task is drawn."""
    with pytest.raises(ConfigError, match=message):
        make_family(name, options)


def test_the_smallest_siren_has_pixels_in_each_split() -> None:
    task = make_task("siren", {"size": 3, "batch_size": 1})
    for split in ("train", "validation", "test"):
        assert task.sample(split, 1, torch.Generator().manual_seed(0))[0].shape == (1, 1, 2)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("mlp", {"dataset": "photos"}, "mlp: dataset: expected one of 'digits', 'mnist'"),
        ("cnn", {"channels": False}, "cnn: channels: expected a number, found false"),
        ("mlp", {"size": 14}, "mlp: size: expected at most 8"),
        ("cnn", {"size": 4, "kernel": 5}, "cnn: kernel: expected at most the image size, 4, found 5"),
        ("vit", {"patch": 3}, "vit: patch: expected a divisor of the image size, 8, found 3"),
    ],
)
def test_values_that_do_not_fit_together(name: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(name, spec)
