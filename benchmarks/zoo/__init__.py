"""Networks that people train, at the smallest size that keeps their structure, with random weights.

Each entry builds (model, example arguments). Libraries are imported when an entry of theirs is built.
"""

from __future__ import annotations

from benchmarks.zoo import from_pyg, from_timm, from_torch, from_torchvision, from_transformers
from benchmarks.zoo.registry import ARCHITECTURES, Architecture
from benchmarks.zoo.torchvision_operators import declare_torchvision_operators

declare_torchvision_operators()

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "from_pyg",
    "from_timm",
    "from_torch",
    "from_torchvision",
    "from_transformers",
]
