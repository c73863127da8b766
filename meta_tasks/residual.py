"""Image classification with residual networks and with vision transformers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from lopt.errors import ConfigError
from meta_tasks.classification import ClassificationTask, image_size, image_stream
from meta_tasks.family import SpecFamily
from meta_tasks.image_stream import LabelledImageSpec
from meta_tasks.resnet import ResNet
from meta_tasks.spec import choice, number
from meta_tasks.vit import VisionTransformer


@dataclass(frozen=True)
class ResNetSpec(LabelledImageSpec):
    """A residual network; see `meta_tasks.resnet`."""

    family: ClassVar[str] = "resnet"

    widths: tuple[int, ...] = number((8, 16), 1, 1024)
    """Channels of each stage."""
    blocks: int = number(1, 1, 16)
    """Residual blocks in each stage."""
    norm: str = choice("batch", "group")


@dataclass(frozen=True)
class VitSpec(LabelledImageSpec):
    """A vision transformer; see `meta_tasks.transformers`."""

    family: ClassVar[str] = "vit"

    patch: int = number(2, 1, 32)
    """Height and width of a patch; it must divide those of the images."""
    width: int = number(32, 1, 1024)
    depth: int = number(1, 1, 16)
    heads: int = number(4, 1, 16)


class ResNetFamily(SpecFamily[ResNetSpec]):
    """Residual networks of varied widths and depths."""

    spec_class = ResNetSpec

    def task(self, spec: ResNetSpec) -> ClassificationTask:
        """The classifier of one spec."""
        stream = image_stream(spec, self.data_root, self.device)
        build = partial(ResNet, stream.shape, spec.widths, spec.blocks, stream.classes, spec.norm)
        shape = "-".join(map(str, spec.widths))
        name = f"resnet/{spec.dataset}{stream.shape[1]}/{shape}x{spec.blocks}"
        return ClassificationTask(name, build, stream, spec.batch_size, spec.init_scale)


class VitFamily(SpecFamily[VitSpec]):
    """Vision transformers of varied widths, depths and patches."""

    spec_class = VitSpec
    together = ("dataset", "size", "patch")

    def check(self, spec: VitSpec) -> None:
        """The patches tile the images."""
        size = image_size(spec)
        if size % spec.patch:
            raise ConfigError(f"vit.patch = {spec.patch}: expected a divisor of the image size, {size}")

    def task(self, spec: VitSpec) -> ClassificationTask:
        """The classifier of one spec."""
        stream = image_stream(spec, self.data_root, self.device)
        size = stream.shape[1]
        build = partial(
            VisionTransformer, stream.shape, spec.patch, spec.width, spec.depth, spec.heads, stream.classes
        )
        name = f"vit/{spec.dataset}{size}/{spec.width}x{spec.depth}-patch{spec.patch}"
        return ClassificationTask(name, build, stream, spec.batch_size, spec.init_scale)
