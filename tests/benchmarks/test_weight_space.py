"""The benchmark of readers: a run is done once, is gone on with, and its summary has a place for every figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from benchmarks import weight_space
from benchmarks.runner.log import Log
from benchmarks.weight_space_tasks import cnn_zoo
from lopt.weight_space.network_set import Tensors
from lopt.weight_space.perceptrons import Schooling
from lopt.weight_space.readers import Reader
from lopt.weight_space.sirens import RECIPES, Recipe, Siren, SirenShape
from lopt.weight_space.symmetries import Views
from lopt.weight_space.tickets import TICKETS

Quick = Callable[..., dict[str, Any]]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    """The benchmark's small version in a folder of its own: the summary of all tasks so far."""
    monkeypatch.setattr(weight_space, "QUICK", tmp_path)

    def run(*arguments: str) -> dict[str, Any]:
        weight_space.main(["--quick", "--networks", str(tmp_path / "networks"), *arguments])
        summary: dict[str, Any] = json.loads((tmp_path / "weight_space.json").read_text())["summary"]
        return summary

    return run


def test_runs_are_done_once_and_summed_up_by_task_and_method(
    quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "siren300", Recipe(steps=2))
    small = weight_space.SMALL._replace(networks=32, passes=64)
    monkeypatch.setattr(weight_space, "SMALL", small)
    arguments = ["--tasks", "inr-digits", "--only", "statnn"]
    quick(*arguments)
    found = quick(*arguments, "probes", "--seeds", "2")["inr-digits"]
    records = Log(tmp_path / "weight_space").records()
    assert [(r["method"], r["seed"]) for r in records] == [
        ("statnn", 0),
        ("probes", 0),
        ("statnn", 1),
        ("probes", 1),
    ]
    assert set(found) == {"statnn", "probes"}
    accuracies = [r["accuracy"] for r in records if r["method"] == "probes"]
    assert found["probes"]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert found["probes"]["seeds"] == 2
    assert found["probes"]["meta_parameters"] > found["statnn"]["meta_parameters"]
    monkeypatch.setattr(weight_space, "SMALL", small._replace(passes=128))
    quick(*arguments)
    again = json.loads((tmp_path / "weight_space.json").read_text())
    longer = again["summary"]["inr-digits"]
    assert longer["statnn"]["passes"] == 128, "of each method its longest training"
    assert longer["probes"] == found["probes"]
    assert [(r["method"], r["passes"]) for r in again["other_budgets"]] == [("statnn", 64)]
    assert "statnn with 64 passes over 32 networks" in capsys.readouterr().out


def test_what_reads_functions_alone_is_trained_first(
    quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "siren300", Recipe(steps=2))
    monkeypatch.setattr(weight_space, "SMALL", weight_space.SMALL._replace(passes=64))
    quick("--tasks", "inr-digits", "--count", "32", "--only", "ng_gnn+64", "statnn")
    probed, plain = Log(tmp_path / "weight_space").records()
    assert (probed["networks"], probed["first"]) == (32, 640)
    assert len(probed["before"]["losses"]) > len(probed["losses"]) > 0
    assert "first" not in plain


def test_the_summary_says_whose_training_gained_nothing() -> None:
    one = {
        "task": "inr-digits", "method": "ng_gnn+64", "seed": 0, "recipe": "siren300", "networks": 32, "passes": 64,
        "rate": 2e-3, "accuracy": 50.0, "ms": 1.0, "seconds": 1.0, "meta_parameters": 9, "provenance": {"commit": "x"},
    }  # fmt: skip
    records = [{**one, "best": -1}, {**one, "seed": 1, "best": 3}, {**one, "method": "pixels", "best": 0}]
    found = weight_space.summarise(records)["summary"]["inr-digits"]
    assert found["ng_gnn+64"]["as_it_came"] == 1
    assert "as_it_came" not in found["pixels"]


