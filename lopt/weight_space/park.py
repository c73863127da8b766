"""A wild park: classifiers of many architectures, of which readers are to tell the accuracy (Kofinas et al. 2024).

Eight networks of each architecture are trained side by side, each with its own rate, decay, size of initial weights and
share of the training images. All networks of an architecture, with all of their checkpoints, are in one split.
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

from lopt.config import Count, Settings, Several
from lopt.weight_space.convnets import Adam
from lopt.weight_space.growing import grown, splits_of
from lopt.weight_space.network_park import NetworkPark, load_park
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.parknets import ACTIVATIONS, STRIDED, ParkShape, accuracy, gradient, initial
from lopt.weight_space.zoo import DECAYS, LUMA, RATES, SHARES
from meta_tasks.data.images import load_images

CHANNELS, LAYERS = (4, 8, 16, 32), (2, 3, 4, 5)
KERNELS = (3, 3, 5)
"""Two thirds of the kernels are small."""
GAINS = (0.6, 1.8)
"""Narrower than the zoo's, as gains of layers multiply."""
TOGETHER = 8
"""Networks of an architecture."""
BETWEEN_SAVES = 4
"""Architectures."""


class ParkRecipe(Settings):
    """What networks, and how they are trained and measured."""

    images: str = "cifar10"
    size: Count = 16
    """Height and width of the images."""
    colours: Several[Count] = (1, 3)
    """Of which architectures have one number or the other."""
    examples: Count = 8192
    """Of the training images: what the shares are of."""
    batch: Count = 16
    checkpoints: Several[Count] = (100, 250, 600)
    """Steps, the last of which is the end."""
    measured: Count = 10_000
    """Test images."""


PARKS = {
    "wild-park": ParkRecipe(),
    "wild-park-digits": ParkRecipe(
        images="digits", size=8, colours=(1,), examples=512, checkpoints=(4, 12), measured=200
    ),
}
"""Data sets of classifiers of many architectures."""


def make_park(
    name: str, count: int, out: str | os.PathLike[str], root: str | Path | None = None
) -> NetworkPark:
    """`count` networks, rounded up to whole architectures of eight; goes on with what is at `out`.

    A row for each of their checkpoints; columns: accuracy (0 to 1, on test images), network, step, rate, gain, decay,
    share. name: in `PARKS`. Raises `DataError` where images are missing, `ConfigError` if `out` has other networks.
    """
    recipe = PARKS[name]
    each = TOGETHER * len(recipe.checkpoints)
    wanted = -(-count // TOGETHER)
    shapes = drawn(recipe, wanted)

    def made(rows: range) -> NetworkPark:
        numbers = range(rows.start // each, rows.stop // each)
        return NetworkPark(tuple(_trained(recipe, shapes[n], n, root) for n in numbers))

    header = {"name": name, "recipe": recipe.model_dump()}
    return grown(out, header, wanted * each, made, BETWEEN_SAVES * each, load_park, "accuracy")


def drawn(recipe: ParkRecipe, count: int) -> list[ParkShape]:
    """The first so many architectures, no two alike."""
    generator = np.random.default_rng(3)
    found: dict[ParkShape, None] = {}
    while len(found) < count:
        depth = int(generator.choice(LAYERS))
        channels = generator.choice(CHANNELS, depth).tolist()
        kernels = generator.choice(KERNELS, depth).tolist()
        residual = depth > STRIDED and bool(generator.integers(2))
        if residual:  # what is added is as wide as what it is added to
            channels[STRIDED:] = [channels[STRIDED - 1]] * (depth - STRIDED)
        said: dict[str, Any] = {
            "size": recipe.size, "colours": int(generator.choice(recipe.colours)), "channels": channels,
            "kernels": kernels, "residual": residual, "activation": str(generator.choice(list(ACTIVATIONS))),
        }  # fmt: skip
        found.setdefault(ParkShape(**said))
    return list(found)


def _trained(recipe: ParkRecipe, shape: ParkShape, number: int, root: str | Path | None) -> NetworkSet:
    """All checkpoints of the networks of one architecture. The same whatever was made before."""
    numbers = range(number * TOGETHER, (number + 1) * TOGETHER)
    generator = np.random.default_rng((4, number))
    columns = {
        name: torch.from_numpy(np.exp(generator.uniform(math.log(low), math.log(high), TOGETHER))).float()
        for name, (low, high) in (("rate", RATES), ("gain", GAINS), ("decay", DECAYS))
    }
    shares = generator.choice(SHARES, TOGETHER)
    columns["share"] = torch.from_numpy(shares).float()
    images, labels = examples(recipe, shape.colours, "train", root)
    tested, wanted = (v[: recipe.measured] for v in examples(recipe, shape.colours, "test", root))
    seen = np.stack([generator.permutation(len(labels))[: recipe.examples] for _ in numbers])
    params = initial(shape, numbers, columns["gain"])
    optimizer = Adam(params, columns["rate"], columns["decay"])
    found = []
    for step in range(1, recipe.checkpoints[-1] + 1):
        # A random batch of each network's own share.
        places = (generator.random((TOGETHER, recipe.batch)) * (shares * seen.shape[1])[:, None]).astype(int)
        index = torch.from_numpy(np.take_along_axis(seen, places, 1))
        batch = images[index].movedim(1, -1).contiguous()
        optimizer.update(gradient(shape, params, batch, labels[index]))
        if step in recipe.checkpoints:
            reached = accuracy(shape, params, tested, wanted)
            found.append(({name: value.clone() for name, value in params.items()}, reached))
    views = len(recipe.checkpoints)
    rows = {name: torch.stack([state[name] for state, _ in found], 1).flatten(0, 1) for name in params}
    columns = {name: value.repeat_interleave(views) for name, value in columns.items()}
    columns |= {
        "accuracy": torch.stack([reached for _, reached in found], 1).flatten(),
        "network": torch.tensor(numbers).repeat_interleave(views),
        "step": torch.tensor(recipe.checkpoints).repeat(TOGETHER),
    }
    splits = splits_of(range(number, number + 1)).repeat(TOGETHER * views)
    return NetworkSet(rows, columns, splits, {"architecture": shape.model_dump()})


def examples(recipe: ParkRecipe, colours: int, split: str, root: str | Path | None) -> tuple[Tensor, Tensor]:
    """Images (M, C, H, H), standardised by the training images, and their labels (M)."""
    return _standardised(recipe, colours, split, None if root is None else str(root))


@cache
def _standardised(recipe: ParkRecipe, colours: int, split: str, root: str | None) -> tuple[Tensor, Tensor]:
    images = load_images(recipe.images, size=recipe.size, root=root)
    found = {s: images.images[s].float() for s in {split, "train"}}
    if colours < images.shape[0]:
        luma = torch.tensor(LUMA)[:, None, None]
        found = {s: (value * luma).sum(1, keepdim=True) for s, value in found.items()}
    mean, std = (f(found["train"], (0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    return (found[split] - mean) / std, images.labels[split].long()
