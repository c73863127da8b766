"""Fused kernels: what they compute is what is computed without them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import lopt
from lopt.numerics import fused as kernels
from lopt.rules import LearnedRule
from tests.rules.reference_steps import rule_of


def steps(
    model: Callable[[], nn.Module], rule: str | LearnedRule, fused: bool, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Parameters and state after three steps."""
    torch.manual_seed(0)
    net = model().to(dtype)
    inputs = torch.randn(16, 64, dtype=dtype)
    graph = lopt.ParameterGraph.trace(net, (inputs,))
    optimizer = lopt.LearnedOptimizer(
        net.named_parameters(), rule=rule, graph=graph, fused=fused, total_steps=9
    )
    for _ in range(3):
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        optimizer.step()
    state = [value for p in net.parameters() for value in optimizer.state[p].values()]
    return [*net.parameters(), *state]


def paced() -> LearnedRule:
    """lopt-small, with steps that find their own length."""
    small = lopt.load_rule("lopt-small")
    assert isinstance(small, LearnedRule)
    rule = LearnedRule.from_description({**small.describe(), "pace": 2.0})
    rule.load_state_dict(small.state_dict())
    return rule


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 320), nn.ReLU(), nn.Linear(320, 60))


def lengths() -> nn.Module:
    """Other lengths, some of them in several pieces."""
    return nn.Sequential(nn.Linear(64, 520), nn.Tanh(), nn.Linear(520, 340), nn.Tanh(), nn.Linear(340, 90))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "dtype", "tolerance"),
    [
        # Orthogonalisation makes small singular values, and rounding with them, 500 times as large.
        ("lopt-small", torch.float32, 1e-4),
        ("lopt-small", torch.float64, 1e-6),
        ("lopt-base", torch.float64, 1e-6),
        (rule_of("axisnet"), torch.float64, 1e-6),
        (paced(), torch.float64, 1e-6),
    ],
)
def test_equal_and_compiled_once_for_all_lengths(
    rule: str | LearnedRule, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_KERNELS", {})
    made = []
    for model in (small, lengths):
        found, expected = (steps(model, rule, fused, dtype) for fused in (True, False))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        made.append(len(kernels._KERNELS))
    assert 0 < made[0] == made[1]


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(kernels, "_KERNELS", {})
    monkeypatch.setattr(kernels, "_compiled", broken)
    with pytest.warns(UserWarning, match=r"fused: \w+ runs uncompiled: no compiler$"):
        found = steps(small, "lopt-small", True)
    torch.testing.assert_close(found, steps(small, "lopt-small", False))


def test_warnings_of_the_compiler_cost_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `python -W error`, one of what it imports was an error, and the step went on uncompiled."""

    def warning(graph: Callable[..., list[torch.Tensor]], *_: object, **__: object) -> object:
        warnings.warn("the compiler imports what is deprecated", DeprecationWarning, stacklevel=2)
        return graph

    monkeypatch.setattr("torch._inductor.standalone_compile", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel = kernels.kernel_of(lambda x: [2 * x], [torch.ones(4)], any_sizes=True)
    assert kernel(torch.ones(3))[0].tolist() == [2.0, 2.0, 2.0]


def test_flat_views_that_skip_or_repeat_memory() -> None:
    """Every other column of a tensor, and the gradient of a sum, which is one number everywhere."""

    def stepped(fused: bool) -> torch.Tensor:
        w = nn.Parameter(torch.arange(128.0 * 64).view(64, 128)[:, ::2])
        optimizer = lopt.LearnedOptimizer([w], rule="lopt-small", fused=fused)
        for grad in (torch.ones(()).expand(64, 64), torch.arange(128.0 * 64).view(64, 128)[:, 1::2]):
            w.grad = grad
            optimizer.step()
        return w.detach()

    torch.testing.assert_close(stepped(True), stepped(False))
