"""Classical rules: equal to torch.optim or to a slow twin; pure, vmap-able, differentiable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.rules.base import Rule
from lopt.rules.classical import (
    CLASSICAL,
    AdamW,
    ClassicalRule,
    Muon,
    NorMuon,
    ScheduleFreeAdamW,
    SoapMuon,
    TorchOptim,
)
from tests.comparison.stranger import Flagged

SHAPES = {"conv": (4, 3, 3, 3), "weight": (6, 5), "bias": (5,), "scalar": ()}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


def make_params(
    dtype: torch.dtype = torch.float32, shapes: dict[str, tuple[int, ...]] = SHAPES
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def gradient(params: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    """A noisy gradient that depends on the parameters, so that errors would grow over the steps."""
    generator = torch.Generator().manual_seed(t)
    return {n: p.sin() + torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in params.items()}


def run_rule(rule: Rule, params: dict[str, Tensor], steps: int = 100) -> dict[str, Tensor]:
    bound = rule.on(ParameterGraph.untied(params.items()))
    state = bound.init(params)
    for t in range(steps):
        params, state = bound.update(gradient(params, t), state, params)
    return params


def run_torch(
    optimizer: type[torch.optim.Optimizer], params: dict[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    params = {name: p.clone().requires_grad_() for name, p in params.items()}
    optim = optimizer(params.values(), **options)
    for t in range(100):
        for name, g in gradient({n: p.detach() for n, p in params.items()}, t).items():
            params[name].grad = g
        optim.step()
    return {name: p.detach() for name, p in params.items()}


TORCH_TWINS = [
    ("sgd", torch.optim.SGD, {"lr": 0.05}),
    ("sgd", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("sgd", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("adam", torch.optim.Adam, {"lr": 0.01}),
    ("adam", torch.optim.Adam, {"lr": 0.01, "betas": (0.5, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("adamw", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.3}),
    ("adafactor", torch.optim.Adafactor, {"lr": 0.02}),
    ("adafactor", torch.optim.Adafactor, {"lr": 0.3, "beta2_decay": -0.5, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "optimizer", "options"), TORCH_TWINS)
def test_equals_torch_optim(name: str, optimizer: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    params = make_params(dtype)
    ours, theirs = run_rule(CLASSICAL[name](**options), params), run_torch(optimizer, params, **options)
    for key in params:
        torch.testing.assert_close(ours[key], theirs[key], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert (ours[key] - params[key]).abs().max() > 1e-3, "the run moved the parameters"


def test_muon_equals_torch_optim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to torch's bfloat16, whose iteration is replaced by the same one in float64."""
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", slow_newton_schulz)
    params = make_params(torch.float64, {"tall": (7, 4), "wide": (3, 6), "square": (5, 5)})
    for nesterov in (True, False):
        options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.2, "momentum": 0.9, "nesterov": nesterov}
        theirs = run_torch(torch.optim.Muon, params, adjust_lr_fn="match_rms_adamw", **options)
        torch.testing.assert_close(run_rule(Muon(**options), params), theirs, rtol=1e-12, atol=1e-12)


