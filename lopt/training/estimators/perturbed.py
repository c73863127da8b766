"""Antithetic pairs: every network trained twice, under meta-parameters theta + epsilon and theta - epsilon.

Shapes: T networks, K inner steps; a pair of cohorts is 2 T networks, first all positive, then all negative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from lopt.inner.step import Networks, detached
from lopt.inner.task import Batch
from lopt.inner.unroll import unroll
from lopt.rules.base import Rule, Tensors
from lopt.training.cohort import Cohort, Twins
from lopt.training.estimators.base import Estimate, Estimator, finite_or_zero, has_diverged, initial_losses
from lopt.training.estimators.per_network import leaves


class Pair(NamedTuple):
    """A truncation of both cohorts of a pair."""

    outer: Tensor
    """(2, T) outer losses; those of diverged networks count as the limit."""
    losses: Tensor
    """(K + 1, T) inner losses, means of the two."""
    diverged: Tensor
    """(T,) whether either has diverged."""
    positive: Networks
    negative: Networks
    own: dict[str, Tensor]
    """(2 T, *shape): the meta-parameters of each network, positive ones first, to be differentiated by."""
    previous: dict[str, Tensor]
    """The positive networks' parameters before their last step."""

    def estimate(
        self,
        gradient: dict[str, Tensor],
        twins: Twins | None = None,
        clipped: float = 0.0,
        dropped: float = 0.0,
    ) -> Estimate:
        """What the truncation gives: the cohort goes on with the positive networks."""
        gradient, skipped = finite_or_zero(gradient)
        return Estimate(
            gradient, self.outer.detach().mean().item(), self.positive, self.losses, self.diverged, skipped,
            self.previous, twins, clipped, dropped,
        )  # fmt: skip


def draw_perturbations(rule: Rule, count: int, sigma: float, generator: Generator) -> dict[str, Tensor]:
    """(T, *shape) for each meta-parameter: normal with deviation sigma, for each network its own; 0 if it is frozen."""
    # Drawn on the CPU and for frozen ones too: what a seed means must not depend on the device or on what is frozen.
    drawn = {
        name: torch.randn(count, *p.shape, generator=generator, dtype=p.dtype)
        for name, p in rule.named_parameters()
    }
    return {name: (sigma * p.requires_grad * drawn[name]).to(p.device) for name, p in rule.named_parameters()}


def run_pair(
    estimator: Estimator, rule: Rule, cohort: Cohort, negative: Networks, epsilon: Tensors, generator: Generator,
    second_order: bool = True, rematerialise: bool = False,
) -> Pair:  # fmt: skip
    """Train the cohort's networks under theta + epsilon and `negative` under theta - epsilon, on the same batches."""
    batches, probes = estimator.batches(cohort, generator)
    own = leaves(
        {name: torch.cat([p + epsilon[name], p - epsilon[name]]) for name, p in rule.named_parameters()}
    )
    unrolled = unroll(
        rule.on(cohort.task.graph), cohort.task, joined(cohort.networks, negative),
        [doubled(batch) for batch in batches], own=own,
        probes=None if probes is None else [doubled(batch) for batch in probes],
        second_order=second_order, rematerialise=rematerialise, compiled=estimator.compiled,
    )  # fmt: skip
    losses = unrolled.losses.detach().unflatten(1, (2, -1))
    initial = initial_losses(cohort, losses[:, 0])
    outer = [estimator.per_network(m, initial) for m in unrolled.measured.unflatten(1, (2, -1)).unbind(1)]
    diverged = has_diverged(losses[:, 0], initial) | has_diverged(losses[:, 1], initial)
    positive, other = halves(detached(unrolled.networks))
    previous, _ = halves(unrolled.previous)
    return Pair(torch.stack(outer), losses.mean(1), diverged.cpu(), positive, other, own, previous)


def difference(outer: Tensor) -> Tensor:
    """L+ - L-, as the derivative has it: a task's share in the meta-gradient is as large as its losses differ."""
    return outer[0] - outer[1]


def sign(outer: Tensor) -> Tensor:
    """-1, 0 or 1: which of the two is better, whatever the scale of the task's loss (VeLO, Metz et al. 2022)."""
    return difference(outer).sign()


def rank(outer: Tensor) -> Tensor:
    """The sign of L+ - L- times the rank of its size within the cohort, 1 / T to 1; ties share their mean rank.

    Ranks as fitness (Wierstra et al. 2014, JMLR 15) of the pairs' differences: a network that tells the two apart
    clearly counts more than one that hardly does, and none more than T times another.
    """
    size = difference(outer).abs()
    below, ties = size[:, None] > size, size[:, None] == size
    ranks = below.sum(1) + 0.5 * (ties.sum(1) + 1)
    return sign(outer) * ranks.to(outer) / len(size)


Fitness = Literal["difference", "sign", "rank"]
FITNESS: dict[Fitness, Callable[[Tensor], Tensor]] = {"difference": difference, "sign": sign, "rank": rank}
"""Each maps the outer losses (2, T) of the pairs of a cohort, all of one task, to what their perturbations get."""


def evolution_gradient(
    outer: Tensor, credited: Tensors, sigma: float, fitness: Fitness = "difference"
) -> dict[str, Tensor]:
    """Mean over the networks of (L+ - L-) / (2 sigma^2), or another fitness, times what is credited with it."""
    outer = outer.detach()
    weight = FITNESS[fitness](outer) / (2 * sigma**2 * outer.shape[1])
    return {name: torch.tensordot(weight.to(value), value, 1) for name, value in credited.items()}


def joined(first: Any, second: Any) -> Any:
    """Two trees of (T, ...) tensors -> one of (2 T, ...)."""
    return tree_map(lambda a, b: torch.cat([a, b]), first, second)


def halves(tree: Any) -> tuple[Any, Any]:
    """The inverse of `joined`."""
    return tree_map(lambda x: x.chunk(2)[0], tree), tree_map(lambda x: x.chunk(2)[1], tree)


def doubled(batch: Batch) -> Batch:
    """The batch of T networks for both of each pair."""
    return joined(batch, batch)
