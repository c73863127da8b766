"""Frozen parameters that are no real numbers: packed weights beside adapters, tables of complex rotations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lopt


class Adapted(nn.Module):
    """Two layers of packed weights with a scale, a low-rank adapter on the first; rotations in the complex plane."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        packed = torch.randint(-8, 8, (6, 8)).abs() if dtype is torch.uint8 else torch.randint(-8, 8, (6, 8))
        self.packed = nn.Parameter(packed.to(dtype), requires_grad=False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.turns = nn.Parameter(torch.polar(torch.ones(3), torch.arange(3.0)), requires_grad=False)
        self.register_buffer("shift", torch.ones(3, dtype=torch.complex64))
        self.out = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.view_as_real(self.packed).sum(-1) if self.packed.is_complex() else self.packed.float()
        h = x @ weight.T / 8 + self.up(self.down(x))
        z = torch.view_as_complex(h.reshape(-1, 3, 2)) * self.turns + self.shift
        return self.out(torch.view_as_real(z).flatten(1))


DTYPES = (torch.uint8, torch.int8, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frozen_parameters_of_any_dtype_are_fixed_parts_of_the_graph(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Adapted(dtype), torch.randn(4, 8)
    graph = lopt.ParameterGraph.trace(model, (x,))
    assert graph.rung == "traced"
    for name in ["turns"] + ["packed"] * (dtype is not torch.float8_e4m3fn):
        assert not any(
            graph.groups[g].permutable for axis in graph.parameters[name].axes for s in axis for g in s
        )
    (rank,) = graph.parameters["down.weight"].axes[0][0]
    assert graph.groups[rank].permutable
    assert graph.parameters["up.weight"].axes[1] == ((rank,),)
    assert graph.verify(model, (x,)).ok

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = lopt.LearnedOptimizer(model.parameters(), rule="lopt-small", graph=graph)
    model(x).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
