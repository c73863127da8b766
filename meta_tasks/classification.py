"""Image classification with multilayer perceptrons and with convolutional networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import model_validator
from torch import Generator, Tensor, nn

from lopt.config import wrong
from meta_tasks.data import load_images
from meta_tasks.family import SpecFamily, register_family
from meta_tasks.image_stream import ImageStream, LabelledImageSpec, NetworkSpec
from meta_tasks.module_task import ModuleTask, Pair, classification
from meta_tasks.networks import Activation, Strides, convnet, mlp
from meta_tasks.spec import Layers, Number, Wide, Width


class ClassificationSpec(LabelledImageSpec):
    """What the plain image classifiers have."""

    activation: Activation = "relu"


class MlpSpec(ClassificationSpec):
    """A multilayer perceptron on the pixels."""

    widths: Layers[Wide] = (32, 32)
    norm: Literal["none", "layer"] = "none"


class CnnSpec(ClassificationSpec):
    """A convolutional network; see `meta_tasks.networks.convnet`."""

    together = ("dataset", "size", "kernel", "strides")

    widths: Layers[Width] = (16, 32, 32)
    """Channels of each convolution."""
    kernel: Annotated[Literal[1, 3, 5, 7], Number] = 3
    strides: Strides = "first"
    norm: Literal["none", "batch", "group"] = "none"
    head: Literal["average", "flatten"] = "average"
    """What stands between the last convolution and the linear layer."""

    @model_validator(mode="after")
    def _unpadded(self) -> CnnSpec:
        if self.strides == "first" and self.kernel > self.side:
            raise wrong(f"at most the image size, {self.side}", self.kernel, "kernel")
        return self


class ClassificationTask(ModuleTask):
    """Cross-entropy of a network's logits (B, classes) on images (B, C, H, W) and labels (B)."""

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        stream: ImageStream,
        spec: NetworkSpec,
    ) -> None:
        super().__init__(name, build, stream.device, spec.init_scale)
        self.stream = stream
        self.batch_size = spec.batch_size

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


@register_family("mlp")
class MlpFamily(SpecFamily[MlpSpec]):
    """Multilayer perceptrons of varied widths, depths, activations and norms on images of varied sizes."""

    spec_class = MlpSpec

    def task(self, spec: MlpSpec) -> ClassificationTask:
        """The classifier of one spec."""
        stream = image_stream(spec, self.data_root, self.device)
        pixels = torch.Size(stream.shape).numel()
        build = partial(mlp, pixels, spec.widths, stream.classes, spec.activation, spec.norm)
        return ClassificationTask(_name(self.name, spec), build, stream, spec)


@register_family("cnn")
class CnnFamily(SpecFamily[CnnSpec]):
    """Convolutional networks of varied widths, depths, kernels, strides, norms and heads."""

    spec_class = CnnSpec

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
        return ClassificationTask(_name(self.name, spec), build, stream, spec)


def image_stream(spec: LabelledImageSpec, root: str | None, device: str | torch.device) -> ImageStream:
    """The labelled images of a spec."""
    return ImageStream(spec, load_images(spec.dataset, spec.size, root, device), spec.label_noise)


def _name(family: str, spec: MlpSpec | CnnSpec) -> str:
    return f"{family}/{spec.dataset}{spec.side}/{'-'.join(map(str, spec.widths))}-{spec.activation}"
