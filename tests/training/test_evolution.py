"""Evolution strategies against the smoothed meta-gradient, by quadrature, of a rule with one meta-parameter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from lopt.graph import ParameterGraph
from lopt.inner.task import Task
from lopt.rules.base import Rule, State, Tensors
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import (
    ES,
    NRES,
    PES,
    Estimate,
    Estimator,
    Mixture,
    TruncatedBackprop,
    WholeLives,
)
from lopt.training.estimators.perturbed import FITNESS, draw_perturbations
from tests.helpers import seeded

unclipped = partial(TruncatedBackprop, network_clip=math.inf)
mixture = partial(Mixture, network_clip=math.inf)

K, TRUNCATIONS, SIGMA = 2, 3, 0.15


class Rate(Rule):
    """Gradient descent at a learnable rate theta; its state is the number of steps, which it does not need."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def init(
        self, graph: ParameterGraph, params: Tensors, total_steps: Tensor | float | None = None
    ) -> State:
        return {name: {"step": torch.zeros_like(p)} for name, p in params.items()}

    def forward(
        self, graph: ParameterGraph, grads: Tensors, state: State, params: Tensors
    ) -> tuple[Tensors, State]:
        deltas = {name: -self.theta * g for name, g in grads.items()}
        return deltas, {name: {"step": s["step"] + 1} for name, s in state.items()}

    def hastened(self, meta_parameters: Tensors, log_factors: Tensor) -> dict[str, Tensor]:
        return {"theta": meta_parameters["theta"] * log_factors.exp()}


class Valley(Task):
    """sum c p^2 / 2 without noise, from p = 1: after steps at rates t_1, t_2... p is the product of 1 - c t_k."""

    name = "valley"

    def __init__(self, *curvatures: float) -> None:
        self.curvatures = torch.tensor(curvatures, dtype=torch.float64)

    def init(self, count: int, generator: Generator) -> dict[str, Tensor]:
        return {"p": torch.ones(count, len(self.curvatures), dtype=torch.float64)}

    def sample(self, split: str, count: int, generator: Generator) -> Tensor:
        return torch.full((count,), 1.0 if split == "train" else 2.0, dtype=torch.float64)

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return 0.5 * batch * (self.curvatures * params["p"].square()).sum()

    def metrics(self, params: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
        return {"loss": self.loss(params, torch.ones(()))}

    def trace(self) -> ParameterGraph:
        return ParameterGraph.untied([("p", torch.zeros(len(self.curvatures)))])


def outer_losses(task: Valley, rates: np.ndarray, k: int) -> np.ndarray:
    """(..., N) rates of N truncations of k steps -> (..., N) mean relative loss over each truncation."""
    curvatures = task.curvatures.numpy()
    p = np.ones((*rates.shape[:-1], len(curvatures)))
    found = []
    for t in range(rates.shape[-1]):
        losses = []
        for _ in range(k):
            p = p * (1 - curvatures * rates[..., t, None])
            losses.append((curvatures * p**2).sum(-1) / curvatures.sum())
        found.append(np.minimum(np.mean(losses, 0), 3.0))
    return np.stack(found, -1)


def smoothed_gradient(task: Valley, theta: float, truncations: int) -> float:
    """d/dtheta E[sum_t L_t(theta + eps_1, ..., theta + eps_t)], Gauss-Hermite: sum_t E[L_t (eps_1 + ...)] / s^2."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    grid = np.array(list(itertools.product(nodes, repeat=truncations)))
    weight = np.array([math.prod(w) for w in itertools.product(weights, repeat=truncations)])
    losses = outer_losses(task, theta + SIGMA * grid, K)
    sums = np.cumsum(SIGMA * grid, -1) / SIGMA**2
    return float((weight[:, None] * losses * sums).sum() / weight.sum())


def reused_gradient(task: Valley, theta: float, truncations: int, outer: Callable[..., np.ndarray]) -> float:
    """d/dtheta E[L(theta + eps)] with one eps for a whole life, Gauss-Hermite: E[L eps] / s^2."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    losses = outer(task, np.repeat(theta + SIGMA * nodes[:, None], truncations, 1), K)
    return float((weights * losses.sum(-1) * nodes).sum() / weights.sum() / SIGMA)


def live(
    estimator: Estimator, rule: Rule, task: Task, truncations: int, count: int, seed: int
) -> list[Estimate]:
    """The estimates of one life of `count` networks, truncation by truncation."""
    horizons, generator = Horizons(10**6, 10**6, estimator.truncation), seeded(seed)
    cohort = Cohort.start(task, {}, rule.on(task.graph), count, horizons, generator)
    found = []
    for _ in range(truncations):
        estimate = estimator(rule, cohort, generator)
        found.append(estimate)
        initial = torch.where(cohort.initial.isnan(), estimate.losses[0], cohort.initial)
        cohort = replace(
            cohort,
            networks=estimate.networks,
            twins=estimate.twins,
            initial=initial,
            ages=cohort.ages + estimator.truncation,
        )
    return found


def mean_and_error(draw: Callable[[int], float], repeats: int = 20) -> tuple[float, float]:
    values = [draw(seed) for seed in range(repeats)]
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(repeats))