def test_a_figure_that_only_later_runs_have_is_left_out_beside_earlier_ones() -> None:
    one = {
        "task": "inr-digits", "method": "probes", "seed": 0, "recipe": "siren300", "networks": 32, "passes": 64,
        "rate": 2e-3, "accuracy": 50.0, "accuracy_views": 60.0, "ms": 1.0, "seconds": 1.0, "meta_parameters": 9,
        "provenance": {"commit": "x"},
    }  # fmt: skip
    earlier = {name: value for name, value in one.items() if name != "accuracy_views"} | {"seed": 1}
    alone, both = (
        weight_space.summarise(records)["summary"]["inr-digits"]["probes"]
        for records in ([one], [one, earlier])
    )
    assert alone["accuracy_views"] == 60.0
    assert "accuracy_views" not in both
    assert both["accuracy"] == 50.0


def test_what_is_said_of_views_is_the_mean_of_what_is_said_of_each() -> None:
    shape = SirenShape(sizes=(2, 8, 1))
    params = {name: torch.randn(5, *value.shape) for name, value in Siren(shape).named_parameters()}

    class Bias(Reader):
        def forward(self, params: Tensors) -> Tensor:
            return params[shape.names[0][1]]

    still = Views(degrees=0, stretch=0, shear=0, shift=0)
    found = weight_space._of_views(Bias(), shape, still, params)
    torch.testing.assert_close(found, Bias()(params).log_softmax(1))
    generator = torch.Generator().manual_seed(0)
    said = [Bias()(Views()(shape, params, generator)).log_softmax(1) for _ in range(weight_space.TEST_VIEWS)]
    torch.testing.assert_close(
        weight_space._of_views(Bias(), shape, Views(), params), torch.stack(said).mean(0)
    )


