"""Autoencoders on images, and images as functions of their coordinates (SIREN)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from lopt.config import wrong
from meta_tasks.data import load_images
from meta_tasks.family import SpecFamily, register_family
from meta_tasks.image_stream import ImageSpec, ImageStream
from meta_tasks.module_task import ExamplesTask, ModuleTask, Pair, squared_error
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


class AutoencoderTask(ModuleTask):
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

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean squared error; the variance of the pixels is about 1."""
        return squared_error(outputs, targets)


@register_family("autoencoder")
class AutoencoderFamily(SpecFamily[AutoencoderSpec]):
    """Autoencoders of varied widths, depths and code sizes."""

    spec_class = AutoencoderSpec

    def task(self, spec: AutoencoderSpec) -> AutoencoderTask:
        """The autoencoder of one spec."""
        data = load_images(spec.dataset, spec.size, self.data_root, self.device)
        return AutoencoderTask(spec, ImageStream(spec, data))


class SirenTask(ExamplesTask):
    """Coordinates in [-1, 1]^2 (B, 2) -> pixels (B, C) of one image. The splits are splits of its pixels."""

    def __init__(self, spec: SirenSpec, stream: ImageStream) -> None:
        (channels, size, _), limit = stream.shape, spec.evaluation_examples
        name = f"siren/{spec.dataset}{size}/{'-'.join(map(str, spec.widths))}-sine{spec.frequency:g}"
        build = partial(siren, spec.widths, channels, spec.frequency)
        axis = torch.linspace(-1, 1, size)
        coordinates = torch.cartesian_prod(axis, axis).to(stream.device)
        pixels = stream.example("train", spec.seed).flatten(1).T.contiguous()
        order = torch.randperm(size**2, generator=torch.Generator().manual_seed(spec.seed)).to(stream.device)
        rows = {split: order[int(a * size**2) : int(b * size**2)] for split, (a, b) in PIXEL_SHARES.items()}
        examples = {split: (coordinates[own], pixels[own]) for split, own in rows.items()}
        super().__init__(name, build, examples, spec.batch_size, limit, limit, stream.device, spec.init_scale)

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Mean squared error; the variance of the pixels is about 1."""
        return squared_error(outputs, targets)


@register_family("siren")
class SirenFamily(SpecFamily[SirenSpec]):
    """Sine networks of varied widths, depths and frequencies, each on one image."""

    spec_class = SirenSpec

    def task(self, spec: SirenSpec) -> SirenTask:
        """The image fit of one spec."""
        data = load_images(spec.dataset, spec.size, self.data_root, self.device)
        return SirenTask(spec, ImageStream(spec, data))
