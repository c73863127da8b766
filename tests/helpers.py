"""Small things that many tests need: hand-made graphs, networks with known symmetries, tiny tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lopt.graph import AxisGroup, ParameterGraph, ParameterSpec
from lopt.inner.task import Task, TaskFamily
from lopt.rules import LearnedRule, LearnedRuleConfig
from lopt.rules.base import Rule, State


def seeded(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def hand_graph(sizes: Mapping[str, int], parameters: Mapping[str, str]) -> ParameterGraph:
    """A graph written by hand. Groups by name and size: those in capitals stay in place, the others permute.

    A parameter is its kinds and axes: "weight out:hidden in:channel*POSITION", or, in blocks,
    "query,key,value out:head*q+head*q+head*v in:stream".
    """
    ids = {name: index for index, name in enumerate(sizes)}
    members: dict[str, list[tuple[str, int]]] = {name: [] for name in sizes}
    specs = {}
    for depth, (name, text) in enumerate(parameters.items()):
        kinds, *axes = text.split()
        roles, shape, built = [], [], []
        for dim, axis in enumerate(axes):
            role, _, atoms = axis.partition(":")
            segments = [segment.split("*") if segment else [] for segment in atoms.split("+")]
            for group in {group for segment in segments for group in segment}:
                members[group].append((name, dim))
            roles.append(role)
            shape.append(sum(math.prod(sizes[group] for group in segment) for segment in segments))
            built.append(tuple(tuple(ids[group] for group in segment) for segment in segments))
        blocks = tuple(kinds.split(",")) if "," in kinds else ()
        specs[name] = ParameterSpec(
            name,
            tuple(shape),
            tuple(built),
            kinds.split(",")[0],
            tuple(roles),
            blocks,
            depth / len(parameters),
        )
    groups = tuple(
        AxisGroup(ids[name], size, name.lower(), name.islower(), tuple(members[name]))
        for name, size in sizes.items()
    )
    return ParameterGraph(specs, groups, {}, "traced")


def randomised(rule: Rule, seed: int = 0, scale: float = 0.1) -> Any:
    """The rule with noise on all meta-parameters, so that no head is at zero."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return rule


def small_rule(seed: int = 0, scale: float = 0.1, rate: float = 5e-3, **config: Any) -> LearnedRule:
    """A narrow learned rule in float64 with every meta-parameter away from zero."""
    torch.manual_seed(seed)
    options = config.pop("metanet_options", {"width": 4, "neuron_width": 6, "layers": 2})
    rule = LearnedRule(LearnedRuleConfig(metanet_options=options, rate=rate, **config)).double()
    return randomised(rule, seed, scale)


def relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference within each tensor, relative to the largest entry of that tensor."""
    errors = [
        ((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        for name, value in expected.items()
        if value.numel()
    ]
    return max(error if math.isfinite(error) else math.inf for error in errors)


def flat_state(state: State) -> dict[str, Tensor]:
    return {f"{name}/{key}": value for name, entry in state.items() for key, value in entry.items()}


@dataclass
class Network:
    """A network in float64, one batch for it, and its graph written by hand."""

    module: nn.Module
    inputs: Tensor
    targets: Tensor
    graph: ParameterGraph

    @property
    def params(self) -> dict[str, Tensor]:
        """Every parameter away from zero and one, as zero biases hide wrong permutations."""
        generator = seeded(5)
        return {
            name: p.detach() + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for name, p in self.module.named_parameters()
        }

    def loss(self, params: Mapping[str, Tensor]) -> Tensor:
        outputs = torch.func.functional_call(self.module, dict(params), (self.inputs,))
        return nn.functional.cross_entropy(outputs, self.targets)


def _network(module: nn.Module, shape: tuple[int, ...], graph: ParameterGraph) -> Network:
    generator = seeded(3)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (shape[0],), generator=generator)
    return Network(module.double(), inputs, targets, graph)


def mlp() -> Network:
    """4 -> 6 -> 6 -> 3: two hidden layers of one size, so that they could be mistaken for each other."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    sizes = {"INPUT": 4, "first": 6, "second": 6, "OUTPUT": 3}
    parameters = {
        "0.weight": "weight out:first in:INPUT",
        "0.bias": "bias out:first",
        "2.weight": "weight out:second in:first",
        "2.bias": "bias out:second",
        "4.weight": "weight out:OUTPUT in:second",
        "4.bias": "bias out:OUTPUT",
    }
    return _network(module, (8, 4), hand_graph(sizes, parameters))


