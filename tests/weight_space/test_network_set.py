"""Sets of networks: kept whole on disk, and made of anybody's own checkpoints, groups in one split each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lopt import files
from lopt.errors import ConfigError, DataError, RuleFileError
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.network_set import FORMAT, VERSION, NetworkSet, collect, load
from lopt.weight_space.readers import StatNn
from lopt.weight_space.systems import make_reader
from tests.helpers import seeded


def states(count: int = 20) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).state_dict() for _ in range(count)
    ]


def test_models_states_and_files_are_the_same_set_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = states(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.load_state_dict(one)
    save_file(two, tmp_path / "two.safetensors")
    torch.save(three, tmp_path / "three.pt")
    mixed = collect(
        [model, tmp_path / "two.safetensors", tmp_path / "three.pt"], {"accuracy": [0.1, 0.2, 0.3]}
    )
    plain = collect([one, two, three], {"accuracy": torch.tensor([0.1, 0.2, 0.3])})
    assert torch.equal(plain.columns["accuracy"], mixed.columns["accuracy"])
    assert set(mixed.params) == set(plain.params)
    assert "1.num_batches_tracked" not in mixed.params
    assert all(torch.equal(value, plain.params[name]) for name, value in mixed.params.items())
    monkeypatch.setenv("HOME", str(tmp_path))
    mixed.save("~/set.safetensors")
    again = load("~/set.safetensors")
    assert torch.equal(again.params["0.weight"], mixed.params["0.weight"])
    assert again.columns["accuracy"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    reader = StatNn(mixed, 1)
    fit(reader, mixed, mixed.columns["accuracy"], FitOptions(passes=6, batch=3))
    assert predict(reader, mixed.params).shape == (3, 1)


def convnets(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)
        ).double()
        for _ in range(count)
    ]


EXAMPLE = (torch.zeros(2, 3, 8, 8, dtype=torch.float64),)


def test_a_folder_of_checkpoints_and_a_factory_are_a_set_that_metanets_read(tmp_path: Path) -> None:
    models = convnets(12)
    for number, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{number:02}.pt")
    (tmp_path / "notes.txt").write_text("not a network")
    accuracies = [number / 12 for number in range(12)]
    found = collect(tmp_path, {"accuracy": accuracies}, factory=lambda: convnets(1)[0], example=EXAMPLE)
    listed = collect(models, {"accuracy": accuracies}, example=EXAMPLE)
    assert all(torch.equal(value, found.params[name]) for name, value in listed.params.items())
    path = tmp_path / "set.safetensors"
    found.save(path)
    again = load(path)
    assert again.graph is not None
    assert found.graph is not None
    assert again.graph.parameters == found.graph.parameters
    assert again.graph.groups == found.graph.groups
    train = again.split("train")
    reader = make_reader("ng_gnn", train, 1).double()
    train = replace(train, params={name: value.double() for name, value in train.params.items()})
    fit(reader, train, train.columns["accuracy"].double(), FitOptions(passes=8, batch=4))
    permutation = again.graph.random_permutation(seeded(1))
    moved = torch.vmap(lambda one: again.graph.permute(one, permutation))(train.params)
    assert (predict(reader, moved) - predict(reader, train.params)).abs().max() < 1e-9


class Tempered(nn.Sequential):
    """With a parameter that is one number, as CLIP has."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        self.scale = nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.scale * super().forward(x)
        return found


@pytest.mark.parametrize("name", ["ng_gnn", "ng_t", "gmn", "deepsets", "statnn", "flat_mlp"])
def test_a_reader_says_of_a_set_from_its_file_what_it_said_before(name: str, tmp_path: Path) -> None:
    """A file has tensors in the order of their names, a model in its own."""
    torch.manual_seed(0)
    found = collect([Tempered() for _ in range(6)], example=(torch.zeros(2, 3),))
    found.save(tmp_path / "set.safetensors")
    again = load(tmp_path / "set.safetensors")
    assert list(again.params) != list(found.params)
    reader = make_reader(name, found, 1)
    fit(reader, found, torch.rand(6), FitOptions(passes=12, batch=6))
    assert torch.equal(predict(reader, again), predict(reader, found))


def test_names_that_wrappers_change_are_those_of_the_network() -> None:
    models = convnets(3)
    plain = collect(models, example=EXAMPLE)
    parallel = [nn.DataParallel(model) for model in models]
    compiled = [{f"_orig_mod.{n}": v for n, v in model.state_dict().items()} for model in models]
    for wrapped in (parallel, compiled):
        found = collect(wrapped, factory=lambda: convnets(1)[0], example=EXAMPLE)
        assert list(found.params) == list(plain.params)
        assert "1.running_mean" in found.params
    mixed = collect([parallel[0], models[1], compiled[2]])
    assert len(mixed) == 3


def test_a_set_is_told_in_a_line_and_equal_to_itself_alone() -> None:
    found = collect(states(10), {"accuracy": [0.5] * 10})
    assert repr(found) == (
        "NetworkSet(10 networks, 7 train, 1 validation, 2 test; columns: accuracy; 42 scalars each)"
    )
    assert found == found
    assert found != replace(found)
    assert {found: 1}[found] == 1


def test_only_sets_of_which_the_same_is_known_are_joined() -> None:
    known = collect(states(2), {"accuracy": [0.1, 0.2]})
    assert known.joined(known).columns["accuracy"].tolist() == pytest.approx([0.1, 0.2] * 2)
    with pytest.raises(
        DataError, match=r"columns: expected those of the first networks, .*accuracy.*, found {}"
    ):
        known.joined(collect(states(2)))
    with pytest.raises(DataError, match="params: expected those of the first networks"):
        known.joined(collect([{"w": torch.zeros(2)}], {"accuracy": [0.1]}))


