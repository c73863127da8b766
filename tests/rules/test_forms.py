"""The update forms of the papers: what a fresh rule does, and the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lopt import load_rule, make_rule, save_rule
from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import Matrices
from lopt.numerics.moments import Moments
from lopt.numerics.newton_schulz import newton_schulz
from lopt.rules import LearnedRule
from lopt.rules.constants import SPEED
from lopt.rules.directions import History
from lopt.rules.forms import FORMS
from tests.helpers import relative_error, seeded, small_rule

SHAPES = {"w": (5, 4), "b": (5,)}


def tensors(seed: int) -> dict[str, Tensor]:
    generator = seeded(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def train(rule: LearnedRule, steps: int, meta: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    params = tensors(0)
    bound = rule.on(ParameterGraph.untied(params.items()), meta)
    state = bound.init(params)
    for t in range(steps):
        params, state = bound.update({n: p + tensors(t)[n] for n, p in params.items()}, state, params)
    return params


def fresh(form: str, **options: object) -> LearnedRule:
    torch.manual_seed(0)
    rule = make_rule("mlp", update_form=form, **options)
    assert isinstance(rule, LearnedRule)
    return rule.double()


def test_fresh_magnitude_form_stands_still() -> None:
    assert relative_error(train(fresh("magnitude"), 3), tensors(0)) == 0


def test_fresh_momentum_form_is_gradient_descent_with_momentum() -> None:
    """m = gamma m + (1 - gamma) g, bias-corrected; p -= alpha m."""
    rule = fresh("momentum", rate=0.1)
    params, m = tensors(0), {n: torch.zeros(s).double() for n, s in SHAPES.items()}
    rate = rule.gauges()["base_rate"]
    for t in range(6):
        for n, p in params.items():
            m[n] = 0.9 * m[n] + 0.1 * (p + tensors(t)[n])
        params = {n: p - rate * m[n] / (1 - 0.9 ** (t + 1)) for n, p in params.items()}
    assert relative_error(train(rule, 6), params) < 1e-12


def test_momentum_form_learns_its_decay() -> None:
    """After a shift of the logit: that very decay, and a derivative that equals finite differences."""
    rule = fresh("momentum", rate=0.1, decays=(0.9, 0.99))
    assert rule.decay_shift is not None
    assert rule.gauges()["momentum_decay"] == pytest.approx(0.9, abs=1e-12)
    with torch.no_grad():
        rule.decay_shift += (math.log(0.6 / 0.4) - math.log(9)) / SPEED
    assert rule.gauges()["momentum_decay"] == pytest.approx(0.6, abs=1e-12)
    expected = fresh("momentum", rate=0.1, decays=(0.6, 0.99))
    assert relative_error(train(rule, 6), train(expected, 6)) < 1e-12

    def trained(shift: Tensor) -> tuple[Tensor, ...]:
        return tuple(train(rule, 6, {"decay_shift": shift}).values())

    assert torch.autograd.gradcheck(trained, (rule.decay_shift.detach().requires_grad_(),))
    assert fresh("mixture").decay_shift is None


def test_a_decay_of_zero_stays() -> None:
    rule = fresh("momentum", decays=(0.0, 0.9))
    assert rule.decay_shift is not None
    (derivative,) = torch.autograd.grad(train(rule, 3)["w"].sum(), [rule.decay_shift])
    assert derivative == 0


def history() -> History:
    row = torch.linspace(-1, 1, 7, dtype=torch.float64)
    moments = Moments(torch.stack([row * 2, row]), row.abs() + 1)
    inverse = 1 / (moments.root + 1e-8)
    return History(row, row + 1, moments, inverse, row + 2, row[:1], row[:1], [7], [None])


def test_formulas() -> None:
    h, names = history(), {"adam": 1.0, "gradient": 0.0}
    raw = torch.randn(3, 7, generator=seeded(0), dtype=torch.float64)
    rate = torch.tensor(0.01, dtype=torch.float64)
    adam, gradient = h.moments.momenta[0] / (h.moments.root + 1e-8), h.grads / (h.moments.root + 1e-8)
    expected = {
        "mixture": -0.01
        * (raw[0] / (1 + raw[0] ** 2 / 4).sqrt()).exp()
        * ((1 + raw[1]) * adam + raw[2] * gradient),
        "magnitude": -0.01 * raw[0] * (0.01 * raw[1]).exp(),
        "momentum": -0.01 * (h.moments.momenta[0] + 1e-3 * raw[0]),
    }
    expected["orthogonal"] = expected["preconditioned"] = expected["mixture"]  # of a vector
    assert set(expected) == set(FORMS)
    for name, form in FORMS.items():
        found = form.step(h, names, form.said(raw[: form.outputs(len(names))], rate.log(), names))
        torch.testing.assert_close(found, expected[name])


def matrix_history() -> tuple[History, Tensor]:
    """Of one hidden matrix (6, 4), and raw outputs for two directions that leave the length as it is."""
    generator = seeded(3)
    grads, momentum, raw = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((24,), (2, 24), (3, 24))
    )
    raw[0] = 0
    m = Moments(momentum, torch.rand(24, generator=generator, dtype=torch.float64) + 0.1)
    return of_moments(
        History(grads, grads, m, grads, None, grads[:1], grads[:1], [24], [Matrices(1, 6, 4)]), m
    ), raw


def of_moments(h: History, m: Moments) -> History:
    """The same with another history, and what follows from that."""
    return h._replace(moments=m, inverse=1 / (m.root + 1e-8), root_rms=m.root.square().mean().sqrt()[None])


def step_of(form: str, h: History, raw: Tensor) -> Tensor:
    names = {"adam": 0.5, "gradient": 0.5}
    said = FORMS[form].said(raw, torch.zeros(()), names)
    return -FORMS[form].step(h, names, said).reshape(6, 4)


def test_the_orthogonal_form_keeps_all_singular_values_alike_however_directions_are_mixed() -> None:
    """At the rms of the mixture; what is orthogonalised is in units of the gradient."""
    h, raw = matrix_history()
    mixed, found = step_of("mixture", h, raw), step_of("orthogonal", h, raw)
    torch.testing.assert_close(found.norm(), mixed.norm())
    flat = newton_schulz(mixed * h.moments.root.reshape(6, 4))
    torch.testing.assert_close(found / found.norm(), flat / flat.norm(), rtol=1e-5, atol=1e-7)
    spread = torch.linalg.svdvals(found)
    assert spread[0] / spread[-1] < 2 < torch.linalg.svdvals(mixed)[0] / torch.linalg.svdvals(mixed)[-1]


def test_the_preconditioned_form_is_the_orthogonal_one_in_coordinates_that_even_gradients_out() -> None:
    """z = D p with D = v^(1/4): gradients D^-1 g, steps D^-1 O(D^-1 m), at the rms of the mixture."""
    h, raw = matrix_history()
    mixed, found = step_of("mixture", h, raw), step_of("preconditioned", h, raw)
    torch.testing.assert_close(found.norm(), mixed.norm())
    root = h.moments.root.reshape(6, 4)
    flat = newton_schulz(mixed * root / root.sqrt()) / root.sqrt()
    torch.testing.assert_close(found / found.norm(), flat / flat.norm(), rtol=1e-5, atol=1e-7)


def test_the_preconditioned_form_bears_entries_without_gradients_and_any_scale_of_the_loss() -> None:
    """Dead rows and entries of hardly any gradient take no long steps; the loss times a thousand changes nothing."""
    h, raw = matrix_history()
    alive = torch.ones(6, 4, dtype=torch.float64)
    alive[2], alive[3, 1] = 0, 1e-3

    def scaled(by: Tensor) -> History:
        m = Moments(h.moments.momenta * by, h.moments.root * by)
        return of_moments(h._replace(grads=h.grads * by), m)

    found = step_of("preconditioned", scaled(alive.flatten()), raw)
    assert (found[2] == 0).all()
    evenly = step_of("orthogonal", scaled(alive.flatten()), raw)
    assert found[3, 1].abs() < 5 * evenly.abs().max()
    for by in (1e-3, 1e3):
        torch.testing.assert_close(
            step_of("preconditioned", scaled(by * alive.flatten()), raw), found, rtol=1e-3, atol=1e-6
        )


def test_the_preconditioned_form_is_the_orthogonal_one_where_all_gradients_are_of_one_size() -> None:
    h, raw = matrix_history()
    m = h.moments._replace(root=torch.full_like(h.moments.root, 0.3))
    h = of_moments(h, m)
    torch.testing.assert_close(step_of("preconditioned", h, raw), step_of("orthogonal", h, raw))


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_saved_with_the_rule_and_have_finite_derivatives(form: str, tmp_path: object) -> None:
    rule = small_rule(metanet="mlp", metanet_options={}, update_form=form).float()
    path = f"{tmp_path}/rule.safetensors"
    save_rule(rule, path)
    loaded = load_rule(path)
    assert loaded.config.update_form == form
    moved = train(loaded.double(), 3)
    total = sum(p.sum() for p in moved.values())
    assert isinstance(total, Tensor)
    for derivative in torch.autograd.grad(total, list(loaded.metanet.parameters())):
        assert torch.isfinite(derivative).all()
        assert derivative.abs().max() > 0


def test_unknown_form_is_named() -> None:
    with pytest.raises(
        ConfigError,
        match="update_form: expected one of 'mixture', 'orthogonal', 'preconditioned', 'magnitude' or 'momentum'",
    ):
        make_rule("mlp", update_form="sideways")
