"""Teach the tracer an operation of your own: here a gate that two halves of the channels share.

python op_rule.py
"""

import torch
from torch import Tensor, nn

import lopt


@torch.library.custom_op("mine::gate", mutates_args=())
def gate(x: Tensor, scale: Tensor) -> Tensor:
    return torch.sigmoid(x * scale) * x


gate.register_fake(lambda x, scale: torch.empty_like(x))


@lopt.register_op_rule("mine::gate")
def gate_rule(s, x, scale):
    """Entry k of the last dimension meets entry k of the scale: they are one neuron, and so is the result's."""
    s.kind(scale, "scale")
    return (*x.dims[:-1], s.tie(x.dims[-1], scale.dims[-1]))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(gate(self.first(x), self.scale))


if __name__ == "__main__":
    model, example = Gated(), (torch.randn(3, 4),)
    graph = lopt.ParameterGraph.trace(model, example)
    print(graph.summary(), graph.verify(model, example), sep="\n\n")
