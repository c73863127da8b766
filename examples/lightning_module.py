"""Lightning: python lightning_module.py [RULE]   (pip install lightning)"""

from __future__ import annotations

import sys
from typing import Any

import lightning
import torch
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
