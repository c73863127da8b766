"""Accelerate: python accelerate_loop.py [RULE], or accelerate launch   (pip install accelerate)"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lopt
from lopt.rules import Rule


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )


def dataset() -> TensorDataset:
    """The digits that come with scikit-learn: 1,797 images (1, 8, 8) with values in [0, 1], and their labels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    return TensorDataset(images, torch.tensor(digits.target))


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(dataset(), 64, shuffle=True, generator=torch.Generator().manual_seed(0))


def main(
    rule: str | Rule = "lopt-base", epochs: int = 1, accumulate: int = 1, precision: str = "no"
) -> list[float]:
    """The loss of every batch."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    model = network()
    graph = lopt.trace_on_first_forward(model)
    optimizer = lopt.LearnedOptimizer(model.named_parameters(), rule=rule, graph=graph)
    model, optimizer, data = accelerator.prepare(model, optimizer, loader())
    losses = []
    for _ in range(epochs):
        for images, labels in data:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(f"last loss {main(*sys.argv[1:])[-1]:.4f}")
