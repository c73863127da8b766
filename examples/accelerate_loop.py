"""Accelerate: python -m examples.accelerate_loop [RULE], or accelerate launch   (pip install accelerate)"""

from __future__ import annotations

import sys

from accelerate import Accelerator
from torch import nn

import lopt
from examples.digits import loader, network
from lopt.rules import Rule


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
