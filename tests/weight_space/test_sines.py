"""Sines: fitted, drawn apart from the initial weights, told by a reader that knows the symmetries and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lopt.cli import main
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.network_set import NetworkSet, load
from lopt.weight_space.sines import RECIPE, SHAPE, SINES, make_sines, wanted
from lopt.weight_space.sirens import grid, initial, render
from lopt.weight_space.systems import make_reader


@pytest.fixture(scope="module")
def sines(tmp_path_factory: pytest.TempPathFactory) -> NetworkSet:
    return make_sines(320, tmp_path_factory.mktemp("sines") / "sines.safetensors")


def test_networks_show_the_sines_of_their_columns(sines: NetworkSet) -> None:
    a, w, p = (sines.columns[name][:, None] for name in SINES)
    shown = render(SHAPE, sines.params, grid(40))[:, 0]
    assert (shown - a * torch.sin(w * grid(40)[:, 0] + p)).abs().median() < 0.01
    targets = wanted(sines)
    assert targets.mean(0).abs().max() < 0.2
    assert (targets.var(0) - 1).abs().max() < 0.2


def test_initial_weights_know_nothing_of_the_sine(sines: NetworkSet) -> None:
    """Drawn from the same generator they would be the same numbers."""
    fresh = initial(SHAPE, RECIPE, sines.columns["seed"].tolist())
    weights = torch.cat([value.flatten(1) for value in fresh.values()], 1)
    both = torch.corrcoef(torch.cat([weights, wanted(sines)], 1).T)
    assert both[-3:, :-3].abs().max() < 0.3


@pytest.mark.parametrize(("name", "least", "most"), [("nfn_np", 0.4, 1.0), ("flat_mlp", -1.0, 0.1)])
def test_what_is_told(sines: NetworkSet, name: str, least: float, most: float) -> None:
    torch.manual_seed(0)
    train, test = sines.split("train"), sines.split("test")
    reader = make_reader(name, train, len(SINES))
    fit(reader, train, wanted(train), FitOptions(passes=3200, batch=32, lr=4e-3))
    told = 1 - (predict(reader, test.params) - wanted(test)).square().mean(0) / wanted(test).var(0)
    assert told.min() > least
    assert told.max() < most


def test_the_command_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sines.safetensors"
    assert main(["weights", "make", "sines", "--count", "3", "--out", str(out)]) == 0
    assert "3 networks, PSNR" in capsys.readouterr().out
    assert len(load(out)) == 3
    assert main(["weights", "make", "sines", "--recipe", "dws", "--out", str(out)]) == 2
    assert "expected it with networks of images alone" in capsys.readouterr().err
