"""Whether a task is what `Task` promises, asked of two fresh networks before any work.

Else a mistake in somebody's task comes up deep in a transform, or, worse, not at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.inner.task import Task

COUNT = 2


def check_task(task: Task, *, relative: bool = True, splits: Sequence[str] = ()) -> None:
    """Draw networks and a batch, and take the loss of each.

    Args:
        relative: whether losses are measured by the first ones, so that none may lie below 0.
        splits: those on which figures will be asked for.

    Raises `ConfigError` for what no task may answer; warns where no fresh network has a finite loss.
    """
    if not isinstance(task, Task):
        raise ConfigError(f"expected a task, an object of a class derived from Task, found {task!r}")
    kind, name = type(task).__name__, getattr(task, "name", None)
    _check(isinstance(name, str), kind, "name", "a word for tables and logs", name)
    name = str(name)
    given = isinstance(task.graph, ParameterGraph)
    _check(given, name, "trace", "the ParameterGraph of the architecture", task.graph)
    generator = Generator().manual_seed(0)
    params = task.init(COUNT, generator)
    _check_params(task, params)
    batch = task.sample("train", COUNT, generator)
    leaves = tree_leaves(batch)
    fits = leaves and all(isinstance(leaf, Tensor) and leaf.shape[:1] == (COUNT,) for leaf in leaves)
    expected = f"tensors alone, the leading axis of each {COUNT} long for {COUNT} networks"
    _check(fits, name, "sample", expected, batch)
    first = [_loss(task, params, batch, number, splits) for number in range(COUNT)]
    if not any(map(torch.isfinite, first)):
        warnings.warn(
            f"task {name!r}: expected finite losses of fresh networks, found {[loss.item() for loss in first]}; such"
            " networks count as diverged, and a rule learns nothing from them",
            stacklevel=2,
        )
    if relative and min(first) < 0:
        raise ConfigError(
            f"task {name!r}: expected losses from 0, as they are measured by the first ones, found"
            f" {min(first).item():.4g}; add a constant that keeps them above it, or meta-train with outer_loss: plain"
        )


def _check_params(task: Task, params: Any) -> None:
    fits = isinstance(params, Mapping) and len(params) > 0
    _check(fits, task.name, "init", "a dict of the networks' parameters", params)
    specs = task.graph.parameters
    if params.keys() != specs.keys():
        strangers = sorted(params.keys() ^ specs.keys())
        where = "init gives it" if strangers[0] in params else "only the graph has it"
        raise ConfigError(
            f"task {task.name!r}: init: expected the parameters of the graph that trace gives, found a difference in"
            f" {strangers[0]!r}: {where}"
        )
    for key, value in params.items():
        shape = (COUNT, *specs[key].shape)
        fits = isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape
        expected = f"{key!r} as a real tensor {shape}: {COUNT} networks' {specs[key].shape}"
        _check(fits, task.name, "init", expected, value)


def _loss(task: Task, params: Mapping[str, Tensor], batch: Any, number: int, splits: Sequence[str]) -> Tensor:
    own = {key: value[number].detach().clone().requires_grad_() for key, value in params.items()}
    with torch.enable_grad():
        loss = task.loss(own, tree_map(lambda tensor: tensor[number], batch))
    fits = _is_figure(loss) and loss.requires_grad
    expected = "a real tensor () that depends on the parameters, without detach() or item()"
    _check(fits, task.name, "loss", expected, loss)
    for split in splits:
        with torch.no_grad():
            figures = task.metrics(own, split)
        fits = isinstance(figures, Mapping) and "loss" in figures and all(map(_is_figure, figures.values()))
        _check(fits, task.name, "metrics", 'a dict of real tensors (), "loss" among them', figures)
    return loss.detach()


def _is_figure(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()


def _check(fits: object, task: str, method: str, expected: str, found: object) -> None:
    if not fits:
        raise ConfigError(f"task {task!r}: {method}: expected {expected}, found {_said(found)}")


def _said(value: object) -> str:
    """Tensors by what they are, in whatever holds them."""
    if isinstance(value, Tensor):
        what = "" if value.requires_grad else ", no gradient"
        return f"a tensor {tuple(value.shape)} ({str(value.dtype)[6:]}{what})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_said(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_said, value)) + "]"
    return f"{value!r:.100}"
