"""FSDP2 with a sharded checkpoint: torchrun --nproc-per-node 2 fsdp2.py [RULE]"""

from __future__ import annotations

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
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
    model, data = network(), dataset()
    # Sharded parameters cannot be traced, so this comes first.
    graph = lopt.ParameterGraph.trace(model, (data[0][0][None],))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = lopt.LearnedOptimizer(model.named_parameters(), rule=rule, graph=graph)
    losses = []
    for epoch in range(epochs):
        sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data, seed=epoch)
        for images, labels in DataLoader(data, 32, sampler=sampler):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    save_and_load(model, optimizer, folder[0])
    dist.destroy_process_group()
    return losses


def save_and_load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    """Every rank writes and reads its own shards."""
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    weights, state = get_state_dict(model, optimizer)
    loaded = {"model": weights, "optimizer": state}
    checkpoint.load(loaded, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])


if __name__ == "__main__":
    print(f"last loss {main(*sys.argv[1:])[-1]:.4f}")
