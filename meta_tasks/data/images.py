"""Image sets in memory: uint8, split into train, validation and test, at any size up to the published one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lopt.errors import ConfigError, DataError
from meta_tasks.data.formats import check_labels, read_cifar, read_idx
from meta_tasks.data.sources import data_root, locate

VALIDATION_LIMIT = 5000
PATCH = 32
PUBLISHED_SIZES = {"digits": 8, "photos": PATCH, "mnist": 28, "fashion_mnist": 28, "cifar10": 32}
"""Height and width of the images of each set."""

Labelled = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and labels (N), both uint8."""


@dataclass(frozen=True)
class ImageSet:
    """Images (N, C, H, W) and labels (N) of each split, as uint8."""

    name: str
    classes: int
    """Number of classes; 0 if the set has no labels."""
    images: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    mean: Tensor
    """(C,) of the training pixels, 0 to 255."""
    std: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images["train"].shape[1:]
        return channels, height, width

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set on another device."""
        images = {split: tensor.to(device) for split, tensor in self.images.items()}
        labels = {split: tensor.to(device) for split, tensor in self.labels.items()}
        return ImageSet(self.name, self.classes, images, labels, self.mean.to(device), self.std.to(device))


def load_images(
    name: str, size: int = 0, root: str | Path | None = None, device: str | torch.device = "cpu"
) -> ImageSet:
    """An image set, average-pooled to `size` x `size` pixels (0: as published); kept for the whole process.

    The validation split is carved from the published training images; test is what was published as test.
    Raises `DataError` if the files are missing or damaged, `ConfigError` for a size above the published one.
    """
    folder = data_root(root)
    return _on_device(name, size, None if folder is None else folder.resolve(), str(device))


def check_size(name: str, size: int) -> None:
    """Raise `ConfigError` if the images of a set are smaller than that."""
    published = PUBLISHED_SIZES[name]
    if size > published:
        raise ConfigError(f"size = {size}: expected at most {published}, the size of the images of {name}")


@cache
def _on_device(name: str, size: int, root: Path | None, device: str) -> ImageSet:
    return _pooled(name, size, root).to(device)


@cache
def _pooled(name: str, size: int, root: Path | None) -> ImageSet:
    check_size(name, size)
    full = _published(name, root)
    if size in (0, PUBLISHED_SIZES[name]):
        return full
    images = {split: _pool(tensor, size) for split, tensor in full.images.items()}
    return ImageSet(name, full.classes, images, full.labels, *_moments(images["train"]))


@cache
def _published(name: str, root: Path | None) -> ImageSet:
    splits = READERS[name](locate(name, root))
    images = {split: images.contiguous() for split, (images, _) in splits.items()}
    labels = {split: labels.contiguous() for split, (_, labels) in splits.items()}
    classes = 0 if name == "photos" else 10
    return ImageSet(name, classes, images, labels, *_moments(images["train"]))


def _pool(images: Tensor, size: int) -> Tensor:
    # In slices: the float copy of a whole set would be four times the set.
    pooled = [
        F.adaptive_avg_pool2d(part.float(), size).round().to(torch.uint8) for part in images.split(8192)
    ]
    return torch.cat(pooled)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) from the 256-bin histograms: exact, without a float copy."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(c.reshape(-1), minlength=256) for c in images.unbind(1)]).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    variance = share @ values**2 - mean**2
    return mean.float(), variance.sqrt().clamp_min(1.0).float()


def carve_validation(train: Labelled, test: Labelled) -> dict[str, Labelled]:
    """Take a fixed random tenth (at most 5,000) of the training examples as the validation split."""
    images, labels = train
    order = _fixed_order(len(images))
    count = min(VALIDATION_LIMIT, len(images) // 10)
    validation, rest = order[:count].sort().values, order[count:].sort().values
    return {
        "train": (images[rest], labels[rest]),
        "validation": (images[validation], labels[validation]),
        "test": test,
    }


def _fixed_order(count: int) -> Tensor:
    # NumPy promises that this stream never changes; torch does not promise it for its own.
    return torch.from_numpy(np.random.RandomState(0).permutation(count))


def _read_idx_set(paths: list[Path]) -> dict[str, Labelled]:
    train, test = (_idx_pair(*paths[:2]), _idx_pair(*paths[2:]))
    return carve_validation(train, test)


def _idx_pair(images_path: Path, labels_path: Path) -> Labelled:
    images, labels = read_idx(images_path, 3).unsqueeze(1), read_idx(labels_path, 1)
    check_labels(labels_path, labels)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path} is damaged: expected {len(images)} labels for the images of {images_path.name}, "
            f"found {len(labels)}. Fetch both again."
        )
    return images, labels


def _read_cifar_set(paths: list[Path]) -> dict[str, Labelled]:
    batches = [read_cifar(path) for path in paths]
    images, labels = (torch.cat(parts) for parts in zip(*batches[:-1], strict=True))
    return carve_validation((images, labels), batches[-1])


def _read_digits(_: list[Path]) -> dict[str, Labelled]:
    """Scikit-learn's 1,797 digits, split 7 : 1 : 2 within each class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.uint8)
    rank = rank_within_class(labels) % 10
    masks = {"train": rank >= 3, "validation": rank == 2, "test": rank < 2}
    return {split: (images[mask], labels[mask]) for split, mask in masks.items()}


def rank_within_class(labels: Tensor) -> Tensor:
    """(N,): the how-manieth of its class each example is, in a fixed random order."""
    rank = torch.empty(len(labels), dtype=torch.long)
    order = _fixed_order(len(labels))
    for label in labels.unique():
        members = order[labels[order] == label]
        rank[members] = torch.arange(len(members))
    return rank


def _read_photos(_: list[Path]) -> dict[str, Labelled]:
    """32x32 patches: train and validation from one photograph, test from the other."""
    from sklearn.datasets import load_sample_image

    train, test = (_patches(load_sample_image(file)) for file in ("china.jpg", "flower.jpg"))
    return carve_validation(train, test)


def _patches(photo: np.ndarray) -> Labelled:
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    grid = image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    patches = grid.permute(1, 2, 0, 3, 4).reshape(-1, 3, PATCH, PATCH)
    return patches, torch.zeros(len(patches), dtype=torch.uint8)


READERS: dict[str, Callable[[list[Path]], dict[str, Labelled]]] = {
    "digits": _read_digits,
    "photos": _read_photos,
    "mnist": _read_idx_set,
    "fashion_mnist": _read_idx_set,
    "cifar10": _read_cifar_set,
}
"""The reader of each image set: its located files -> its splits."""
