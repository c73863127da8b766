"""The small networks of the task suite: ordinary modules, free of in-place and data-dependent operations.

B examples, C channels, H x W pixels, L positions, D width.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "gelu", "silu", "tanh", "elu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}

Strides = Literal["first", "alternate", "none"]
"""Which convolutions have stride 2: the first (unpadded, as in Neural Graphs), every other one, or none."""


class Sine(nn.Module):
    """sin(frequency * x), the activation of SIREN (Sitzmann et al. 2020, arXiv 2006.09661)."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency * x)


def mlp(
    inputs: int, widths: Sequence[int], outputs: int, activation: str = "relu", norm: str = "none"
) -> nn.Sequential:
    """Flattened inputs -> hidden layers (linear, optional layer norm, activation) -> linear outputs."""
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for number, (fan_in, width) in enumerate(zip([inputs, *widths], widths, strict=False), 1):
        layers.append((f"linear{number}", nn.Linear(fan_in, width)))
        if norm == "layer":
            layers.append((f"norm{number}", nn.LayerNorm(width)))
        layers.append((f"act{number}", ACTIVATIONS[activation]()))
    layers.append(("head", nn.Linear(widths[-1], outputs)))
    return nn.Sequential(OrderedDict(layers))


def convnet(
    shape: tuple[int, int, int],
    widths: Sequence[int],
    outputs: int,
    *,
    kernel: int = 3,
    strides: str = "first",
    activation: str = "relu",
    norm: str = "none",
    head: str = "average",
) -> nn.Sequential:
    """Images (B, C, H, W) -> convolutions (optional norm, activation) -> global average or flatten -> linear.

    With the default options, `convnet((1, 28, 28), (16, 32, 32), 10)` is FM-16 and
    `convnet((3, 32, 32), (32, 64, 64), 10)` C10-32 of Neural Graphs (Kofinas et al. 2024, arXiv 2403.12143).
    """
    channels, size, _ = shape
    layers: list[tuple[str, nn.Module]] = []
    for number, width in enumerate(widths):
        stride = (
            2 if (strides == "alternate" and number % 2 == 0) or (strides == "first" and number == 0) else 1
        )
        padding = 0 if strides == "first" and number == 0 else kernel // 2
        layers.append((f"conv{number + 1}", nn.Conv2d(channels, width, kernel, stride, padding)))
        if norm != "none":
            layers.append((f"norm{number + 1}", image_norm(norm, width)))
        layers.append((f"act{number + 1}", ACTIVATIONS[activation]()))
        channels, size = width, (size + 2 * padding - kernel) // stride + 1
    if head == "average":
        layers.append(("pool", nn.AdaptiveAvgPool2d(1)))
    layers.append(("flatten", nn.Flatten()))
    layers.append(("head", nn.Linear(channels * (1 if head == "average" else size**2), outputs)))
    return nn.Sequential(OrderedDict(layers))


def image_norm(norm: str, width: int) -> nn.Module:
    """Batch norm, or group norm with at most eight groups."""
    if norm == "batch":
        # Batch statistics always: running ones are state that the loss, a pure function, could not update.
        return nn.BatchNorm2d(width, track_running_stats=False)
    return nn.GroupNorm(math.gcd(width, 8), width)


def autoencoder(
    shape: tuple[int, int, int], widths: Sequence[int], code: int, activation: str
) -> nn.Sequential:
    """Images (B, C, H, W) -> code -> reconstructed pixels (B, C*H*W); the decoder mirrors the encoder."""
    pixels = math.prod(shape)
    decoder = mlp(code, widths[::-1], pixels, activation)
    encoder = mlp(pixels, widths, code, activation)
    return nn.Sequential(
        OrderedDict([("encoder", encoder), ("act", ACTIVATIONS[activation]()), ("decoder", decoder[1:])])
    )


def siren(widths: Sequence[int], outputs: int, frequency: float) -> nn.Sequential:
    """Coordinates (B, 2) -> values (B, outputs), with the initialisation of the SIREN paper (section 3.2)."""
    layers: list[tuple[str, nn.Module]] = []
    for number, (fan_in, width) in enumerate(zip([2, *widths], [*widths, outputs], strict=True), 1):
        linear = nn.Linear(fan_in, width)
        bound = 1 / fan_in if number == 1 else math.sqrt(6 / fan_in) / frequency
        nn.init.uniform_(linear.weight, -bound, bound)
        layers.append((f"linear{number}", linear))
        if number <= len(widths):
            layers.append((f"sine{number}", Sine(frequency)))
    return nn.Sequential(OrderedDict(layers))


class TransformerLanguageModel(nn.Module):
    """Pre-norm decoder-only transformer; codes (B, L) -> logits (B, L, characters)."""

    def __init__(self, characters: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.1 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(codes) + self.position)))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on (B, L, D)."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class Attention(nn.Module):
    """Multi-head attention of each position of (B, L, D) to all of `source`; of its own, if there is none.

    If causal, a position attends to itself and the ones before alone.

    The heads have D // heads dimensions each, rounded down, so that any width will do.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        inner = heads * max(1, width // heads)
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        seen = x if source is None else source
        query, key, value = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        # Spelled out: the fused attention kernels have no second derivative.
        scores = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        if self.causal:
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        mixed = scores.softmax(-1) @ value
        return self.output(mixed.transpose(1, 2).flatten(2))


class Point(nn.Module):
    """A bare parameter vector x (D,); forward(offset) = x + offset."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(dimension))

    def forward(self, offset: Tensor) -> Tensor:
        return self.x + offset
