"""Whether a data set of implicit networks is what it is meant to be, before anything is concluded from it.

psnr                how well the networks show their images, in decibels: median and the worst twentieth
relative distance   |a - b| / rms(|a|, |b|) of pairs: about 1.4 for initial weights of their own, .2 for shared ones
psnr, label         correlation: how much the quality of a fit tells of the class
flat weights        an MLP on the weights: a fifth at most, or the initial weights were shared, another, easier task
rendered, pixels    the same MLP on the networks' renderings and on the images: what is there to be read
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lopt import files
from lopt.weight_space.fitting import FitOptions, fit, predict
from lopt.weight_space.network_set import NetworkSet, Tensors
from lopt.weight_space.readers import FlatMlp, Mlp, Reader
from lopt.weight_space.sirens import SirenShape, render

PAIRS = 512
ROUNDS, MOST_PASSES = 40, 200_000
"""Of the training of each MLP."""


@dataclass(frozen=True)
class Audit:
    """Figures of one data set, see the module; accuracies in percent, on the test networks."""

    networks: int
    psnr: float
    psnr_worst: float
    relative_distance: float
    psnr_with_label: float
    flat_weights: float | None = None
    rendered: float | None = None
    pixels: float | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.networks} networks, PSNR {self.psnr:.1f} dB (worst twentieth {self.psnr_worst:.1f})",
            f"relative distance {self.relative_distance:.2f} (1.4: own initial weights, .2: shared ones)",
            f"correlation of PSNR with the label {self.psnr_with_label:+.3f}",
        ]
        if self.rendered is not None:
            lines.append(
                f"MLP on flat weights {self.flat_weights:.1f} %, on what is rendered {self.rendered:.1f} %, on the "
                f"images {self.pixels:.1f} %"
            )
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """As JSON."""
        files.write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def audit(networks: NetworkSet, images: Tensor, points: Tensor) -> Audit:
    """Figures of networks with images (N, C, H, W) from 0 to 1, and the points (M, 2) of their pixels.

    Accuracies are left out where a split is missing.
    """
    psnr, labels = networks.columns["psnr"], networks.columns["label"].float()
    figures = Audit(
        len(networks), psnr.median().item(), psnr.quantile(0.05).item(), _distance(networks.params),
        torch.corrcoef(torch.stack([psnr, labels]))[0, 1].item(),
    )  # fmt: skip
    if not all((networks.splits == split).any() for split in (0, 2)):
        return figures
    passes = min(ROUNDS * len(networks), MOST_PASSES)
    shape = SirenShape(**networks.header["architecture"])
    classes = int(labels.max()) + 1
    flat = FlatMlp(networks.split("train"), classes, 256)
    accuracies = [_accuracy(flat, networks, passes)]
    rendered = torch.cat([render(shape, part, points) for part in _parts(networks.params, 256)])
    for values in (rendered, images):
        own = NetworkSet({"values": values.flatten(1)}, networks.columns, networks.splits)
        accuracies.append(_accuracy(_Values(own, classes), own, passes))
    return Audit(*list(asdict(figures).values())[:5], *accuracies)


class _Values(Reader):
    """An MLP on values, standardised all together."""

    def __init__(self, networks: NetworkSet, outputs: int) -> None:
        super().__init__()
        values = networks.split("train").params["values"]
        self.mean, self.std = values.mean().item(), values.std().item()
        self.layers = Mlp((values.shape[1], 256, 128, outputs))

    def forward(self, params: Tensors) -> Tensor:
        found: Tensor = self.layers((params["values"] - self.mean) / self.std)
        return found


def _accuracy(reader: Reader, networks: NetworkSet, passes: int) -> float:
    train, test = networks.split("train"), networks.split("test")
    fit(reader, train, train.columns["label"], FitOptions(passes=passes, lr=1e-3), desc="audit")
    return 100 * (predict(reader, test.params).argmax(1) == test.columns["label"]).double().mean().item()


def _distance(params: Tensors) -> float:
    """Median over pairs of networks that follow each other."""
    flat = torch.cat([value[:PAIRS].flatten(1) for value in params.values()], 1)
    a, b = flat[:-1], flat[1:]
    size = torch.sqrt((a.square().sum(1) + b.square().sum(1)) / 2)
    return ((a - b).norm(dim=1) / size).median().item()


def _parts(params: Tensors, size: int) -> list[Tensors]:
    count = len(next(iter(params.values())))
    return [{name: value[i : i + size] for name, value in params.items()} for i in range(0, count, size)]
