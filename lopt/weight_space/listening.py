"""What a metanet says of every scalar of networks, told their weights: what readers, readouts and editors begin with.

Shapes: B networks, P scalars, T tensors, F features, C context values, R raw outputs, M probes, N neurons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.metanets import METANETS
from lopt.metanets.published.ng_gnn import NeuralGraph
from lopt.weight_space.features import CONTEXT, FeatureOptions, WeightFeatures
from lopt.weight_space.network_set import Tensors


class Listener(nn.Module):
    """A metanet by its name in `METANETS`, and the features of weights that it is told.

    outputs: R; options: of the metanet; features, scales: as `WeightFeatures` has them.
    """

    def __init__(
        self,
        metanet: str,
        outputs: int,
        options: Mapping[str, Any],
        features: FeatureOptions,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.features = WeightFeatures(features, scales)
        self.metanet = METANETS.make(
            METANETS.options(metanet)(**options), features=features.count, context=CONTEXT, outputs=outputs
        )

    def said(
        self, graph: ParameterGraph, features: Tensor, context: Tensor, probes: Tensor | None = None
    ) -> Tensor:
        """Of one network: features (F, P), context (C, T), probes (M, N) or None -> (R, P).

        vmap-able; metanets that read networks side by side also take (F, B, P) and so on.
        Raises `ConfigError` for probes that the metanet has no place for.
        """
        if probes is not None and not isinstance(self.metanet, NeuralGraph):
            name = type(self.metanet).__name__
            raise ConfigError(f"readout: expected ng_gnn or ng_t with probes=M to read probes, found {name}")
        extra = {} if probes is None else {"probes": probes}
        found: Tensor = self.metanet(graph, features, context, **extra)[0]
        return found

    def heard(self, graph: ParameterGraph, params: Tensors, probes: Tensor | None = None) -> Tensor:
        """Of B networks (B, *shape), with probes (M, B, N) of theirs or None: (R, B, P)."""
        features, context = torch.vmap(lambda one: self.features(graph, one), out_dims=1)(params)
        if self.metanet.side_by_side:
            return self.said(graph, features, context, probes)
        each = torch.vmap(
            lambda *told: self.said(graph, *told),
            in_dims=(1, 1, None if probes is None else 1),
            out_dims=1,
        )
        found: Tensor = each(features, context, probes)
        return found


def awaken(metanet: nn.Module) -> None:
    """Draw the output layers, which start at zero so that a fresh rule is its base: a reader has no base."""
    for parameter in metanet.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
