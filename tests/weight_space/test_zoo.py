"""The zoo of classifiers: derivatives, kill and resume, splits, and no meaning in the order of channels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lopt.cli import main
from lopt.weight_space.architecture import architecture_of
from lopt.weight_space.convnets import Adam, ConvShape, accuracy, gradient, initial, logits
from lopt.weight_space.fitting import predict
from lopt.weight_space.network_set import NetworkSet, load
from lopt.weight_space.systems import make_reader
from lopt.weight_space.zoo import ZOOS, make_zoo
from tests.helpers import seeded

SHAPE = ConvShape(size=8, channels=4, classes=3)
NAME = "cnn-zoo-digits"


def params(count: int = 6) -> dict[str, torch.Tensor]:
    drawn = initial(SHAPE, range(count), torch.linspace(0.5, 2, count))
    generator = seeded(0)
    return {n: (v + 0.1 * torch.randn(v.shape, generator=generator)).double() for n, v in drawn.items()}


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_written_out_networks_and_gradients_are_those_of_torch(activation: Literal["relu", "tanh"]) -> None:
    shape = SHAPE.model_copy(update={"activation": activation})
    images, labels = torch.randn(8, 8, 5, generator=seeded(1)).double(), torch.tensor([0, 2, 1, 1, 0])
    model, batch = shape.build().double(), images.permute(2, 0, 1)[:, None]
    said = vmap(lambda one: functional_call(model, one, (batch,)))(params())
    torch.testing.assert_close(logits(shape, params(), images), said.mT)
    shares = (said.argmax(-1) == labels).float().mean(1)
    torch.testing.assert_close(accuracy(shape, params(), images, labels, batch=2), shares)
    wanted = vmap(grad(lambda one: F.cross_entropy(functional_call(model, one, (batch,)), labels)))(params())
    torch.testing.assert_close(gradient(shape, params(), images, labels), wanted)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_with_dropped_channels_are_those_of_torch(activation: Literal["relu", "tanh"]) -> None:
    shape = SHAPE.model_copy(update={"activation": activation})
    images, labels = torch.randn(8, 8, 5, generator=seeded(1)).double(), torch.tensor([0, 2, 1, 1, 0])
    kept = [2.0 * (torch.rand(6, 4, 5, generator=seeded(n)) > 0.5).double() for n in range(3)]

    def loss(one: dict[str, torch.Tensor], *masks: torch.Tensor) -> torch.Tensor:
        x = images.permute(2, 0, 1)[:, None]
        for n, mask in enumerate(masks):
            x = F.conv2d(x, one[f"layers.{n}.weight"], one[f"layers.{n}.bias"], stride=2, padding=1)
            x = (x.relu() if activation == "relu" else x.tanh()) * mask.mT[:, :, None, None]
        return F.cross_entropy(F.linear(x.mean((2, 3)), one["layers.3.weight"], one["layers.3.bias"]), labels)

    torch.testing.assert_close(
        gradient(shape, params(), images, labels, kept), vmap(grad(loss))(params(), *kept)
    )


def test_each_has_the_adam_that_it_would_have_alone_and_a_diverged_one_stays() -> None:
    start, rates, decays = params(3), torch.tensor([1e-2, 3e-2, 1e-1]), torch.tensor([0.0, 0.5, 0.1])
    found = {name: value.clone() for name, value in start.items()}
    optimizer = Adam(found, rates.double(), decays.double())
    alone = [{n: v[k].clone().requires_grad_() for n, v in start.items()} for k in range(3)]
    others = [
        torch.optim.AdamW(own.values(), lr=rates[k].double().item(), weight_decay=decays[k].double().item())
        for k, own in enumerate(alone)
    ]
    for step in range(3):
        gradients = {n: torch.randn(v.shape, generator=seeded(step)).double() for n, v in start.items()}
        for k, (own, other) in enumerate(zip(alone, others, strict=True)):
            for name, value in own.items():
                value.grad = gradients[name][k].clone()
            other.step()
        optimizer.update(gradients)
    for name, value in found.items():
        torch.testing.assert_close(value, torch.stack([own[name].detach() for own in alone]))
    before = {name: value.clone() for name, value in found.items()}
    gradients["layers.1.bias"][1, 0] = torch.nan
    optimizer.update(gradients)
    for name, value in found.items():
        assert torch.equal(value[1], before[name][1])
        assert not torch.equal(value[0], before[name][0])


def equal(left: NetworkSet, right: NetworkSet) -> bool:
    pairs = [(left.params, right.params), (left.columns, right.columns)]
    assert list(left.params) == list(right.params), "readers are drawn by the order of tensors"
    return torch.equal(left.splits, right.splits) and all(
        torch.equal(value, b[name]) for a, b in pairs for name, value in a.items()
    )


def test_a_zoo_goes_on_after_a_kill_and_no_split_cuts_a_network(tmp_path: Path) -> None:
    whole = make_zoo(NAME, 35, tmp_path / "whole.safetensors")
    killed = tmp_path / "killed.safetensors"
    make_zoo(NAME, 19, killed)
    killed.with_name(killed.name + ".partial").write_bytes(b"half")
    assert equal(make_zoo(NAME, 35, killed), whole)
    assert equal(load(killed), whole)
    views = len(ZOOS[NAME].checkpoints)
    assert whole.columns["network"].tolist() == [n for n in range(35) for _ in range(views)]
    for network in range(35):
        assert len(whole.splits[whole.columns["network"] == network].unique()) == 1
    assert {len(whole.split(name)) for name in ("train", "validation", "test")} == {
        27 * views,
        2 * views,
        6 * views,
    }
    last = whole.columns["accuracy"][whole.columns["step"] == ZOOS[NAME].checkpoints[-1]]
    assert last.max() > 0.3, "some learn"
    assert last.min() < 0.15, "and some do not"


METANETS = ("nfn_np", "nfn_np+3", "nfn_hnp", "ng_gnn", "ng_gnn+3", "ng_t", "gmn", "deepsets", "deepsets+3")
READERS = (*METANETS, "statnn", "probes+3", "probegen+3")


@pytest.mark.parametrize("name", READERS)
def test_no_order_of_channels_changes_a_prediction(name: str) -> None:
    """And half of a permutation, which makes another network, does (but for those that read tensors as sets)."""
    networks = NetworkSet(params(), {}, torch.zeros(6), {"architecture": SHAPE.model_dump()})
    torch.manual_seed(0)
    kind, _, probes = name.partition("+")
    reader = make_reader(kind, networks, 1, int(probes or 0)).double()
    reader(networks.params)
    graph = architecture_of(networks).graph
    permutation = graph.random_permutation(seeded(1))
    moved = vmap(lambda one: graph.permute(one, permutation))(networks.params)
    assert not torch.equal(moved["layers.1.weight"], networks.params["layers.1.weight"])
    found = predict(reader, networks.params)
    assert (predict(reader, moved) - found).abs().max() < 1e-9
    half = {**networks.params, "layers.0.weight": networks.params["layers.0.weight"].flip(1)}
    if name not in ("deepsets", "statnn"):
        assert (predict(reader, half) - found).abs().max() > 1e-6


def test_the_command_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "zoo.safetensors"
    assert main(["weights", "make", NAME, "--count", "16", "--out", str(out)]) == 0
    assert len(load(out)) == 16 * len(ZOOS[NAME].checkpoints)
    assert "16 networks" in capsys.readouterr().out
