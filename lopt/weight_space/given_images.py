"""Images for readers that grade: some that the networks of a zoo or park were trained on, or a file of your own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lopt.errors import ConfigError, DataError
from lopt.files import user_path
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import NetworkSet, loaded
from lopt.weight_space.park import PARKS
from lopt.weight_space.park import examples as park_examples
from lopt.weight_space.zoo import ZOOS, examples

COUNT = 1024


@torchs_defaults()
def training_images(
    networks: NetworkSet | NetworkPark, root: str | Path | None = None, count: int = COUNT
) -> Tensor:
    """`count` images (M, C, H, H), or all, as networks that lopt made see them: always the same ones.

    Raises `ConfigError` for other networks, `DataError` where images are missing.
    """
    name = networks.header.get("name")
    if isinstance(networks, NetworkPark) and name in PARKS:
        recipe = PARKS[name]
        images = park_examples(recipe, max(recipe.colours), "train", root)[0]
    elif isinstance(networks, NetworkSet) and name in ZOOS:
        images = examples(ZOOS[name], "train", root)[0].permute(2, 0, 1)[:, None]
    else:
        made = ", ".join((*ZOOS, *PARKS))
        raise ConfigError(
            f"networks: expected a set or park of {made}, whose images are known; give images of your own"
        )
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return images[chosen].contiguous()


def images_in(path: str | os.PathLike[str]) -> Tensor:
    """The one tensor (M, *inputs) of a safetensors or torch file. Raises `DataError` for another file."""
    path = user_path(path)
    try:
        found = loaded(path)
    except OSError as error:
        raise _no_images(path, error.strerror or str(error)) from None
    except Exception:  # a damaged pickle raises anything
        raise _no_images(path, "one that cannot be read so") from None
    if isinstance(found, Mapping):
        if len(found) != 1:
            raise _no_images(path, f"{len(found)} entries")
        (found,) = found.values()
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise _no_images(path, str(found.dtype) if isinstance(found, Tensor) else type(found).__name__)
    return found.float()


def _no_images(path: Path, found: str) -> DataError:
    return DataError(
        f"{path}: expected a safetensors or torch file of one floating-point tensor, images as the networks see them; "
        f"found {found}"
    )
