"""Image classification with multilayer perceptrons and with convolutional networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from lopt.errors import ConfigError
from meta_tasks.data import load_images
from meta_tasks.data.images import PUBLISHED_SIZES
from meta_tasks.family import SpecFamily
from meta_tasks.image_stream import ImageStream, LabelledImageSpec
from meta_tasks.module_task import ModuleTask, Pair, classification
from meta_tasks.networks import ACTIVATIONS, STRIDES, convnet, mlp
from meta_tasks.spec import choice, number


@dataclass(frozen=True)
class ClassificationSpec(LabelledImageSpec):
    """What the plain image classifiers have."""

    activation: str = choice(*ACTIVATIONS)


@dataclass(frozen=True)
class MlpSpec(ClassificationSpec):
    """A multilayer perceptron on the pixels."""

    family: ClassVar[str] = "mlp"

    widths: tuple[int, ...] = number((32, 32), 1, 4096)
    norm: str = choice("none", "layer")


@dataclass(frozen=True)
class CnnSpec(ClassificationSpec):
    """A convolutional network; see `meta_tasks.networks.convnet`."""

    family: ClassVar[str] = "cnn"

    widths: tuple[int, ...] = number((16, 32, 32), 1, 1024)
    """Channels of each convolution."""
    kernel: int = choice(3, 1, 5, 7)
    strides: str = choice(*STRIDES)
    norm: str = choice("none", "batch", "group")
    head: str = choice("average", "flatten")
    """What stands between the last convolution and the linear layer."""


class ClassificationTask(ModuleTask):
    """Cross-entropy of a network's logits (B, classes) on images (B, C, H, W) and labels (B)."""

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        stream: ImageStream,
        batch_size: int,
        init_scale: float,
    ) -> None:
        super().__init__(name, build, stream.device, init_scale)
        self.stream = stream
        self.batch_size = batch_size

    def sample(self, split: str, count: int, generator: Generator) -> Pair:
        """Images (count, B, C, H, W) and labels (count, B)."""
        inputs, _, labels = self.stream.sample(split, (count, self.batch_size), generator)
        return inputs, labels

    def evaluation(self, split: str) -> Iterable[Pair]:
        """Images and labels without noise."""
        return self.stream.evaluation(split)

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and accuracy."""
        return classification(outputs, targets)


class MlpFamily(SpecFamily[MlpSpec]):
    """Multilayer perceptrons of varied widths, depths, activations and norms on images of varied sizes."""

    spec_class = MlpSpec

    def task(self, spec: MlpSpec) -> ClassificationTask:
        """The classifier of one spec."""
        stream = image_stream(spec, self.data_root, self.device)
        pixels = torch.Size(stream.shape).numel()
        build = partial(mlp, pixels, spec.widths, stream.classes, spec.activation, spec.norm)
        return ClassificationTask(
            _name(spec, stream, spec.widths), build, stream, spec.batch_size, spec.init_scale
        )


class CnnFamily(SpecFamily[CnnSpec]):
    """Convolutional networks of varied widths, depths, kernels, strides, norms and heads."""

    spec_class = CnnSpec
    together = ("dataset", "size", "kernel", "strides")

    def check(self, spec: CnnSpec) -> None:
        """The first convolution may be without padding."""
        size = image_size(spec)
        if spec.strides == "first" and spec.kernel > size:
            raise ConfigError(f"cnn.kernel = {spec.kernel}: expected at most the image size, {size}")

    def task(self, spec: CnnSpec) -> ClassificationTask:
        """The classifier of one spec."""
        stream = image_stream(spec, self.data_root, self.device)
        build = partial(
            convnet,
            stream.shape,
            spec.widths,
            stream.classes,
            kernel=spec.kernel,
            strides=spec.strides,
            activation=spec.activation,
            norm=spec.norm,
            head=spec.head,
        )
        return ClassificationTask(
            _name(spec, stream, spec.widths), build, stream, spec.batch_size, spec.init_scale
        )


def image_size(spec: LabelledImageSpec) -> int:
    """Height and width of the images of a spec, without loading them."""
    return spec.size or PUBLISHED_SIZES[spec.dataset]


def image_stream(spec: LabelledImageSpec, root: str | None, device: str | torch.device) -> ImageStream:
    """The labelled images of a spec."""
    return ImageStream(spec, load_images(spec.dataset, spec.size, root, device), spec.label_noise)


def _name(spec: ClassificationSpec, stream: ImageStream, widths: tuple[int, ...]) -> str:
    return f"{spec.family}/{spec.dataset}{stream.shape[1]}/{'-'.join(map(str, widths))}-{spec.activation}"
