"""One network for each tensor instead of each scalar: what it says costs next to nothing, however wide the tensor.

As the hypernetwork of VeLO (Metz et al. 2022, arXiv 2211.09760) it steers the update of a whole tensor by what the
tensor is and how its gradients behave; unlike there, no network acts on scalars beneath it.
Shapes: P scalars, B tensors, F features, C context values, D width, R raw outputs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import relu_

from lopt.graph import ParameterGraph
from lopt.metanets.base import Metanet, Size
from lopt.metanets.layers import Pointwise, zeroed
from lopt.numerics.segments import segment_expand


class TensorMlp(Metanet):
    """raw = W_2 relu(W_1 c + b_1) + b_2 with the context c of a tensor: the same for all of its scalars."""

    sees_scalars = False

    def __init__(self, features: int, context: int, outputs: int, width: Size = 16) -> None:
        super().__init__()
        self.first = Pointwise(context, width)
        self.head = zeroed(Pointwise(width, outputs))

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return segment_expand(self.of_tensors(context), graph.sizes), None

    def of_tensors(self, context: Tensor) -> Tensor:
        return self.head(relu_(self.first(context)))
