"""What is trained: a GPT of 10.7 million parameters on Tiny Shakespeare and a ResNet-18 of 11.2 million on CIFAR-10.

B examples, C channels, H x W pixels, L characters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from meta_tasks.data import load_images, load_text
from meta_tasks.networks import TransformerLanguageModel

CONTEXT, WIDTH, DEPTH, HEADS, CHARACTERS = 64, 384, 6, 6, 65


@dataclass(frozen=True)
class Workload:
    """A network, its batch size and its examples."""

    network: Callable[[], nn.Module]
    batch: int
    examples: Callable[[int, Path | None], TensorDataset]
    """(count, data folder) -> that many training examples (inputs, targets), always the same."""


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of (B, classes) on (B), or of (B, L, classes) on (B, L)."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def characters(count: int, data: Path | None) -> TensorDataset:
    """Codes (count, L), and the codes that follow each."""
    codes = load_text("tinyshakespeare", data).codes["train"].long()
    starts = torch.randint(len(codes) - CONTEXT, (count, 1), generator=Generator().manual_seed(0))
    windows = codes[starts + torch.arange(CONTEXT + 1)]
    return TensorDataset(windows[:, :-1], windows[:, 1:])


def images(count: int, data: Path | None) -> TensorDataset:
    """Standardised images (count, 3, 32, 32) and labels (count)."""
    images = load_images("cifar10", root=data)
    rows = torch.randint(len(images.images["train"]), (count,), generator=Generator().manual_seed(0))
    mean, std = (values.view(-1, 1, 1) for values in (images.mean, images.std))
    return TensorDataset((images.images["train"][rows] - mean) / std, images.labels["train"][rows].long())


class ResNet18(nn.Module):
    """ResNet-18 with the stem for small images: 3x3, stride 1, no pooling. (B, 3, H, W) -> (B, classes).

    Source: He et al. 2016 (arXiv 1512.03385); two basic blocks in each of four stages.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 64), nn.BatchNorm2d(64), nn.ReLU())
        widths = (64, 64, 128, 256, 512)
        stages = [
            nn.Sequential(BasicBlock(before, width, stride), BasicBlock(width, width))
            for before, width, stride in zip(widths, widths[1:], (1, 2, 2, 2), strict=False)
        ]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(before, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = _convolution(width, width), nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + inner)


def _convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)


WORKLOADS = {
    "gpt": Workload(
        partial(TransformerLanguageModel, CHARACTERS, CONTEXT, WIDTH, DEPTH, HEADS), 4, characters
    ),
    "resnet18": Workload(ResNet18, 16, images),
}