def summed(estimates: list[Estimate]) -> float:
    return sum(estimate.gradient["theta"].item() for estimate in estimates)


def test_es_mean_is_the_smoothed_gradient() -> None:
    task, theta = Valley(1.0, 0.3), 0.6
    expected = smoothed_gradient(task, theta, 1)
    found, error = mean_and_error(
        lambda seed: summed(live(ES(K, sigma=SIGMA), Rate(theta), task, 1, 4000, seed))
    )
    assert abs(found - expected) < 3.5 * error
    assert error < 0.02 * abs(expected)
    # The smoothing shows: the plain derivative would have failed the test.
    plain = summed(live(unclipped(K), Rate(theta), task, 1, 1, 0))
    assert abs(plain - expected) > 5 * error


def test_pes_mean_summed_over_truncations_is_the_smoothed_gradient() -> None:
    task, theta = Valley(1.0, 0.3), 0.6
    expected = smoothed_gradient(task, theta, TRUNCATIONS)

    def draw(estimator: Estimator) -> Callable[[int], float]:
        return lambda seed: summed(live(estimator, Rate(theta), task, TRUNCATIONS, 1000, seed))

    found, error = mean_and_error(draw(PES(K, sigma=SIGMA)))
    assert abs(found - expected) < 3.5 * error
    assert error < 0.02 * abs(expected)
    # ES, which forgets the perturbations of earlier truncations, is off.
    truncated, its_error = mean_and_error(draw(ES(K, sigma=SIGMA)))
    assert abs(truncated - expected) > 5 * (error + its_error)


def test_nres_mean_summed_over_truncations_is_the_smoothed_gradient() -> None:
    task, theta = Valley(1.0, 0.3), 0.6
    expected = reused_gradient(task, theta, TRUNCATIONS, outer_losses)

    def draw(estimator: Estimator) -> Callable[[int], float]:
        return lambda seed: summed(live(estimator, Rate(theta), task, TRUNCATIONS, 1000, seed))

    found, error = mean_and_error(draw(NRES(K, sigma=SIGMA)))
    assert abs(found - expected) < 3.5 * error
    assert error < 0.02 * abs(expected)
    # ES, which forgets the perturbations of earlier truncations, is off.
    truncated, its_error = mean_and_error(draw(ES(K, sigma=SIGMA)))
    assert abs(truncated - expected) > 5 * (error + its_error)


def whole_life(estimator: Estimator, rule: Rule, task: Task, steps: int, count: int, seed: int) -> Estimate:
    horizons, generator = Horizons(steps, steps, 1, known=1.0, shared=True), seeded(seed)
    cohort = Cohort.start(task, {}, rule.on(task.graph), count, horizons, generator)
    return estimator(rule, cohort, generator)


