"""Adafactor: second moments of matrices kept as row and column means."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lopt.registry import checked
from lopt.rules.classical.base import Amount, ClassicalRule, counter, decay, safe_sqrt, zeros


class Adafactor(ClassicalRule):
    """p <- (1 - lr weight_decay) p - max(eps, rms(p)) min(lr, t^-1/2) u / max(1, rms(u) / clip).

    u = g / sqrt(v^), where v^ = r c^T / mean(r) from running means of g^2 over columns (r) and rows (c) of the
    last two axes, or of g^2 itself for vectors; their decay at step t is 1 - t^beta2_decay.
    Equals `torch.optim.Adafactor`. Not linear in lr, because of the minimum.

    Raises: ConfigError for a value out of range.
    Source: Shazeer and Stern 2018, algorithms 4 and 5.
    """

    linear_in_lr: ClassVar[bool] = False

    @checked
    def __init__(
        self,
        lr: Amount = 1e-2,
        beta2_decay: Annotated[float, Field(ge=-1, lt=0)] = -0.8,
        eps: Amount = 1e-3,
        clip: Annotated[float, Field(gt=0)] = 1.0,
        weight_decay: Amount = 0.0,
    ) -> None:
        super().__init__()
        self.lr, self.beta2_decay, self.eps, self.clip = lr, beta2_decay, eps, clip
        self.weight_decay = weight_decay

    def start(self, param: Tensor) -> dict[str, Tensor]:
        if param.dim() < 2:
            return {"v": zeros(param), "step": counter(param)}
        rows = torch.Size((*param.shape[:-1], 1))
        columns = torch.Size((*param.shape[:-2], 1, param.shape[-1]))
        return {"rows": zeros(param, rows), "columns": zeros(param, columns), "step": counter(param)}

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        step = state["step"] + 1
        variance, state = second_moment(grad, state, step**self.beta2_decay)
        update = grad * variance.clamp_min(torch.finfo(grad.dtype).eps ** 2).rsqrt()
        update = update / (rms(update) / self.clip).clamp_min(1.0)
        rate = rms(param).clamp_min(self.eps) * step.rsqrt().clamp_max(self.lr)
        return decay(param, self.lr * self.weight_decay) - rate * update, {**state, "step": step}


def second_moment(grad: Tensor, state: dict[str, Tensor], weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The running mean of g^2 after it has moved by `weight` towards the new one; factored for matrices."""
    square = grad * grad
    if grad.dim() < 2:
        v = state["v"].lerp(square, weight)
        return v, {"v": v}
    rows = state["rows"].lerp(square.mean(-1, keepdim=True), weight)
    columns = state["columns"].lerp(square.mean(-2, keepdim=True), weight)
    mean = rows.mean(-2, keepdim=True).clamp_min(torch.finfo(grad.dtype).eps)
    return rows * columns / mean, {"rows": rows, "columns": columns}


def rms(tensor: Tensor) -> Tensor:
    """Root of the mean square of all entries, ()."""
    return safe_sqrt(tensor.square().mean())
