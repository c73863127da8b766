"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from torch import Tensor

from lopt.config import Decay, Pair
from lopt.registry import checked
from lopt.rules.classical.base import Amount, ClassicalRule, decay, zeros


class Lion(ClassicalRule):
    """p <- p - lr (sign(b1 m + (1 - b1) g) + weight_decay p);  m <- b2 m + (1 - b2) g.

    Raises: ConfigError for a value out of range.
    Source: Chen et al. 2023, algorithm 2.
    """

    elementwise = True

    @checked
    def __init__(
        self, lr: Amount = 1e-4, betas: Pair[Decay] = (0.9, 0.99), weight_decay: Amount = 0.0
    ) -> None:
        super().__init__()
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return {"m": zeros(param)}

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        direction = state["m"].lerp(grad, 1 - self.betas[0]).sign()
        momentum = state["m"].lerp(grad, 1 - self.betas[1])
        return decay(param, self.lr * self.weight_decay) - self.lr * direction, {"m": momentum}
