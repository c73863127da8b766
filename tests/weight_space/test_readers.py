"""Every reader by one table: what must not change a prediction, what must, and that it can fit and be asked."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.weight_space.architecture import architecture
from lopt.weight_space.fitting import FitOptions, fit, mean_loss, predict
from lopt.weight_space.listening import awaken
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.readers import PROBED, MetanetReader
from lopt.weight_space.sirens import RECIPES, SirenShape, initial
from lopt.weight_space.symmetries import flipped
from lopt.weight_space.systems import METANET_READERS, NAMES, make_reader
from tests.helpers import seeded

SHAPE = SirenShape(sizes=(2, 5, 5, 1))
METANETS = [(name, 0) for name in METANET_READERS]
FUNCTIONS = [("probes", 4), ("probegen", 4), ("pixels", 0), ("pixels_cnn", 0)]
EQUIVARIANT = [*METANETS, ("scale_gmn", 0), ("signals", 0), *((name, 4) for name in PROBED), *FUNCTIONS]
EVERY = [*EQUIVARIANT, ("flat_mlp", 0), ("statnn", 0)]


def networks(count: int = 6) -> NetworkSet:
    params = {
        name: value.double() for name, value in initial(SHAPE, RECIPES["siren300"], range(count)).items()
    }
    labels = (params["layers.0.bias"].mean(1) > 0).long()
    return NetworkSet(params, {"label": labels}, torch.zeros(count), {"architecture": SHAPE.model_dump()})


def reader(name: str, probes: int, outputs: int = 3) -> torch.nn.Module:
    """One in float64 and evaluation mode, whose norm has seen the networks once."""
    torch.manual_seed(0)
    found = make_reader(name, networks(), outputs, probes, size=3).double()
    if isinstance(found, MetanetReader):
        awaken(found.head)  # silent at first beside a reader of functions
    found(networks().params)
    return found.eval()


def change(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


@pytest.mark.parametrize(("name", "probes"), EQUIVARIANT)
def test_no_order_sign_or_winding_of_hidden_neurons_changes_a_prediction(name: str, probes: int) -> None:
    net, params = reader(name, probes), networks().params
    graph = architecture(SHAPE).graph
    permutation = graph.random_permutation(seeded(1))
    each = [graph.permute({n: p[i] for n, p in params.items()}, permutation) for i in range(6)]
    moved = {n: torch.stack([one[n] for one in each]) for n in params}
    wound = {**params, "layers.0.bias": params["layers.0.bias"] + math.pi / SHAPE.w0}
    wound["layers.1.weight"] = -params["layers.1.weight"]
    found = predict(net, params)
    for same in (moved, flipped(SHAPE, params, seeded(2)), wound):
        assert change(predict(net, same), found) < 1e-9


@pytest.mark.parametrize(("name", "probes"), EVERY)
def test_the_order_in_which_tensors_come_changes_no_prediction(name: str, probes: int) -> None:
    """A model has its own, a file that of their names."""
    net, params = reader(name, probes), networks().params
    assert torch.equal(predict(net, dict(reversed(params.items()))), predict(net, params))


@pytest.mark.parametrize(("name", "probes"), [pair for pair in EQUIVARIANT if pair[0] != "deepsets"])
def test_half_a_permutation_is_another_network(name: str, probes: int) -> None:
    net, params = reader(name, probes), networks().params
    half = {**params, "layers.0.weight": params["layers.0.weight"].flip(1)}
    assert change(predict(net, half), predict(net, params)) > 1e-6


@pytest.mark.parametrize(("name", "probes"), [pair for pair in EVERY if pair[0] != "statnn"])
def test_an_image_and_its_transpose_are_told_apart(name: str, probes: int) -> None:
    """StatNN alone cannot: it has no place for where a scalar stands."""
    net, params = reader(name, probes), networks().params
    swapped = {**params, "layers.0.weight": params["layers.0.weight"].flip(-1)}
    assert change(predict(net, swapped), predict(net, params)) > 1e-6


def test_statistics_and_flat_weights_are_what_they_are() -> None:
    params = networks().params
    swapped = {**params, "layers.0.weight": params["layers.0.weight"].flip(-1)}
    statistics = reader("statnn", 0)
    assert change(predict(statistics, swapped), predict(statistics, params)) < 1e-9
    moved = {**params, "layers.0.weight": params["layers.0.weight"].flip(1)}
    assert change(predict(reader("flat_mlp", 0), moved), predict(reader("flat_mlp", 0), params)) > 1e-6


LEARNING = [
    ("ng_gnn", 4),
    ("gmn", 0),
    ("scale_gmn", 0),
    ("signals", 0),
    ("nfn_hnp", 0),
    ("deepsets", 0),
    *FUNCTIONS,
    ("flat_mlp", 0),
    ("statnn", 0),
]


@pytest.mark.parametrize(("name", "probes"), LEARNING)
def test_every_kind_of_reader_learns_and_answers_in_batches(name: str, probes: int) -> None:
    data = networks(24)
    torch.manual_seed(0)
    net = make_reader(name, data, 2, probes, size=3).double()
    labels = data.columns["label"]
    before = mean_loss(net, data, labels)
    fitted = fit(net, data, labels, FitOptions(passes=24 * 15, batch=24, lr=4e-3, checks=3), (data, labels))
    assert mean_loss(net, data, labels) == pytest.approx(min(fitted.validation))
    assert mean_loss(net, data, labels) < before
    assert len(fitted.losses) == len(fitted.validation) == 3
    torch.testing.assert_close(predict(net, data.params, batch=5), predict(net, data.params))


@pytest.mark.parametrize("name", [*PROBED, "nfn_np"])
def test_beside_a_reader_of_functions_a_metanet_starts_as_that_and_then_has_its_say(name: str) -> None:
    data = networks()
    torch.manual_seed(0)
    net = make_reader(name, data, 3, probes=4).double()
    assert isinstance(net, MetanetReader)
    assert net.functions is not None
    assert torch.equal(predict(net, data.params), predict(net.functions, data.params))
    functions = copy.deepcopy(net.functions)
    fit(net, data, data.columns["label"], FitOptions(passes=6 * 8, batch=6, lr=1e-2))
    net.functions = functions
    assert change(predict(net, data.params), predict(functions, data.params)) > 1e-3


def test_training_that_only_harms_leaves_a_reader_as_it_came() -> None:
    data = networks(24)
    labels = data.columns["label"]
    torch.manual_seed(0)
    net = make_reader("pixels", data, 2, size=3).double()
    options = FitOptions(passes=24 * 15, batch=24, lr=4e-3, checks=3)
    trained = fit(net, data, labels, options, (data, labels))
    assert trained.start is not None
    assert trained.start > min(trained.validation) == trained.validation[trained.best]
    came = copy.deepcopy(net.state_dict())
    harmed = fit(net, data, 1 - labels, options, (data, labels))
    assert harmed.best == -1
    assert harmed.start == pytest.approx(min(trained.validation))
    assert min(harmed.validation) > min(trained.validation)
    for key, value in net.state_dict().items():
        assert torch.equal(value, came[key]), key
    assert fit(net, data, labels, options).start is None


def test_numbers_are_learned_too() -> None:
    data = networks(32)
    torch.manual_seed(0)
    net = make_reader("flat_mlp", data, 1).double()
    wanted = data.params["layers.0.bias"].mean(1)
    before = mean_loss(net, data, wanted)
    fit(net, data, wanted, FitOptions(passes=32 * 60, batch=32, lr=1e-2))
    assert mean_loss(net, data, wanted) < before / 4


@pytest.mark.parametrize("steps", [1, 2, 8, 18])
def test_a_training_may_have_any_number_of_steps(steps: int) -> None:
    """With eight, the warm-up was one step long, and torch divided by zero."""
    data = networks()
    net = make_reader("statnn", data, 2).double()
    fitted = fit(net, data, data.columns["label"], FitOptions(passes=6 * steps, batch=6, checks=1))
    assert len(fitted.losses) == 1
    assert math.isfinite(fitted.losses[0])


def test_mistakes_are_named() -> None:
    data = networks()
    with pytest.raises(ConfigError, match=f"no reader 'x'; there are {NAMES[0]}"):
        make_reader("x", data, 2)
    with pytest.raises(ConfigError, match="reader statnn: expected no probes, found 4"):
        make_reader("statnn", data, 2, probes=4)
    sines = SirenShape(sizes=(1, 5, 1))
    some = NetworkSet(
        initial(sines, RECIPES["siren300"], range(2)),
        {},
        torch.zeros(2),
        {"architecture": sines.model_dump()},
    )
    with pytest.raises(
        ConfigError, match=r"pixels_cnn: expected networks of images, .* found some with \(1,\)"
    ):
        make_reader("pixels_cnn", some, 2)
    with pytest.raises(ConfigError, match="a target for each network, found 2 for 6"):
        fit(reader("statnn", 0), data, torch.zeros(2))
