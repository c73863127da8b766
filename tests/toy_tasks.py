"""Two tiny tasks for tests: a quadratic, and a small network on generated data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from lopt.graph import ParameterGraph
from lopt.inner.task import SPLITS, Task


class Quadratic(Task):
    """0.5 sum(c (p - target + noise)^2) with curvatures c from 0.1 to 1: solvable, and unstable above lr = 2."""

    name = "quadratic"

    def __init__(self, noise: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        self.noise, self.dtype = noise, dtype
        self.curvature = torch.linspace(0.1, 1.0, 6, dtype=dtype)

    def init(self, count: int, generator: Generator) -> dict[str, Tensor]:
        return {"p": torch.randn(count, 6, generator=generator, dtype=self.dtype)}

    def sample(self, split: str, count: int, generator: Generator) -> Tensor:
        return self.noise * torch.randn(count, 6, generator=generator, dtype=self.dtype)

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return 0.5 * (self.curvature * (params["p"] - 1 + batch).square()).sum()

    def metrics(self, params: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
        return {"loss": self.loss(params, torch.zeros(6, dtype=self.dtype))}

    def trace(self) -> ParameterGraph:
        return ParameterGraph.untied([("p", torch.zeros(6))])


class TwoMoons(Task):
    """A 2-16-2 network with ReLU on two noisy half circles."""

    name = "two_moons"
    shapes: Mapping[str, tuple[int, ...]] = {"w1": (16, 2), "b1": (16,), "w2": (2, 16), "b2": (2,)}

    def __init__(self) -> None:
        self.whole = {
            split: self.sample(split, 8, Generator().manual_seed(i)) for i, split in enumerate(SPLITS)
        }

    def init(self, count: int, generator: Generator) -> dict[str, Tensor]:
        return {n: 0.5 * torch.randn(count, *s, generator=generator) for n, s in self.shapes.items()}

    def sample(self, split: str, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (count, 32), generator=generator)
        angle = torch.pi * torch.rand(count, 32, generator=generator)
        sign = 1 - 2 * labels
        points = torch.stack([angle.cos() * sign + labels, angle.sin() * sign + 0.5 * labels], -1)
        return points + 0.1 * torch.randn(points.shape, generator=generator), labels

    def loss(self, params: Mapping[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.predict(params, batch[0]), batch[1])

    def predict(self, params: Mapping[str, Tensor], points: Tensor) -> Tensor:
        hidden = torch.relu(points @ params["w1"].T + params["b1"])
        return hidden @ params["w2"].T + params["b2"]

    def metrics(self, params: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
        points, labels = (x.flatten(0, 1) for x in self.whole[split])
        right = (self.predict(params, points).argmax(-1) == labels).float().mean()
        return {"loss": self.loss(params, (points, labels)), "accuracy": right}

    def trace(self) -> ParameterGraph:
        return ParameterGraph.untied([(n, torch.zeros(s)) for n, s in self.shapes.items()])
