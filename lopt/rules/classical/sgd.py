"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from torch import Tensor

from lopt.errors import ConfigError
from lopt.registry import checked
from lopt.rules.classical.base import Amount, ClassicalRule, counter, zeros


class SGD(ClassicalRule):
    """g <- g + weight_decay p;  b <- momentum b + (1 - dampening) g  (first step: b = g);  p <- p - lr b.

    With `nesterov` the step is g + momentum b. Equals `torch.optim.SGD`.

    Raises: ConfigError for a value out of range, or `nesterov` without momentum or with dampening.
    Source: Polyak 1964; Sutskever et al. 2013.
    """

    elementwise = True

    @checked
    def __init__(
        self,
        lr: Amount = 1e-3,
        momentum: Amount = 0.0,
        dampening: float = 0.0,
        weight_decay: Amount = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__()
        if nesterov and (momentum == 0 or dampening != 0):
            raise ConfigError(
                "SGD: nesterov needs momentum above 0 and dampening 0, "
                f"found momentum={momentum!r}, dampening={dampening!r}; change one of them."
            )
        self.lr, self.momentum, self.dampening = lr, momentum, dampening
        self.weight_decay, self.nesterov = weight_decay, nesterov

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return {"momentum": zeros(param), "step": counter(param)} if self.momentum else {}

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        grad = grad + self.weight_decay * param
        if not self.momentum:
            return -self.lr * grad, {}
        fresh = 1 - self.dampening * state["step"].sign()
        momentum = self.momentum * state["momentum"] + fresh * grad
        direction = grad + self.momentum * momentum if self.nesterov else momentum
        return -self.lr * direction, {"momentum": momentum, "step": state["step"] + 1}
