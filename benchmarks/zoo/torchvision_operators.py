"""Lets torchvision be imported beside a CPU build of torch, for which it has no build of its own."""

from __future__ import annotations

from typing import Any

import torch

_KEPT: list[Any] = []
"""The library lives as long as this reference to it."""


def declare_torchvision_operators() -> None:
    """Declare the two box operators of torchvision's compiled part, which a CPU build of torch can't load.

    Importing torchvision needs them to exist in name; none of the networks here calls one.
    """
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
