"""Whitened matrices: their roots, their symmetry, and that every way to a step is the same step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lopt
from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.rules import LearnedRule, make_rule
from lopt.rules.whitening import (
    FLOOR,
    Around,
    Triangle,
    inverse_root,
    inverse_root_of_diagonal,
    started,
    whitened,
)
from tests.helpers import NETWORKS, randomised, relative_error, seeded
from tests.rules.test_learned import equivariance_error

OPTIONS: dict[str, Any] = {
    "directions": ("adam", "slow", "gradient"), "update_form": "preconditioned", "decays": (0.9, 0.99), "rate": 0.05,
    "warm_up": 0.1, "pace": 2.0,
}  # fmt: skip


def rule_of(metanet: str = "tensor_mlp", whitening: Any = None, **options: Any) -> LearnedRule:
    torch.manual_seed(0)
    settings = {"every": 3, **(whitening or {})}
    rule = make_rule(metanet, **{**OPTIONS, "whitening": settings, **options})
    assert isinstance(rule, LearnedRule)
    return randomised(rule.double(), 0, 0.05)


def spd(n: int, seed: int = 0, members: int = 2) -> Tensor:
    x = torch.randn(members, n, 2 * n, generator=seeded(seed), dtype=torch.float64)
    x = x * torch.logspace(0, -2, n, dtype=torch.float64)[:, None]
    return x @ x.mT


def test_the_root_is_that_of_the_moment_over_its_mean() -> None:
    moment = spd(7)
    root = inverse_root(moment, -0.25)
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    expected = moment / mean + FLOOR**2 * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.matrix_power(root, -4), expected)
    torch.testing.assert_close(root, root.mT)


def test_the_root_of_a_diagonal_is_the_diagonal_of_the_root() -> None:
    values = torch.rand(2, 5, generator=seeded(1), dtype=torch.float64)
    whole = inverse_root(torch.diag_embed(values), -0.25)
    torch.testing.assert_close(inverse_root_of_diagonal(values, -0.25), whole.diagonal(dim1=-2, dim2=-1))


def test_no_gradient_and_none_that_is_finite_have_a_root() -> None:
    for moment in (torch.zeros(1, 4, 4), torch.full((1, 4, 4), torch.nan), torch.full((1, 4, 4), torch.inf)):
        root = inverse_root(moment, -0.25)
        torch.testing.assert_close(root, FLOOR**-0.5 * torch.eye(4)[None])


def test_roots_even_out_half_of_what_differs() -> None:
    """Of gradients A n B of white noise n, ten times as large along some directions as along others, about the root of
    that is left: somewhat more, as the floor keeps the smallest from growing."""
    size = torch.logspace(0, 1, 6, dtype=torch.float64)
    noise = torch.randn(4000, 6, 6, generator=seeded(0), dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(6, 6, generator=seeded(1), dtype=torch.float64))
    grads = q @ (size[:, None] * noise * size) @ q.mT
    roots = [inverse_root((x @ x.mT).mean(0, keepdim=True), -0.25) for x in (grads, grads.mT)]
    evened = torch.stack(Around(*(root.expand(4000, 6, 6).unbind() for root in roots)).put(grads.unbind()))
    spread = (q.mT @ evened @ q).square().mean((0, 2)).sqrt()
    before = (q.mT @ grads @ q).square().mean((0, 2)).sqrt()
    assert before.amax() / before.amin() > 9
    assert 10**0.5 < spread.amax() / spread.amin() < 5


@pytest.mark.parametrize("largest", [256, 5])
@pytest.mark.parametrize("metanet", ["tensor_mlp", "axisnet"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_training_is_equivariant(name: str, metanet: str, largest: int) -> None:
    """With whole moments, and with sides that have but the diagonal."""
    rule = rule_of(metanet, {"largest": largest})
    network = NETWORKS[name]()
    assert whitened(network.graph, largest)
    assert equivariance_error(rule, network) < 1e-9


def test_the_moments_of_a_permuted_network_are_permuted() -> None:
    network = NETWORKS["mlp"]()
    permutation = network.graph.random_permutation(seeded(4))
    rule = rule_of().on(network.graph)

    def trained(params: dict[str, Tensor]) -> Any:
        state = rule.init(params, 50.0)
        for _ in range(5):
            params, state = rule.update(torch.func.grad(network.loss)(params), state, params)
        return state

    plain, moved = trained(network.params), trained(network.graph.permute(network.params, permutation))
    for name, own in plain.items():
        if "rows_moment" not in own:
            continue
        group = network.graph.parameters[name].axes[0][0][0]
        order = permutation[group]
        for key in ("rows_moment", "rows_root"):
            held = Triangle.of(len(order))
            expected = held.packed(held.unpacked(own[key])[:, order][:, :, order])
            assert relative_error({"": moved[name][key]}, {"": expected}) < 1e-9


class Stacked(nn.Module):
    """Matrices of three experts in one tensor, beside a kernel and a dense layer with a long side."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.wide = nn.Conv2d(2, 5, 3), nn.Linear(20, 24)
        self.experts, self.last = (
            nn.Parameter(0.3 * torch.randn(3, 24, 9)),
            nn.Parameter(0.3 * torch.randn(3, 9, 4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.wide(self.kernel(x).flatten(1)))
        return torch.bmm(torch.tanh(torch.bmm(h.expand(3, -1, -1), self.experts)), self.last).mean(0)


def steps(rule: LearnedRule, count: int = 8, **options: Any) -> tuple[nn.Module, lopt.LearnedOptimizer]:
    torch.manual_seed(0)
    model, x = Stacked().double(), torch.randn(6, 2, 4, 4, dtype=torch.float64)
    graph = ParameterGraph.trace(model, (x,))
    optimizer = lopt.LearnedOptimizer(
        model.named_parameters(), rule=rule, graph=graph, total_steps=12, **options
    )
    go_on(model, optimizer, x, count)
    return model, optimizer


def go_on(model: nn.Module, optimizer: lopt.LearnedOptimizer, x: Tensor, count: int) -> None:
    for step in range(count):
        optimizer.zero_grad()
        (model(x) - step).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("largest", [256, 12])
@pytest.mark.parametrize("metanet", ["tensor_mlp", "axisnet"])
def test_a_users_step_is_that_of_the_pure_function(metanet: str, largest: int) -> None:
    """Roots made when they are due, in place and tensor by tensor, or always, and chosen."""
    rule = rule_of(metanet, {"largest": largest})
    model, optimizer = steps(rule)
    torch.manual_seed(0)
    twin, x = Stacked().double(), torch.randn(6, 2, 4, 4, dtype=torch.float64)
    bound = rule.on(ParameterGraph.trace(twin, (x,)))
    params = {n: p.detach() for n, p in twin.named_parameters()}
    state = bound.init(params, 12)
    for step in range(8):
        grads = torch.func.grad(
            lambda p, step=step: (torch.func.functional_call(twin, p, x) - step).square().mean()
        )
        params, state = bound.update(grads(params), state, params)
    assert relative_error(dict(model.named_parameters()), params) < 1e-9
    own = {
        n: optimizer.state[p]["rows_root"]
        for n, p in model.named_parameters()
        if "rows_root" in optimizer.state[p]
    }
    assert own
    assert relative_error(own, {n: state[n]["rows_root"] for n in own}) < 1e-9


def test_many_networks_at_once_are_each_by_itself() -> None:
    network = NETWORKS["mlp"]()
    rule = rule_of().on(network.graph)
    several = [{n: p * (1 + i) for n, p in network.params.items()} for i in range(3)]
    stacked = {n: torch.stack([params[n] for params in several]) for n in network.params}

    def trained(params: dict[str, Tensor]) -> dict[str, Tensor]:
        state = rule.init(params, 50.0)
        for _ in range(5):
            params, state = rule.update(torch.func.grad(network.loss)(params), state, params)
        return params

    together = torch.vmap(trained)(stacked)
    for i, params in enumerate(several):
        assert relative_error({n: p[i] for n, p in together.items()}, trained(params)) < 1e-9


def test_a_compiled_step_is_the_same() -> None:
    """All of it traced, at steps at which roots are due and at others."""
    rule, x = rule_of(), torch.randn(6, 2, 4, 4, generator=seeded(3), dtype=torch.float64)
    (model, optimizer), (twin, other) = steps(rule, 1), steps(rule, 1)
    compiled = torch.compile(other.step, backend="eager", dynamic=False)
    for step in range(4):
        for each, go in ((model, optimizer.step), (twin, compiled)):
            each.zero_grad()
            (each(x) - step).square().mean().backward()
            go()
    assert relative_error(dict(twin.named_parameters()), dict(model.named_parameters())) < 1e-9


def test_the_pure_function_is_one_graph() -> None:
    network = NETWORKS["mlp"]()
    bound = rule_of().on(network.graph)
    state = bound.init(network.params, 50.0)
    grads = torch.func.grad(network.loss)(network.params)
    compiled = torch.compile(bound.update, backend="eager", fullgraph=True, dynamic=False)
    found, expected = (update(grads, state, network.params)[0] for update in (compiled, bound.update))
    assert relative_error(found, expected) < 1e-12


def test_a_saved_run_goes_on_bit_for_bit() -> None:
    rule, x = rule_of(), torch.randn(6, 2, 4, 4, generator=seeded(3), dtype=torch.float64)
    model, optimizer = steps(rule, 5)
    twin, other = steps(rule, 2)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in ((model, optimizer), (twin, other)):
        go_on(*each, x, 5)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_is_not_finite_leaves_moments_as_they_are() -> None:
    model, optimizer = steps(rule_of(), 4)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    after = optimizer.state_dict()["state"]
    for key, own in before.items():
        for name, value in own.items():
            assert torch.equal(value, after[key][name]), name


def test_memory_follows_the_largest_side() -> None:
    graph = ParameterGraph.trace(Stacked(), (torch.zeros(1, 2, 4, 4),))
    state = started(graph, rule_of(whitening={"largest": 12}).config.whitening, torch.zeros(()))  # type: ignore[arg-type]
    shapes = {name: {key: tuple(value.shape) for key, value in own.items()} for name, own in state.items()}
    assert shapes == {
        "kernel.weight": {"rows_moment": (15,), "rows_root": (15,), "columns_moment": (18,)},
        "experts": {"rows_moment": (3 * 24,), "columns_moment": (3 * 45,), "columns_root": (3 * 45,)},
    }


def test_a_form_that_does_not_orthogonalise_is_refused() -> None:
    with pytest.raises(ConfigError, match="update_form: expected one that orthogonalises"):
        rule_of(update_form="mixture")
    with pytest.raises(ConfigError, match="whitening"):
        make_rule("tensor_mlp", constants=("whitening",))


def test_the_share_moves_the_exponent() -> None:
    rule = rule_of(constants=("whitening",))
    network = NETWORKS["mlp"]()
    with torch.no_grad():
        rule.constants.of("whitening").zero_()[0] = -3.0  # e^-30 of a quarter: roots that change nothing
    off = rule.on(network.graph)
    state = off.init(network.params, 50.0)
    _, state = off.update(torch.func.grad(network.loss)(network.params), state, network.params)
    roots = [own["rows_root"] for own in state.values() if "rows_root" in own]
    assert roots
    for root in roots:
        n = int((2 * len(root)) ** 0.5)
        expected = Triangle.of(n).packed(torch.eye(n, dtype=root.dtype)[None])
        torch.testing.assert_close(root, expected, rtol=0, atol=1e-9)


def test_triangles_hold_symmetric_matrices() -> None:
    matrices = spd(7)
    held = Triangle.of(7)
    packed = held.packed(matrices)
    assert torch.equal(held.unpacked(packed), torch.triu(matrices) + torch.triu(matrices, 1).mT)
    rows, columns = torch.triu_indices(7, 7)
    assert torch.equal(packed, matrices[:, rows, columns].flatten())
