"""The recurrent optimizers: an LSTM over time for every scalar, and one over the tensors of the network.

"Learning to learn by gradient descent by gradient descent" (Andrychowicz et al. 2016, arXiv 1606.04474).
Shapes: P scalars, B tensors, F features, C context values, D width, R raw outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.graph import ParameterGraph
from lopt.metanets.base import Layers, LayersOrZero, Metanet, Size
from lopt.metanets.layers import Pointwise, ScalarNet, WithContext, zeroed
from lopt.numerics.segments import segment_expand, segment_mean


class Lstm(Metanet):
    """h_l, c_l = LSTM_l(h_(l-1), h_l of the step before, c_l of the step before) for every scalar; raw = W h_L.

    The layers share their weights among all scalars. The memory holds h and c of each layer: M = 2 D layers.
    The paper has 2 layers of width 20.
    """

    def __init__(
        self, features: int, context: int, outputs: int, width: Size = 8, layers: Layers = 2
    ) -> None:
        super().__init__()
        self.memory = 2 * width * layers
        self.first = WithContext(features, context, 4 * width)
        self.inputs = nn.ModuleList(Pointwise(width, 4 * width) for _ in range(layers - 1))
        self.recurrent = nn.ModuleList(Pointwise(width, 4 * width, bias=False) for _ in range(layers))
        self.head = zeroed(Pointwise(width, outputs))

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        memory = features.new_zeros(self.memory, features.shape[-1]) if memory is None else memory
        states = memory.chunk(2 * len(self.recurrent))
        driven = self.first(graph, features, context)
        kept: list[Tensor] = []
        for layer, recurrent in enumerate(self.recurrent):
            driven = driven if layer == 0 else self.inputs[layer - 1](kept[-2])
            kept.extend(lstm_cell(driven + recurrent(states[2 * layer]), states[2 * layer + 1]))
        return self.head(kept[-2]), torch.cat(kept)


class TensorLstm(Metanet):
    """An LSTM that walks over the tensors of the network, from input to output, instead of over time:

        e = relu(W f + V c + b),   h_b, c_b = LSTM(mean(e over tensor b), h_(b-1), c_(b-1)),   raw = H relu(U e + T h_b)

    One tensor hears of those before it; the scalars of a tensor stay a set. This is the LSTM of Neural Graphs' and
    earlier comparisons (Metz et al. 2020, arXiv 2009.11243), which there reads another layer of e, and whose states go
    beside the scalars' own features into a network of `scalar_layers` hidden layers (`ScalarNet`), if there are any.
    """

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        width: Size = 16,
        scalar_layers: LayersOrZero = 0,
    ) -> None:
        super().__init__()
        self.first = WithContext(features, context, width)
        self.inputs = Pointwise(width, 4 * width)
        self.recurrent = Pointwise(width, 4 * width, bias=False)
        self.scalars = ScalarNet(features, width, width, scalar_layers, outputs) if scalar_layers else None
        if self.scalars is None:
            self.scalar, self.tensor = Pointwise(width, width), Pointwise(width, width, bias=False)
            self.head = zeroed(Pointwise(width, outputs))

    def forward(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        sizes = graph.sizes
        scalars = relu(self.first(graph, features, context))
        heard = self._walk(segment_mean(scalars, sizes))
        if self.scalars is not None:
            return self.scalars(features, segment_expand(self.scalars.read(heard), sizes)), None
        return self.head(relu(self.scalar(scalars) + segment_expand(self.tensor(heard), sizes))), None

    def _walk(self, means: Tensor) -> Tensor:
        """(D, B) means -> (D, B) states of the LSTM behind each tensor."""
        hidden = cell = torch.zeros_like(means[:, :1])
        states = []
        for driven in self.inputs(means).split(1, -1):
            hidden, cell = lstm_cell(driven + self.recurrent(hidden), cell)
            states.append(hidden)
        return torch.cat(states, -1)


def lstm_cell(driven: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter & Schmidhuber 1997 with a forget gate: (4 D, n) in order i, f, g, o, (D, n) -> h, c of (D, n)."""
    enter, forget, new, out = driven.chunk(4)
    # One is added so that a fresh cell remembers (Jozefowicz et al. 2015).
    cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell
