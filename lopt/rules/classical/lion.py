"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from torch import Tensor

from lopt.rules.classical.base import ClassicalRule, decay, require, zeros


class Lion(ClassicalRule):
    """p <- p - lr (sign(b1 m + (1 - b1) g) + weight_decay p);  m <- b2 m + (1 - b2) g.

    Raises: ConfigError for a value out of range.
    Source: Chen et al. 2023, algorithm 2.
    """

    def __init__(
        self, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        require(self, lr=lr, weight_decay=weight_decay)
        require(self, high=1.0, beta1=betas[0], beta2=betas[1])
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return {"m": zeros(param)}

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        direction = state["m"].lerp(grad, 1 - self.betas[0]).sign()
        momentum = state["m"].lerp(grad, 1 - self.betas[1])
        return decay(param, self.lr * self.weight_decay) - self.lr * direction, {"m": momentum}
