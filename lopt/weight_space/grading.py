"""Accuracy told as a test tells it: what classifiers answer to given images, graded by labels that are learned.

    grader = make_grader(train, images, outputs=1)                          # train: a set of networks, or a park
    fit_grader(grader, train, targets, options, (validation, validation_targets))
    reader = make_reader("nfn_np", train, 1, functions=grader)              # and weights beside it, if wanted

An accuracy is the share of images whose class is told, so that is what the head is told, by labels of its own:

    y = head([1/M sum_m t_gm[c_m] for each g]),    c_m the class that a network gives image m

with G keys t_gm = softmax(learned) over the classes, which begin as how many of the networks tell a class of an image,
beside other images. The images need no labels and are the same for all networks: answers are found once, and keys and
head learn from these in a minute.
Shapes: N networks, B of them in a batch, M images, C classes, G keys, Y outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from lopt.errors import ConfigError
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space.architecture import Architecture, architecture_of
from lopt.weight_space.fitting import FitOptions, Fitted, Networks, check_examples, fit
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.park_readers import ParkProbes
from lopt.weight_space.readers import DROPOUT, Head, ProbeInputs, ProbeReader
from lopt.weight_space.sirens import Siren

GRADED = "graded"
"""What such a reader is called."""
KEYS, WIDTH = 16, 64
SPEED = 8.0
"""A rate that moves weights hardly moves what a softmax makes of a label."""
SHARP = 3.0
"""Of all networks, many of which know little, fewer are right than of the better ones."""


class Told(nn.Module):
    """Logits (B, M C) -> the class that is told of each image (B, M)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, logits: Tensor) -> Tensor:
        return logits.unflatten(1, (-1, self.classes)).argmax(2)


class Grader(nn.Module):
    """Classes told of M images (B, M) -> (B, Y)."""

    def __init__(self, images: int, classes: int, outputs: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(0.1 * torch.randn(images, classes, KEYS))
        self.head = Head(KEYS, WIDTH, WIDTH, outputs, dropout=DROPOUT)

    def forward(self, told: Tensor) -> Tensor:
        images, classes, _ = self.keys.shape
        keys = (SPEED * self.keys).softmax(1).flatten(0, 1)
        grades = embedding_bag(told + classes * torch.arange(images, device=told.device), keys, mode="mean")
        found: Tensor = self.head(grades)
        return found

    @torch.no_grad()
    def begin(self, told: Tensor) -> None:
        """Let the keys begin as how many networks (N, M) tell a class of an image, beside other images."""
        shares = torch.stack([(told == n).float().mean(0) for n in range(self.keys.shape[1])], 1)
        likely = (shares + 0.01).log()
        self.keys.add_(SHARP / SPEED * (likely - likely.mean(0))[..., None])


@dataclass(frozen=True)
class Answers:
    """What N networks told, to learn from in the place of the networks."""

    told: Tensor
    """(N, M)"""

    def __len__(self) -> int:
        return len(self.told)

    def batch(self, index: Tensor) -> Tensor:
        return self.told[index]

    def shuffled(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self), generator=generator)

    @property
    def finite(self) -> Tensor:
        return (self.told >= 0).all(1)


@torchs_defaults()
def make_grader(networks: NetworkSet, images: Tensor, outputs: int) -> ProbeReader:
    """A fresh reader of such classifiers by the classes that they tell of images (M, *inputs).

    Raises `ConfigError` for networks that lopt has no code of or that are no classifiers, and for images that they
    cannot see.
    """
    of = _of_classifiers(networks)
    _check_images(images, of.inputs)
    head = nn.Sequential(Told(of.reads), Grader(len(images), of.reads, outputs))
    return ProbeReader(of.runnable, ProbeInputs(images, "given"), of.reads, outputs, head)


@torchs_defaults()
def make_park_grader(park: NetworkPark, images: Tensor, outputs: int) -> ParkProbes:
    """The same of many architectures, of images in the most colours that any of them sees."""
    of = [_of_classifiers(own) for own in park.sets]
    _check_images(images, max(own.inputs for own in of))
    reads = of[0].reads
    head = nn.Sequential(Told(reads), Grader(len(images), reads, outputs))
    return ParkProbes(ProbeInputs(images, "given"), reads, outputs, head)


def _of_classifiers(networks: NetworkSet) -> Architecture:
    """Or it says that lopt has no code of them."""
    of = architecture_of(networks)
    if isinstance(of.runnable, Siren):
        raise ConfigError("grader: expected classifiers, found SIRENs, which tell no class")
    return of


def _check_images(images: Tensor, inputs: tuple[int, ...]) -> None:
    if not len(images) or images.shape[1:] != inputs:
        shape = ", ".join(map(str, inputs))
        raise ConfigError(f"grader: expected one or more images (M, {shape}), found {tuple(images.shape)}")


@torchs_defaults()
def fit_grader(
    reader: ProbeReader | ParkProbes,
    networks: Networks,
    targets: Tensor,
    options: FitOptions,
    validation: tuple[Networks, Tensor] | None = None,
    desc: str = "grader",
) -> Fitted:
    """As `fit`, but every network is run once. The time that takes is not in what is returned.

    For a fresh reader: its keys begin as what these networks tell.
    """
    for some, wanted in [(networks, targets), *([validation] if validation else [])]:
        check_examples(some, wanted)
    known, (_, grader) = answered(reader, networks), _parts(reader)
    grader.begin(known.told)
    others = validation and (answered(reader, validation[0]), validation[1])
    return fit(grader, known, targets, options, others, desc=desc)


@torch.no_grad()
def answered(reader: ProbeReader | ParkProbes, networks: Networks, batch: int = 64) -> Answers:
    """What networks tell of the reader's images."""
    told, _ = _parts(reader)
    parts = [told(reader.answers(networks.batch(rows))) for rows in torch.arange(len(networks)).split(batch)]
    return Answers(torch.cat(parts))


def _parts(reader: ProbeReader | ParkProbes) -> tuple[Told, Grader]:
    match list(reader.layers.children()):
        case [Told() as told, Grader() as grader]:
            return told, grader
    raise ConfigError("grader: expected a reader of `make_grader` or `make_park_grader`, found another one")