@pytest.mark.parametrize("outer_loss", ["mean", "final"])
def test_mean_over_whole_lives_is_the_smoothed_gradient(outer_loss: str) -> None:
    task, theta, steps = Valley(1.0, 0.3), 0.6, K * TRUNCATIONS
    curvatures = task.curvatures.numpy()

    def outer(task: Valley, rates: np.ndarray, k: int) -> np.ndarray:
        if outer_loss == "mean":
            return outer_losses(task, rates, k) / TRUNCATIONS
        after = (curvatures * (1 - curvatures * rates[:, :1]) ** (2 * steps)).sum(-1, keepdims=True)
        return np.minimum(after / curvatures.sum(), 3.0)

    expected = reused_gradient(task, theta, TRUNCATIONS, outer)
    estimator = WholeLives(1, outer_loss, SIGMA)

    def draw(seed: int) -> float:
        return whole_life(estimator, Rate(theta), task, steps, 5000, seed).gradient["theta"].item()

    found, error = mean_and_error(draw)
    assert abs(found - expected) < 3.5 * error
    assert error < 0.03 * abs(expected)


def test_the_last_loss_of_a_life_is_a_mean_over_batches_of_another_split() -> None:
    """Those of validation are 2, 3, 4... times the training loss, so the mean over three of them is 3 times it."""
    task, rule = Growing(1.0, 0.3), Rate(0.6)
    alone = whole_life(WholeLives(1, "final", 1e-9), rule, Valley(1.0, 0.3), 6, 2, 0)
    estimator = WholeLives(1, "final", 1e-9, final_batches=3, outer_data="validation")
    held_out = whole_life(estimator, rule, task, 6, 2, 0)
    assert held_out.outer_loss == pytest.approx(3 * alone.outer_loss)
    assert len(held_out.losses) == 7
    torch.testing.assert_close(held_out.losses[:-1], alone.losses[:-1])
    torch.testing.assert_close(held_out.losses[-1], 3 * alone.losses[-1])
    torch.testing.assert_close(held_out.networks.params, alone.networks.params)


def test_pairs_live_at_rates_that_are_spread_uniformly_in_the_logarithm() -> None:
    """After one step p is 1 less the rate of the positive network, which shares it with the negative one."""
    estimator = WholeLives(1, "final", 1e-9, rate_spread=4)
    estimate = whole_life(estimator, Rate(0.2), Valley(1.0), 1, 4000, 0)
    rates = ((1 - estimate.networks.params["p"][:, 0]) / 0.2).log() / math.log(4)
    assert rates.abs().max() <= 1
    assert rates.mean().item() == pytest.approx(0, abs=0.05)
    assert rates.var().item() == pytest.approx(1 / 3, abs=0.03)
    # Losses are means of the two: they would not be those of the positive network if the other had another rate.
    torch.testing.assert_close(
        estimate.losses[-1], 0.5 * 2 * (estimate.networks.params["p"][:, 0] ** 2) / 2, rtol=1e-6, atol=1e-9
    )


class Growing(Valley):
    calls = 1

    def sample(self, split: str, count: int, generator: Generator) -> Tensor:
        if split == "train":
            return super().sample(split, count, generator)
        self.calls += 1
        return torch.full((count,), float(self.calls), dtype=torch.float64)


