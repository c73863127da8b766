"""Schedule-free AdamW: averaging in place of a learning rate schedule."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from lopt.config import Decay, Pair
from lopt.numerics.moments import weight_seen
from lopt.registry import checked
from lopt.rules.base import State, Tensors
from lopt.rules.classical.base import Amount, ClassicalRule, counter, safe_sqrt, zeros


class ScheduleFreeAdamW(ClassicalRule):
    """The parameters are y, where gradients are taken; z is the fast sequence and x its average, to evaluate at.

        r_t = sqrt(1 - b2^t) min(1, t / warmup);  v <- b2 v + (1 - b2) g^2;  d = g / (sqrt(v) + eps) + weight_decay y
        z <- z - lr r_t d;  x <- (1 - c) x + c z, c = r_t^2 / sum r^2;  y = (1 - b1) z + b1 x

    The state holds u = (z - x) / lr instead of z, so that one buffer is saved and the step is linear in lr:
    u <- (1 - c) (u - r d) and y moves by lr (c (u - r d) + (1 - b1) (new u - u)).

    Raises: ConfigError for a value out of range.
    Source: Defazio et al. 2024, algorithm 1.
    """

    @checked
    def __init__(
        self,
        lr: Amount = 2.5e-3,
        betas: Pair[Decay] = (0.9, 0.999),
        eps: Amount = 1e-8,
        weight_decay: Amount = 0.0,
        warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0,
    ) -> None:
        super().__init__()
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.warmup_steps = max(warmup_steps, 1)

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return {"u": zeros(param), "v": zeros(param), "step": counter(param), "weight_sum": counter(param)}

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        beta1, beta2 = self.betas
        step = state["step"] + 1
        v = beta2 * state["v"] + (1 - beta2) * grad * grad
        rate = weight_seen(step, (beta2,))[0].sqrt() * (step / self.warmup_steps).clamp_max(1.0)
        weight_sum = state["weight_sum"] + rate * rate
        c = rate * rate / weight_sum
        moved = state["u"] - rate * (grad / (safe_sqrt(v) + self.eps) + self.weight_decay * param)
        u = (1 - c) * moved
        delta = self.lr * (c * moved + (1 - beta1) * (u - state["u"]))
        return delta, {"u": u, "v": v, "step": step, "weight_sum": weight_sum}

    def evaluation_params(self, params: Tensors, state: State, lr: Tensor | float = 1.0) -> Tensors:
        """The average x = y - (1 - b1) lr u."""
        factor = (1 - self.betas[0]) * self.lr * lr
        return {name: (p - factor * state[name]["u"]).to(p.dtype) for name, p in params.items()}
