"""Signals beside a network whose answers are known, on odd and other functions, on kernels, and without a place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lopt.errors import GraphError
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.signals import Signals
from lopt.weight_space.symmetries import flipped
from lopt.weight_space.systems import make_reader
from tests.helpers import seeded
from tests.weight_space.perceptrons import NAMES, Perceptron, in_double, perceptrons


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 3),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.inner(x).relu())


def reader(read: NetworkSet) -> Signals:
    torch.manual_seed(1)
    found = make_reader("signals", read, outputs=3).double()
    assert isinstance(found, Signals)
    found(read.params)
    return found.eval()


def change(found: Signals, left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return (found(left) - found(right)).abs().max().item()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_turned_neurons_are_the_same_where_functions_are_odd_alone(activation: type[nn.Module]) -> None:
    read = perceptrons(activation)
    moved = change(reader(read), flipped(NAMES, read.params, seeded(0)), read.params)
    assert moved < 1e-9 if activation is nn.Tanh else moved > 1e-3


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize(
    "parameter", ["layers.0.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias"]
)
def test_half_a_turn_is_another_network(parameter: str, activation: type[nn.Module]) -> None:
    read = perceptrons(activation)
    half = {**read.params, parameter: -read.params[parameter]}
    assert change(reader(read), half, read.params) > 1e-4


def test_what_it_sends_through_a_network_is_what_the_network_would_say() -> None:
    """With the network's own function in the place of the learned ones, and nothing scaled."""
    read = perceptrons()
    found = reader(read)
    found.scales.fill_(1)
    points = found.codes.detach().T  # one input of the network in each channel
    found.heard = nn.ModuleList(Own(layer.in_features) for layer in (nn.Linear(2, 1), nn.Linear(5, 1)))
    found.head = nn.Identity()
    said = found(read.params)
    for mine, network in zip(said, points_said(read, points), strict=True):
        torch.testing.assert_close(mine[:-1] * 5**0.5 + mine[-1], network, rtol=1e-9, atol=1e-9)


class Own(nn.Module):
    """tanh(m sqrt(sources) + b)."""

    def __init__(self, sources: int) -> None:
        super().__init__()
        self.root = sources**0.5

    def forward(self, heard: Tensor) -> Tensor:
        return torch.tanh(heard[..., :-1] * self.root + heard[..., -1:])


def points_said(read: NetworkSet, points: Tensor) -> list[Tensor]:
    model = Perceptron().double()
    said = []
    for number in range(len(read)):
        model.load_state_dict({name: value[number] for name, value in read.params.items()})
        said.append(model(points).detach()[:, 0])
    return said


def test_kernels_are_read_tap_by_tap_and_channels_in_any_order() -> None:
    torch.manual_seed(0)
    read = in_double([convolutional() for _ in range(6)], torch.zeros(2, 1, 8, 8))
    found, params = reader(read), read.params
    assert change(found, {**params, "2.weight": params["2.weight"].flip(-1)}, params) > 1e-4
    order = torch.randperm(4, generator=seeded(0))
    moved = {"0.weight": params["0.weight"][:, order], "0.bias": params["0.bias"][:, order]}
    moved["2.weight"] = params["2.weight"][:, :, order]
    assert change(found, {**params, **moved}, params) < 1e-9
    assert change(found, {**params, "0.weight": moved["0.weight"]}, params) > 1e-4


def test_a_network_that_is_no_chain_is_refused() -> None:
    with pytest.raises(GraphError, match="takes chains alone"):
        make_reader("signals", in_double([Residual() for _ in range(3)], torch.zeros(2, 2)), outputs=3)
