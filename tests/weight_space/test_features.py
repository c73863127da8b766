"""What readers are told of scalars: scale, places that tell inputs and taps apart, phases that no winding changes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lopt.graph import ParameterGraph
from lopt.weight_space.features import (
    ACTIVATIONS,
    FeatureOptions,
    WeightFeatures,
    activations,
    phases,
    places,
)
from lopt.weight_space.sirens import SirenShape
from tests.helpers import hand_graph, seeded


def test_free_of_scale_but_for_one() -> None:
    graph = hand_graph({"h": 4, "x": 3}, {"w": "weight out:h in:x"})
    params = {"w": torch.randn(4, 3, generator=seeded(0))}
    told = WeightFeatures(FeatureOptions())
    small, large = (told(graph, {"w": factor * params["w"]})[0] for factor in (1.0, 100.0))
    torch.testing.assert_close(small[:2], large[:2], rtol=1e-3, atol=1e-4)
    assert (small[2] - large[2]).abs().max() > 1
    scaled = WeightFeatures(FeatureOptions(), {"w": 1.0})
    assert (scaled(graph, {"w": 100 * params["w"]})[0] - scaled(graph, params)[0])[:2].abs().min(
        0
    ).values.max() > 1


def test_counts_and_order() -> None:
    options = FeatureOptions(frequencies=3, places=True, activations=True, w0=30.0)
    net = SirenShape(sizes=(2, 4, 4, 1)).build()
    graph = ParameterGraph.trace(net, (torch.zeros(3, 2),))
    found, context = WeightFeatures(options)(graph, dict(net.named_parameters()))
    assert found.shape == (options.count, graph.numel)
    assert context.shape[1] == len(graph.parameters)


class Mixed(nn.Module):
    """A convolution with relu, then a linear layer from a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, (2, 3)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().flatten(1))


def test_places_tell_inputs_outputs_and_taps_apart_but_no_hidden_neurons() -> None:
    graph = ParameterGraph.trace(Mixed(), (torch.zeros(1, 2, 2, 4),))
    assert graph.rung == "traced"
    codes = {
        name: code.T
        for name, code in zip(graph.parameters, places(graph).split(graph.sizes, -1), strict=True)
    }
    conv = codes["conv.weight"].reshape(4, 2 * 2 * 3, -1)
    assert torch.equal(conv[0], conv[3]), "hidden channels"
    assert len(conv[0].unique(dim=0)) == 12, "2 inputs x 6 taps"
    head = codes["head.weight"].reshape(3, 4, 2, -1)
    assert torch.equal(head[:, 0], head[:, 3]), "channels in front of the flatten"
    assert len(head[:, 0].flatten(0, 1).unique(dim=0)) == 6, "3 outputs x 2 positions"
    assert not codes["conv.bias"].any()


def test_activations_are_those_of_the_neurons_fed() -> None:
    graph = ParameterGraph.trace(Mixed(), (torch.zeros(1, 2, 2, 4),))
    parts = dict(zip(graph.parameters, activations(graph).split(graph.sizes, -1), strict=True))
    for name, expected in (("conv.weight", "relu"), ("conv.bias", "relu"), ("head.weight", None)):
        hot = torch.tensor([float(known == expected) for known in ACTIVATIONS])
        assert torch.equal(parts[name], hot[:, None].expand_as(parts[name])), name


def test_phases_know_no_windings() -> None:
    shape = SirenShape(sizes=(2, 5, 5, 1))
    net = shape.build().double()
    graph = ParameterGraph.trace(net, (torch.zeros(3, 2, dtype=torch.float64),))
    params = {name: value.detach() for name, value in net.named_parameters()}

    def of(tensors: dict[str, Tensor]) -> Tensor:
        return phases(graph, tensors, graph.flatten(tensors), shape.w0)

    shift = torch.tensor([0.0, 2.0, -4.0, 2.0, 0.0], dtype=torch.float64) * math.pi / shape.w0
    wound = {**params, "layers.0.bias": params["layers.0.bias"] + shift}
    assert (of(wound) - of(params)).abs().max() < 1e-12
    odd = {**wound, "layers.0.bias": params["layers.0.bias"] + shift / 2}
    odd["layers.1.weight"] = params["layers.1.weight"] * torch.tensor(
        [1.0, -1, 1, -1, 1], dtype=torch.float64
    )
    behind = slice(graph.offsets["layers.1.weight"], graph.offsets["layers.1.weight"] + 25)
    assert (of(odd) - of(params))[:, behind].abs().max() < 1e-12, "half turns with the weights behind negated"
    assert (of(odd) - of(params)).abs().max() > 0.1
