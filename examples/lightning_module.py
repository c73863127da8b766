"""Lightning: python -m examples.lightning_module [RULE]   (pip install lightning)"""

from __future__ import annotations

import sys
from typing import Any

import lightning
from torch import Tensor, nn

import lopt
from examples.digits import loader, network
from lopt.rules import Rule


class Digits(lightning.LightningModule):
    def __init__(self, optimizer_rule: str | Rule) -> None:
        super().__init__()
        self.model = network()
        # In a tuple, because a Rule is a module and would become a part of this one.
        self.optimizer_rule = (optimizer_rule,)
        self.losses: list[float] = []

    def configure_optimizers(self) -> lopt.LearnedOptimizer:
        graph = lopt.trace_on_first_forward(self.model)
        return lopt.LearnedOptimizer(self.model.named_parameters(), rule=self.optimizer_rule[0], graph=graph)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.losses.append(loss.item())
        return loss


def main(
    rule: str | Rule = "lopt-base", epochs: int = 1, checkpoint: str | None = None, **options: Any
) -> list[float]:
    """The loss of every batch; `checkpoint` is one of Lightning's to continue from."""
    module = Digits(rule)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **options}
    trainer = lightning.Trainer(max_epochs=epochs, **options)
    trainer.fit(module, loader(), ckpt_path=checkpoint)
    return module.losses


if __name__ == "__main__":
    print(f"last loss {main(*sys.argv[1:])[-1]:.4f}")
