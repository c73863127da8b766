"""Networks of one's own, of several architectures: sorted by their graphs, read like any others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lopt.errors import ConfigError, DataError
from lopt.weight_space.fitting import predict
from lopt.weight_space.network_park import load_park
from lopt.weight_space.network_set import collect
from lopt.weight_space.park_collecting import collect_park
from lopt.weight_space.park_readers import make_park_reader

EXAMPLE = (torch.zeros(2, 4),)


def network(width: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), activation(), nn.Linear(width, 3))


def models() -> list[nn.Sequential]:
    torch.manual_seed(0)
    return [network(5), network(6), network(5, nn.Tanh), network(5), network(6)]


def test_models_are_sorted_by_architecture_and_split_by_it(tmp_path: Path) -> None:
    own = models()
    park = collect_park(own, {"accuracy": [0.1, 0.2, 0.3, 0.4, 0.5]}, example=EXAMPLE)
    assert [one.columns["number"].tolist() for one in park.sets] == [[0, 3], [1, 4], [2]], "tanh is another"
    assert park.columns["accuracy"].tolist() == pytest.approx([0.1, 0.4, 0.2, 0.5, 0.3])
    assert all(len(one.splits.unique()) == 1 for one in park.sets)
    assert torch.equal(park.sets[0].params["0.weight"][1], own[3][0].weight)
    path = tmp_path / "park.safetensors"
    park.save(path)
    again = load_park(path)
    for name in ("ng_gnn", "statnn"):
        torch.manual_seed(0)
        reader = make_park_reader(name, park, 1)
        found = predict(reader, park)
        assert found.isfinite().all()
        assert torch.equal(predict(reader, again), found)
    with pytest.raises(ConfigError, match="found a graph alone"):
        make_park_reader("probes", park, 1)


def test_a_folder_of_files_needs_a_factory(tmp_path: Path) -> None:
    for number, model in enumerate(models()):
        torch.save(model.state_dict(), tmp_path / f"{number}.pt")
    torch.save(nn.DataParallel(models()[4]).state_dict(), tmp_path / "4.pt")
    park = collect_park(tmp_path, factory=lambda state: network(len([*state.values()][1])), example=EXAMPLE)
    assert [one.columns["number"].tolist() for one in park.sets] == [[0, 2, 3], [1, 4]]
    assert repr(park) == (
        "NetworkPark(5 networks, 5 train, 0 validation, 0 test; columns: number; 2 architectures)"
    )
    with pytest.raises(DataError, match="expected models, or a factory"):
        collect_park(tmp_path, example=EXAMPLE)
    with pytest.raises(
        DataError, match=r"0\.weight: expected the model's shape \(5, 4\), found \(6, 4\) in number 1"
    ):
        collect_park(tmp_path, factory=lambda _: network(5), example=EXAMPLE)


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="accuracy: expected one for each of 5 networks, found 1"):
        collect_park(models(), {"accuracy": [1.0]}, example=EXAMPLE)
    with pytest.raises(DataError, match="expected one or more, found none"):
        collect_park([], example=EXAMPLE)
    with pytest.raises(DataError, match="collect_park` takes several architectures"):
        collect(models())
