"""Deep Sets (Zaheer et al. 2017, arXiv 1703.06114): each tensor is a set of scalars, the network a set of tensors.

The baseline of the metanetwork papers (Navon et al. 2023, Zhou et al. 2023): it respects every permutation of a
tensor's entries, and so knows no neuron. Shapes: P scalars, B tensors, F features, C context values, D width,
R raw outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.graph import ParameterGraph
from lopt.metanets.base import Layers, Metanet, Size
from lopt.metanets.layers import Pointwise, WithContext, zeroed
from lopt.numerics.segments import segment_expand, segment_mean


class DeepSets(Metanet):
    """e' = relu(W e + V mean(e over its tensor) + U mean(the tensors' means) + b), `layers` times, then raw = H e."""

    def __init__(
        self, features: int, context: int, outputs: int, width: Size = 16, layers: Layers = 2
    ) -> None:
        super().__init__()
        self.first = WithContext(features, context, width)
        self.layers = nn.ModuleList(SetLayer(width) for _ in range(layers))
        self.head = zeroed(Pointwise(width, outputs))

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        hidden = relu(self.first(graph, features, context))
        for layer in self.layers:
            hidden = relu(layer(hidden, graph.sizes))
        return self.head(hidden), None


class SetLayer(nn.Module):
    """W e + V mean(e over its tensor) + U mean(the tensors' means) + b: (D, P) -> (D, P)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = Pointwise(width, width, bias=False)
        self.pooled = Pointwise(2 * width, width)

    def forward(self, scalars: Tensor, sizes: list[int]) -> Tensor:
        means = segment_mean(scalars, sizes)
        overall = means.mean(-1, keepdim=True).expand_as(means)
        return self.own(scalars) + segment_expand(self.pooled(torch.cat([means, overall])), sizes)
