"""Winning tickets: what pruning keeps, by hand and on digits; the set goes on after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lopt.cli import main
from lopt.weight_space import tickets
from lopt.weight_space.network_set import NetworkSet, load
from lopt.weight_space.perceptrons import Schooling, accuracy, train
from lopt.weight_space.tickets import by_input, by_layer, counts_of, imp, largest, make_tickets, masks_of

BRIEF = tickets.TICKETS["tickets-digits"].model_copy(
    update={"schooling": Schooling(epochs=4, batch=64, lr=1e-2)}
)


@pytest.fixture
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tickets.TICKETS, "tickets-digits", BRIEF)
    monkeypatch.setattr(tickets, "COHORT", 2)


def test_the_largest_by_hand() -> None:
    weights = {"a": torch.tensor([[[1.0, -9.0], [2.0, 3.0]]]), "b": torch.tensor([[[-4.0, 0.5]]])}
    among = {"a": torch.tensor([[[True, False], [True, True]]]), "b": torch.tensor([[[True, True]]])}
    found = largest(weights, 0.5, among)
    assert found["a"].tolist() == [[[False, False], [True, True]]]
    assert found["b"].tolist() == [[[True, False]]]
    layers = by_layer(weights, {"a": 1, "b": 2})
    assert layers["a"].tolist() == [[[False, False], [False, True]]]
    assert layers["b"].all()
    shared = by_input(weights, {"a": 2, "b": 1}, torch.tensor([9.0, 1.0]))
    assert shared["a"].tolist() == [[[True, False], [True, False]]], "all of the input that IMP keeps most of"
    assert shared["b"].tolist() == [[[False, True]]]


def test_rounds_keep_less_and_less_and_a_ticket_beats_a_random_one() -> None:
    recipe = BRIEF.model_copy(update={"keep": 0.1})
    examples, held = recipe.examples("train"), recipe.examples("test")
    params = tickets.initial(recipe.shape, range(4))
    masks, dense = imp(recipe, params, examples)
    for one in range(4):
        kept = sum(int(mask[one].sum()) for mask in masks.values())
        assert kept == round(0.1 * sum(mask[one].numel() for mask in masks.values()))
    first, _ = imp(recipe.model_copy(update={"keep": 0.1**0.5, "rounds": 1}), params, examples)
    assert all((first[name] | ~mask).all() for name, mask in masks.items()), (
        "what is left is of what was left"
    )
    torch.manual_seed(0)
    counts = {name: int(mask[0].sum()) for name, mask in masks.items()}
    drawn = by_layer({name: torch.rand_like(params[name]) for name in masks}, counts)
    how = Schooling(epochs=10, batch=64, lr=2e-2)
    reached = {
        name: accuracy(recipe.shape, train(recipe.shape, params, examples, how, chosen), held).mean()
        for name, chosen in (("imp", masks), ("random", drawn))
    }
    assert reached["imp"] > reached["random"] + 5
    assert accuracy(recipe.shape, dense, held).min() > 60


@pytest.mark.usefixtures("_brief")
def test_a_set_goes_on_and_keeps_its_masks(tmp_path: Path) -> None:
    whole = make_tickets("tickets-digits", 4, tmp_path / "whole.safetensors")
    killed = tmp_path / "killed.safetensors"
    make_tickets("tickets-digits", 2, killed)
    make_tickets("tickets-digits", 4, killed)
    again = load(killed)
    for name, mask in masks_of(whole).items():
        assert mask.dtype == torch.bool
        assert mask.shape == whole.params[name].shape
        assert torch.equal(masks_of(again)[name], mask)
    kept, count = counts_of(whole), sum(mask[0].numel() for mask in masks_of(whole).values())
    assert sum(kept.values()) == pytest.approx(BRIEF.keep * count, abs=2)
    assert not torch.equal(whole.params["layers.0.weight"][0], whole.params["layers.0.weight"][1])


@pytest.mark.usefixtures("_brief")
def test_the_command_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tickets.safetensors"
    assert main(["weights", "make", "tickets-digits", "--count", "2", "--out", str(out)]) == 0
    assert "2 networks" in capsys.readouterr().out
    assert isinstance(load(out), NetworkSet)
