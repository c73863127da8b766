"""What the benchmark of trainers measures with: its networks are those it names, and its watch tells time apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.at_scale import run
from benchmarks.at_scale.workloads import WORKLOADS, ResNet18, loss_of


@pytest.mark.parametrize(("name", "millions"), [("gpt", 10.7), ("resnet18", 11.2)])
def test_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = WORKLOADS[name].network()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_resnet_halves_the_image_three_times() -> None:
    model, seen = ResNet18(), []
    model.stages.register_forward_hook(lambda *found: seen.append(found[-1].shape))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 512, 4, 4)]


def test_loss_is_a_mean_over_examples_and_characters() -> None:
    logits, targets = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    rows = [loss_of(logits[:, k], targets[:, k]) for k in range(3)]
    torch.testing.assert_close(loss_of(logits, targets), torch.stack(rows).mean())


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_is_not_the_optimizers_time(monkeypatch: pytest.MonkeyPatch, by_name: bool) -> None:
    clock = [0.0]
    monkeypatch.setattr(run, "_now", lambda: clock[0])
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    watch = run.Stopwatch(optimizer)
    optimizer.register_step_post_hook(lambda *_: clock.__setitem__(0, clock[0] + 4))  # until the next step

    def closure() -> float:
        clock[0] += 2
        weight.grad = torch.ones(2)
        return 7.0

    for _ in range(3):
        found = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert found == 7.0
    assert watch.steps == 3
    assert watch.report() == {"optimizer_seconds_per_step": 0, "other_seconds_per_step": 6}


def test_one_number_that_is_not_finite_is_seen() -> None:
    assert run.all_finite(torch.ones(3), torch.zeros(()))
    assert not run.all_finite(torch.ones(3), torch.tensor([0.0, torch.inf]))
    assert not run.all_finite(torch.tensor([torch.nan]), torch.ones(3))
