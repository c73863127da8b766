"""The per-parameter network of Metz et al. 2022, "Practical tradeoffs between memory, compute, and performance in
learned optimizers" (arXiv 2203.11860), `small_fc_lopt`: no scalar sees another.

Shapes: P scalars, B tensors, F features, C context values, D width, R raw outputs.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu_

from lopt.graph import ParameterGraph
from lopt.metanets.base import Layers, Metanet, Size
from lopt.metanets.layers import Pointwise, WithContext, zeroed


class Mlp(Metanet):
    """raw = W_L relu(... relu(W_1 f + W_c c + b)): the same small MLP for every scalar.

    What a scalar knows of the others is in its features (factored second moments) and its tensor's context.
    The paper's network has width 4 and 2 layers.
    """

    def __init__(
        self, features: int, context: int, outputs: int, width: Size = 16, layers: Layers = 2
    ) -> None:
        super().__init__()
        self.first = WithContext(features, context, width)
        self.inner = nn.ModuleList(Pointwise(width, width) for _ in range(layers - 1))
        self.head = zeroed(Pointwise(width, outputs))

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        hidden = relu_(self.first(graph, features, context))
        for layer in self.inner:
            hidden = relu_(layer(hidden))
        return self.head(hidden), None
