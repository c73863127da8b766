"""A zoo of small convolutional classifiers, of which readers are to tell the accuracy (Unterthiner et al. 2020).

Every network has its own rate, decay, dropout (of whole channels) and size of initial weights; those of a cohort see
the same batches, of a share of the images that is the cohort's own. Checkpoints of a network stand one after another,
all in one split.
"""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lopt.config import Count, Settings
from lopt.weight_space.convnets import CONVOLUTIONS, Adam, ConvShape, accuracy, gradient, initial
from lopt.weight_space.growing import grown, splits_of
from lopt.weight_space.network_set import NetworkSet, load
from meta_tasks.data.images import load_images

LUMA = (0.299, 0.587, 0.114)
RATES, GAINS, DECAYS = (2e-3, 3e-2), (0.7, 3.0), (1e-4, 0.3)
"""Where hyperparameters are drawn from, their logarithms evenly."""
SHARES = (0.1, 0.25, 0.5, 1.0)
DROPOUTS = (0.0, 0.0, 0.2, 0.4)


class ZooRecipe(Settings):
    """What networks, and how they are trained and measured."""

    images: str = "cifar10"
    shape: ConvShape = ConvShape()
    examples: Count = 8192
    """Of the training images: what the shares are of."""
    batch: Count = 32
    checkpoints: tuple[int, ...] = (50, 200, 800)
    """Steps, the last of which is the end."""
    measured: Count = 10_000
    """Test images. (On 2,000, chance moves an accuracy by a percent, which alone takes .08 off a tau.)"""
    cohort: Count = 16
    """Networks trained at once."""


ZOOS = {
    "cnn-zoo": ZooRecipe(),
    "cnn-zoo-tanh": ZooRecipe(shape=ConvShape(activation="tanh")),
    "cnn-zoo-digits": ZooRecipe(
        images="digits", shape=ConvShape(size=8), examples=512, checkpoints=(4, 12), measured=200
    ),
}
"""Data sets of classifiers."""


def make_zoo(
    name: str, count: int, out: str | os.PathLike[str], root: str | Path | None = None
) -> NetworkSet:
    """`count` networks, with a row for each of their checkpoints; goes on with what is at `out`.

    Columns: accuracy (0 to 1, on test images), network, step, rate, gain, decay, dropout, share. name: in `ZOOS`.
    Raises `DataError` where images are missing, `ConfigError` if `out` has other networks.
    """
    recipe = ZOOS[name]
    views = len(recipe.checkpoints)
    header = {"name": name, "recipe": recipe.model_dump(), "architecture": recipe.shape.model_dump()}

    def made(rows: range) -> NetworkSet:
        first = rows.start // views // recipe.cohort
        last = (rows.stop - 1) // views // recipe.cohort
        parts = [_cohort(recipe, number, root) for number in range(first, last + 1)]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.joined(part)
        start = first * recipe.cohort * views
        return whole.select(torch.arange(rows.start - start, rows.stop - start))

    return grown(out, header, count * views, made, recipe.cohort * views, load, "accuracy")


def said_of_zoo(networks: NetworkSet) -> str:
    """A line about a set: the accuracy of its networks at their last checkpoints."""
    columns = networks.columns
    last = 100 * columns["accuracy"][columns["step"] == columns["step"].max()]
    return (
        f"{len(last)} networks, {len(networks)} checkpoints; test accuracy at the end {last.median():.1f} % "
        f"(from {last.min():.1f} to {last.max():.1f})"
    )


def _cohort(recipe: ZooRecipe, cohort: int, root: str | Path | None) -> NetworkSet:
    """All checkpoints of the networks of one cohort. The same whatever was made before."""
    numbers = range(cohort * recipe.cohort, (cohort + 1) * recipe.cohort)
    generator = np.random.default_rng((2, cohort))
    drawn = {
        name: torch.from_numpy(np.exp(generator.uniform(math.log(low), math.log(high), len(numbers)))).float()
        for name, (low, high) in (("rate", RATES), ("gain", GAINS), ("decay", DECAYS))
    }
    share = SHARES[generator.integers(len(SHARES))]
    dropout = torch.tensor(DROPOUTS)[torch.from_numpy(generator.integers(len(DROPOUTS), size=len(numbers)))]
    images, labels = examples(recipe, "train", root)
    chosen = torch.from_numpy(generator.permutation(len(labels))[: round(share * recipe.examples)])
    tested, wanted = (value[..., : recipe.measured] for value in examples(recipe, "test", root))
    params = initial(recipe.shape, numbers, drawn["gain"])
    optimizer = Adam(params, drawn["rate"], drawn["decay"])
    found, order = [], chosen[:0]
    for step in range(1, recipe.checkpoints[-1] + 1):
        while len(order) < recipe.batch:
            order = torch.cat([order, chosen[torch.from_numpy(generator.permutation(len(chosen)))]])
        index, order = order[: recipe.batch], order[recipe.batch :]
        kept = [_kept(generator, dropout, recipe) for _ in range(CONVOLUTIONS)]
        optimizer.update(gradient(recipe.shape, params, images[..., index], labels[index], kept))
        if step in recipe.checkpoints:
            reached = accuracy(recipe.shape, params, tested, wanted)
            found.append(({name: value.clone() for name, value in params.items()}, reached))
    count, views = len(numbers), len(recipe.checkpoints)
    rows = {name: torch.stack([state[name] for state, _ in found], 1).flatten(0, 1) for name in params}
    drawn["dropout"] = dropout
    columns: dict[str, Any] = {name: value.repeat_interleave(views) for name, value in drawn.items()}
    columns |= {
        "accuracy": torch.stack([reached for _, reached in found], 1).flatten(),
        "network": torch.tensor(numbers).repeat_interleave(views),
        "step": torch.tensor(recipe.checkpoints).repeat(count),
        "share": torch.full((count * views,), share),
    }
    return NetworkSet(rows, columns, splits_of(numbers).repeat_interleave(views))


def _kept(generator: np.random.Generator, dropout: Tensor, recipe: ZooRecipe) -> Tensor:
    """(B, K, M): 0 for a channel that is dropped, else 1 / (1 - dropout)."""
    drawn = torch.from_numpy(
        generator.random((len(dropout), recipe.shape.channels, recipe.batch), np.float32)
    )
    share = dropout[:, None, None]
    return (drawn >= share) / (1 - share)


def examples(recipe: ZooRecipe, split: str, root: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Grey images (H, H, M), standardised by the training images, and their labels (M)."""
    return _examples(recipe, split, None if root is None else str(root))


@cache
def _examples(recipe: ZooRecipe, split: str, root: str | None) -> tuple[Tensor, Tensor]:
    images = load_images(recipe.images, size=recipe.shape.size, root=root)
    colours = images.shape[0]
    luma = torch.tensor(LUMA if colours == len(LUMA) else [1.0] * colours)
    grey = {s: (images.images[s].float() * luma[:, None, None]).sum(1) for s in {split, "train"}}
    grey_split = (grey[split] - grey["train"].mean()) / grey["train"].std()
    return grey_split.permute(1, 2, 0).contiguous(), images.labels[split].long()
