"""A task on an ordinary module: everything that is the same whatever the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lopt.graph import ParameterGraph
from lopt.inner.task import Task

Pair = tuple[Any, Tensor]
"""Inputs (a tensor, or a tuple of those that the module is called with) and targets."""


class ModuleTask(Task):
    """A module, called with other parameters through `torch.func.functional_call`.

    `build` makes a freshly initialised network on the CPU; it must draw its random numbers from torch's
    default generator, as the layers of `torch.nn` do.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        device: str | torch.device = "cpu",
        init_scale: float = 1.0,
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        self._build = build
        self._init_scale = init_scale
        with torch.random.fork_rng(devices=[]):
            self.module = build().to(self.device)

    @abstractmethod
    def figures(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """Means over the examples; "loss" is the training loss."""

    @abstractmethod
    def evaluation(self, split: str) -> Iterable[Pair]:
        """A fixed part of a split, in chunks. Called under vmap, so nothing random happens here."""

    def init(self, count: int, generator: Generator) -> dict[str, Tensor]:
        """(count, *shape) of every parameter, initialised by the modules themselves."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw_seed(generator))
            networks = [dict(self._build().named_parameters()) for _ in range(count)]
        return {name: self._stack(name, networks) for name in networks[0]}

    def _stack(self, name: str, networks: list[dict[str, nn.Parameter]]) -> Tensor:
        stacked = torch.stack([network[name].detach() for network in networks]).to(self.device)
        return stacked * self._init_scale if stacked.dim() > 2 else stacked

    def predict(self, params: Mapping[str, Tensor], inputs: Tensor | tuple[Tensor, ...]) -> Any:
        """The network's outputs with the given parameters, computed in their precision."""
        dtype = next(iter(params.values())).dtype
        cast = tuple(x.to(dtype) if x.is_floating_point() else x for x in arguments(inputs))
        return torch.func.functional_call(self.module, dict(params), cast)

    def loss(self, params: Mapping[str, Tensor], batch: Pair) -> Tensor:
        """The scalar training loss of one network on one batch."""
        inputs, targets = batch
        return self.figures(self.predict(params, inputs), targets)["loss"]

    def metrics(self, params: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
        """Means over the evaluation part of a split."""
        total: dict[str, Tensor] = {}
        examples = 0
        for inputs, targets in self.evaluation(split):
            examples += len(targets)
            figures = self.figures(self.predict(params, inputs), targets)
            total = {name: total.get(name, 0.0) + len(targets) * figure for name, figure in figures.items()}
        return {name: value / examples for name, value in total.items()}

    def trace(self) -> ParameterGraph:
        """The parameter graph of the module, from one training batch."""
        inputs, _ = self.sample("train", 1, torch.Generator(self.device).manual_seed(0))
        return ParameterGraph.trace(self.module, tuple(x[0] for x in arguments(inputs)))


class ExamplesTask(ModuleTask):
    """A task on N examples of each split in memory: inputs (N, ...), or a tuple of those, and targets (N, ...)."""

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        examples: Mapping[str, Pair],
        batch_size: int,
        chunk: int,
        limit: int = 2**31,
        device: str | torch.device = "cpu",
        init_scale: float = 1.0,
    ) -> None:
        super().__init__(name, build, device, init_scale)
        self.examples, self.batch_size, self.chunk, self.limit = examples, batch_size, chunk, limit

    def pick(self, split: str, rows: Tensor) -> Pair:
        """Those examples."""
        picked: Pair = tree_map(lambda tensor: tensor[rows], self.examples[split])
        return picked

    def sample(self, split: str, count: int, generator: Generator) -> Pair:
        """Examples (count, B, ...) drawn with replacement."""
        size = len(self.examples[split][1])
        return self.pick(split, draw_indices(size, (count, self.batch_size), generator, self.device))

    def evaluation(self, split: str) -> Iterable[Pair]:
        """At most `limit` evenly spaced examples."""
        rows = evenly_spaced(len(self.examples[split][1]), self.limit, self.device)
        for part in rows.split(self.chunk):
            yield self.pick(split, part)


def arguments(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a module is called with."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def classification(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross-entropy (nats) and accuracy of logits (..., classes) and labels (...)."""
    accuracy = (logits.argmax(-1) == labels).to(logits.dtype).mean()
    return {"loss": F.cross_entropy(logits.flatten(0, -2), labels.flatten()), "accuracy": accuracy}


def squared_error(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Mean squared error."""
    return {"loss": F.mse_loss(outputs, targets.to(outputs.dtype))}


def draw_seed(generator: Generator) -> int:
    """A seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def draw_indices(limit: int, shape: tuple[int, ...], generator: Generator, device: Any) -> Tensor:
    """Uniform integers below `limit`, with replacement."""
    return torch.randint(limit, shape, generator=generator, device=generator.device).to(device)


def evenly_spaced(count: int, limit: int, device: Any = "cpu") -> Tensor:
    """At most `limit` of the first `count` integers, evenly spaced."""
    kept = min(count, limit)
    return torch.arange(kept, device=device) * count // kept
