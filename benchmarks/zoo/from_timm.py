"""Image networks of timm, built by name; none downloads weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from benchmarks.zoo.registry import Built, add


def _add(name: str, size: int = 32, title: str | None = None, **options: Any) -> None:
    def build() -> Built:
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=10, **options)
        return model.eval(), (torch.randn(2, 3, size, size),)

    add(title or name, "timm", build)


def _add_class(title: str, module: str, name: str, **options: Any) -> None:
    """A class of timm with options that its named models fix; a text option names something of the same module."""

    def build() -> Built:
        models = importlib.import_module(f"timm.models.{module}")
        resolved = {k: getattr(models, v) if isinstance(v, str) else v for k, v in options.items()}
        return getattr(models, name)(num_classes=10, **resolved).eval(), (torch.randn(2, 3, 32, 32),)

    add(title, "timm", build)


_NARROW = (16, 24, 32, 48)

_add("resnet18")
_add("resnet26d", title="resnet26d (narrow)", channels=_NARROW)
_add("seresnet18", title="seresnet18 (narrow)", channels=_NARROW)
_add("skresnet18", title="skresnet18 (narrow)", channels=_NARROW)
_add("resnest14d", title="resnest14d (narrow)", channels=_NARROW)
_add(
    "resnext50_32x4d",
    title="resnext50 (narrow)",
    layers=(2, 2, 2, 2),
    cardinality=4,
    base_width=8,
    channels=_NARROW,
)
_add("densenet121", title="densenet (3 layers a block)", growth_rate=8, block_config=(3, 3, 3))
_add("mobilenetv2_050")
_add("mobilenetv3_small_050")
_add("efficientnet_lite0")
_add("test_efficientnet")
_add("test_efficientnet_gn")
_add("test_nfnet", 64)
_add("test_byobnet", 64)
_add("convnext_atto", title="convnext (1 block a stage)", depths=(1, 1, 1, 1))
_add("test_convnext2", 64)
_add("regnetx_002")
_add("regnety_002")
_add("ghostnet_050")
_add("dla46_c")
_add("vit_tiny_patch16_224", 64, title="vit_tiny (2 blocks)", img_size=64, depth=2)
_add("deit_tiny_patch16_224", 64, title="deit_tiny (2 blocks)", img_size=64, depth=2)
_add("cait_xxs24_224", 64, title="cait (2 blocks)", img_size=64, depth=2)
_add("xcit_nano_12_p16_224", 64, title="xcit (2 blocks)", img_size=64, depth=2)
_add(
    "swin_tiny_patch4_window7_224",
    56,
    title="swin (2 stages)",
    img_size=56,
    embed_dim=32,
    depths=(2, 2),
    num_heads=(2, 4),
)
_add("pvt_v2_b0", 64, title="pvt_v2 (narrow)", embed_dims=(8, 16, 40, 64))
_add("test_vit", 160)
_add("test_coatnet", 160)
_add("test_maxvit", 160)
_add("edgenext_xx_small")
_add("mobilevit_xxs", 64)

_MIXER = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_blocks": 2}

_add_class("MLP-Mixer", "mlp_mixer", "MlpMixer", **_MIXER)
_add_class(
    "ResMLP", "mlp_mixer", "MlpMixer", **_MIXER, block_layer="ResBlock", norm_layer="Affine", mlp_ratio=4
)
_add_class(
    "gMLP",
    "mlp_mixer",
    "MlpMixer",
    **_MIXER,
    block_layer="SpatialGatingBlock",
    mlp_layer="GatedMlp",
    mlp_ratio=4,
)
_add_class("ConvMixer", "convmixer", "ConvMixer", dim=48, depth=2, kernel_size=5, patch_size=8)
_add_class("PoolFormer", "metaformer", "MetaFormer", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
_add_class(
    "LeViT",
    "levit",
    "Levit",
    img_size=32,
    embed_dim=(16, 24, 32),
    num_heads=(2, 3, 4),
    depth=(1, 1, 1),
    key_dim=8,
)