def test_fitness_of_pairs() -> None:
    """Of L+ and L- of five networks: worse by 10, better by .1, level, worse by .1 and by 2."""
    outer = torch.tensor([[11.0, 0.4, 1.0, 0.6, 5.0], [1.0, 0.5, 1.0, 0.5, 3.0]], dtype=torch.float64)
    expected = {
        "difference": [10.0, -0.1, 0.0, 0.1, 2.0],
        "sign": [1.0, -1.0, 0.0, 1.0, 1.0],
        "rank": [1.0, -0.5, 0.0, 0.5, 0.8],
    }
    assert set(expected) == set(FITNESS)
    # In steps of 1/8, so that two differences are equal to the last bit.
    outer = (outer * 8).round() / 8
    expected["difference"] = (outer[0] - outer[1]).tolist()
    for name, values in expected.items():
        found = FITNESS[name](outer)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64))
        torch.testing.assert_close(FITNESS[name](outer.flip(0)), -found)
        if name != "difference":  # the scale of the losses does not count
            torch.testing.assert_close(FITNESS[name](1024 * outer), found)


def test_frozen_meta_parameters_are_not_perturbed() -> None:
    rule = Rate(0.6)
    rule.other = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    epsilon = draw_perturbations(rule, 3, 0.1, seeded(0))
    assert (epsilon["theta"] != 0).all()
    assert (epsilon["other"] == 0).all()
    assert torch.equal(epsilon["theta"], draw_perturbations(Rate(0.6), 3, 0.1, seeded(0))["theta"])


@pytest.mark.parametrize("fitness", ["sign", "rank"])
@pytest.mark.parametrize("kind", [NRES, WholeLives])
def test_fitness_points_downhill_whatever_the_scale_of_the_loss(kind: type[Estimator], fitness: str) -> None:
    for theta, expected in ((0.3, -1.0), (1.9, 1.0)):  # the best rate lies between
        estimator = kind(K, sigma=0.05, fitness=fitness)
        found = summed([whole_life(estimator, Rate(theta), Valley(1.0), K, 200, 0)])
        assert math.copysign(1, found) == expected
        halved = whole_life(replace(estimator, sigma=0.025), Rate(theta), Valley(1.0), K, 200, 0)
        # Of order E|eps| / sigma^2, however flat the valley.
        assert 1.8 < summed([halved]) / found < 2.2


def test_pes_is_unbiased_at_the_optimum_of_a_long_horizon_where_truncated_backprop_is_not() -> None:
    """The best constant rate for 24 steps down a narrow valley is known; truncations of 2 would have it changed."""
    task, truncations = Valley(1.0, 0.05), 12
    rates = np.linspace(0.5, 1.99, 20_001)
    whole = outer_losses(task, np.repeat(rates[:, None], truncations, 1), K).sum(-1)
    best = float(rates[whole.argmin()])
    assert 0.6 < best < 1.9
    unrolled = summed(live(unclipped(K * truncations), Rate(best), task, 1, 1, 0)) * truncations
    truncated = summed(live(unclipped(K), Rate(best), task, truncations, 1, 0))
    sigma = 0.01  # so little smoothing that the optimum does not move
    estimator = PES(K, sigma=sigma)
    found, error = mean_and_error(lambda s: summed(live(estimator, Rate(best), task, truncations, 2000, s)))
    assert abs(unrolled) < 1e-3
    assert abs(found) < 3.5 * error + 2e-3
    assert abs(truncated) > 10 * error
    assert abs(truncated) > 10 * abs(found)


def test_mixture_is_the_weighted_sum_of_its_parts() -> None:
    task, theta, count = Valley(1.0, 0.3), 0.6, 6
    pure = [live(mixture(K, sigma=0.1, share=share), Rate(theta), task, 3, count, 0) for share in (0.0, 1.0)]
    mixed = live(mixture(K, sigma=0.1, share=0.25), Rate(theta), task, 3, count, 0)
    pes = live(PES(K, sigma=0.1), Rate(theta), task, 3, count, 0)
    for direct, indirect, both, alone in zip(*pure, mixed, pes, strict=True):
        expected = 0.75 * direct.gradient["theta"] + 0.25 * indirect.gradient["theta"]
        torch.testing.assert_close(both.gradient["theta"], expected)
        torch.testing.assert_close(indirect.gradient, alone.gradient)
        torch.testing.assert_close(both.networks.params, alone.networks.params)


