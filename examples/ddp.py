"""DistributedDataParallel: torchrun --nproc-per-node 2 ddp.py [RULE]"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

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


def main(rule: str | Rule = "lopt-base", epochs: int = 1) -> list[float]:
    """The loss of every batch of this rank."""
    dist.init_process_group("gloo")
    model = network()
    graph = lopt.trace_on_first_forward(model)
    parallel = DistributedDataParallel(model)
    optimizer = lopt.LearnedOptimizer(parallel.named_parameters(), rule=rule, graph=graph)
    data = dataset()
    sampler: DistributedSampler[tuple[object, ...]] = DistributedSampler(data)
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for images, labels in DataLoader(data, 32, sampler=sampler):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(parallel(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    print(f"last loss {main(*sys.argv[1:])[-1]:.4f}")
