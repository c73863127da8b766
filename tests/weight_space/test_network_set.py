"""Sets of networks: kept whole on disk, and made of anybody's own checkpoints, groups in one split each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lopt.errors import DataError, RuleFileError
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.network_set import NetworkSet, collect, load
from lopt.weight_space.readers import StatNn


def states(count: int = 20) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).state_dict() for _ in range(count)
    ]


def test_models_states_and_files_are_the_same_set_and_read(tmp_path: Path) -> None:
    one, two, three = states(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.load_state_dict(one)
    save_file(two, tmp_path / "two.safetensors")
    torch.save(three, tmp_path / "three.pt")
    mixed = collect(
        [model, tmp_path / "two.safetensors", tmp_path / "three.pt"], {"accuracy": [0.1, 0.2, 0.3]}
    )
    plain = collect([one, two, three])
    assert set(mixed.params) == set(plain.params)
    assert "1.num_batches_tracked" not in mixed.params
    assert all(torch.equal(value, plain.params[name]) for name, value in mixed.params.items())
    mixed.save(tmp_path / "set.safetensors")
    again = load(tmp_path / "set.safetensors")
    assert torch.equal(again.params["0.weight"], mixed.params["0.weight"])
    assert again.columns["accuracy"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    reader = StatNn(mixed, 1)
    fit(reader, mixed, mixed.columns["accuracy"], FitOptions(passes=6, batch=3))
    assert predict(reader, mixed.params).shape == (3, 1)


def test_all_checkpoints_of_a_run_are_in_one_split() -> None:
    runs = [number % 10 for number in range(20)]
    found = collect(states(20), groups=runs)
    assert torch.equal(found.splits[:10], found.splits[10:])
    assert [len(found.split(name)) for name in ("train", "validation", "test")] == [14, 2, 4]


def test_mistakes_are_named(tmp_path: Path) -> None:
    one = states(1)[0]
    with pytest.raises(DataError, match="one or more, found none"):
        collect([])
    with pytest.raises(DataError, match=r"all as the first, .* found number 1 with"):
        collect([one, {"0.weight": torch.zeros(2, 2)}])
    with pytest.raises(DataError, match="accuracy: expected one for each of 1 networks, found 2"):
        collect([one], {"accuracy": [0.1, 0.2]})
    with pytest.raises(DataError, match=r"x\.safetensors: expected a file of a network's tensors"):
        collect([tmp_path / "x.safetensors"])
    (tmp_path / "y.pt").write_bytes(b"nothing")
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
