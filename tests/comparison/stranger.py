"""Optimizers as other packages have them: state that is no tensor, groups with flags, rates of their own."""

from __future__ import annotations

from typing import Any

import torch


class Counting(torch.optim.Optimizer):
    """Momentum whose count of steps is a number in the group, and whose average is kept in a list."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "step": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] += 1
            for p in group["params"]:
                (average,) = self.state[p].setdefault("averages", [torch.zeros_like(p)])
                average.lerp_(p.grad, 0.1)
                p.sub_(average / (1 - 0.9 ** group["step"]), alpha=group["lr"])


class Flagged(torch.optim.Optimizer):
    """Signs for the groups with `use_muon`, which every group has to say, and plain gradients for the others."""

    def __init__(self, params: Any, lr: float = 0.02, adamw_lr: float = 0.001) -> None:
        for group in params:
            if "use_muon" not in group:
                raise ValueError("`use_muon` must be set.")
            group.setdefault("lr", lr if group["use_muon"] else adamw_lr)
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign() if group["use_muon"] else p.grad, alpha=group["lr"])
