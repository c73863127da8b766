"""What all editors of SIRENs have in common: one network in, K networks out, whose mean is what is shown.

Shapes: B networks, K copies, C channels, M points.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lopt.graph import ParameterGraph
from lopt.numerics.defaults import torchs_defaults
from lopt.weight_space import trained
from lopt.weight_space.architecture import Architecture, architecture
from lopt.weight_space.fitting import FitOptions
from lopt.weight_space.network_set import Network, Tensors
from lopt.weight_space.sirens import SirenShape, render


class SirenEditor(nn.Module, ABC):
    """Parameters of B networks of one architecture (B, *shape) -> those of the edited ones (B, K, *shape).

    usual: how it is trained if nothing else is asked for. made: how `make_editor` makes such an editor, beside its
    networks; of what is saved.
    """

    usual: ClassVar[FitOptions]
    shape: SirenShape
    made: Mapping[str, Any]

    @abstractmethod
    def forward(self, params: Tensors) -> Tensors:
        """Differentiable."""

    @property
    def of(self) -> Architecture:
        """Of the networks that are edited."""
        return architecture(self.shape)

    @property
    def graph(self) -> ParameterGraph:
        """Theirs."""
        return self.of.graph

    def rendered(self, params: Tensors, points: Tensor) -> Tensor:
        """(B, C, M): what the edited networks show, the mean over the copies."""
        edited = self(params)
        count, copies = next(iter(edited.values())).shape[:2]
        flat = {name: value.flatten(0, 1) for name, value in edited.items()}
        return render(self.shape, flat, points).unflatten(0, (count, copies)).mean(1)

    @torchs_defaults()
    def edit(self, network: Network) -> list[Tensors]:
        """The K edited networks of a model, a state dict or a file, as state dicts.

        Raises `ConfigError` for a network of another architecture.
        """
        state = self._described("").state_of(network)
        with torch.no_grad():
            edited = self({name: value[None] for name, value in state.items()})
        copies = next(iter(edited.values())).shape[1]
        return [{name: value[0, k] for name, value in edited.items()} for k in range(copies)]

    def save(self, path: str | os.PathLike[str], target: str, card: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, atomically. target: what the edit is called."""
        trained.write(path, self, self._described(target, card), None)

    def _described(self, target: str, card: Mapping[str, Any] | None = None) -> trained.Description:
        shapes = {name: spec.shape for name, spec in self.graph.parameters.items()}
        return trained.Description(
            kind="editor", target=target, card=dict(card or {}), shapes=shapes,
            architecture=self.shape.model_dump(mode="json"), **self.made,
        )  # fmt: skip
