"""Models of data: a diffusion denoiser, a normalising flow and a variational autoencoder, all of digits.

B examples, D dimensions, C channels. Noise is drawn once for each copy of an image, so that batches and evaluation
are plain examples.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from meta_tasks.meta_test.kind import Kind, digits
from meta_tasks.module_task import Pair, squared_error
from meta_tasks.networks import mlp

COPIES = 4
LEVELS = 17
"""Grey values of a digit."""


class Denoiser(nn.Module):
    """Noisy images (B, 1, H, W) and times (B, 1) -> the noise in them; residual, told of the time in each block."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, channels), nn.SiLU())
        self.enter = nn.Conv2d(1, channels, 3, padding=1)
        self.shifts = nn.ModuleList(nn.Linear(channels, channels) for _ in range(depth))
        self.blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.leave = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        time, x = self.time(times), self.enter(images)
        for shift, block in zip(self.shifts, self.blocks, strict=True):
            x = x + block(F.silu(x + shift(time)[:, :, None, None]))
        return self.leave(F.silu(x))


def noisy_digits(split: str, generator: Generator) -> Pair:
    """cos(pi t / 2) x + sin(pi t / 2) noise, t uniform (Nichol and Dhariwal 2021, arXiv 2102.09672, section 3.2)."""
    images = 2 * digits(split, COPIES)[0] - 1
    times = torch.rand(len(images), 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    angle = (math.pi / 2 * times)[:, :, None, None]
    return (angle.cos() * images + angle.sin() * noise, times), noise


class Flow(nn.Module):
    """Affine couplings (Dinh et al. 2017, arXiv 1605.08803): (B, D) -> log density (B,) in nats per dimension."""

    def __init__(self, dimensions: int, width: int, depth: int) -> None:
        super().__init__()
        half = dimensions // 2
        self.log_scale = nn.Parameter(torch.zeros(dimensions))
        self.shift = nn.Parameter(torch.zeros(dimensions))
        self.couplings = nn.ModuleList(mlp(half, (width,), 2 * half, "relu") for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.shift) * self.log_scale.exp()
        volume = self.log_scale.sum()
        for coupling in self.couplings:
            kept, moved = x.chunk(2, -1)
            log_scale, shift = coupling(kept).chunk(2, -1)
            log_scale = torch.tanh(log_scale)
            x = torch.cat([moved * log_scale.exp() + shift, kept], -1)
            volume = volume + log_scale.sum(-1)
        log_density = -(x.square() + math.log(2 * math.pi)).sum(-1) / 2
        return (log_density + volume) / x.shape[-1]


def dequantised(split: str, generator: Generator) -> Pair:
    """Digits (N, D) with uniform noise as wide as a grey value: values from 0 to 1."""
    images = digits(split, COPIES)[0].flatten(1)
    x = ((LEVELS - 1) * images + torch.rand(images.shape, generator=generator)) / LEVELS
    return x, x


def discrete_likelihood(log_density: Tensor, _: Tensor) -> dict[str, Tensor]:
    """Nats per pixel of the grey values themselves, a bound from above, so never below 0 in expectation."""
    return {"loss": math.log(LEVELS) - log_density.mean()}


class VariationalAutoencoder(nn.Module):
    """Pixels (B, D) and noise (B, code) -> logits (B, D) and the code's mean and log variance (B, code).

    Source: Kingma and Welling 2014 (arXiv 1312.6114), appendix C.
    """

    def __init__(self, pixels: int, width: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, width), nn.Tanh())
        self.mean, self.log_variance = nn.Linear(width, code), nn.Linear(width, code)
        self.decoder = mlp(code, (width,), pixels, "tanh")

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(pixels)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        return self.decoder(mean + (log_variance / 2).exp() * noise), mean, log_variance


def digits_and_noise(split: str, generator: Generator) -> Pair:
    """Pixels and a draw of the code's noise; the pixels again."""
    pixels = digits(split, COPIES)[0].flatten(1)
    return (pixels, torch.randn(len(pixels), CODE, generator=generator)), pixels


def evidence_bound(outputs: tuple[Tensor, Tensor, Tensor], pixels: Tensor) -> dict[str, Tensor]:
    """Negative evidence lower bound in nats per pixel, and its two parts."""
    logits, mean, log_variance = outputs
    reconstruction = F.binary_cross_entropy_with_logits(logits, pixels.to(logits.dtype))
    divergence = (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1).mean() / 2
    rate = divergence / pixels.shape[-1]
    return {"loss": reconstruction + rate, "reconstruction": reconstruction, "rate": rate}


CODE = 8

KINDS = {
    "diffusion": Kind(lambda: Denoiser(16, 2), noisy_digits, squared_error),
    "flow": Kind(lambda: Flow(64, 64, 4), dequantised, discrete_likelihood),
    "vae": Kind(lambda: VariationalAutoencoder(64, 64, CODE), digits_and_noise, evidence_bound),
}
