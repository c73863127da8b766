"""Classification: of pixels, by unusual networks, and under unusual conditions of data.

B examples, C channels, H x W pixels, L positions, D width.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from meta_tasks.meta_test.kind import SIZES, Kind, digits, table
from meta_tasks.module_task import Pair
from meta_tasks.networks import TransformerBlock, mlp

GRID = 16
RINGS = 4
FLIPPED = 0.3


class UNet(nn.Module):
    """Images (B, 1, H, W) -> logits of each pixel, by way of half the resolution.

    Source: Ronneberger et al. 2015 (arXiv 1505.04597), figure 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.bottom, self.up = (
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU())
            for a, b in ((1, channels), (channels, 2 * channels), (2 * channels, channels))
        )
        self.raise_ = nn.ConvTranspose2d(2 * channels, channels, 2, 2)
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down(images)
        coarse = self.raise_(self.bottom(F.avg_pool2d(fine, 2)))
        return self.head(self.up(torch.cat([fine, coarse], 1)))


def discs(split: str, generator: Generator) -> Pair:
    """Two discs under noise and a slope of light (N, 1, H, W), and where they are."""
    count = SIZES[split] // 2
    axis = torch.arange(GRID) - 0.5
    centres = GRID * torch.rand(count, 2, 2, 1, 1, generator=generator)
    radii = 2 + 2.5 * torch.rand(count, 2, 1, 1, generator=generator)
    distance = ((axis[:, None] - centres[:, :, 0]) ** 2 + (axis - centres[:, :, 1]) ** 2).sqrt()
    inside = (distance < radii).any(1, keepdim=True)
    light = torch.randn(count, 1, 1, 1, generator=generator) * axis / GRID
    noise = 0.5 * torch.randn(inside.shape, generator=generator)
    return inside + light + noise, inside.long()


def pixels(logits: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of each pixel, and intersection over union."""
    found, given = logits > 0, inside > 0
    overlap = (found & given).sum() / (found | given).sum().clamp_min(1)
    loss = F.binary_cross_entropy_with_logits(logits, inside.to(logits.dtype))
    return {"loss": loss, "overlap": overlap.to(logits.dtype)}


def images(split: str, _: Generator) -> Pair:
    """Digits of mean 0 and variance of about 1, and their labels."""
    pictures, labels = digits(split)
    return (pictures - 0.3) / 0.37, labels


def deep_and_narrow() -> nn.Module:
    """Twenty layers of sixteen tanh neurons, without norms or shortcuts; orthogonal at first, so that signals live."""
    network = mlp(64, (16,) * 20, 10, "tanh")
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, nn.init.calculate_gain("tanh") ** 0.5)
    return network


class Mixer(nn.Module):
    """Patches mixed along positions and along channels in turn (Tolstikhin et al. 2021, arXiv 2105.01601).

    Images (B, 1, H, W) -> logits (B, 10).
    """

    def __init__(self, patch: int, positions: int, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.along_positions = nn.ModuleList(_bottleneck(positions, 2 * positions) for _ in range(depth))
        self.along_channels = nn.ModuleList(_bottleneck(width, 2 * width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.patches(pictures).flatten(2).mT
        for number, (tokens, channels) in enumerate(
            zip(self.along_positions, self.along_channels, strict=True)
        ):
            x = x + tokens(self.norms[2 * number](x).mT).mT
            x = x + channels(self.norms[2 * number + 1](x))
        return self.head(x.mean(1))


def _bottleneck(width: int, inner: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class ColumnTransformer(nn.Module):
    """Each column a token, x w + b of its own: (B, L) -> (B, outputs).

    Source: Gorishniy et al. 2021 (arXiv 2106.11959), section 3.3; pooled by the mean.
    """

    def __init__(self, columns: int, width: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(columns, width) / width**0.5)
        self.bias = nn.Parameter(torch.randn(columns, width) / width**0.5)
        self.block = TransformerBlock(width, heads, causal=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        tokens = rows[..., None] * self.weight + self.bias
        return self.head(self.norm(self.block(tokens)).mean(1))


def rings(split: str, generator: Generator) -> Pair:
    """Points of a disc, the class by ring and half: alternating, so that no line parts them."""
    radius, angle = torch.rand(2, SIZES[split], generator=generator)
    half = 2 * torch.pi * angle
    points = 2 * radius.sqrt()[:, None] * torch.stack([half.cos(), half.sin()], -1)
    return points, ((radius.sqrt() * 3).long() + (angle > 0.5)) % RINGS


def mislabelled(split: str, generator: Generator) -> Pair:
    """Rings of which three tenths of the training labels are that of the next class."""
    points, labels = rings(split, generator)
    if split != "train":
        return points, labels
    flipped = torch.rand(len(labels), generator=generator) < FLIPPED
    return points, (labels + flipped) % RINGS


class GatedPerceptron(nn.Module):
    """x + out(silu(gate x) * value x), `depth` times: (B, inputs) -> (B, outputs).

    Source: Shazeer 2020 (SwiGLU, arXiv 2002.05202), equation 6.
    """

    def __init__(self, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.gates, self.values, self.outs = (
            nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(3)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for gate, value, out in zip(self.gates, self.values, self.outs, strict=True):
            x = x + out(F.silu(gate(x)) * value(x))
        return self.head(x)


def separable() -> nn.Module:
    """Depthwise and pointwise convolutions in turn (Howard et al. 2017, arXiv 1704.04861): (B, 1, H, W) -> (B, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def few_images(split: str, generator: Generator) -> Pair:
    """Eighty digits to learn from."""
    pictures, labels = images(split, generator)
    few = slice(80 if split == "train" else None)
    return pictures[few], labels[few]


KINDS = {
    "unet": Kind(lambda: UNet(8), discs, pixels, batch_size=16),
    "deep_narrow": Kind(deep_and_narrow, images),
    "mixer": Kind(lambda: Mixer(2, 16, 24, 2), images),
    "tabular_transformer": Kind(lambda: ColumnTransformer(30, 16, 2, 2), table("breast_cancer")),
    "label_noise": Kind(lambda: mlp(2, (48, 48), RINGS), mislabelled),
    "tiny_data": Kind(separable, few_images, batch_size=16),
    "huge_batch": Kind(lambda: GatedPerceptron(2, 32, 2, RINGS), rings, batch_size=2048),
}
