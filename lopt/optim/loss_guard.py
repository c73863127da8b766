"""A guard that hands training to the base optimizer while the loss says that the learned rule does harm."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.metanets.base import Metanet
from lopt.optim.step import check, number
from lopt.rules.base import Rule
from lopt.rules.forms import FORMS
from lopt.rules.learned import LearnedRule

WARM_UP = 10
"""Losses seen before the first judgement."""
PATIENCE = 200
"""Steps of the base optimizer without success, after which what it reached becomes the new measure."""


@dataclass
class LossGuard:
    """Judges a stream of training losses.

    The loss is smoothed over about ten steps. The base optimizer takes over when the smoothed loss exceeds its best
    by four times the noise (mean absolute deviation) that it had there and by a tenth, or when a loss is not finite.
    The rule returns when the smoothed loss is within twice the noise of the best.
    """

    fallback: bool = False
    """Whether the base optimizer is in charge."""
    fallback_steps: int = 0
    """How many steps it has made."""
    count: int = 0
    smooth: float = 0.0
    noise: float = 0.0
    best: float = math.inf
    best_noise: float = 0.0
    waited: int = 0
    told: bool = False
    """Whether a loss has been observed since the last step."""

    def observe(self, loss: float) -> None:
        """Take one more loss into account, before the step that follows from it."""
        if math.isfinite(loss):
            self._average(loss)
        self._judge(math.isfinite(loss))
        self.fallback_steps += self.fallback

    def tensors(self) -> dict[str, Tensor]:
        """All that it knows, for a checkpoint of tensors alone."""
        return {
            key: torch.tensor(value, dtype=torch.float64, device="cpu") for key, value in vars(self).items()
        }

    @classmethod
    def of(cls, saved: object) -> LossGuard:
        """The inverse of `tensors`. Raises `ConfigError` for what cannot have been saved."""
        check(isinstance(saved, Mapping), "state_dict.loss_guard", "a dict", saved)
        assert isinstance(saved, Mapping)
        guard = cls()
        for field in fields(cls):
            place, kind = f"state_dict.loss_guard.{field.name}", type(getattr(guard, field.name))
            value = saved.get(field.name, getattr(guard, field.name))
            if (
                isinstance(value, Tensor)
                and value.numel() == 1
                and not value.is_meta
                and not value.is_complex()
            ):
                value = value.item()
            fits = isinstance(value, (bool, int, float)) and abs(value) < math.inf
            check(fits or (field.name == "best" and value == math.inf), place, "a finite number", value)
            check(kind is float or value >= 0, place, "a number from 0", value)
            setattr(guard, field.name, kind(value))
        return guard

    def _average(self, loss: float) -> None:
        self.count += 1
        weight = max(0.1, 1 / self.count)
        self.smooth += weight * (loss - self.smooth)
        self.noise += weight * (abs(loss - self.smooth) - self.noise)
        if self.count >= WARM_UP and self.smooth < self.best:
            self.best, self.best_noise = self.smooth, self.noise

    def _judge(self, finite: bool) -> None:
        rise = self.smooth - self.best
        if not self.fallback:
            self.fallback = not finite or rise > max(4 * self.best_noise, 0.1 * abs(self.best))
            self.waited = 0
            return
        self.waited += 1
        if finite and rise <= 2 * self.best_noise:
            self.fallback = False
        elif self.waited >= PATIENCE and finite:
            self.fallback, self.best, self.best_noise = False, self.smooth, self.noise


def base_of(rule: Rule) -> Rule:
    """The optimizer that a learned rule is without its metanet; its state is the rule's own. Others as they are."""
    if not isinstance(rule, LearnedRule):
        return rule
    base = copy.deepcopy(rule)
    outputs = FORMS[rule.config.update_form].outputs(len(rule.config.directions))
    base.metanet = _Silent(outputs, rule.metanet.memory)
    return base


class _Silent(Metanet):
    """Answers zero, and leaves the memory as it is."""

    sees_scalars = False

    def __init__(self, outputs: int, memory: int) -> None:
        super().__init__()
        self.outputs, self.memory = outputs, memory

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return features.new_zeros(self.outputs, features.shape[-1]), memory

    def of_tensors(self, context: Tensor) -> Tensor:
        return context.new_zeros(self.outputs, context.shape[-1])


def _value(loss: float | Tensor) -> float:
    expected = (
        "a number or a one-element tensor, or None where a batch has none; give observe() the one that falls"
    )
    if not isinstance(loss, Tensor):
        return number("loss", expected, loss)
    check(loss.numel() == 1 and not loss.is_complex() and not loss.is_meta, "loss", expected, loss)
    return float(loss.detach())


def mean_over_ranks(loss: float | Tensor | None) -> float | None:
    """The loss that all processes agree on, so that they also agree on who is in charge.

    None is a batch without a loss, such as one that Lightning's `training_step` leaves out. Processes that have one
    are averaged; the others still take part, or else the first would wait for them.
    Raises `ConfigError` for anything else than a number.
    """
    value = None if loss is None else _value(loss)
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor([value or 0.0, value is not None], dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total[0] / total[1]) if total[1] else None
