"""Data sets of implicit networks, one for each image: made in order, so that a longer one begins with a shorter one.

Of every sixteen networks twelve are for training, one for validation and three for testing, on images of these splits
of the image set. Images come in a fixed random order; once all have their turn, a second network is fitted to each.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.weight_space.growing import TURNS, grown, splits_of
from lopt.weight_space.network_set import SPLITS, NetworkSet, load
from lopt.weight_space.sirens import RECIPES, SirenShape, fit, grid
from meta_tasks.data.images import ImageSet, load_images

IMAGE_SETS = {
    "inr-mnist": "mnist",
    "inr-fashion": "fashion_mnist",
    "inr-cifar10": "cifar10",
    "inr-digits": "digits",
}
"""Data sets of networks, and the images that they are of."""

BETWEEN_SAVES = 256


def make(
    name: str, recipe: str, count: int, out: str | os.PathLike[str], root: str | Path | None = None
) -> NetworkSet:
    """Fit `count` networks to the images of a data set and write them to `out`, now and then on the way.

    Goes on with what is there: after a kill, or with a larger count. Raises `ConfigError` for an unknown name or
    recipe or a file of another kind, `DataError` where images are missing.
    """
    for kind, found, known in (("data set", name, IMAGE_SETS), ("recipe", recipe, RECIPES)):
        if found not in known:
            raise ConfigError(f"there is no {kind} {found!r} of networks; there are {', '.join(known)}")
    images = load_images(IMAGE_SETS[name], root=root)
    header = {
        "name": name,
        "recipe": {"name": recipe, **RECIPES[recipe].model_dump()},
        "architecture": _shape(images, recipe).model_dump(),
    }
    return grown(out, header, count, lambda numbers: _fitted(images, recipe, numbers), BETWEEN_SAVES, load)


def places(images: ImageSet, numbers: range) -> tuple[Tensor, Tensor]:
    """Split and image, as indices, of the networks with these numbers."""
    splits = splits_of(numbers)
    orders = {s: np.random.RandomState(0).permutation(len(images.labels[s])) for s in SPLITS}
    chosen = []
    for n, split in zip(numbers, splits.tolist(), strict=True):
        turn, slot = divmod(n, len(TURNS))
        order = orders[SPLITS[split]]
        chosen.append(int(order[(turn * TURNS.count(split) + slot - TURNS.index(split)) % len(order)]))
    return splits, torch.tensor(chosen)


def pixels(images: ImageSet, splits: Tensor, chosen: Tensor) -> Tensor:
    """The images (N, C, H, W) of networks, from 0 to 1."""
    each = [images.images[SPLITS[s]][i] for s, i in zip(splits.tolist(), chosen.tolist(), strict=True)]
    return torch.stack(each).float() / 255


def images_of(networks: NetworkSet, root: str | Path | None = None) -> Tensor:
    """The images (N, C, H, W) that networks of `make` were fitted to, from 0 to 1. Raises `ConfigError` for others."""
    if networks.header.get("name") not in IMAGE_SETS:
        raise ConfigError(f"networks: expected a set of {', '.join(IMAGE_SETS)}, which alone have images")
    images = load_images(IMAGE_SETS[networks.header["name"]], root=root)
    return pixels(images, networks.splits, networks.columns["image"])


def _fitted(images: ImageSet, recipe: str, numbers: range) -> NetworkSet:
    splits, chosen = places(images, numbers)
    rules = RECIPES[recipe]
    targets = rules.low + (1 - rules.low) * pixels(images, splits, chosen).flatten(2)
    params, psnr = fit(_shape(images, recipe), rules, list(numbers), grid(*images.shape[1:]), targets)
    labels = [images.labels[SPLITS[s]][i] for s, i in zip(splits.tolist(), chosen.tolist(), strict=True)]
    columns = {"label": torch.stack(labels), "image": chosen, "seed": torch.tensor(numbers), "psnr": psnr}
    return NetworkSet(params, columns, splits)


def _shape(images: ImageSet, recipe: str) -> SirenShape:
    return SirenShape(sizes=(2, 32, 32, images.shape[0]), offset=RECIPES[recipe].offset)
