"""Sequences: one into another, over a long memory, and signals like those of speech.

B examples, L positions, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from meta_tasks.meta_test.kind import SIZES, Kind
from meta_tasks.module_task import Pair, squared_error
from meta_tasks.networks import Attention, TransformerBlock

SYMBOLS, LENGTH, MEMORY = 12, 8, 24
SAMPLES, RATE, VOWELS = 256, 4000.0, 6


class EncoderDecoder(nn.Module):
    """Symbols (B, L) and the target's symbols before each position (B, L) -> logits (B, L, symbols).

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.1; pre-norm, positions learned.
    """

    def __init__(self, symbols: int, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.source, self.target = (nn.Embedding(symbols + 1, width) for _ in range(2))
        self.source_position, self.target_position = (
            nn.Parameter(0.1 * torch.randn(length, width)) for _ in range(2)
        )
        self.encoder = TransformerBlock(width, heads, causal=False)
        self.encoded = nn.LayerNorm(width)
        self.decoder = TransformerBlock(width, heads)
        self.norm = nn.LayerNorm(width)
        self.across = Attention(width, heads, causal=False)
        self.decoded = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        memory = self.encoded(self.encoder(self.source(source) + self.source_position))
        x = self.decoder(self.target(before) + self.target_position)
        x = x + self.across(self.norm(x), memory)
        return self.head(self.decoded(x))


def sorting(split: str, generator: Generator) -> Pair:
    """Random symbols; the target has them in order. The symbol before the first is one of its own."""
    source = torch.randint(SYMBOLS, (SIZES[split], LENGTH), generator=generator)
    target = source.sort(-1).values
    start = torch.full((len(source), 1), SYMBOLS)
    return (source, torch.cat([start, target[:, :-1]], 1)), target


class GatedRecurrence(nn.Module):
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078): series (B, L, inputs) -> values (B, 1) at the end.

    r, z = sigmoid(W x_t + U h);  h <- z h + (1 - z) tanh(V x_t + R (r h)).  Spelled out: see `meta_tasks.recurrent`.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.gates_in, self.new_in = nn.Linear(inputs, 2 * width), nn.Linear(inputs, width)
        self.gates = nn.Linear(width, 2 * width, bias=False)
        self.new = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 1)

    def forward(self, series: Tensor) -> Tensor:
        gates_in, new_in = self.gates_in(series), self.new_in(series)
        hidden = torch.zeros_like(new_in[:, 0])
        for gate, new in zip(gates_in.unbind(1), new_in.unbind(1), strict=True):
            reset, keep = torch.sigmoid(gate + self.gates(hidden)).chunk(2, -1)
            hidden = keep * hidden + (1 - keep) * torch.tanh(new + self.new(reset * hidden))
        return self.head(hidden)


def adding(split: str, generator: Generator) -> Pair:
    """Sum of the two marked numbers of a series, one in each half, standardised.

    Source: Hochreiter and Schmidhuber 1997, section 5.4.
    """
    numbers = torch.rand(SIZES[split], MEMORY, generator=generator)
    places = torch.randint(MEMORY // 2, (len(numbers), 2), generator=generator) + torch.tensor(
        [0, MEMORY // 2]
    )
    marks = torch.zeros_like(numbers).scatter_(1, places, 1.0)
    total = (numbers * marks).sum(1, keepdim=True)
    return torch.stack([numbers, marks], -1), (total - 1) * math.sqrt(6)


def vowels(split: str, generator: Generator) -> Pair:
    """Harmonics of a random pitch under two resonances, which tell the class, with noise: (N, 1, samples)."""
    labels = torch.randint(VOWELS, (SIZES[split],), generator=generator)
    first = torch.tensor([300.0, 400.0, 550.0, 700.0, 450.0, 350.0])
    second = torch.tensor([1600.0, 1400.0, 1250.0, 1000.0, 800.0, 700.0])
    spread = 1 + 0.08 * torch.randn(2, len(labels), 1, generator=generator)
    resonances = torch.stack([first, second])[:, labels, None] * spread
    pitch = 90 + 110 * torch.rand(len(labels), 1, generator=generator)
    frequencies = pitch * torch.arange(1, 17)
    heights = (1 / (1 + ((frequencies - resonances) / 80) ** 2)).sum(0)
    phases = 2 * math.pi * torch.rand(frequencies.shape, generator=generator)
    time = torch.arange(SAMPLES) / RATE
    waves = torch.sin(2 * math.pi * frequencies[..., None] * time + phases[..., None])
    signal = (heights[..., None] * waves).sum(1, keepdim=True)
    signal = signal / signal.std(-1, keepdim=True)
    return signal + 0.3 * torch.randn(signal.shape, generator=generator), labels


def listener() -> nn.Module:
    """One-dimensional convolutions on signals (B, 1, samples) -> logits (B, vowels)."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 17, 4), nn.ReLU(),
        nn.Conv1d(16, 32, 5, 2), nn.ReLU(),
        nn.Conv1d(32, 32, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, VOWELS),
    )  # fmt: skip


KINDS = {
    "seq2seq": Kind(lambda: EncoderDecoder(SYMBOLS, LENGTH, 24, 3), sorting),
    "gru_memory": Kind(lambda: GatedRecurrence(2, 24), adding, squared_error),
    "speech": Kind(listener, vowels),
}