# Schedule-free: ours weighs the average by the paper's algorithm, the library evenly; without a second moment both are
# the same, but for the 1e-15 that the library adds to squares.
LIBRARY_TWINS = [
    ("lion", "Lion", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    ("adamw", "AdamW", {"lr": 0.01, "weight_decay": 0.3}),
    (
        "schedule_free_adamw",
        "ScheduleFreeAdamW",
        {"lr": 0.02, "betas": (0.9, 0.0), "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize(("name", "twin", "options"), LIBRARY_TWINS)
def test_equals_its_library_twin(name: str, twin: str, options: dict[str, Any]) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    params = make_params(torch.float64)
    ours, theirs = (
        run_rule(CLASSICAL[name](**options), params),
        run_torch(getattr(library, twin), params, **options),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


def test_normuon_equals_its_library_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the library's bfloat16, as for Muon; weight decay is what ours takes of the parameters before the step."""
    library = pytest.importorskip("pytorch_optimizer")
    monkeypatch.setattr(
        "pytorch_optimizer.optimizer.muon.normuon.zero_power_via_newton_schulz_5", slow_newton_schulz
    )
    params = make_params(torch.float64, {"tall": (7, 4), "wide": (3, 6), "kernel": (4, 3, 2, 2)})
    options: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.2, "momentum": 0.9}
    theirs = TorchOptim(library.NorMuon, update_scale="match_rms", foreach=False, **options)
    optimized = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = theirs.build(optimized, ParameterGraph.untied(params.items()))
    for t in range(100):
        for name, g in gradient({n: p.detach() for n, p in optimized.items()}, t).items():
            optimized[name].grad = g
        optimizer.step()
    ours = run_rule(NorMuon(**options), params)
    torch.testing.assert_close(ours, {n: p.detach() for n, p in optimized.items()}, rtol=1e-9, atol=1e-9)


def test_soap_muon_without_bases_is_muon_of_an_adam_like_momentum() -> None:
    """With sides too long for a basis: momentum over the root of the second moment, then orthogonalised."""
    params = make_params(torch.float64, {"weight": (6, 5)})
    rule = SoapMuon(0.1, largest=4, weight_decay=0.0)
    grads = gradient(params, 0)
    new, _ = run_fixed(rule, params, [grads])
    expected = -0.1 * 0.2 * 6**0.5 * slow_newton_schulz(grads["weight"].sign())
    torch.testing.assert_close(new["weight"] - params["weight"], expected, rtol=1e-4, atol=1e-6)


def test_soap_muon_whitens_in_the_eigenbases() -> None:
    """Gradients A n B with white noise n: what is orthogonalised has even second moments along both sides."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.diag(torch.logspace(0, -2, 6)), torch.diag(torch.logspace(0, -2, 5))
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    rule = SoapMuon(momentum=0.0, nesterov=False, second_decay=0.99)
    state = rule.start(torch.zeros(6, 5))
    seen, grads = [], []
    for _ in range(300):
        grad = q @ left @ torch.randn(6, 5, generator=generator) @ right
        step, own = rule.direction(grad, grad, state)
        state |= own
        seen.append(step)
        grads.append(grad)
    steps, uneven = (torch.stack(x[100:]).square().mean(0) for x in (seen, grads))
    assert steps.amax() < 3 * steps.amin()
    assert uneven.amax() > 1000 * uneven.amin()


def slow_newton_schulz(matrix: Tensor, *_: Any, **__: Any) -> Tensor:
    """The polynomial a s + b s^3 + c s^5, five times, on each singular value s of matrix / |matrix|."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _step in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ vt


def test_muon_leaves_vectors_embeddings_and_the_output_layer_to_adamw() -> None:
    params = make_params(torch.float64, {"embed": (9, 4), "conv": (4, 3, 3, 3), "head": (2, 4), "bias": (4,)})
    graph = ParameterGraph.untied(params.items())
    groups = [replace(g, kind="output") if g.members == (("head", 0),) else g for g in graph.groups]
    embed = replace(graph.parameters["embed"], kind="embedding")
    graph = replace(graph, groups=tuple(groups), parameters={**graph.parameters, "embed": embed})
    adamw, muon = AdamW(0.1, weight_decay=0.1).on(graph), Muon(0.1).on(graph)
    grads = gradient(params, 0)
    plain, _ = adamw.update(grads, adamw.init(params), params)
    new, _ = muon.update(grads, muon.init(params), params)
    assert [n for n in params if torch.equal(new[n], plain[n])] == ["embed", "head", "bias"]
    kernel = (new["conv"] - params["conv"] * (1 - 0.1 * 0.1)).flatten(1)
    expected = slow_newton_schulz(grads["conv"].flatten(1)) * -0.1 * 0.2 * 27**0.5
    torch.testing.assert_close(kernel, expected, rtol=1e-10, atol=1e-12)


def test_lion_equals_slow_twin() -> None:
    """Chen et al. 2023, algorithm 2, in its own notation."""
    eta, beta1, beta2, lam = 0.01, 0.8, 0.95, 0.1
    theta, m = make_params(torch.float64), dict.fromkeys(SHAPES, torch.tensor(0.0))
    for t in range(100):
        for n, g in gradient(theta, t).items():
            c = beta1 * m[n] + (1 - beta1) * g
            theta[n] = theta[n] - eta * (torch.sign(c) + lam * theta[n])
            m[n] = beta2 * m[n] + (1 - beta2) * g
    ours = run_rule(
        CLASSICAL["lion"](lr=eta, betas=(beta1, beta2), weight_decay=lam), make_params(torch.float64)
    )
    torch.testing.assert_close(ours, theta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("warmup", [0, 30])
def test_schedule_free_equals_slow_twin(warmup: int) -> None:
    """Defazio et al. 2024, algorithm 1, in its own notation with z and x kept apart."""
    gamma, beta1, beta2, eps, lam = 0.02, 0.9, 0.99, 1e-8, 0.1
    z, x = make_params(torch.float64), make_params(torch.float64)
    v, total = dict.fromkeys(SHAPES, torch.tensor(0.0)), 0.0
    for t in range(1, 101):
        y = {n: (1 - beta1) * z[n] + beta1 * x[n] for n in SHAPES}
        gamma_t = gamma * (1 - beta2**t) ** 0.5 * min(1.0, t / max(warmup, 1))
        total += gamma_t**2
        for n, g in gradient(y, t - 1).items():
            v[n] = beta2 * v[n] + (1 - beta2) * g**2
            z[n] = z[n] - gamma_t * (g / (v[n] ** 0.5 + eps) + lam * y[n])
            x[n] = (1 - gamma_t**2 / total) * x[n] + gamma_t**2 / total * z[n]
    rule = ScheduleFreeAdamW(1.0, (beta1, beta2), eps, lam, warmup)
    params = make_params(torch.float64)
    bound = rule.on(ParameterGraph.untied(params.items()))
    state = bound.init(params)
    for t in range(100):
        params, state = bound.update(gradient(params, t), state, params, gamma)
    expected = {n: (1 - beta1) * z[n] + beta1 * x[n] for n in SHAPES}
    torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rule.evaluation_params(params, state, gamma), x, rtol=1e-12, atol=1e-12)


TORCH_NAMES = sorted(
    set(dir(torch.optim)) & {"NAdam", "RAdam", "Adagrad", "RMSprop", "Rprop", "SGD", "ASGD", "Adamax"}
)


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_torch_optim_as_a_rule_equals_the_optimizer(name: str) -> None:
    params = make_params(torch.float64)
    theirs = run_torch(getattr(torch.optim, name), params, lr=0.01)
    torch.testing.assert_close(run_rule(TorchOptim(name, lr=0.01), params), theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), [("Adamm", {}), ("LBFGS", {}), ("Adam", {"learning_rate": 1})])
def test_torch_optim_refusals(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=name):
        TorchOptim(name, **options)


def test_an_optimizer_that_needs_more_than_gradients_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="AdaHessian: expected an optimizer that steps by gradients alone"):
        TorchOptim("pytorch_optimizer.AdaHessian", lr=0.1)


def test_groups_keep_their_own_rates() -> None:
    """Of an optimizer with flags the rest keeps its ratio to the matrices, and so it does under a schedule."""
    params = {name: torch.nn.Parameter(p) for name, p in make_params(torch.float64).items()}
    optimizer = TorchOptim(Flagged, lr=0.1).build(params, ParameterGraph.untied(params.items()))
    assert [(len(g["params"]), g["lr"]) for g in optimizer.param_groups] == [(2, 0.1), (2, 0.1 / 20)]


def test_an_optimizer_of_matrices_on_a_network_without_any() -> None:
    params = make_params(torch.float64, {"kernel": (4, 3, 3, 3), "bias": (4,)})
    bound = TorchOptim("Muon", lr=0.1, adjust_lr_fn="match_rms_adamw").on(
        ParameterGraph.untied(params.items())
    )
    theirs = run_torch(torch.optim.AdamW, params, lr=0.1)
    torch.testing.assert_close(run_rule(bound.rule, params), theirs, rtol=1e-12, atol=1e-12)


def fixed_gradients(count: int = 5, dtype: torch.dtype = torch.float64) -> list[dict[str, Tensor]]:
    return [gradient(make_params(dtype), t) for t in range(count)]


def run_fixed(rule: Rule, params: dict[str, Tensor], grads: list[dict[str, Tensor]], lr: float = 1.0) -> Any:
    bound = rule.on(ParameterGraph.untied(params.items()))
    state = bound.init(params)
    for g in grads:
        params, state = bound.update(g, state, params, lr)
    return params, state


@pytest.mark.parametrize("name", CLASSICAL)
def test_vmap_equals_loop(name: str) -> None:
    factors = [1.0, 2.0, 0.0]
    bound = CLASSICAL[name](lr=0.01).on(ParameterGraph.untied(make_params().items()))
    many = {n: torch.stack([f * p for f in factors]) for n, p in make_params(torch.float64).items()}
    state = torch.vmap(bound.init)(many)
    for g in fixed_gradients():
        stacked = {n: torch.stack([x, 3 * x, x.abs()]) for n, x in g.items()}
        many, state = torch.vmap(bound.update)(stacked, state, many)
    for index, factor in enumerate(factors):
        change = [lambda x: x, lambda x: 3 * x, torch.abs][index]
        grads = [{n: change(x) for n, x in g.items()} for g in fixed_gradients()]
        one, _ = run_fixed(bound.rule, {n: factor * p for n, p in make_params(torch.float64).items()}, grads)
        for n in one:
            torch.testing.assert_close(many[n][index], one[n], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CLASSICAL)
def test_linear_in_lr(name: str) -> None:
    """A unit-rate rule with a multiplier equals the rule at that rate, unless it says that it does not."""
    inside, _ = run_fixed(CLASSICAL[name](lr=0.5), make_params(torch.float64), fixed_gradients())
    outside, _ = run_fixed(CLASSICAL[name](lr=1.0), make_params(torch.float64), fixed_gradients(), lr=0.5)
    equal = all(torch.allclose(inside[n], outside[n], rtol=1e-12, atol=1e-12) for n in inside)
    rule = CLASSICAL[name]()
    assert isinstance(rule, ClassicalRule)
    assert equal == rule.linear_in_lr


@pytest.mark.parametrize("name", CLASSICAL)
def test_meta_gradient_is_finite_at_zero_gradients(name: str) -> None:
    """Dead units have gradients of exactly zero; the derivative through sqrt(v) must not become NaN."""
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    grads = [{n: scale * 0 * x for n, x in g.items()} for g in fixed_gradients(2)]
    params, _ = run_fixed(CLASSICAL[name](lr=0.01), make_params(torch.float64), grads)
    total = sum(p.square().sum() for p in params.values())
    assert torch.isfinite(torch.autograd.grad(total, scale)[0])


# A sign has no derivative, and to derivatives the bases of SOAP are constants.
@pytest.mark.parametrize("name", sorted(set(CLASSICAL) - {"lion", "soap_muon"}))
def test_meta_gradient_against_finite_difference(name: str) -> None:
    def outcome(scale: Tensor) -> Tensor:
        grads = [{n: x + scale * x.cos() for n, x in g.items()} for g in fixed_gradients(3)]
        params, _ = run_fixed(CLASSICAL[name](lr=0.01), make_params(torch.float64), grads)
        return torch.stack([p.sin().sum() for p in params.values()]).sum()

    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(outcome(scale), scale)
    with torch.no_grad():
        difference = (outcome(scale + 1e-6) - outcome(scale - 1e-6)) / 2e-6
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CLASSICAL)
def test_pure_and_typed(name: str) -> None:
    """Inputs are left alone, bf16 parameters stay bf16, and every state entry is a float32 tensor."""
    params = make_params(torch.bfloat16)
    grads = fixed_gradients(2, torch.bfloat16)
    before = {n: (p.clone(), grads[0][n].clone()) for n, p in params.items()}
    bound = CLASSICAL[name](lr=0.1).on(ParameterGraph.untied(params.items()))
    state = bound.init(params)
    frozen = {n: {k: x.clone() for k, x in entries.items()} for n, entries in state.items()}
    new, new_state = bound.update(grads[0], state, params)
    for n in params:
        assert torch.equal(params[n], before[n][0])
        assert torch.equal(grads[0][n], before[n][1])
        assert all(torch.equal(state[n][k], frozen[n][k]) for k in frozen[n])
        assert new[n].dtype == torch.bfloat16
        assert all(x.dtype == torch.float32 for x in new_state[n].values())
        assert state[n].keys() == new_state[n].keys()


@pytest.mark.parametrize("name", CLASSICAL)
def test_compiles(name: str) -> None:
    torch.compiler.reset()  # each rule is one more version of the same function, and torch keeps eight
    shapes = {"weight": (3, 2), "bias": (2,)}
    bound = CLASSICAL[name](lr=0.1).on(ParameterGraph.untied(make_params(shapes=shapes).items()))
    compiled = torch.compile(bound.update, backend="aot_eager", fullgraph=True)
    params = make_params(shapes=shapes)
    state = bound.init(params)
    grads = gradient(params, 0)
    for ours, theirs in zip(compiled(grads, state, params), bound.update(grads, state, params), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sgd", {"lr": -1.0}, "SGD: lr: expected a number at least 0, found -1.0"),
        ("sgd", {"nesterov": True}, "momentum above 0"),
        ("adam", {"betas": (0.9, 1.0)}, "Adam: betas.1: expected a number below 1, found 1.0"),
        ("adamw", {"weight_decay": float("nan")}, "weight_decay"),
    ],
)
def test_bad_hyperparameters(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CLASSICAL[name](**options)
