"""What the weights of a network tell of it, such as its accuracy, without its data, and how surely.

    predictor = train_predictor(load("zoo.safetensors"), "accuracy", "nfn_np")
    predictor.save("accuracy.safetensors")
    load_predictor("accuracy.safetensors").predict([model, "checkpoint.safetensors"])

The interval is that of split conformal prediction (Vovk et al. 2005; Lei et al. 2018, arXiv 1604.04173):

    value +- the k-th smallest |error| on n held-out networks,   k = ceil((n + 1) coverage)

which holds a further network of the same kind that often, whatever the reader; where several checkpoints of each
network are held out, or several networks of each architecture, about so often. Held out are the validation networks,
which choose nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lopt.errors import ConfigError, DataError
from lopt.files import user_path
from lopt.graph import ParameterGraph
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space.architecture import architecture_of
from lopt.weight_space.fitting import FitOptions, Networks, check_examples, fit, predict
from lopt.weight_space.grading import GRADED, fit_grader, make_grader, make_park_grader
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import SPLITS, Network, NetworkSet, Tensors, listed, shapes_of
from lopt.weight_space.park_readers import ParkProbes, ParkReader, make_park_reader
from lopt.weight_space.readers import ProbeReader, Reader
from lopt.weight_space.systems import make_reader
from lopt.weight_space.trained import Description, filled, read, write

OPTIONS = FitOptions(passes=12_000, weight_decay=0.05)
"""Of a training."""
GRADING = OPTIONS.but(passes=120_000)
"""Of its training, in which a pass costs next to nothing."""
COVERAGE = 0.9
SUFFIX = ".safetensors"


class Prediction(NamedTuple):
    """Of one network."""

    value: float
    low: float
    high: float


class Predictor(nn.Module):
    """A trained reader of one number, with the scale of that number and the errors on held-out networks."""

    def __init__(
        self,
        reader: Reader | ParkReader,
        description: Description,
        graph: ParameterGraph | None,
        held_out: int,
    ) -> None:
        super().__init__()
        self.reader, self.description, self.graph = reader, description, graph
        self.mean: Tensor
        self.std: Tensor
        self.errors: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("errors", torch.zeros(held_out))

    def values(self, networks: Tensors | Networks) -> Tensor:
        """(B) for networks, or their parameters (B, *shape)."""
        return self.mean + self.std * predict(self.reader, networks)[:, 0]

    def within(self, coverage: float = COVERAGE) -> float:
        """How far from the value the truth is, at most, in such a share of networks.

        Raises `ConfigError` for a share that so few held-out networks say nothing of.
        """
        count = len(self.errors)
        if not 0 < coverage < 1 or self._rank(coverage) > count:
            raise ConfigError(
                f"coverage: expected a number above 0 and at most {count / (count + 1):.3f}, as {count} held-out "
                f"networks allow; found {coverage}"
            )
        return self.errors.sort().values[self._rank(coverage) - 1].item()

    def _rank(self, coverage: float) -> int:
        return math.ceil((len(self.errors) + 1) * coverage)

    def predict(
        self,
        networks: str | os.PathLike[str] | Sequence[Network] | NetworkSet | NetworkPark,
        coverage: float = COVERAGE,
    ) -> list[Prediction]:
        """Of each model, state dict or file (a folder stands for its files), or each network of a set, of one
        architecture; of many, of each network of a park.

        Raises `ConfigError` for a network of another architecture, and for one thing in the place of the other,
        `DataError` for one network in the place of several.
        """
        if isinstance(networks, NetworkPark) != self.description.many:
            wanted, found = ("a park", "others") if self.description.many else ("single ones", "a park")
            raise ConfigError(f"networks: expected {wanted}, which this predictor is for, found {found}")
        if isinstance(networks, NetworkSet):
            networks = networks.states()
        if isinstance(networks, (Sequence, NetworkPark)) and not len(networks):
            return []
        within = self.within(coverage)
        told = networks if isinstance(networks, NetworkPark) else self._stacked(listed(networks))
        return [Prediction(v, v - within, v + within) for v in self.values(told).tolist()]

    def _stacked(self, networks: Sequence[Network]) -> Tensors:
        states = [self.description.state_of(network, number) for number, network in enumerate(networks)]
        return {name: torch.stack([state[name] for state in states]) for name in self.description.shapes}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        write(path, self, self.description, self.graph)

    def __str__(self) -> str:
        card, shapes = self.description.card, self.description.shapes
        tensors = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        of = "of many architectures" if self.description.many else f"with {tensors}"
        lines = [f"{self.description.reader}: {self.description.target} of networks {of}"]
        lines += [f"{name}: {value}" for name, value in card.items()]
        return "\n".join(lines)


@torchs_defaults()
def train_predictor(
    networks: NetworkSet | NetworkPark,
    column: str = "accuracy",
    reader: str = "nfn_np",
    probes: int = 0,
    options: FitOptions | None = None,
    images: Tensor | None = None,
) -> Predictor:
    """Train a reader on the training networks of a set or park, and measure its errors on the validation networks.

    reader, probes: as `make_reader` or `make_park_reader` has them; or "graded" with images (M, *inputs), which need no
    labels: they go into the predictor, which runs each network on them. What the test networks say is in the
    predictor's card, if there are any.
    Raises `DataError` if a column or a split is missing, or a number is not finite, `ConfigError` for images without
    "graded", or the other way round.
    """
    if (images is None) == (reader == GRADED):
        found = "none" if images is None else "some"
        raise ConfigError(f"reader {reader}: expected images beside {GRADED} alone, found {found}")
    if images is not None and probes:
        raise ConfigError(f"reader {reader}: expected no probes beside its images, found {probes}")
    if column not in networks.columns:
        there = ", ".join(networks.columns) or "none"
        raise DataError(f"{column}: expected a column of the networks, which are {there}")
    train, held_out = networks.split("train"), networks.split("validation")
    check_examples(networks, networks.columns[column])
    known = train.columns[column].float()
    options = options or (GRADING if reader == GRADED else OPTIONS)
    many = isinstance(networks, NetworkPark)
    like = train.widest if isinstance(train, NetworkPark) else train
    description = Description(
        kind="predictor", target=column, reader=reader, many=many,
        probes=probes if images is None else len(images), shapes=shapes_of(like.params),
        architecture=dict(like.header.get("architecture", {})),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        made = _made(description, train, images)
        predictor = Predictor(made, description, like.graph, len(held_out))
        predictor.mean.copy_(known.mean())
        predictor.std.copy_(known.std(correction=0).clamp_min(1e-12))
        wanted, desc = (known - predictor.mean) / predictor.std, f"{reader}: {column}"
        if images is None:
            fit(made, train, wanted, options, desc=desc)
        else:
            assert isinstance(made, ProbeReader | ParkProbes), "made above"
            fit_grader(made, train, wanted, options, desc=desc)
    predictor.errors.copy_((predictor.values(held_out) - held_out.columns[column].float()).abs())
    card = {
        "networks": networks.header.get("name", "own"),
        "trained on": len(train),
        "held out": len(held_out),
    }
    card |= {"training": options.model_dump(), "test": figures(predictor, networks)}
    predictor.description = description.but(card=card)
    return predictor.eval()


def _made(
    description: Description, networks: NetworkSet | NetworkPark, images: Tensor | None = None
) -> Reader | ParkReader:
    """A fresh reader of networks such as these; one that grades sees black images where none are given."""
    if description.reader == GRADED:
        like = networks.widest if isinstance(networks, NetworkPark) else networks
        given = torch.zeros(description.probes, *architecture_of(like).inputs) if images is None else images
        if isinstance(networks, NetworkPark):
            return make_park_grader(networks, given, 1)
        return make_grader(networks, given, 1)
    if isinstance(networks, NetworkPark):
        return make_park_reader(description.reader, networks, 1, description.probes)
    return make_reader(description.reader, networks, 1, description.probes)


def figures(predictor: Predictor, networks: NetworkSet | NetworkPark) -> dict[str, Any]:
    """What it is worth on the test networks of a set: mean error, R2, and how many lie in their interval."""
    if not (networks.splits == SPLITS.index("test")).any():
        return {}
    test = networks.split("test")
    truth = test.columns[predictor.description.target].float()
    errors = (predictor.values(test) - truth).abs()
    found = {
        "networks": len(test),
        "mean_error": errors.mean().item(),
        "r2": 1 - (errors.square().mean() / truth.var(correction=0)).item(),
    }
    if predictor._rank(COVERAGE) <= len(predictor.errors):
        found[f"within_{COVERAGE:.0%}"] = (errors <= predictor.within()).float().mean().item()
    return {name: round(value, 4) for name, value in found.items()}


@torchs_defaults()
def load_predictor(path: str | os.PathLike[str]) -> Predictor:
    """A file that `Predictor.save` wrote, or by its name one that ships with lopt (`shipped_predictors`).

    Raises `RuleFileError` if there is none, or if it is damaged or describes something else.
    """
    found = user_path(path)
    if str(path) in shipped_predictors():
        found = Path(str(resources.files("lopt.weight_space.pretrained").joinpath(f"{path}{SUFFIX}")))
    tensors, description, graph = read(found, "predictor")
    like = description.like(graph)
    with torch.random.fork_rng(devices=[]):
        made = _made(description, NetworkPark((like,)) if description.many else like)
    held_out = tensors["errors"].numel() if "errors" in tensors else 0
    return filled(found, Predictor(made, description, graph, held_out), tensors)


def shipped_predictors() -> list[str]:
    """Names of those that come with lopt."""
    files = [entry.name for entry in resources.files("lopt.weight_space.pretrained").iterdir()]
    return sorted(name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX))
