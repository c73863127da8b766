"""Whether a park of classifiers is what it is meant to be, before anything is concluded from it.

accuracy            at the last checkpoints: median, least and most
at chance           share of checkpoints within two deviations of guessing, whose order is an accident
relative distance   |a - b| / rms(|a|, |b|) of networks of one architecture: about 1.4 for initial weights of their own
architecture        share of the variance of accuracy that architecture and step tell: what no weight is needed for
again               Kendall's tau-b with a second measuring on as many images: no reader can be above it
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lopt import files
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.ranks import tau_b

MOST = 2000
"""Checkpoints whose pairs are counted."""


@dataclass(frozen=True)
class ParkAudit:
    """Figures of one park, see the module; accuracies from 0 to 1."""

    architectures: int
    checkpoints: int
    accuracy: float
    least: float
    most: float
    at_chance: float
    relative_distance: float
    architecture: float
    again: float

    def __str__(self) -> str:
        return (
            f"{self.checkpoints} checkpoints of {self.architectures} architectures; test accuracy at the end "
            f"{100 * self.accuracy:.1f} % (from {100 * self.least:.1f} to {100 * self.most:.1f})\n"
            f"{self.at_chance:.0%} at chance; relative distance {self.relative_distance:.2f} (1.4: own initial "
            "weights)\n"
            f"architecture and step alone tell {self.architecture:.0%} of the variance; tau of a second measuring "
            f"{self.again:.3f}"
        )

    def write(self, path: Path) -> None:
        """As JSON."""
        files.write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())


def audit_park(park: NetworkPark, measured: int, classes: int = 10) -> ParkAudit:
    """Figures of a park whose accuracies were measured on so many images."""
    columns, accuracy = park.columns, park.columns["accuracy"].double()
    last = accuracy[columns["step"] == columns["step"].max()]
    noise = (1 / classes * (1 - 1 / classes) / measured) ** 0.5
    some = accuracy[torch.linspace(0, len(accuracy) - 1, min(len(accuracy), MOST)).long()]
    generator = torch.Generator().manual_seed(0)
    again = torch.binomial(torch.full_like(some, measured), some, generator=generator)
    return ParkAudit(
        len(park.sets), len(park), last.median().item(), last.min().item(), last.max().item(),
        (accuracy < 1 / classes + 2 * noise).double().mean().item(),
        torch.stack([_distance(own) for own in park.sets]).median().item(),
        _told(accuracy, park.architectures * (columns["step"].max() + 1) + columns["step"]),
        tau_b(some, again / measured),
    )  # fmt: skip


def _distance(networks: NetworkSet) -> Tensor:
    """Of two networks."""
    other = int((networks.columns["network"] != networks.columns["network"][0]).nonzero()[0])
    a, b = (torch.cat([value[n].flatten() for value in networks.params.values()]) for n in (0, other))
    return (a - b).norm() / torch.sqrt((a.square().sum() + b.square().sum()) / 2)


def _told(values: Tensor, groups: Tensor) -> float:
    """Share of the variance that is between groups."""
    own = groups.unique(return_inverse=True)[1]
    count = torch.bincount(own)
    means = torch.zeros(len(count)).to(values).index_add(0, own, values) / count
    return ((means[own] - values.mean()).square().mean() / values.var(correction=0)).item()
