"""A small residual network.

B examples, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from meta_tasks.networks import image_norm


class ResNet(nn.Module):
    """Basic blocks in stages (He et al. 2016, arXiv 1512.03385): images (B, C, H, W) -> logits (B, outputs).

    Each stage has `blocks` blocks; each but the first starts with one of stride 2.
    """

    def __init__(
        self, shape: tuple[int, int, int], widths: Sequence[int], blocks: int, outputs: int, norm: str
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=False)
        self.norm = image_norm(norm, widths[0])
        fan_ins = [widths[0], *widths]
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    fan_ins[stage] if block == 0 else width,
                    width,
                    2 if block == 0 and stage > 0 else 1,
                    norm,
                )
                for stage, width in enumerate(widths)
                for block in range(blocks)
            )
        )
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(images))))
        return self.head(x.mean((2, 3)))


class ResidualBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))); where the shape changes, a strided 1x1 convolution on x."""

    def __init__(self, fan_in: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = image_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = image_norm(norm, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or fan_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(fan_in, width, 1, stride, bias=False), image_norm(norm, width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))
