"""What the tables of metanet tests run over: every metanet, and the traced networks it can take."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lopt.graph import ParameterGraph
from lopt.rules import LearnedRule
from meta_tasks.networks import TransformerBlock
from tests.helpers import NETWORKS, Network, seeded, small_rule


class TransformerNet(nn.Module):
    """One pre-norm block with two heads on a stream of 6, then the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(3, 6), TransformerBlock(6, 2), nn.Linear(6, 3)
        # The loss does not depend on a key's bias: its gradient would be rounding errors, which no order survives.
        self.block.attention.key = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean(1))


class LstmNet(nn.Module):
    """An LSTM of width 5 and a linear layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _chain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.ReLU(), nn.Flatten(),
                         nn.Linear(20, 3))  # fmt: skip


FRESH = {
    "chain": (_chain, (4, 2, 6, 6)),
    "transformer": (TransformerNet, (4, 5, 3)),
    "lstm": (LstmNet, (4, 5, 3)),
}


@cache
def network(name: str) -> Network:
    """A small network in float64 with one batch, and its traced graph."""
    if name in NETWORKS:
        base = NETWORKS[name]()
        module, inputs, targets = base.module, base.inputs, base.targets
    else:
        build, shape = FRESH[name]
        torch.manual_seed(0)
        module = build().double()
        inputs = torch.randn(shape, generator=seeded(3), dtype=torch.float64)
        targets = torch.randint(3, (shape[0],), generator=seeded(4))
    graph = ParameterGraph.trace(module, (inputs,))
    assert graph.rung == "traced"
    return Network(module, inputs, targets, graph)


ALL = ("mlp", "chain", "cnn", "resnet", "transformer", "lstm")


@dataclass(frozen=True)
class Case:
    """A metanet, narrow, with the networks it can take."""

    metanet: str
    options: dict[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = ALL
    knows_neurons: bool = True
    """Whether it sends anything along the neurons, so that a wrong tie shows."""
    tiny: dict[str, Any] | None = None
    """Options for a 3 -> n -> 2 network where they differ."""

    def rule(self, tiny: bool = False, **config: Any) -> LearnedRule:
        """A rule in float64 with no head at zero."""
        options = self.tiny if tiny and self.tiny is not None else self.options
        return small_rule(metanet=self.metanet, metanet_options=options, **config)


CASES = {
    "axisnet": Case("axisnet", {"width": 4, "neuron_width": 6}),
    "axisnet, paths": Case("axisnet", {"width": 4, "neuron_width": 6, "paths": 2}),
    "mlp": Case("mlp", {"width": 6}, knows_neurons=False),
    "lstm": Case("lstm", {"width": 3}, knows_neurons=False),
    "tensor_lstm": Case("tensor_lstm", {"width": 4}, knows_neurons=False),
    "tensor_lstm, scalars": Case("tensor_lstm", {"width": 4, "scalar_layers": 2}, knows_neurons=False),
    "tensor_mlp": Case("tensor_mlp", {"width": 4}, knows_neurons=False),
    "deepsets": Case("deepsets", {"width": 6}, knows_neurons=False),
    "nfn": Case("nfn", {"width": 4}, ("mlp", "chain")),
    "nfn, a layer its own": Case("nfn", {"width": 4, "depth": 3}, ("mlp", "chain"), tiny={"width": 4, "depth": 2}),
    "nfn, norms": Case("nfn", {"width": 4, "norms": True}, ("mlp", "chain")),
    "nfn, norms, scalars": Case("nfn", {"width": 4, "norms": True, "scalar_layers": 2}, ("mlp", "chain")),
    "nfn, hnp": Case(
        "nfn", {"width": 3, "symmetry": "hnp", "depth": 3, "ends": (4, 3)}, ("mlp",),
        tiny={"width": 3, "symmetry": "hnp", "depth": 2, "ends": (3, 2)},
    ),
    "nfn, scalars": Case("nfn", {"width": 4, "positions": True, "scalar_layers": 2}, ("mlp", "chain")),
    "dwsnet": Case("dwsnet", {"width": 3, "ends": (4, 3)}, ("mlp",), tiny={"width": 3, "depth": 2, "ends": (3, 2)}),
    "unf": Case("unf", {"width": 4}),
    "ng_gnn": Case("ng_gnn", {"width": 5}),
    "ng_gnn, edge norms": Case("ng_gnn", {"width": 5, "edge_norms": True}),
    "ng_t": Case("ng_t", {"node_width": 6, "edge_width": 4, "attention_width": 6, "heads": 2}),
    "ng_gnn, scalars": Case("ng_gnn", {"width": 5, "positions": True, "scalar_layers": 2}),
    "ng_t, scalars": Case("ng_t", {
        "node_width": 6, "edge_width": 4, "attention_width": 6, "heads": 2, "positions": True, "scalar_layers": 1,
    }),
    "gmn": Case("gmn", {"width": 5}),
}  # fmt: skip

PAIRS = [(case, name) for case, entry in CASES.items() for name in entry.networks]
REFUSED = [(case, name) for case, entry in CASES.items() for name in ALL if name not in entry.networks]
