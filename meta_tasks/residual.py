"""Image classification with residual networks and with vision transformers."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lopt.config import wrong
from meta_tasks.classification import ClassificationTask, image_stream
from meta_tasks.family import SpecFamily, register_family
from meta_tasks.image_stream import LabelledImageSpec
from meta_tasks.resnet import ResNet
from meta_tasks.spec import Few, Layers, Width
from meta_tasks.vit import VisionTransformer


class ResNetSpec(LabelledImageSpec):
    """A residual network; see `meta_tasks.resnet`."""

    widths: Layers[Width] = (8, 16)
    """Channels of each stage."""
    blocks: Few = 1
    """Residual blocks in each stage."""
    norm: Literal["batch", "group"] = "batch"


class VitSpec(LabelledImageSpec):
    """A vision transformer; see `meta_tasks.transformers`."""

    together = ("dataset", "size", "patch")

    patch: Annotated[int, Field(ge=1, le=32)] = 2
    """Height and width of a patch; it must divide those of the images."""
    width: Width = 32
    depth: Few = 1
    heads: Few = 4

    @model_validator(mode="after")
    def _tiled(self) -> VitSpec:
        if self.side % self.patch:
            raise wrong(f"a divisor of the image size, {self.side}", self.patch, "patch")
        return self


@register_family("resnet")
class ResNetFamily(SpecFamily[ResNetSpec]):
    """Residual networks of varied widths and depths."""

    spec_class = ResNetSpec

    def task(self, spec: ResNetSpec) -> ClassificationTask:
        """The classifier of one spec."""
        stream = image_stream(spec, self.data_root, self.device)
        build = partial(ResNet, stream.shape, spec.widths, spec.blocks, stream.classes, spec.norm)
        shape = "-".join(map(str, spec.widths))
        name = f"resnet/{spec.dataset}{spec.side}/{shape}x{spec.blocks}"
        return ClassificationTask(name, build, stream, spec)


@register_family("vit")
class VitFamily(SpecFamily[VitSpec]):
    """Vision transformers of varied widths, depths and patches."""

    spec_class = VitSpec

    def task(self, spec: VitSpec) -> ClassificationTask:
        """The classifier of one spec."""
        stream = image_stream(spec, self.data_root, self.device)
        build = partial(
            VisionTransformer, stream.shape, spec.patch, spec.width, spec.depth, spec.heads, stream.classes
        )
        name = f"vit/{spec.dataset}{spec.side}/{spec.width}x{spec.depth}-patch{spec.patch}"
        return ClassificationTask(name, build, stream, spec)
