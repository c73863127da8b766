"""Graph neural networks of torch_geometric."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.registry import Built, add


def _add(name: str, **options: Any) -> None:
    def build() -> Built:
        import torch_geometric.nn.models as models

        model = getattr(models, name)(8, 16, num_layers=3, out_channels=4, **options)
        edges = torch.randint(12, (2, 40))
        return model.eval(), (torch.randn(12, 8), edges)

    add(f"{name} (GNN)", "torch_geometric", build)


_add("GCN")
_add("GAT", heads=2)
_add("GraphSAGE")
_add("GIN")
_add("PNA", aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([0, 4, 8]))
_add("EdgeCNN")
