"""Hugging Face Trainer: python huggingface_trainer.py [RULE]   (pip install transformers accelerate)"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

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


class Digits(nn.Module):
    """The network with its loss, as Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


def main(
    rule: str | Rule = "lopt-base",
    steps: int = 29,
    folder: str | None = None,
    resume: bool = False,
    **arguments: Any,
) -> list[float]:
    """The loss of every batch; with `resume`, continues from the last checkpoint in `folder`."""
    model = Digits()
    optimizer = lopt.LearnedOptimizer(
        model.named_parameters(), rule=rule, graph=lopt.trace_on_first_forward(model), total_steps=steps
    )
    # lr=1.0 is right for a learned rule; a schedule of Trainer's would multiply it.
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    settings = TrainingArguments(
        output_dir=folder or tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=64,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no", **arguments},
    )
    trainer = Trainer(model, settings, collate, dataset(), optimizers=(optimizer, constant))
    trainer.train(resume_from_checkpoint=resume)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


if __name__ == "__main__":
    print(f"last loss {main(*sys.argv[1:])[-1]:.4f}")
