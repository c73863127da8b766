"""From a metanet to one vector for a whole network: permutation-invariant pooling over scalars, neurons and tensors.

With it a metanet predicts a property of a network from its weights (its accuracy, its data, its training step), as
in Unterthiner et al. 2020 (arXiv 2002.11448) and the metanetwork papers.
Shapes: P scalars, B tensors, D channels, F features, C context values, Y predicted values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from lopt.graph import ParameterGraph
from lopt.graph.spec import PARAMETER_KINDS
from lopt.metanets.layers import PointwiseMlp
from lopt.weight_space.features import CONTEXT, FeatureOptions
from lopt.weight_space.listening import Listener

STATISTICS = 3


class NetworkReadout(Listener):
    """y = MLP([mean, max over tensors b of MLP([pool_b, kind_b])]) of what a metanet says of every scalar.

    metanet: a name in `METANETS`, made with `metanet_options`; channels: its outputs per scalar; outputs: Y;
    width: hidden width of the two MLPs; features: what it is told of every scalar, and scales as `WeightFeatures`
    has them. What it reads are weights alone, and probe features where they are given.
    """

    def __init__(
        self,
        metanet: str,
        outputs: int,
        channels: int = 32,
        width: int = 32,
        metanet_options: Mapping[str, Any] | None = None,
        features: FeatureOptions | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        features = features or FeatureOptions()
        super().__init__(metanet, channels, metanet_options or {}, features, scales)
        self.kinds = nn.Parameter(0.1 * torch.randn(width, len(PARAMETER_KINDS)))
        self.tensor = PointwiseMlp(STATISTICS * (channels + features.count) + CONTEXT, width, width)
        self.network = PointwiseMlp(2 * width, width, outputs)

    def forward(
        self, graph: ParameterGraph, params: dict[str, Tensor], probes: Tensor | None = None
    ) -> Tensor:
        """The parameters of one network -> (Y,). Pure and vmap-able.

        probes (M, N): how its neurons answer to M inputs, from `lopt.weight_space.probes`; for "ng_gnn" and "ng_t".
        """
        features, context = self.features(graph, params)
        said = self.said(graph, features, context, probes)
        # The metanet's heads start at zero: with the features beside them the first gradient has somewhere to go.
        pooled = pool_tensors(graph, torch.cat([said, features]))
        kinds = [PARAMETER_KINDS.index(spec.kind) for spec in graph.parameters.values()]
        tensors = relu(self.tensor(torch.cat([pooled, context])) + self.kinds[:, kinds])
        both = torch.cat([tensors.mean(-1, keepdim=True), tensors.amax(-1, keepdim=True)])
        return self.network(both)[:, 0]


def pool_tensors(graph: ParameterGraph, values: Tensor) -> Tensor:
    """(D, ..., P) -> (3 D, ..., B): for each tensor mean and rms over scalars, and the rms over neurons of their means.

    The neurons are those of the first axis.
    """
    columns = []
    for value in graph.unflatten(values).values():
        lead = values.shape[:-1]
        rows = value.reshape(*lead, value.shape[len(lead)] if value.dim() > len(lead) else 1, -1)
        means = rows.mean(-1)
        columns.append(torch.cat([means.mean(-1), _rms(rows, (-2, -1)), _rms(means, (-1,))]))
    return torch.stack(columns, -1)


def _rms(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    # The offset keeps the derivative of the root finite at zero.
    return torch.sqrt(x.square().mean(axes) + 1e-12)
