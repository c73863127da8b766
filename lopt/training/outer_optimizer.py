"""The outer optimizer: Adam on the clipped meta-gradient, and a running average of the meta-parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lopt.rules.base import Rule, Tensors
from lopt.training.config import MetaConfig


class OuterOptimizer:
    """Adam with clipping, linear warm-up and a cosine to zero, and the average that is validated and kept."""

    def __init__(self, rule: Rule, config: MetaConfig) -> None:
        self.rule, self.config = rule, config
        self.adam = torch.optim.Adam(
            rule.parameters(),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
        )
        self.average = {name: p.detach().clone() for name, p in rule.named_parameters()}

    @property
    def learning_rate(self) -> float:
        """That of the last step."""
        return float(self.adam.param_groups[0]["lr"])

    def apply(self, gradient: Tensors, step: int) -> float:
        """Clip, step and average; returns the gradient's norm before clipping."""
        named = dict(self.rule.named_parameters())
        for name, value in gradient.items():
            named[name].grad = value
        norm = torch.nn.utils.clip_grad_norm_(named.values(), self.config.clip).item()
        self.adam.param_groups[0]["lr"] = self.config.learning_rate * self._schedule(step)
        self.adam.step()
        self.adam.zero_grad()
        # The average begins as a plain mean, so that it is not held at the first meta-parameters.
        decay = min(self.config.ema, (step + 1) / (step + 10))
        for name, value in self.average.items():
            value.lerp_(named[name].detach(), 1 - decay)
        return norm

    def _schedule(self, step: int) -> float:
        if step < self.config.warmup:
            return (step + 1) / self.config.warmup
        left = max(self.config.steps - self.config.warmup, 1)
        return 0.5 + 0.5 * math.cos(math.pi * (step - self.config.warmup) / left)

    def tree(self) -> dict[str, Any]:
        """All state, as nested dicts of tensors."""
        state = self.adam.state_dict()["state"]
        # JSON has no other keys than strings. Rates are left out: they follow from the config and the step.
        return {"adam": {str(index): value for index, value in state.items()}, "average": self.average}

    def load_tree(self, tree: dict[str, Any]) -> None:
        """Continue from what `tree` returned."""
        state = self.adam.state_dict()
        state["state"] = {int(index): value for index, value in tree["adam"].items()}
        self.adam.load_state_dict(state)
        average: dict[str, Tensor] = tree["average"]
        self.average = {name: value.to(self.average[name]) for name, value in average.items()}
