"""Task augmentation: other units, the same networks."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from lopt.inner.unroll import unroll
from lopt.rules.classical import CLASSICAL
from lopt.training.augmentation import Augmentation, Augmented
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import PES, TruncatedBackprop
from lopt.training.estimators.base import Estimator
from tests.helpers import TinyTask, seeded, small_rule

unclipped = partial(TruncatedBackprop, network_clip=math.inf)

COUNT = 4


def augmented(reparametrise: float = 0.7, rescale_loss: float = 0.7) -> tuple[TinyTask, Augmented]:
    task = TinyTask(dtype=torch.float64)
    scales = Augmentation(reparametrise, rescale_loss).draw(task, COUNT, seeded(3))
    return task, Augmented(task, scales)


def test_same_function_and_chain_rule_in_other_units() -> None:
    task, wrapped = augmented()
    params, seen = task.init(COUNT, seeded(0)), wrapped.init(COUNT, seeded(0))
    batch, with_units = task.sample("train", COUNT, seeded(1)), wrapped.sample("train", COUNT, seeded(1))
    grads, losses = torch.vmap(torch.func.grad_and_value(task.loss))(params, batch)
    seen_grads, seen_losses = torch.vmap(torch.func.grad_and_value(wrapped.loss))(seen, with_units)
    factor = wrapped.scales.loss.double()
    torch.testing.assert_close(seen_losses, losses * factor)
    for name, p in params.items():
        shape = (-1, *[1] * (p.dim() - 1))
        scale = wrapped.scales.weights[name].double().reshape(shape)
        torch.testing.assert_close(seen[name] * scale, p)
        torch.testing.assert_close(seen_grads[name], grads[name] * scale * factor.reshape(shape))
        assert not torch.allclose(seen[name], p)


def test_a_rule_free_of_the_losses_scale_trains_the_same_networks() -> None:
    """Adam with next to no eps does not see the factor on the loss; it does see the units of the weights."""
    rule = CLASSICAL["adam"](0.01, eps=1e-30)

    def trained(wrapped: Augmented) -> dict[str, torch.Tensor]:
        horizons = Horizons(100, 100, 5)
        cohort = Cohort.start(wrapped.task, {}, rule.on(wrapped.graph), COUNT, horizons, seeded(0))
        cohort.networks = replace_params(cohort, wrapped)
        batches = [wrapped.sample("train", COUNT, seeded(k)) for k in range(6)]
        found = unroll(rule.on(wrapped.graph), wrapped, cohort.networks, batches).networks.params
        return {n: (p.flatten(1) * wrapped.scales.weights[n].double()[:, None]) for n, p in found.items()}

    def replace_params(cohort: Cohort, wrapped: Augmented) -> object:
        return cohort.networks._replace(params=wrapped.init(COUNT, seeded(9)))

    plain = trained(augmented(0.0, 0.0)[1])
    torch.testing.assert_close(trained(augmented(0.0, 2.0)[1]), plain)
    reparametrised = trained(augmented(1.0, 0.0)[1])
    assert all(not torch.allclose(p, plain[name], rtol=1e-4) for name, p in reparametrised.items())


@pytest.mark.parametrize("estimator", [unclipped(3), PES(3)])
def test_cohorts_draw_units_for_each_network_and_anew_at_restart(estimator: Estimator) -> None:
    task, rule, horizons = TinyTask(dtype=torch.float64), small_rule(), Horizons(6, 30, 3)
    bound = rule.on(task.graph)
    cohort = Cohort.start(task, {}, bound, COUNT, horizons, seeded(0), Augmentation(0.5, 0.5))
    assert isinstance(cohort.task, Augmented)
    before = cohort.task.scales
    assert all(len(set(scale.tolist())) == COUNT for scale in (*before.weights.values(), before.loss))
    estimate = estimator(rule, cohort, seeded(1))
    assert not estimate.skipped
    cohort = replace(cohort, networks=estimate.networks, twins=estimate.twins)
    due = torch.tensor([True, False, False, True])
    cohort.restart(due, bound, horizons, seeded(2))
    assert isinstance(cohort.task, Augmented)
    for old, new in zip(
        (*before.weights.values(), before.loss),
        (*cohort.task.scales.weights.values(), cohort.task.scales.loss),
        strict=True,
    ):
        assert torch.equal(new == old, ~due)


def test_nothing_is_wrapped_without_augmentation() -> None:
    task, rule = TinyTask(), small_rule().float()
    cohort = Cohort.start(task, {}, rule.on(task.graph), COUNT, Horizons(6, 30, 3), seeded(0), Augmentation())
    assert cohort.task is task


def test_spread_is_that_of_the_config() -> None:
    scales = Augmentation(0.5, 1.5).draw(TinyTask(), 4000, seeded(0))
    assert scales.loss.log().std().item() == pytest.approx(1.5, rel=0.05)
    for scale in scales.weights.values():
        assert scale.log().std().item() == pytest.approx(0.5, rel=0.05)
        assert scale.log().mean().item() == pytest.approx(0.0, abs=0.03)


def test_other_numbers_of_networks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the 4 networks .* found 3"):
        augmented()[1].sample("train", 3, seeded(0))
