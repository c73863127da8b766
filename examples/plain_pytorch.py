"""A plain training loop: python -m examples.plain_pytorch [RULE]"""

from __future__ import annotations

import sys

from torch import nn

import lopt
from examples.digits import loader, network
from lopt.rules import Rule


def main(rule: str | Rule = "lopt-base", epochs: int = 1) -> list[float]:
    """The loss of every batch."""
    model, data = network(), loader()
    graph = lopt.trace_on_first_forward(model)
    optimizer = lopt.LearnedOptimizer(model.parameters(), rule=rule, graph=graph)
    losses = []
    for _ in range(epochs):
        for images, labels in data:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(f"last loss {main(*sys.argv[1:])[-1]:.4f}")
