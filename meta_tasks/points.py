"""Bare parameter vectors: random quadratics and Rosenbrock's valley, scaled to an initial loss of about 1."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from meta_tasks.family import SpecFamily, register_family
from meta_tasks.module_task import ModuleTask, Pair
from meta_tasks.networks import Point
from meta_tasks.spec import Spec


class PointSpec(Spec):
    """What both functions have."""

    dimension: Annotated[int, Field(ge=2, le=1000)] = 10
    noise: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Standard deviation of the Gaussian shift of the point that each training batch sees."""


class QuadraticSpec(PointSpec):
    """A random quadratic."""

    condition: Annotated[float, Field(ge=1, le=1e6)] = 100.0
    """Largest over smallest eigenvalue."""


class RosenbrockSpec(PointSpec):
    """A curved valley."""

    steepness: Annotated[float, Field(ge=1, le=1e4)] = 100.0
    """The factor of the quartic term, 100 in Rosenbrock's function."""


class PointTask(ModuleTask):
    """A function of x + shift with a known optimum; the vector x is the only parameter."""

    def __init__(self, name: str, spec: PointSpec, optimum: Tensor, device: str | torch.device) -> None:
        super().__init__(name, partial(Point, spec.dimension), device)
        self.noise = spec.noise
        self.optimum = optimum.to(self.device)

    @abstractmethod
    def value(self, point: Tensor) -> Tensor:
        """The function at one point (D,)."""

    def sample(self, split: str, count: int, generator: Generator) -> Pair:
        """Shifts (count, D), zero but for the training split, and the optimum (count, D)."""
        optimum = self.optimum.expand(count, -1)
        if split != "train" or self.noise == 0:
            return torch.zeros_like(optimum), optimum
        shift = torch.randn(optimum.shape, generator=generator, device=generator.device).to(self.device)
        return self.noise * shift, optimum

    def evaluation(self, split: str) -> Iterable[Pair]:
        """The function without noise."""
        yield torch.zeros_like(self.optimum), self.optimum

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The function's value, and the root mean square distance to its optimum."""
        distance = (outputs - targets).square().mean().sqrt()
        return {"loss": self.value(outputs), "distance": distance}


class QuadraticTask(PointTask):
    """(x - x*)' H (x - x*) / 2, H with trace 1, a random basis and log-spaced eigenvalues; x* ~ N(0, 1)."""

    def __init__(self, spec: QuadraticSpec, device: str | torch.device) -> None:
        generator = torch.Generator().manual_seed(spec.seed)
        name = f"quadratic/{spec.dimension}/condition{spec.condition:g}"
        super().__init__(name, spec, torch.randn(spec.dimension, generator=generator), device)
        eigenvalues = torch.logspace(0, -1, spec.dimension, base=spec.condition, dtype=torch.float64)
        basis, _ = torch.linalg.qr(
            torch.randn(2 * (spec.dimension,), generator=generator, dtype=torch.float64)
        )
        hessian = basis * (eigenvalues / eigenvalues.sum()) @ basis.T
        self.hessian = hessian.float().to(self.device)

    def value(self, point: Tensor) -> Tensor:
        """The quadratic form."""
        residual = point - self.optimum
        return residual @ self.hessian.to(point.dtype) @ residual / 2


class RosenbrockTask(PointTask):
    """sum_i s (x_(i+1) - x_i^2)^2 + (1 - x_i)^2, over its expected value at x ~ N(0, 1)."""

    def __init__(self, spec: RosenbrockSpec, device: str | torch.device) -> None:
        name = f"rosenbrock/{spec.dimension}/steepness{spec.steepness:g}"
        super().__init__(name, spec, torch.ones(spec.dimension), device)
        self.steepness = spec.steepness
        self.scale = 1 / ((spec.dimension - 1) * (4 * spec.steepness + 2))

    def value(self, point: Tensor) -> Tensor:
        """The sum over neighbouring coordinates."""
        left, right = point[:-1], point[1:]
        return self.scale * (self.steepness * (right - left**2) ** 2 + (1 - left) ** 2).sum()


@register_family("quadratic")
class QuadraticFamily(SpecFamily[QuadraticSpec]):
    """Random quadratics of varied dimension and condition."""

    spec_class = QuadraticSpec

    def task(self, spec: QuadraticSpec) -> QuadraticTask:
        """The quadratic of one spec."""
        return QuadraticTask(spec, self.device)


@register_family("rosenbrock")
class RosenbrockFamily(SpecFamily[RosenbrockSpec]):
    """Rosenbrock valleys of varied dimension and steepness."""

    spec_class = RosenbrockSpec

    def task(self, spec: RosenbrockSpec) -> RosenbrockTask:
        """The valley of one spec."""
        return RosenbrockTask(spec, self.device)
