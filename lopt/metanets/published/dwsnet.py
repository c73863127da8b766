"""DWSNet: deep weight-space networks (Navon et al. 2023, arXiv 2301.12780).

Shapes: n_0 inputs and n_L outputs of the MLP, D width, F features, C context values, R raw outputs.
"""

from __future__ import annotations

from torch import Tensor

from lopt.config import Pair
from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.metanets.base import Layers, Metanet, Size
from lopt.metanets.published.nfn import Depth, Nfn
from lopt.metanets.published.wiring import wiring_of


class DwsNet(Metanet):
    """Layers of all affine maps between an MLP's weights and biases that commute with permutations of hidden neurons.

    Inputs and outputs stay in place. The space of these maps is that of NFN's hidden neuron permutations (both
    papers derive it; theorem 4.1 here), so the layer is the same, one block of coefficients for each pair of
    tensors. What remains the paper's own is the scope: MLPs, and one MLP architecture up to its hidden widths. The
    defaults are those of its implicit networks, 2-32-32-1. The number of coefficients grows with the squares of
    n_0 and n_L.

    Raises `GraphError` on a network that is no MLP, or of another depth or ends.
    """

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        width: Size = 8,
        layers: Layers = 2,
        depth: Depth = 3,
        ends: Pair[Size] = (2, 1),
    ) -> None:
        super().__init__()
        self.net = Nfn(features, context, outputs, width, layers, "hnp", depth, ends, taps=1)

    def prepare(self, graph: ParameterGraph) -> None:
        for wire in wiring_of(graph).edges:
            if len(wire.block.shape) > 2:
                found = f"{wire.block.parameter!r} with axes {wire.block.shape}"
                raise GraphError(f"dwsnet takes MLPs alone: expected matrices, found {found}")
        self.net.prepare(graph)

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        self.prepare(graph)
        return self.net(graph, features, context, memory)
