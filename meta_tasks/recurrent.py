"""Recurrent language models, spelled out step by step: the fused kernels of torch can be neither mapped nor
differentiated twice.

B examples, L characters, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RecurrentLanguageModel(nn.Module):
    """Elman network, h_t = tanh(W x_t + U h_(t-1)) in each of `depth` layers.

    Codes (B, L) -> logits (B, L, characters).
    """

    def __init__(self, characters: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.inputs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.recurrent = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.head = nn.Linear(width, characters)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes)
        for inputs, recurrent in zip(self.inputs, self.recurrent, strict=True):
            x = _scan(inputs(x), recurrent)
        return self.head(x)


def _scan(driven: Tensor, recurrent: nn.Module) -> Tensor:
    """h_t = tanh(driven_t + recurrent(h_(t-1))) over axis 1, h_(-1) = 0."""
    first, *rest = driven.unbind(1)
    states = [torch.tanh(first)]
    for step in rest:
        states.append(torch.tanh(step + recurrent(states[-1])))
    return torch.stack(states, 1)


class LstmLanguageModel(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) in each of `depth` layers.

    i, f, g, o = W x_t + U h_(t-1) + b;  c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g);  h_t = sigmoid(o) tanh(c_t)

    The bias of the forget gate starts at 1 (Jozefowicz et al. 2015). Codes (B, L) -> logits (B, L, characters).
    """

    def __init__(self, characters: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.inputs = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.recurrent = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(depth))
        self.head = nn.Linear(width, characters)
        for layer in self.inputs:
            nn.init.ones_(layer.bias[width : 2 * width])  # type: ignore[index]

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes)
        for inputs, recurrent in zip(self.inputs, self.recurrent, strict=True):
            x = _remember(inputs(x), recurrent)
        return self.head(x)


def _remember(driven: Tensor, recurrent: nn.Module) -> Tensor:
    """The hidden states (B, L, D) of an LSTM whose gates are driven_t + recurrent(h_(t-1)), (B, L, 4 D)."""
    first, *rest = driven.unbind(1)
    cell, hidden = _cell(first, None)
    states = [hidden]
    for step in rest:
        cell, hidden = _cell(step + recurrent(hidden), cell)
        states.append(hidden)
    return torch.stack(states, 1)


def _cell(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    enter, keep, new, out = gates.chunk(4, -1)
    entering = torch.sigmoid(enter) * torch.tanh(new)
    cell = entering if cell is None else torch.sigmoid(keep) * cell + entering
    return cell, torch.sigmoid(out) * torch.tanh(cell)