def test_share_of_backprop_in_the_mixture_is_that_of_the_pair() -> None:
    """For a perturbation of next to nothing, that of truncated backpropagation."""
    task = Valley(1.0, 0.3)
    plain = live(unclipped(K), Rate(0.6), task, 3, 2, 0)
    mixed = live(mixture(K, sigma=1e-9, share=0.0), Rate(0.6), task, 3, 2, 0)
    for a, b in zip(plain, mixed, strict=True):
        torch.testing.assert_close(a.gradient, b.gradient)


def test_noise_is_reused_until_a_network_is_born_anew() -> None:
    task, rule, horizons = Valley(1.0, 0.3), Rate(0.6), Horizons(4, 40, K)
    cohort = Cohort.start(task, {}, rule.on(task.graph), 3, horizons, seeded(0))
    generator, noise = seeded(1), []
    for turn in range(3):
        estimate = NRES(K)(rule, cohort, generator)
        assert estimate.twins is not None
        noise.append(estimate.twins.perturbations["theta"])
        cohort.networks, cohort.twins, cohort.ages = estimate.networks, estimate.twins, cohort.ages + K
        if turn == 1:
            cohort.restart(torch.tensor([False, True, False]), rule.on(task.graph), horizons, seeded(2))
    assert torch.equal(noise[0], noise[1])
    assert (noise[0] == noise[2]).tolist() == [True, False, True]
    assert (noise[2] != 0).all()


@pytest.mark.parametrize("kind", [PES, Mixture])
def test_a_restarted_network_forgets_its_perturbations(kind: type[Estimator]) -> None:
    task, rule, horizons = Valley(1.0, 0.3), Rate(0.6), Horizons(4, 40, K)
    cohort = Cohort.start(task, {}, rule.on(task.graph), 3, horizons, seeded(0))
    estimate = kind(K)(rule, cohort, seeded(1))
    cohort.networks, cohort.twins = estimate.networks, estimate.twins
    assert cohort.twins is not None
    before = cohort.twins.perturbations["theta"]
    cohort.restart(torch.tensor([False, True, False]), rule.on(task.graph), horizons, seeded(2))
    sums = cohort.twins.perturbations["theta"]
    assert sums[1] == 0
    assert torch.equal(sums[[0, 2]], before[[0, 2]])
    assert (before != 0).all()
    assert torch.equal(cohort.twins.networks.params["p"][1], cohort.networks.params["p"][1])
    assert not torch.equal(cohort.twins.networks.params["p"][0], cohort.networks.params["p"][0])


@pytest.mark.parametrize("estimator", [unclipped(K), ES(K), PES(K), NRES(K), mixture(K)])
def test_outer_loss_can_be_measured_on_other_batches(estimator: Estimator) -> None:
    """The toy's validation batches double the loss."""
    task = Valley(1.0, 0.3)
    on_training = live(estimator, Rate(0.6), task, 1, 2, 0)[0]
    on_validation = live(replace(estimator, outer_data="validation"), Rate(0.6), task, 1, 2, 0)[0]
    assert on_validation.outer_loss == pytest.approx(2 * on_training.outer_loss)
    assert summed([on_validation]) == pytest.approx(2 * summed([on_training]))
    assert torch.equal(on_validation.losses, on_training.losses)


@pytest.mark.parametrize("kind", [ES, PES, NRES])
def test_divergence_is_a_finite_loss_to_evolution(kind: type[Estimator]) -> None:
    """At a rate near the edge of stability those pushed beyond it count as the limit: the slope points away."""
    task = Valley(1.0)
    estimate = live(kind(40, sigma=0.05), Rate(2.0), task, 1, 200, 0)[0]
    assert estimate.diverged.sum() > 100  # most often one of the pair is well beyond the edge
    assert math.isfinite(estimate.outer_loss)
    assert estimate.gradient["theta"] > 1
