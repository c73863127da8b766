"""The interface between the task suite and meta-training: a batch of small networks of one architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Generator, Tensor

from lopt.graph import ParameterGraph

Batch = Any
"""A pytree of tensors that `Task.loss` understands."""

SPLITS = ("train", "validation", "test")
"""Splits of the data. Meta-training may look at train and validation; test is looked at once, in benchmarks."""


class Task(ABC):
    """A training problem: an architecture, its initialisation, its data and its loss.

    Everything that differs between runs of one task (initial weights, batches) comes from generators, so that
    many runs can be stacked along a leading axis of T tasks and trained under one `torch.func.vmap`.
    """

    name: str
    """Says what it is, in tables and logs, for example "fashion_mlp/w32-d2"."""

    @abstractmethod
    def init(self, count: int, generator: Generator) -> dict[str, Tensor]:
        """(count, *shape) initial values of every parameter: `count` independent networks."""

    @abstractmethod
    def sample(self, split: str, count: int, generator: Generator) -> Batch:
        """One batch for each of `count` networks, stacked: every tensor is (count, ...)."""

    @abstractmethod
    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The scalar training loss of one network on one batch. Pure, vmap-able and twice differentiable."""

    @abstractmethod
    def metrics(self, params: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
        """Scalar figures of one network on the whole split (at most a few thousand examples), vmap-able.

        Always holds "loss"; classification adds "accuracy" (0 to 1).
        """

    @abstractmethod
    def trace(self) -> ParameterGraph:
        """Derive the parameter graph of the architecture."""

    @cached_property
    def graph(self) -> ParameterGraph:
        """The parameter graph, derived once."""
        return self.trace()


class TaskFamily(ABC):
    """A distribution over tasks of one kind: widths, depths, activations, data augmentation...

    A task is rebuilt exactly from the family's config and its spec, so that a checkpoint can name it.
    """

    name: str

    @abstractmethod
    def sample_spec(self, generator: Generator) -> dict[str, Any]:
        """Draw what distinguishes one task of the family, as JSON-able values."""

    @abstractmethod
    def build(self, spec: Mapping[str, Any]) -> Task:
        """The task that a spec describes."""
