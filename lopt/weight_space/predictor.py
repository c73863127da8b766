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
from lopt.weight_space.fitting import FitOptions, Networks, check_examples, fit, predict
from lopt.weight_space.network_park import NetworkPark
from lopt.weight_space.network_set import SPLITS, Network, NetworkSet, Tensors, listed
from lopt.weight_space.park_readers import ParkReader, make_park_reader
from lopt.weight_space.readers import Reader
from lopt.weight_space.systems import make_reader
from lopt.weight_space.trained import Description, filled, read, shapes_of, write

OPTIONS = FitOptions(passes=12_000, weight_decay=0.05)
"""Of a training."""
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
        self, networks: str | os.PathLike[str] | Sequence[Network] | NetworkPark, coverage: float = COVERAGE
    ) -> list[Prediction]:
        """Of each model, state dict or file (a folder stands for its files), of one architecture; of many, of each
        network of a park.

        Raises `ConfigError` for a network of another architecture, and for one thing in the place of the other,
        `DataError` for one network in the place of several.
        """
        if isinstance(networks, NetworkPark) != self.description.many:
            wanted, found = ("a park", "others") if self.description.many else ("single ones", "a park")
            raise ConfigError(f"networks: expected {wanted}, which this predictor is for, found {found}")
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


def train_predictor(
    networks: NetworkSet | NetworkPark,
    column: str = "accuracy",
    reader: str = "nfn_np",
    probes: int = 0,
    options: FitOptions | None = None,
) -> Predictor:
    """Train a reader on the training networks of a set or park, and measure its errors on the validation networks.

    reader, probes: as `make_reader` or `make_park_reader` has them. What the test networks say is in the predictor's
    card, if there are any.
    Raises `DataError` if a column or a split is missing, or a number is not finite.
    """
    if column not in networks.columns:
        there = ", ".join(networks.columns) or "none"
        raise DataError(f"{column}: expected a column of the networks, which are {there}")
    train, held_out = networks.split("train"), networks.split("validation")
    check_examples(networks, networks.columns[column])
    known = train.columns[column].float()
    options = options or OPTIONS
    many = isinstance(networks, NetworkPark)
    like = train.widest if isinstance(train, NetworkPark) else train
    description = Description(
        kind="predictor", target=column, reader=reader, probes=probes, many=many, shapes=shapes_of(like),
        architecture=dict(like.header.get("architecture", {})),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        predictor = Predictor(_made(description, train), description, like.graph, len(held_out))
        predictor.mean.copy_(known.mean())
        predictor.std.copy_(known.std(correction=0).clamp_min(1e-12))
        fit(
            predictor.reader,
            train,
            (known - predictor.mean) / predictor.std,
            options,
            desc=f"{reader}: {column}",
        )
    predictor.errors.copy_((predictor.values(held_out) - held_out.columns[column].float()).abs())
    card = {
        "networks": networks.header.get("name", "own"),
        "trained on": len(train),
        "held out": len(held_out),
    }
    card |= {"training": options.model_dump(), "test": figures(predictor, networks)}
    predictor.description = description.but(card=card)
    return predictor.eval()


def _made(description: Description, networks: NetworkSet | NetworkPark) -> Reader | ParkReader:
    """A fresh reader of networks such as these."""
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
