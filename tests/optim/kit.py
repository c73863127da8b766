"""What the tests of the optimizer share: a coupling rule, small models and a training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

import lopt
from lopt.rules import Rule


def coupling_rule(seed: int = 0) -> Rule:
    """A learned rule away from its start, so that every tensor's update depends on every other tensor."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        rule = lopt.make_rule("axisnet")
        for parameter in rule.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return rule


RULE = coupling_rule()


def learned(params: Any, **options: Any) -> lopt.LearnedOptimizer:
    return lopt.LearnedOptimizer(params, **{"rule": RULE, **options})


def adamw(params: Any, **options: Any) -> AdamW:
    return AdamW(params, **options)


def mlp(seed: int = 0, **options: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8, **options), nn.Tanh(), nn.Linear(8, 3, **options))


def mlp_graph() -> lopt.ParameterGraph:
    return lopt.ParameterGraph.untied(mlp().named_parameters())


def batches(steps: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=generator)
        yield x.to(dtype), x[:, :3].sin().to(dtype)


def train(model: nn.Module, optimizer: Optimizer, steps: int = 5, seed: int = 1) -> list[float]:
    """The losses before each step."""
    dtype = next(model.parameters()).dtype
    losses = []
    for x, y in batches(steps, dtype, seed):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def give_gradients(model: nn.Module, seed: int = 1) -> None:
    (x, y), dtype = next(batches(1, seed=seed)), next(model.parameters()).dtype
    nn.functional.mse_loss(model(x.to(dtype)), y.to(dtype)).backward()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
