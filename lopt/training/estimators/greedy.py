"""Single steps as truncations, all of them summed: how Neural Graphs meta-trains optimizers.

Shapes: T networks, K inner steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from lopt.inner.compiled import compiled_step
from lopt.inner.step import detached, each_its_own, second_order_step
from lopt.rules.base import Rule
from lopt.training.cohort import Cohort
from lopt.training.estimators.base import Estimate, Estimator, has_diverged, initial_losses
from lopt.training.estimators.per_network import combined, leaves, network_gradients


@dataclass(frozen=True)
class Greedy(Estimator):
    """g = mean over networks of sum_k d l(p_k + rule(g_k, s_k)) / d theta, with weights p_k and state s_k as given.

    l is the outer loss of that one step, measured on the batch that the step was made of, or on one of `outer_data`.
    Nothing is told of what a step does to those after it, so that memory grows with no number of steps, and steps
    cannot be learned that pay later (Wu et al. 2018, arXiv 1803.02021). As the learning-to-optimize experiments of
    Neural Graphs have it (Kofinas et al. 2024, arXiv 2403.12143).
    """

    def __call__(self, rule: Rule, cohort: Cohort, generator: Generator) -> Estimate:
        batches, probes = self.batches(cohort, generator)
        task, bound = cohort.task, rule.on(cohort.task.graph)
        own = leaves(each_its_own(bound, cohort.networks))
        make = partial(compiled_step, second_order_step) if self.compiled else second_order_step
        step = make(bound, task, own)
        networks, previous, initial = cohort.networks, cohort.networks.params, cohort.initial
        total = {name: torch.zeros_like(p) for name, p in own.items()}
        losses: list[Tensor] = []
        measured: list[Tensor] = []
        for batch, probe in zip(batches[:-1], (probes or batches)[: self.truncation], strict=True):
            previous = networks.params
            loss, after = step(networks, batch)
            losses.append(loss.detach())
            initial = initial_losses(cohort, torch.stack(losses)) if len(losses) == 1 else initial
            value = torch.vmap(task.loss)(after.params, probe)
            measured.append(value.detach())
            for name, slope in network_gradients(self.per_network(value[None], initial), own).items():
                total[name] += slope
            networks = detached(after)  # the next step takes them as given
        with torch.no_grad():
            losses.append(torch.vmap(task.loss)(networks.params, batches[-1]))
        # Networks that have diverged say how to come back, as long as what they say is finite.
        meta = combined(total, torch.ones_like(initial, dtype=torch.bool), math.inf)
        inner, seen = torch.stack(losses), torch.stack(measured)
        kept = ~meta.dropped
        shown = self.mean_outer(self.per_network(seen, initial), kept, seen)
        return Estimate(
            meta.gradient, shown, networks, inner, has_diverged(inner, initial).cpu(),
            bool(meta.dropped.all()), previous, dropped=meta.dropped.double().mean().item(),
        )  # fmt: skip
