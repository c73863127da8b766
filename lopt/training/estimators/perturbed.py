"""Antithetic pairs: every network trained twice, under meta-parameters theta + epsilon and theta - epsilon.

Shapes: T networks, K inner steps; a pair of cohorts is 2 T networks, first all positive, then all negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map

from lopt.inner.task import Batch
from lopt.inner.unroll import Networks, detached, unroll
from lopt.rules.base import Rule, Tensors
from lopt.training.cohort import Cohort
from lopt.training.estimators.base import Estimator, has_diverged, initial_losses
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


def draw_perturbations(rule: Rule, count: int, sigma: float, generator: Generator) -> dict[str, Tensor]:
    """(T, *shape) for each meta-parameter: normal with deviation sigma, for each network its own."""
    return {
        name: (sigma * torch.randn(count, *p.shape, generator=generator, dtype=p.dtype)).to(p.device)
        for name, p in rule.named_parameters()
    }


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
        rule.on(cohort.task.graph), cohort.task, joined(cohort.networks, negative), _doubled(batches), own=own,
        probes=None if probes is None else _doubled(probes),
        second_order=second_order, rematerialise=rematerialise, compiled=estimator.compiled,
    )  # fmt: skip
    losses = unrolled.losses.detach().unflatten(1, (2, -1))
    initial = initial_losses(cohort, losses[:, 0])
    outer = [
        estimator.per_network(m, initial, cohort) for m in unrolled.measured.unflatten(1, (2, -1)).unbind(1)
    ]
    diverged = has_diverged(losses[:, 0], initial) | has_diverged(losses[:, 1], initial)
    positive, other = halves(detached(unrolled.networks))
    previous, _ = halves(unrolled.previous)
    return Pair(torch.stack(outer), losses.mean(1), diverged.cpu(), positive, other, own, previous)


def evolution_gradient(outer: Tensor, epsilon: Tensors, sums: Tensors, sigma: float) -> dict[str, Tensor]:
    """Mean over the networks of (L+ - L-) / (2 sigma^2) times each network's summed perturbations."""
    weight = (outer[0] - outer[1]).detach() / (2 * sigma**2 * outer.shape[1])
    return {name: torch.tensordot(weight.to(epsilon[name]), sums[name], 1) for name in epsilon}


def joined(first: Any, second: Any) -> Any:
    """Two trees of (T, ...) tensors -> one of (2 T, ...)."""
    return tree_map(lambda a, b: torch.cat([a, b]), first, second)


def halves(tree: Any) -> tuple[Any, Any]:
    """The inverse of `joined`."""
    return tree_map(lambda x: x.chunk(2)[0], tree), tree_map(lambda x: x.chunk(2)[1], tree)


def _doubled(batches: Sequence[Batch]) -> list[Batch]:
    return [joined(batch, batch) for batch in batches]
