"""A graph network of PyTorch Geometric: python pyg_nodes.py [RULE]"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv

import lopt
from lopt.rules import Rule


class GCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GCNConv(64, 32), GCNConv(32, 10)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def neighbours(count: int = 300, degree: int = 5) -> Data:
    """Digits as nodes, each joined to those that look most alike; every third one shows its label."""
    digits = load_digits()
    x = torch.tensor(digits.data[:count], dtype=torch.float32) / 16
    nearest = torch.cdist(x, x).topk(degree + 1, largest=False).indices[:, 1:]
    edges = torch.stack([nearest.reshape(-1), torch.arange(count).repeat_interleave(degree)])
    return Data(
        x=x, edge_index=edges, y=torch.tensor(digits.target[:count]), shown=torch.arange(count) % 3 == 0
    )


def main(rule: str | Rule = "lopt-base", steps: int = 30) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    data, model = neighbours(), GCN()
    graph = lopt.trace_on_first_forward(model)
    optimizer = lopt.LearnedOptimizer(model.named_parameters(), rule=rule, graph=graph, total_steps=steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(data.x, data.edge_index)
        loss = nn.functional.cross_entropy(logits[data.shown], data.y[data.shown])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(f"last loss {main(*sys.argv[1:])[-1]:.4f}")