def test_sines_have_their_own_budget_and_figure(
    quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(weight_space.sines.QUICK, "networks", 32)
    quick("--tasks", "sines", "--only", "statnn")
    found = quick("--tasks", "sines", "--only", "statnn")["sines"]["statnn"]
    (record,) = Log(tmp_path / "weight_space").records()
    parts = [record[f"r2_{name}"] for name in ("amplitude", "frequency", "phase")]
    assert record["r2"] == pytest.approx(sum(parts) / 3)
    assert (found["r2"], found["networks"]) == (record["r2"], 32)


def test_masks_stand_beside_those_of_chance_and_of_pruning(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = Schooling(epochs=2, batch=64, lr=2e-2)
    recipe = TICKETS["tickets-digits"].model_copy(update={"schooling": brief})
    monkeypatch.setitem(TICKETS, "tickets-digits", recipe)
    monkeypatch.setitem(weight_space.tickets.LESSONS, "tickets-digits", brief)
    monkeypatch.setattr(
        weight_space.tickets, "QUICK", {**weight_space.tickets.QUICK, "networks": 16, "passes": 32}
    )
    methods = ["dense", "imp", "random", "random@inputs", "paths", "paths@inputs"]
    found = quick("--tasks", "tickets", "--only", *methods)["tickets"]
    assert found["imp"]["overlap"] == 1 > max(found["random"]["overlap"], found["paths"]["overlap"])
    assert found["dense"]["accuracy"] > found["random"]["accuracy"]
    assert found["paths"]["meta_parameters"] == found["paths@inputs"]["meta_parameters"] > 0
    assert found["random"]["overlap"] != found["random@inputs"]["overlap"]


def test_tau_is_kendalls_and_the_interval_is_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(6, (40,), generator=generator).float()
    predicted = (truth + 3 * torch.randn(40, generator=generator)).round()
    assert cnn_zoo.tau_b(truth, predicted) == pytest.approx(stats.kendalltau(truth, predicted).statistic)
    assert cnn_zoo.tau_b(truth, torch.zeros(40)) == 0
    halves = torch.arange(40) < 20
    pairs = (halves[:, None] == halves) & halves
    assert cnn_zoo.tau_b(truth, predicted, pairs) == pytest.approx(
        stats.kendalltau(truth[:20], predicted[:20]).statistic
    )
    one = {"seed": 0, "truth": truth.tolist(), "network": [n // 2 for n in range(40)]}
    own = {**one, "method": "gmn", "predicted": truth.tolist()}
    other = {**one, "method": "statnn", "predicted": predicted.tolist()}
    found = cnn_zoo.beside([own], [other])["against_statnn"]
    assert found["difference"] == pytest.approx(1 - cnn_zoo.tau_b(truth, predicted))
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert cnn_zoo.beside([{**other, "method": "gmn"}], [other])["against_statnn"]["high"] == 0, "paired"
    assert cnn_zoo.beside([other], [other]) == {}
    of = {"architecture": [n // 20 for n in range(40)]}
    wide = cnn_zoo.beside([{**own, **of}], [{**other, **of}])["against_statnn"]
    assert wide["difference"] == found["difference"]
    assert wide["low"] != found["low"], "architectures are drawn, not networks"


def test_a_zoo_is_read_and_stands_beside_statnn(quick: Quick) -> None:
    methods = ["statnn", "deepsets", "graded"]
    found = quick("--tasks", "cnn-zoo", "--count", "32", "--passes", "640", "--only", *methods)["cnn-zoo"]
    assert found["statnn"]["networks"] == 32
    assert found["statnn"]["tau"] > 0.2
    assert "against_statnn" not in found["statnn"]
    interval = found["deepsets"]["against_statnn"]
    assert interval["low"] <= interval["difference"] <= interval["high"]
    assert {"r2", "tau_strata", "tau_last"} <= set(found["deepsets"])
    assert found["graded"]["tau"] > max(found["deepsets"]["tau"], found["statnn"]["tau"])


def test_a_metanet_of_the_zoo_stands_beside_one_that_grades(quick: Quick, tmp_path: Path) -> None:
    quick("--tasks", "cnn-zoo", "--count", "32", "--passes", "64", "--only", "graded", "nfn_np+graded")
    alone, beside = Log(tmp_path / "weight_space").records()
    assert "before" not in alone
    assert beside["before"]["validation"] == alone["validation"], "trained first, in the same way"
    assert beside["start"] == pytest.approx(min(alone["validation"]), rel=1e-4)


def test_fresh_networks_are_tested_on_by_the_same_readers(quick: Quick, tmp_path: Path) -> None:
    tasks = ["cnn-zoo-fresh", "cnn-zoo"]
    found = quick("--count", "32", "--passes", "128", "--only", "statnn", "--tasks", *tasks)
    fresh, plain = Log(tmp_path / "weight_space").records()
    assert fresh["losses"] == plain["losses"]
    assert fresh["validation"] == plain["validation"]
    assert sorted(set(fresh["network"])) == list(range(32, 48)), "none of those that were there before"
    assert set(plain["network"]) <= set(range(32))
    assert found["cnn-zoo-fresh"]["statnn"]["tau"] == fresh["tau"]


@pytest.mark.slow
def test_editors_stand_beside_no_edit_and_the_networks_own_error(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "siren300", Recipe(steps=100))
    monkeypatch.setattr(weight_space, "SMALL", weight_space.SMALL._replace(networks=32, passes=384))
    chosen = ["--tasks", "dilation", "--only", "no_edit", "own_error", "deepsets", "deepsets*4", "statnn"]
    found = quick(*chosen)["dilation"]
    assert set(found) == {"no_edit", "own_error", "deepsets", "deepsets*4"}, "statnn edits nothing"
    errors = {method: figures["mse_x100"] for method, figures in found.items()}
    assert errors["own_error"] < errors["no_edit"], "networks show their own images, not the dilated ones"
    assert max(errors["deepsets"], errors["deepsets*4"]) < errors["no_edit"]
    assert found["deepsets*4"]["meta_parameters"] > found["deepsets"]["meta_parameters"]
    assert "MSE x 100" in capsys.readouterr().out


def test_a_park_is_read_on_architectures_never_seen(quick: Quick, tmp_path: Path) -> None:
    methods = ["activation", "statnn", "graded", "ng_gnn+64"]
    found = quick("--tasks", "wild-park", "--passes", "384", "--only", *methods)["wild-park"]
    records = Log(tmp_path / "weight_space").records()
    assert [record["method"] for record in records] == methods
    probed = records[-1]
    assert probed["before"]["seconds"] < probed["seconds"]
    assert all(len(set(record["architecture"])) == 3 for record in records), "of sixteen"
    assert set(found) == set(methods)
    assert found["activation"]["tau_activation"] == 0, "that of guessing"
    assert found["activation"]["tau"] > 0.1
    assert found["graded"]["tau"] > found["statnn"]["tau"] > 0.3
    assert {"r2", "tau_architecture", "ms", "meta_parameters"} <= set(found["ng_gnn+64"])
    interval = found["ng_gnn+64"]["against_statnn"]
    assert interval["low"] <= interval["difference"] <= interval["high"]
