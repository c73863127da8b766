"""A small vision transformer.

B examples, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meta_tasks.networks import TransformerBlock


class VisionTransformer(nn.Module):
    """Patches as words (Dosovitskiy et al. 2021, arXiv 2010.11929), pre-norm, pooled by the mean over the patches.

    Images (B, C, H, W) -> logits (B, outputs).
    """

    def __init__(
        self, shape: tuple[int, int, int], patch: int, width: int, depth: int, heads: int, outputs: int
    ) -> None:
        super().__init__()
        channels, size, _ = shape
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.position = nn.Parameter(0.1 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))
