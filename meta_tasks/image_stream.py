"""Batches of images for one task: its share of an image set, normalised and augmented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from lopt.config import wrong
from meta_tasks.data import ImageSet
from meta_tasks.data.images import PUBLISHED_SIZES
from meta_tasks.module_task import Pair, draw_indices, evenly_spaced
from meta_tasks.spec import Number, Spec, Wide

EVALUATION_CHUNK = 500

Examples = Annotated[int, Field(ge=1, le=100_000)]


class NetworkSpec(Spec):
    """What every task with a network and batches has."""

    batch_size: Wide = 128
    init_scale: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    """Factor on the initial weights (not on biases and scales)."""
    evaluation_examples: Examples = 2000
    """How many examples of a split the metrics look at, at most."""


class ImageSpec(NetworkSpec):
    """Which images. With the defaults of noise, channels and fraction the images are as published."""

    together: ClassVar[tuple[str, ...]] = ("dataset", "size")

    dataset: Literal["digits", "photos", "mnist", "fashion_mnist", "cifar10"] = "digits"
    size: Annotated[int, Field(ge=0, le=64)] = 0
    """Height and width after average pooling; 0: as published."""
    channels: Annotated[Literal[0, 1, 3], Number] = 0
    """1 or 3: channels made by a random mixture of the published ones, fixed by the seed; 0: as published."""
    noise: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Standard deviation of Gaussian noise on the training images, whose own is 1."""
    classes: Annotated[int, Field(ge=2, le=10)] = 10
    """How many of the ten classes, chosen by the seed; without meaning where there are no labels."""
    data_fraction: Annotated[float, Field(ge=0.001, le=1)] = 1.0
    """Share of the training images that the task has."""

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return self.size or PUBLISHED_SIZES[self.dataset]

    @model_validator(mode="after")
    def _small(self) -> ImageSpec:
        published = PUBLISHED_SIZES[self.dataset]
        if self.size > published:
            raise wrong(f"at most {published}, the size of the images of {self.dataset}", self.size, "size")
        return self


class LabelledImageSpec(ImageSpec):
    """Which images, of the sets with labels."""

    dataset: Literal["digits", "mnist", "fashion_mnist", "cifar10"] = "digits"
    label_noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training labels that are replaced by random ones, once and for all."""


class ImageStream:
    """The images of one task. Noise is in the training batches only, never in validation, test or metrics."""

    def __init__(self, spec: ImageSpec, data: ImageSet, label_noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(spec.seed)
        self.device = data.mean.device
        self.classes = min(spec.classes, data.classes)
        self._noise, self._limit, self._images = spec.noise, spec.evaluation_examples, data.images
        matrix, offset = colour_map(spec.channels, data, generator)
        self._matrix, self._offset = matrix.to(self.device), offset.to(self.device)
        self.shape = (len(matrix), *data.shape[1:])
        clean = _chosen_labels(data, self.classes, generator)
        rows = {split: (labels >= 0).nonzero().squeeze(1) for split, labels in clean.items()}
        rows["train"] = _share(rows["train"], spec.data_fraction, generator)
        noisy = {**clean, "train": _corrupt(clean["train"], label_noise, self.classes, generator)}
        self._rows, self._clean, self._noisy = (
            {split: tensor.to(self.device) for split, tensor in tensors.items()}
            for tensors in (rows, clean, noisy)
        )

    def sample(
        self, split: str, shape: tuple[int, ...], generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs and the same images without noise (*shape, C, H, W), labels (*shape); with replacement."""
        rows = self._rows[split]
        rows = rows[draw_indices(len(rows), shape, generator, self.device)]
        images = inputs = self._normalised(split, rows)
        if split == "train" and self._noise > 0:
            noise = torch.randn(images.shape, generator=generator, device=generator.device)
            inputs = images + self._noise * noise.to(self.device)
        return inputs, images, self._noisy[split][rows]

    def evaluation(self, split: str) -> Iterator[Pair]:
        """Evenly spaced examples of a split, in chunks (n, C, H, W) and (n)."""
        rows = self._rows[split]
        for chunk in rows[evenly_spaced(len(rows), self._limit, self.device)].split(EVALUATION_CHUNK):
            yield self._normalised(split, chunk), self._clean[split][chunk]

    def example(self, split: str, number: int) -> Tensor:
        """(C, H, W): one image of a split, counted round and round."""
        rows = self._rows[split]
        return self._normalised(split, rows[number % len(rows)])

    def _normalised(self, split: str, rows: Tensor) -> Tensor:
        images = self._images[split].index_select(0, rows.reshape(-1)).float()
        if self._matrix.shape[0] == 1 == self._matrix.shape[1]:
            images = images * self._matrix + self._offset
        else:
            images = torch.einsum("oc,nchw->nohw", self._matrix, images) + self._offset[:, None, None]
        return images.reshape(*rows.shape, *images.shape[1:])


def colour_map(channels: int, data: ImageSet, generator: Generator) -> tuple[Tensor, Tensor]:
    """Matrix (O, C) and offset (O,): published values, 0 to 255, -> channels of mean 0 and variance about 1.

    With `channels` O, the normalised channels are mixed by a Gaussian matrix, scaled to keep the total power
    of a grey image; with 0 they stay as they are.
    """
    mean, std = data.mean.cpu(), data.std.cpu()
    mix = torch.eye(len(mean))
    if channels:
        mix = torch.randn(channels, len(mean), generator=generator)
        mix = mix * (channels**0.5 / mix.norm())
    matrix = mix / std
    return matrix, -matrix @ mean


def _chosen_labels(data: ImageSet, classes: int, generator: Generator) -> dict[str, Tensor]:
    """Labels (N) of each split renumbered from 0, with -1 for the classes that the task leaves out."""
    if classes == data.classes:
        return {split: labels.long().cpu() for split, labels in data.labels.items()}
    code = torch.full((data.classes,), -1)
    code[torch.randperm(data.classes, generator=generator)[:classes]] = torch.arange(classes)
    return {split: code[labels.long().cpu()] for split, labels in data.labels.items()}


def _share(rows: Tensor, fraction: float, generator: Generator) -> Tensor:
    if fraction == 1:
        return rows
    count = max(1, round(fraction * len(rows)))
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def _corrupt(labels: Tensor, share: float, classes: int, generator: Generator) -> Tensor:
    if share == 0:
        return labels
    random = torch.randint(classes, labels.shape, generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, random, labels)
