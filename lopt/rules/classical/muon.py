"""Muon: orthogonalised momentum for the matrices inside a network, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor

from lopt.graph import ParameterGraph
from lopt.rules.classical.adam import AdamW
from lopt.rules.classical.base import ClassicalRule, decay, require, zeros

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5: after five steps singular values from 0.01 to 1 end between 0.7 and 1.2."""

ADAMW_KINDS = frozenset({"embedding", "position", "depthwise"})
"""Tensors of two axes that are tables of vectors, or filters each of its own, rather than matrices."""


class Muon(ClassicalRule):
    """m <- b m + (1 - b) g;  p <- p - lr (s O + weight_decay p), O = newton_schulz((1 - b) g + b m).

    Convolution kernels are read as (out, in x taps); s = 0.2 sqrt(max(rows, columns)) gives O the rms of an
    AdamW step, so that both share one learning rate. Vectors, embeddings, depthwise kernels and the output
    layer (which only a traced graph tells) take AdamW. Equals `torch.optim.Muon` with
    adjust_lr_fn="match_rms_adamw", but for the iteration's precision: working dtype here, bfloat16 there.

    Raises: ConfigError for a value out of range.
    Source: Jordan et al. 2024; scale: Liu et al. 2025 (arXiv 2502.16982), equation 4.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        require(self, lr=lr, weight_decay=weight_decay)
        require(self, high=1.0, momentum=momentum)
        self.rest = AdamW(lr, betas, weight_decay=weight_decay)
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay

    def part(self, graph: ParameterGraph, name: str) -> ClassicalRule:
        return self if is_hidden_matrix(graph, name) else self.rest

    def start(self, param: Tensor) -> dict[str, Tensor]:
        return {"momentum": zeros(param)}

    def step(self, grad: Tensor, state: dict[str, Tensor], param: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        momentum = state["momentum"].lerp(grad, 1 - self.momentum)
        update = grad.lerp(momentum, self.momentum) if self.nesterov else momentum
        matrix = update.flatten(1)
        scale = 0.2 * max(matrix.shape) ** 0.5
        orthogonal = newton_schulz(matrix).reshape(param.shape)
        return decay(param, self.lr * self.weight_decay) - self.lr * scale * orthogonal, {
            "momentum": momentum
        }


def is_hidden_matrix(graph: ParameterGraph, name: str) -> bool:
    """Whether a parameter maps neurons to hidden neurons: a matrix or convolution kernel, not the output layer."""
    spec = graph.parameters[name]
    if len(spec.shape) < 2 or spec.kind in ADAMW_KINDS:
        return False
    out = {
        group
        for axis, role in zip(spec.axes, spec.roles, strict=True)
        if role == "out"
        for s in axis
        for group in s
    }
    return not any(graph.groups[group].kind == "output" for group in out)


def newton_schulz(matrix: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """(rows, columns) -> the same with all singular values moved near one: about U V^T of U S V^T.

    Each step is X <- (a + b G + c G^2) X with the Gram matrix G = X X^T of the shorter side. All these polynomials
    of the first G commute, so for long matrices they are multiplied up and X itself is touched twice in all.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    # Clamped under the root: the derivative of the root at zero is infinite.
    x = x / torch.sqrt((x * x).sum().clamp_min(eps * eps))
    if x.shape[1] > GRAM_FROM * x.shape[0]:
        x = _polynomial(x @ x.mT, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


GRAM_FROM = 1.5
"""Columns per row from which five steps on the Gram matrix take fewer multiplications than on the matrix itself."""


def _polynomial(gram: Tensor, steps: int) -> Tensor:
    """(r, r) -> (r, r): the product of the steps' factors a + b G_k + c G_k^2, where G_k+1 = factor^2 G_k."""
    a, b, c = COEFFICIENTS
    identity, product = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device), None
    for step in range(steps):
        factor = torch.addmm(a * identity + b * gram, gram, gram, alpha=c)
        product = factor if product is None else product @ factor
        if step + 1 < steps:
            gram = gram @ (factor @ factor)
    return identity if product is None else product
