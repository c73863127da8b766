"""The wild park: derivatives, architectures of all kinds, kill and resume, splits by architecture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lopt.cli import main
from lopt.errors import ConfigError, DataError, RuleFileError
from lopt.weight_space.architecture import architecture
from lopt.weight_space.network_park import NetworkPark, load_park
from lopt.weight_space.park import PARKS, TOGETHER, drawn, make_park
from lopt.weight_space.park_audit import audit_park
from lopt.weight_space.parknets import ACTIVATIONS, Activation, ParkShape, accuracy, gradient, initial, logits
from tests.helpers import seeded

NAME = "wild-park-digits"
VIEWS = len(PARKS[NAME].checkpoints)


def shape(activation: Activation, colours: int = 3, residual: bool = True) -> ParkShape:
    return ParkShape(
        size=8, colours=colours, channels=(4, 5, 5, 6), kernels=(3, 5, 5, 3), residual=residual,
        activation=activation, classes=3,
    )  # fmt: skip


def params(of: ParkShape, count: int = 4) -> dict[str, torch.Tensor]:
    generator = seeded(0)
    found = initial(of, range(count), torch.linspace(0.5, 2, count))
    return {n: (v + 0.1 * torch.randn(v.shape, generator=generator)).double() for n, v in found.items()}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("residual", [True, False])
def test_written_out_networks_and_gradients_are_those_of_torch(
    activation: Activation, residual: bool
) -> None:
    of = shape(activation, residual=residual)
    own = torch.randn(4, 3, 8, 8, 6, generator=seeded(1)).double()
    labels = torch.randint(3, (4, 6), generator=seeded(2))
    model, batch = of.build().double(), own.movedim(-1, 1)

    def said(one: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(model, one, (x,))
        return found

    torch.testing.assert_close(logits(of, params(of), own), vmap(said)(params(of), batch).mT)
    shared = vmap(said, in_dims=(0, None))(params(of), batch[0])
    right = (shared.argmax(-1) == labels[0]).float().mean(1)
    torch.testing.assert_close(accuracy(of, params(of), batch[0], labels[0], batch=4), right)
    slopes = vmap(grad(lambda one, x, y: F.cross_entropy(said(one, x), y)))(params(of), batch, labels)
    torch.testing.assert_close(gradient(of, params(of), own, labels), slopes)


def test_sums_and_activations_change_what_a_network_says() -> None:
    images = torch.randn(1, 3, 8, 8, 6, generator=seeded(1)).double().expand(4, -1, -1, -1, -1)
    kinds = [shape(name, residual=residual) for name in ACTIVATIONS for residual in (True, False)]
    said = [logits(of, params(of), images) for of in kinds]
    for n, one in enumerate(said):
        assert all((one - other).abs().max() > 1e-4 for other in said[:n])


def test_architectures_are_distinct_of_every_kind_and_traced_with_their_activation() -> None:
    shapes = drawn(PARKS["wild-park"], 192)
    assert len(set(shapes)) == 192
    assert shapes[:50] == drawn(PARKS["wild-park"], 50), "a longer park begins with a shorter one"
    assert {of.activation for of in shapes} == set(ACTIVATIONS)
    assert {len(of.channels) for of in shapes} == {2, 3, 4, 5}
    assert {of.colours for of in shapes} == {1, 3}
    assert {k for of in shapes for k in of.kernels} == {3, 5}
    assert {k for of in shapes for k in of.channels} == {4, 8, 16, 32}
    assert any(of.residual for of in shapes)
    assert any(not of.residual for of in shapes)
    for of in shapes[:12]:
        assert not of.residual or of.adds(len(of.channels) - 1)
        graph = architecture(of).graph
        assert graph.rung == "traced"
        hidden = [group for group in graph.groups if group.kind == "hidden"]
        assert {group.activation for group in hidden} == {of.activation}
        added = sum(of.adds(n) for n in range(len(of.channels)))
        assert len(hidden) == len(of.channels) - added, "what is added has the neurons of what it is added to"
        model = architecture(of).model
        assert model is not None
        assert graph.verify(model, (torch.randn(2, *of.inputs),)).ok


def equal(left: NetworkPark, right: NetworkPark) -> bool:
    assert len(left.sets) == len(right.sets)
    return all(
        ParkShape(**a.header["architecture"]) == ParkShape(**b.header["architecture"])
        and list(a.params) == list(b.params)
        and torch.equal(a.splits, b.splits)
        and all(torch.equal(v, b.params[n]) for n, v in a.params.items())
        and all(torch.equal(v, b.columns[n]) for n, v in a.columns.items())
        for a, b in zip(left.sets, right.sets, strict=True)
    )


def test_a_park_goes_on_after_a_kill_and_no_split_cuts_an_architecture(tmp_path: Path) -> None:
    whole = make_park(NAME, 140, tmp_path / "whole.safetensors")
    killed = tmp_path / "killed.safetensors"
    make_park(NAME, 17, killed)
    assert len(load_park(killed).sets) == 3, "counts are rounded up to whole architectures"
    killed.with_name(killed.name + ".partial").write_bytes(b"half")
    assert equal(make_park(NAME, 140, killed), whole)
    assert equal(load_park(killed), whole)
    assert len(whole.sets) == 18
    assert len(whole) == 18 * TOGETHER * VIEWS
    assert whole.columns["network"].tolist() == [n for n in range(18 * TOGETHER) for _ in range(VIEWS)]
    assert all(len(own.splits.unique()) == 1 for own in whole.sets)
    assert [len(whole.split(s).sets) for s in ("train", "validation", "test")] == [14, 1, 3]
    last = whole.columns["accuracy"][whole.columns["step"] == PARKS[NAME].checkpoints[-1]]
    assert last.max() > 0.3, "some learn"
    assert last.min() < 0.15, "and some do not"
    distances = [
        own.params["layers.0.weight"][0] - own.params["layers.0.weight"][VIEWS] for own in whole.sets
    ]
    assert min(d.norm().item() for d in distances) > 0.1, "each has its own initial weights"


@pytest.fixture(scope="module")
def park(tmp_path_factory: pytest.TempPathFactory) -> NetworkPark:
    return make_park(NAME, 40, tmp_path_factory.mktemp("park") / "park.safetensors")


def test_batches_go_by_architecture_and_come_back_in_their_order(park: NetworkPark) -> None:
    index = torch.tensor([70, 3, 0, 41, 3, 79])
    mixed = park.batch(index)
    assert len(mixed.parts) == 3
    firsts = [part.params["layers.0.bias"].sum(1) for part in mixed.parts]
    each = [torch.cat([own.params["layers.0.bias"].sum(1) for own in park.sets])[n] for n in index]
    assert torch.equal(mixed.placed(firsts), torch.stack(each))
    assert torch.equal(
        park.select(index.unique()).columns["network"], park.columns["network"][index.unique()]
    )


def test_a_random_order_has_all_and_eight_of_an_architecture_together(park: NetworkPark) -> None:
    order = park.shuffled(seeded(0))
    assert sorted(order.tolist()) == list(range(len(park)))
    assert order.tolist() != list(range(len(park)))
    lots = park.architectures[order].view(-1, 8)
    assert torch.equal(lots, lots[:, :1].expand(-1, 8))
    assert not torch.equal(order, park.shuffled(seeded(1)))


def test_an_audit_says_what_a_park_is_worth(park: NetworkPark) -> None:
    found = audit_park(park, 200)
    assert found.architectures == 5
    assert 1.2 < found.relative_distance < 1.6
    assert 0 < found.architecture < 1
    columns = {**park.sets[0].columns, "accuracy": torch.full((16,), 0.1)}
    chance = NetworkPark((replace(park.sets[0], columns=columns), *park.sets[1:]))
    assert audit_park(chance, 200).at_chance >= 16 / 80
    assert found.again < audit_park(park, 10_000).again < 1
    shared = replace(
        park.sets[0], params={n: v[:1].expand_as(v).contiguous() for n, v in park.sets[0].params.items()}
    )
    assert audit_park(NetworkPark((shared,)), 200).relative_distance == 0


def test_mistakes_are_named(tmp_path: Path, park: NetworkPark) -> None:
    with pytest.raises(DataError, match="expected a split out of train"):
        park.split("all")
    with pytest.raises(DataError, match="expected a file of networks, found none"):
        load_park(tmp_path / "none.safetensors")
    path = tmp_path / "park.safetensors"
    park.save(path)
    with pytest.raises(ConfigError, match="expected networks with name wild-park"):
        make_park("wild-park", 8, path)
    park.sets[0].save(path)
    with pytest.raises(RuleFileError, match="expected a lopt-park file"):
        load_park(path)
    with pytest.raises(ConfigError, match="kernels: expected one for each of 2 convolutions"):
        ParkShape(channels=(4, 4), kernels=(3,))


def test_the_command_makes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "park.safetensors"
    assert main(["weights", "make", NAME, "--count", "16", "--out", str(out)]) == 0
    assert len(load_park(out)) == 16 * VIEWS
    assert "32 checkpoints of 2 architectures" in capsys.readouterr().out
    assert json.loads(out.with_suffix(".audit.json").read_text())["architectures"] == 2