def cnn(bias: bool = False) -> Network:
    """Two convolutions with batch norm, then a flatten of 5 channels x 4 positions."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=bias),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=bias),
        nn.BatchNorm2d(5, track_running_stats=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    sizes = {"IMAGE": 1, "first": 4, "second": 5, "TAPY": 3, "TAPX": 3, "POSITION": 4, "OUTPUT": 3}
    parameters = {
        "0.weight": "weight out:first in:IMAGE tap:TAPY tap:TAPX",
        "0.bias": "bias out:first",
        "1.weight": "scale out:first",
        "1.bias": "shift out:first",
        "3.weight": "weight out:second in:first tap:TAPY tap:TAPX",
        "3.bias": "bias out:second",
        "4.weight": "scale out:second",
        "4.bias": "shift out:second",
        "7.weight": "weight out:OUTPUT in:second*POSITION",
        "7.bias": "bias out:OUTPUT",
    }
    if not bias:
        del parameters["0.bias"], parameters["3.bias"]
    return _network(module, (6, 1, 4, 4), hand_graph(sizes, parameters))


class ResidualBlock(nn.Module):
    """A residual stream of 4 channels with a branch of 5, and a linear head over the mean of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(4, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5, track_running_stats=False)
        self.outer = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(torch.relu(self.norm(self.inner(x))))
        return self.head(torch.relu(x).mean((2, 3)))


def resnet() -> Network:
    torch.manual_seed(0)
    sizes = {"IMAGE": 2, "stream": 4, "branch": 5, "TAPY": 3, "TAPX": 3, "ONE": 1, "OUTPUT": 3}
    parameters = {
        "stem.weight": "weight out:stream in:IMAGE tap:TAPY tap:TAPX",
        "inner.weight": "weight out:branch in:stream tap:TAPY tap:TAPX",
        "norm.weight": "scale out:branch",
        "norm.bias": "shift out:branch",
        "outer.weight": "weight out:stream in:branch tap:ONE tap:ONE",
        "outer.bias": "bias out:stream",
        "head.weight": "weight out:OUTPUT in:stream",
        "head.bias": "bias out:OUTPUT",
    }
    return _network(ResidualBlock(), (6, 2, 4, 4), hand_graph(sizes, parameters))


NETWORKS: dict[str, Callable[[], Network]] = {"mlp": mlp, "cnn": cnn, "resnet": resnet}


class TinyTask(Task):
    """Regression on a random linear target by a 3 -> `width` -> 2 tanh network."""

    def __init__(self, width: int = 4, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> None:
        self.name = f"tiny/{width}"
        self.width, self.dtype, self.spread = width, dtype, spread
        self.target = torch.randn(3, 2, generator=seeded(11), dtype=dtype)

    def init(self, count: int, generator: Generator) -> dict[str, Tensor]:
        shapes = {"w": (self.width, 3), "b": (self.width,), "v": (2, self.width)}
        return {
            name: self.spread * torch.randn(count, *shape, generator=generator, dtype=self.dtype) / 2
            for name, shape in shapes.items()
        }

    def sample(self, split: str, count: int, generator: Generator) -> Tensor:
        return torch.randn(count, 8, 3, generator=generator, dtype=self.dtype)

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        hidden = torch.tanh(batch @ params["w"].T + params["b"])
        return (hidden @ params["v"].T - torch.tanh(batch @ self.target)).square().mean()

    def metrics(self, params: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
        return {"loss": self.loss(params, self.sample(split, 1, seeded(12))[0])}

    def trace(self) -> ParameterGraph:
        sizes = {"INPUT": 3, "hidden": self.width, "OUTPUT": 2}
        parameters = {
            "w": "weight out:hidden in:INPUT",
            "b": "bias out:hidden",
            "v": "weight out:OUTPUT in:hidden",
        }
        return hand_graph(sizes, parameters)


class TinyFamily(TaskFamily):
    """Tiny tasks of some widths."""

    def __init__(self, name: str = "tiny", widths: tuple[int, ...] = (3, 4, 5)) -> None:
        self.name, self.widths = name, widths

    def sample_spec(self, generator: Generator) -> dict[str, Any]:
        return {"width": self.widths[int(torch.randint(len(self.widths), (), generator=generator))]}

    def build(self, spec: Mapping[str, Any]) -> Task:
        return TinyTask(spec["width"])