def test_a_column_may_be_any_array() -> None:
    """Such as one sorted from the best on, whose strides are negative."""
    found = collect(states(3), {"accuracy": np.array([0.1, 0.2, 0.3])[::-1]})
    assert found.columns["accuracy"].tolist() == [0.3, 0.2, 0.1]


def test_what_a_graph_needs_is_named(tmp_path: Path) -> None:
    models = convnets(2)
    with pytest.raises(DataError, match="a factory of the model, or models"):
        collect([model.state_dict() for model in models], example=EXAMPLE)
    with pytest.raises(DataError, match=r"0\.weight: expected the model's shape \(4, 3, 3, 3\), found None"):
        collect([{"w": torch.zeros(2)}], factory=lambda: convnets(1)[0], example=EXAMPLE)
    bare = collect(models)
    with pytest.raises(ConfigError, match="give `collect` example inputs"):
        make_reader("gmn", bare, 1)
    whole = collect(models, example=EXAMPLE)
    with pytest.raises(ConfigError, match="expected networks that lopt has the code of"):
        make_reader("probes", whole, 1)
    path = tmp_path / "set.safetensors"
    whole.save(path)
    tensors, header = files.read(path, FORMAT, VERSION)
    header["graph"].pop("groups")
    files.write(path, tensors, FORMAT, header)
    with pytest.raises(RuleFileError, match="the graph of these networks is damaged"):
        load(path)


def test_all_checkpoints_of_a_run_are_in_one_split() -> None:
    runs = [number % 10 for number in range(20)]
    found = collect(states(20), groups=runs)
    assert torch.equal(found.splits[:10], found.splits[10:])
    assert [len(found.split(name)) for name in ("train", "validation", "test")] == [14, 2, 4]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda groups: list(torch.tensor(groups))])
def test_groups_may_be_a_tensor_without_leaking(kind: Callable[[list[int]], Any]) -> None:
    """Elements of a tensor are equal to none: every checkpoint of a run was in a split of its own."""
    splits = collect(states(12), groups=kind([k // 2 for k in range(12)])).splits.reshape(6, 2)
    assert torch.equal(splits[:, 0], splits[:, 1])
    assert len(splits.unique()) > 1


def test_mistakes_are_named(tmp_path: Path) -> None:
    one = states(1)[0]
    with pytest.raises(DataError, match="one or more, found none"):
        collect([])
    with pytest.raises(DataError, match=r"all as the first, .* found number 1 with"):
        collect([one, {"0.weight": torch.zeros(2, 2)}])
    with pytest.raises(DataError, match="accuracy: expected one for each of 1 networks, found 2"):
        collect([one], {"accuracy": [0.1, 0.2]})
    for values in (["high"], [[0.1, 0.2]], None, [0.1j]):
        with pytest.raises(DataError, match="accuracy: expected one number for each network"):
            collect([one], {"accuracy": values})  # type: ignore[dict-item]
    for name in ("split", "parameter:0.weight"):
        with pytest.raises(DataError, match=f"{name}: expected another name for a column"):
            collect([one], {name: [0.1]})
    with pytest.raises(DataError, match="groups: expected numbers or names, found list"):
        collect([one], groups=[["a"]])
    with pytest.raises(DataError, match="expected a folder of networks, found none"):
        collect(str(tmp_path / "nowhere"))
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(
        DataError, match=r"expected files of networks \(\.safetensors, \.pt, \.pth\), found none"
    ):
        collect(tmp_path)
    with pytest.raises(DataError, match="expected several, found one"):
        collect(one)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a split out of train, validation, test, found 'training'"):
        collect([one]).split("training")
    with pytest.raises(DataError, match=r"x\.safetensors: expected a file of a network's tensors"):
        collect([tmp_path / "x.safetensors"])
    (tmp_path / "y.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"y\.pt: expected a file of a network's tensors"):
        collect([tmp_path / "y.pt"])
    wrong = {
        "dict at 'model'": {"model": dict(one), "epoch": 3},
        "list": [1],
        "Tensor": torch.ones(2),
        "int at 'a'": {"a": 1},
        "a tensor without values or a sparse one at 'a'": {"a": torch.ones(2, device="meta")},
    }
    for found, saved in wrong.items():
        torch.save(saved, tmp_path / "y.pt")
        with pytest.raises(DataError, match=rf"y\.pt: .*, found {found}; save model\.state_dict\(\) alone"):
            collect([tmp_path / "y.pt"])
    torch.save(nn.Linear(2, 2), tmp_path / "y.pt")
    with pytest.raises(DataError, match=r"found a file that torch\.load does not read"):
        collect([tmp_path / "y.pt"])
    torch.save(one, tmp_path / "y.pt", _use_new_zipfile_serialization=False)
    older = (tmp_path / "y.pt").read_bytes()
    for damaged in (b"", b"hello", older[:20], older[:-9]):
        (tmp_path / "y.pt").write_bytes(damaged)
        with pytest.raises(DataError, match=r"y\.pt: expected a file of a network's tensors"):
            collect([tmp_path / "y.pt"])
    save_file(one, tmp_path / "z.safetensors")
    with pytest.raises(RuleFileError, match="expected a lopt-networks file"):
        load(tmp_path / "z.safetensors")


def test_a_selection_keeps_what_belongs_together() -> None:
    whole = collect(states(4), {"accuracy": [0.0, 0.1, 0.2, 0.3]})
    some = whole.select(torch.tensor([2, 0]))
    assert isinstance(some, NetworkSet)
    assert some.columns["accuracy"].tolist() == pytest.approx([0.2, 0.0])
    assert torch.equal(some.params["2.bias"][1], whole.params["2.bias"][0])
    assert len(some.joined(whole)) == 6
