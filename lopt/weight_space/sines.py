"""The least data set of networks: SIRENs fitted to a sin(w x + p), of which readers are to tell a, w and p.

With one hidden layer, what must be added up over its neurons is plain: a reader that learns nothing in a minute is
broken. An MLP on the flat weights, which knows no symmetry, learns nothing.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor

from lopt.weight_space.growing import grown, splits_of
from lopt.weight_space.network_set import NetworkSet, load
from lopt.weight_space.sirens import RECIPES, SirenShape, fit, grid

SINES = {"amplitude": (0.25, 1.0), "frequency": (1.0, 8.0), "phase": (0.0, math.pi)}
"""Columns of the set, and where they are drawn from."""
RECIPE = RECIPES["siren300"]
SHAPE = SirenShape(sizes=(1, 32, 1), w0=10.0)
POINTS = 64
BETWEEN_SAVES = 256


def make_sines(count: int, out: str | os.PathLike[str]) -> NetworkSet:
    """Fit `count` networks, each from its own initial weights to a sine of its own; goes on with what is at `out`.

    Raises `ConfigError` if `out` has other networks.
    """
    header = {"name": "sines", "recipe": RECIPE.model_dump(), "architecture": SHAPE.model_dump()}
    return grown(out, header, count, _fitted, BETWEEN_SAVES, load)


def wanted(networks: NetworkSet) -> Tensor:
    """(N, 3): amplitude, frequency and phase, each with mean 0 and variance 1 where it is drawn from."""
    columns = []
    for name, (low, high) in SINES.items():
        columns.append((networks.columns[name] - (low + high) / 2) / ((high - low) / math.sqrt(12)))
    return torch.stack(columns, 1)


def _fitted(numbers: range) -> NetworkSet:
    # Not by the seeds of the weights: what is drawn would tell the initial weights.
    drawn = torch.from_numpy(
        np.stack([np.random.default_rng((1, number)).random(len(SINES)) for number in numbers])
    )
    columns = {
        name: (low + (high - low) * drawn[:, index]).float()
        for index, (name, (low, high)) in enumerate(SINES.items())
    }
    a, w, p = (columns[name][:, None] for name in SINES)
    points = grid(POINTS)
    targets = a * torch.sin(w * points[:, 0] + p)
    params, psnr = fit(SHAPE, RECIPE, numbers, points, targets[:, None])
    return NetworkSet(params, {**columns, "seed": torch.tensor(numbers), "psnr": psnr}, splits_of(numbers))
