"""Adam, with weight decay in the gradient (Adam) or decoupled from it (AdamW)."""

from __future__ import annotations

from torch import Tensor

from lopt.config import Decay, Pair
from lopt.numerics.moments import weight_seen
from lopt.registry import checked
from lopt.rules.classical.base import (
    Amount,
    ClassicalRule,
    counter,
    decay,
    safe_sqrt,
    zeros,
)


class Adam(ClassicalRule):
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- p - lr m^ / (sqrt(v^) + eps).

    m^ and v^ are m / (1 - b1^t) and v / (1 - b2^t); g includes weight_decay p. Equals `torch.optim.Adam`.

    Raises: ConfigError for a value out of range.
    Source: Kingma and Ba 2015, algorithm 1.
    """

    elementwise = True

    @checked
    def __init__(
        self,
        lr: Amount = 1e-3,
        betas: Pair[Decay] = (0.9, 0.999),
        eps: Amount = 1e-8,
        weight_decay: Amount = 0.0,
    ) -> None:
        super().__init__()
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return adam_start(param)

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        direction, state = adam_direction(grad + self.weight_decay * param, state, self.betas, self.eps)
        return -self.lr * direction, state


class AdamW(ClassicalRule):
    """Adam with decoupled decay: p <- p - lr (m^ / (sqrt(v^) + eps) + weight_decay p).

    Equals `torch.optim.AdamW`.

    Raises: ConfigError for a value out of range.
    Source: Loshchilov and Hutter 2019, algorithm 2.
    """

    elementwise = True

    @checked
    def __init__(
        self,
        lr: Amount = 1e-3,
        betas: Pair[Decay] = (0.9, 0.999),
        eps: Amount = 1e-8,
        weight_decay: Amount = 1e-2,
    ) -> None:
        super().__init__()
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return adam_start(param)

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        direction, state = adam_direction(grad, state, self.betas, self.eps)
        return decay(param, self.lr * self.weight_decay) - self.lr * direction, state


def adam_start(param: Tensor) -> dict[str, Tensor]:
    """Zero moments and step count."""
    return {"m": zeros(param), "v": zeros(param), "step": counter(param)}


def adam_direction(
    grad: Tensor, state: dict[str, Tensor], betas: tuple[float, float], eps: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """m^ / (sqrt(v^) + eps), and the next moments."""
    beta1, beta2 = betas
    step = state["step"] + 1
    m = state["m"].lerp(grad, 1 - beta1)
    v = beta2 * state["v"] + (1 - beta2) * grad * grad
    seen1, seen2 = weight_seen(step, (beta1, beta2))
    denominator = safe_sqrt(v) / seen2.sqrt() + eps
    return m / seen1 / denominator, {"m": m, "v": v, "step": step}
