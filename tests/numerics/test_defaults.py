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
from lopt.weight_space.editing import train_editor
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.making import images_of, make
from lopt.weight_space.masks import flat_masks, make_masker, mask_loss
from lopt.weight_space.network_set import collect
from lopt.weight_space.park_collecting import collect_park
from lopt.weight_space.park_readers import make_park_reader
from lopt.weight_space.predictor import load_predictor, train_predictor
from lopt.weight_space.sines import make_sines
from lopt.weight_space.sirens import SirenShape
from lopt.weight_space.symmetries import Views
from lopt.weight_space.systems import make_reader
from lopt.weight_space.tickets import by_layer, counts_of, make_tickets
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


def models() -> list[nn.Module]:
    torch.manual_seed(0)
    with torchs_defaults():
        return [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(20)]


def told(folder: Path) -> list[Any]:
    own, options = models(), FitOptions(passes=16, batch=8)
    with torchs_defaults():
        example = (torch.zeros(2, 3),)
    columns = {"accuracy": [number / 20 for number in range(20)]}
    networks, park = collect(own, columns, example=example), collect_park(own, columns, example=example)
    predictor = train_predictor(networks, reader="nfn_np", options=options)
    reader = make_park_reader("gmn", park.split("train"), 1)
    fit(reader, park, park.columns["accuracy"], options)
    return [predictor.predict(own, coverage=0.5), predict(reader, park)]


def read(folder: Path) -> list[Any]:
    torch.manual_seed(0)
    networks = make("inr-digits", "siren300", 4, folder / "digits.safetensors")
    shape = SirenShape(**networks.header["architecture"])
    views = Views(mirror=True)(shape, networks.params, torch.Generator().manual_seed(0))
    found = list(views.values())
    for name in ("ng_gnn", "statnn", "pixels"):
        reader = make_reader(name, networks, 10, size=4)
        fit(reader, networks, networks.columns["label"], FitOptions(passes=8, batch=4))
        found += [predict(reader, networks), reader(networks.params).detach()]
    tickets = make_tickets("tickets-digits", 8, folder / "tickets.safetensors")
    masker = make_masker("paths", tickets)
    fit(masker, tickets, flat_masks(tickets), FitOptions(passes=8, batch=4), loss=mask_loss)
    return [*found, *by_layer(masker(tickets.params), counts_of(tickets)).values()]


def edited(folder: Path) -> list[Any]:
    networks = make("inr-digits", "siren300", 16, folder / "digits.safetensors")
    images, options, found = images_of(networks), FitOptions(passes=8, batch=4), []
    for name, steps in (("nfn_np", 0), ("mlp", 2)):
        editor = train_editor(networks, images, "contrast", name, options, steps=steps)
        found += editor.edit({n: value[0] for n, value in networks.params.items()})[0].values()
    return found


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device("cpu")


@pytest.mark.parametrize("work", [trained, evaluated, compared, made, told, read, edited])
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
