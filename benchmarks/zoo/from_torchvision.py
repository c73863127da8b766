"""Image networks of torchvision: its published model definitions in Python."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.registry import Built, add


def _add(name: str, size: int = 32, **options: Any) -> None:
    def build() -> Built:
        import torchvision

        models = torchvision.models.segmentation if name.startswith("lraspp") else torchvision.models
        model = getattr(models, name)(weights=None, **options)
        return model.eval(), (torch.randn(2, 3, size, size),)

    add(f"{name} (torchvision)", "torchvision", build)


_add("squeezenet1_1", num_classes=10)
_add("shufflenet_v2_x0_5", num_classes=10)
_add("googlenet", num_classes=10, init_weights=False, aux_logits=False)
_add("mnasnet0_5", num_classes=10)
_add("lraspp_mobilenet_v3_large", num_classes=5, weights_backbone=None)
