"""Readers of many architectures: what must not change a prediction, what must, and networks that they never saw."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from lopt.errors import ConfigError
from lopt.weight_space.architecture import architecture_of
from lopt.weight_space.fitting import FitOptions, fit, mean_loss, predict
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.park_readers import (
    PARK_METANETS,
    PARK_NAMES,
    ParkMetanet,
    ParkReader,
    make_park_reader,
)
from lopt.weight_space.parknets import ParkShape, initial
from tests.helpers import seeded

EACH = 3
SHAPES = (
    ParkShape(size=8, channels=(4, 5), kernels=(3, 3), classes=3, activation="relu"),
    ParkShape(size=8, colours=3, channels=(4, 5, 5, 5), kernels=(3, 5, 3, 3), residual=True, classes=3,
              activation="gelu"),
    ParkShape(size=8, colours=3, channels=(4, 6, 4), kernels=(5, 3, 3), classes=3, activation="sigmoid"),
)  # fmt: skip
READERS = [
    ("statnn", 0),
    ("probes", 3),
    *((name, 0) for name in PARK_METANETS),
    ("ng_gnn", 3),
    ("ng_t", 3),
    ("gmn", 3),
]
EQUIVARIANT = [pair for pair in READERS if pair[0] not in ("statnn", "deepsets")]


def drawn(shape: ParkShape, seed: int = 0) -> NetworkSet:
    generator = seeded(seed)
    found = initial(shape, range(seed, seed + EACH), torch.linspace(0.5, 2, EACH))
    params = {
        name: (value + 0.1 * torch.randn(value.shape, generator=generator)).double()
        for name, value in sorted(found.items())
    }
    splits = torch.zeros(EACH, dtype=torch.uint8)
    return NetworkSet(params, {"network": torch.arange(EACH)}, splits, {"architecture": shape.model_dump()})


@cache
def park() -> NetworkPark:
    return NetworkPark(tuple(drawn(shape, 10 * n) for n, shape in enumerate(SHAPES)))


@cache
def reader(name: str, probes: int) -> ParkReader:
    """One in float64 and evaluation mode, whose norms have seen the networks, and whose last layer says something."""
    torch.manual_seed(0)
    found = make_park_reader(name, park(), 2, probes).double()
    with torch.no_grad():
        for parameter in found.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    for _ in range(3):
        found(park().batch(torch.arange(len(park()))))
    return found.eval()


def change(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


def with_params(number: int, params: dict[str, Tensor], **shape: Any) -> NetworkPark:
    own = replace(park().sets[number], params=params)
    if shape:
        own = replace(own, header={"architecture": SHAPES[number].but(**shape).model_dump()})
    sets = [*park().sets]
    sets[number] = own
    return NetworkPark(tuple(sets))


@pytest.mark.parametrize(("name", "probes"), READERS)
def test_no_order_of_hidden_neurons_changes_a_prediction(name: str, probes: int) -> None:
    net = reader(name, probes)
    found = predict(net, park())
    for number, own in enumerate(park().sets):
        graph = architecture_of(own).graph
        permutation = graph.random_permutation(seeded(1))
        params = vmap(lambda one, g=graph, p=permutation: g.permute(one, p))(own.params)
        assert not torch.equal(params["layers.1.weight"], own.params["layers.1.weight"])
        assert change(predict(net, with_params(number, params)), found) < 1e-9


@pytest.mark.parametrize(("name", "probes"), EQUIVARIANT)
def test_half_a_permutation_is_another_network(name: str, probes: int) -> None:
    net = reader(name, probes)
    found = predict(net, park())
    for number, own in enumerate(park().sets):
        half = {**own.params, "layers.1.weight": own.params["layers.1.weight"].flip(1)}
        moved = (predict(net, with_params(number, half)) - found).abs().amax(1).view(-1, EACH)
        assert moved[number].min() > 1e-6, "the network itself"
        moved[number] = 0.0
        assert moved.max() == 0, "and no other of the batch"


@pytest.mark.parametrize(("name", "probes"), READERS)
def test_networks_that_differ_in_their_activation_alone_are_told_apart(name: str, probes: int) -> None:
    net, found = reader(name, probes), predict(reader(name, probes), park())
    other = with_params(0, park().sets[0].params, activation="tanh")
    assert change(predict(net, other)[:EACH], found[:EACH]) > 1e-6
    assert change(predict(net, other)[EACH:], found[EACH:]) == 0


@pytest.mark.parametrize(("name", "probes"), EQUIVARIANT)
def test_sums_are_seen(name: str, probes: int) -> None:
    """By metanets as neurons that several layers share, by probes as what is put out."""
    if name == "gmn" and not probes:
        pytest.skip("covered with probes; without them the mean over a stream's writers can hide one")
    net, found = reader(name, probes), predict(reader(name, probes), park())
    other = with_params(1, park().sets[1].params, residual=False)
    assert change(predict(net, other), found) > 1e-6


@pytest.mark.parametrize(("name", "probes"), READERS)
def test_what_is_said_of_a_network_depends_on_no_other_of_its_batch(name: str, probes: int) -> None:
    net = reader(name, probes)
    together = predict(net, park())
    index = torch.tensor([7, 0, 4, 4, 2])
    with torch.no_grad():
        assert change(net(park().batch(index)), together[index]) < 1e-9
        assert change(net(park().batch(torch.tensor([5]))), together[5:6]) < 1e-9
    assert change(predict(net, park(), batch=4), together) < 1e-9
    assert together.std(0).min() > 1e-4


@pytest.mark.parametrize(("name", "probes"), READERS)
def test_networks_of_an_architecture_that_was_never_seen_are_read(name: str, probes: int) -> None:
    new = NetworkPark(
        (drawn(ParkShape(size=8, channels=(7, 6, 5, 6, 3), kernels=(3, 3, 5, 3, 3), classes=3), 90),)
    )
    found = predict(reader(name, probes), new)
    assert found.shape == (EACH, 2)
    assert found.isfinite().all()


@pytest.mark.parametrize(("name", "probes"), [("statnn", 0), ("probes", 3), ("ng_gnn", 3), ("gmn", 0)])
def test_every_kind_of_reader_learns(name: str, probes: int) -> None:
    torch.manual_seed(0)
    net = make_park_reader(name, park(), 1, probes).double()
    wanted = torch.cat([own.params["layers.0.weight"].flatten(1).std(1) for own in park().sets])
    wanted = (wanted - wanted.mean()) / wanted.std()
    before = mean_loss(net, park(), wanted)
    fit(net, park(), wanted, FitOptions(passes=9 * 60, batch=9, lr=1e-2, checks=3), (park(), wanted))
    assert mean_loss(net, park(), wanted) < before / 2


def test_beside_functions_a_metanet_starts_as_they_are() -> None:
    torch.manual_seed(0)
    net = make_park_reader("ng_gnn", park(), 2, 3).double()
    assert isinstance(net, ParkMetanet)
    assert net.functions is not None
    assert torch.equal(predict(net, park()), predict(net.functions, park()))


def test_mistakes_are_named() -> None:
    with pytest.raises(
        ConfigError, match=f"no reader 'nfn_np' of networks of many architectures; there are {PARK_NAMES[0]}"
    ):
        make_park_reader("nfn_np", park(), 1)
    with pytest.raises(ConfigError, match="reader statnn: expected no probes, found 4"):
        make_park_reader("statnn", park(), 1, 4)
    own = replace(park().sets[0], graph=architecture_of(park().sets[0]).graph)
    with pytest.raises(ConfigError, match="expected networks that lopt has the code of"):
        make_park_reader("probes", NetworkPark((own,)), 1)
