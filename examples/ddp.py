"""DistributedDataParallel: torchrun --nproc-per-node 2 -m examples.ddp [RULE]"""

from __future__ import annotations

import sys

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import lopt
from examples.digits import dataset, network
from lopt.rules import Rule


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
