"""An optimizer as other packages have them: no class of torch.optim, with state that is no tensor."""

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
