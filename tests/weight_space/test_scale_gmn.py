"""ScaleGMN on tanh networks, which have no canonical form here: signs are nothing to it, and all to others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lopt.errors import GraphError
from lopt.weight_space.scale_gmn import Even, Odd
from lopt.weight_space.symmetries import flipped
from lopt.weight_space.systems import make_reader
from tests.helpers import seeded
from tests.weight_space.perceptrons import NAMES, perceptrons


def said(name: str, params: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(1)
    reader = make_reader(name, perceptrons(), outputs=3).double()
    reader(perceptrons().params)
    return reader.eval()(params)


def test_turned_neurons_are_the_same_to_it_and_others_to_ng_gnn() -> None:
    params = perceptrons().params
    turned = flipped(NAMES, params, seeded(0))
    assert (said("scale_gmn", turned) - said("scale_gmn", params)).abs().max() < 1e-9
    assert (said("ng_gnn", turned) - said("ng_gnn", params)).abs().max() > 1e-4


@pytest.mark.parametrize(
    "parameter", ["layers.0.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias"]
)
def test_half_a_turn_is_another_network(parameter: str) -> None:
    params = perceptrons().params
    half = {**params, parameter: -params[parameter]}
    assert (said("scale_gmn", half) - said("scale_gmn", params)).abs().max() > 1e-4


def test_even_and_odd() -> None:
    z = torch.randn(4, 3, 7, generator=seeded(0), dtype=torch.float64)
    even, odd = Even(4, 5).double(), Odd(4, 5).double()
    torch.testing.assert_close(even(-z), even(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(odd(-z), -odd(z), rtol=0, atol=1e-12)
    assert (odd(z) - odd(2 * z) / 2).abs().max() > 1e-3, "it is no linear map"


def test_a_network_without_signs_is_refused() -> None:
    with pytest.raises(GraphError, match=r"hidden neurons of sin or tanh, found \['relu'\]"):
        make_reader("scale_gmn", perceptrons(nn.ReLU), outputs=3)
