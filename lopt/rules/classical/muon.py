"""Muon: orthogonalised momentum for the matrices inside a network, AdamW for everything else."""

from __future__ import annotations

from torch import Tensor

from lopt.config import Decay, Pair
from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import is_hidden_matrix, stacked_axes
from lopt.numerics.newton_schulz import newton_schulz
from lopt.registry import checked
from lopt.rules.classical.adam import AdamW
from lopt.rules.classical.base import Amount, ClassicalRule, decay, zeros

RMS = 0.2
"""Of a step of AdamW, and so of an orthogonalised one, over the learning rate."""


class Muon(ClassicalRule):
    """m <- b m + (1 - b) g;  p <- p - lr (s O + weight_decay p), O = newton_schulz((1 - b) g + b m).

    Convolution kernels are read as (out, in x taps); s = 0.2 sqrt(max(rows, columns)) gives O the rms of an
    AdamW step, so that both share one learning rate. Vectors, embeddings, depthwise kernels and the output
    layer (which only a traced graph tells) take AdamW. Equals `torch.optim.Muon` with
    adjust_lr_fn="match_rms_adamw", but for the iteration's precision: working dtype here, bfloat16 there.

    Raises: ConfigError for a value out of range.
    Source: Jordan et al. 2024; scale: Liu et al. 2025 (arXiv 2502.16982), equation 4.
    """

    @checked
    def __init__(
        self,
        lr: Amount = 1e-3,
        momentum: Decay = 0.95,
        nesterov: bool = True,
        weight_decay: Amount = 0.1,
        betas: Pair[Decay] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        self.rest = AdamW(lr, betas, weight_decay=weight_decay)
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay

    def part(self, graph: ParameterGraph, name: str) -> ClassicalRule:
        return self if is_hidden_matrix(graph, name) else self.rest

    def stacked(self, graph: ParameterGraph, name: str) -> int:
        return stacked_axes(graph, graph.parameters[name]) if is_hidden_matrix(graph, name) else 0

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return {"momentum": zeros(param)}

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        momentum = state["momentum"].lerp(grad, 1 - self.momentum)
        update = grad.lerp(momentum, self.momentum) if self.nesterov else momentum
        direction, own = self.direction(update.flatten(1), grad.flatten(1), state)
        delta = decay(param, self.lr * self.weight_decay) - self.lr * direction.reshape(param.shape)
        return delta, {"momentum": momentum, **own}

    def direction(
        self, update: Tensor, grad: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """s O of one matrix (rows, columns), and the next state of what it remembers besides the momentum."""
        return RMS * max(update.shape) ** 0.5 * newton_schulz(update), {}
