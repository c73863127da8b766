"""A notebook may have other defaults than torch's: what trains networks by itself comes to the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lopt import ParameterGraph, load_rule
from lopt.comparison import Budget, compare, evaluate
from lopt.numerics.defaults import torchs_defaults
from lopt.training import train
from lopt.weight_space.predictor import load_predictor
from lopt.weight_space.sines import make_sines
from meta_tasks import named_task
from meta_tasks.meta_test import kind_task

CONFIG: dict[str, Any] = {
    "name": "other_defaults",
    "tasks": [{"family": "mlp", "options": {"dataset": "digits", "widths": [4], "batch_size": 8}}],
    "validation": [{"family": "quadratic"}],
    "meta": {
        "steps": 1, "cohorts": 1, "networks": 2, "truncation": 2, "longest_horizon": 5, "shortest_horizon": 5,
        "validation_steps": 2, "validation_networks": 1,
    },
}  # fmt: skip


def trained(folder: Path) -> list[Any]:
    return list(train(CONFIG, {"out": folder / "run"}).rule.state_dict().values())


def evaluated(folder: Path) -> list[Any]:
    tasks = [named_task("photos-siren"), kind_task("mixer")]
    rule = load_rule("lopt-small")
    return [str(evaluate(rule, task, steps=2, seeds=[101], progress=False).figures) for task in tasks]


def compared(folder: Path) -> list[Any]:
    budget = Budget(learning_rates=1, schedules=["constant"], seeds=(1,), steps=2)
    found = compare(
        ["lopt-small"], ["quadratic"], ["adam", "AdamW"], steps=2, seeds=[101], budget=budget, long_factor=1
    )
    return [str(entry.horizon) for entry in found.tasks[0].entries.values()]


def made(folder: Path) -> list[Any]:
    networks = make_sines(2, str(folder / "sines.safetensors"))
    return [networks.columns["psnr"], load_predictor("cnn-zoo").description]


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device("cpu")


@pytest.mark.parametrize("work", [trained, evaluated, compared, made])
def test_the_same_whatever_the_defaults_are(work: Callable[[Path], list[Any]], tmp_path: Path) -> None:
    usual = work(tmp_path / "usual")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")  # as a GPU, tensors of which do not meet those of the CPU
    found = work(tmp_path / "other")
    assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, "meta")
    for one, other in zip(usual, found, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_graphs_of_a_network_that_lies_elsewhere() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    torch.set_default_device("meta")
    graph = ParameterGraph.trace(model, (x,))
    assert graph.verify(model, (x,)).ok
    values = dict(model.named_parameters())
    assert graph.permute(values, graph.random_permutation())["0.weight"].device.type == "cpu"
    from lopt.graph.pyg import from_pyg, to_pyg

    back = from_pyg(to_pyg(graph, values), graph)
    assert all(torch.equal(back[name], value) for name, value in values.items())


def test_defaults_are_put_back_after_an_error() -> None:
    @torchs_defaults()
    def fails() -> None:
        assert torch.zeros(1).dtype == torch.float32
        raise ZeroDivisionError

    torch.set_default_dtype(torch.float64)
    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.zeros(1).dtype == torch.float64
