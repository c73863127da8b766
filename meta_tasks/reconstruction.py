"""Autoencoders on images, and images as functions of their coordinates (SIREN)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from lopt.config import wrong
from meta_tasks.data import load_images
from meta_tasks.family import SpecFamily, register_family
from meta_tasks.image_stream import ImageSpec, ImageStream
from meta_tasks.module_task import ModuleTask, Pair, draw_indices, evenly_spaced
from meta_tasks.networks import Activation, autoencoder, siren
from meta_tasks.spec import Layers, Wide, Width

PIXEL_SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
SMALLEST = 3
"""The size of an image from which each split has a pixel."""


class AutoencoderSpec(ImageSpec):
    """A multilayer perceptron to a code and back."""

    widths: Layers[Wide] = (64, 32)
    """Hidden widths of the encoder; the decoder mirrors them."""
    code: Width = 8
    activation: Activation = "relu"


class SirenSpec(ImageSpec):
    """One image, chosen by the seed, as a function of its coordinates."""

    dataset: Literal["digits", "photos", "mnist", "fashion_mnist", "cifar10"] = "photos"
    widths: Layers[Width] = (32, 32)
    frequency: Annotated[float, Field(ge=1, le=100)] = 30.0
    """Factor inside each sine."""

    @model_validator(mode="after")
    def _pixels(self) -> SirenSpec:
        if 0 < self.size < SMALLEST:
            raise wrong(f"0, the published size, or at least {SMALLEST}", self.size, "size")
        return self


class RegressionTask(ModuleTask):
    """Mean squared error against targets whose own variance is about 1."""

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean squared error."""
        return {"loss": F.mse_loss(outputs, targets.to(outputs.dtype))}


class AutoencoderTask(RegressionTask):
    """Images (B, C, H, W) -> the same pixels (B, C*H*W), without the noise of the inputs."""

    def __init__(self, spec: AutoencoderSpec, stream: ImageStream) -> None:
        widths = "-".join(map(str, (*spec.widths, spec.code)))
        name = f"autoencoder/{spec.dataset}{stream.shape[1]}/{widths}-{spec.activation}"
        build = partial(autoencoder, stream.shape, spec.widths, spec.code, spec.activation)
        super().__init__(name, build, stream.device, spec.init_scale)
        self.stream = stream
        self.batch_size = spec.batch_size

    def sample(self, split: str, count: int, generator: Generator) -> Pair:
        """Images (count, B, C, H, W) and their clean pixels (count, B, C*H*W)."""
        inputs, images, _ = self.stream.sample(split, (count, self.batch_size), generator)
        return inputs, images.flatten(2)

    def evaluation(self, split: str) -> Iterable[Pair]:
        """Images without noise, and their pixels."""
        for images, _ in self.stream.evaluation(split):
            yield images, images.flatten(1)


@register_family("autoencoder")
class AutoencoderFamily(SpecFamily[AutoencoderSpec]):
    """Autoencoders of varied widths, depths and code sizes."""

    spec_class = AutoencoderSpec

    def task(self, spec: AutoencoderSpec) -> AutoencoderTask:
        """The autoencoder of one spec."""
        data = load_images(spec.dataset, spec.size, self.data_root, self.device)
        return AutoencoderTask(spec, ImageStream(spec, data))


class SirenTask(RegressionTask):
    """Coordinates in [-1, 1]^2 (B, 2) -> pixels (B, C) of one image. The splits are splits of its pixels."""

    def __init__(self, spec: SirenSpec, stream: ImageStream) -> None:
        channels, size, _ = stream.shape
        name = f"siren/{spec.dataset}{size}/{'-'.join(map(str, spec.widths))}-sine{spec.frequency:g}"
        super().__init__(
            name, partial(siren, spec.widths, channels, spec.frequency), stream.device, spec.init_scale
        )
        self.batch_size = spec.batch_size
        self.limit = spec.evaluation_examples
        axis = torch.linspace(-1, 1, size)
        self._coordinates = torch.cartesian_prod(axis, axis).to(self.device)
        self._pixels = stream.example("train", spec.seed).flatten(1).T.contiguous()
        order = torch.randperm(size**2, generator=torch.Generator().manual_seed(spec.seed)).to(self.device)
        self._rows = {
            split: order[int(low * size**2) : int(high * size**2)]
            for split, (low, high) in PIXEL_SHARES.items()
        }

    def sample(self, split: str, count: int, generator: Generator) -> Pair:
        """Coordinates (count, B, 2) and pixels (count, B, C)."""
        rows = self._rows[split]
        rows = rows[draw_indices(len(rows), (count, self.batch_size), generator, self.device)]
        return self._coordinates[rows], self._pixels[rows]

    def evaluation(self, split: str) -> Iterable[Pair]:
        """The split's own pixels."""
        rows = self._rows[split]
        rows = rows[evenly_spaced(len(rows), self.limit, self.device)]
        yield self._coordinates[rows], self._pixels[rows]


@register_family("siren")
class SirenFamily(SpecFamily[SirenSpec]):
    """Sine networks of varied widths, depths and frequencies, each on one image."""

    spec_class = SirenSpec

    def task(self, spec: SirenSpec) -> SirenTask:
        """The image fit of one spec."""
        data = load_images(spec.dataset, spec.size, self.data_root, self.device)
        return SirenTask(spec, ImageStream(spec, data))
