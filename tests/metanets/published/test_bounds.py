"""With norms, no scalar can make others' outputs larger and larger, however far out its features are."""

from __future__ import annotations

import pytest
import torch

from lopt.features import per_scalar, per_tensor
from tests.helpers import seeded
from tests.metanets.cases import CASES, network


def heard(case: str, factor: float) -> float:
    """The largest raw output of a chain's other tensors while features of its first weight are so many times longer."""
    graph = network("chain").graph
    rule = CASES[case].rule(scale=0.3)
    kinds = len(rule.config.decays)
    features, context = (
        torch.randn(count, columns, generator=seeded(1), dtype=torch.float64)
        for count, columns in ((per_scalar.count(kinds), graph.numel), (per_tensor.count(kinds), len(graph.sizes)))
    )  # fmt: skip
    first = graph.sizes[0]
    features[:, :first] *= factor
    with torch.no_grad():
        raw, _ = rule.metanet(graph, features, context)
    return float(raw[:, first:].abs().max())


@pytest.mark.parametrize("case", ["nfn, norms", "nfn, norms, scalars", "ng_gnn, edge norms", "ng_t"])
def test_norms_bound_what_others_are_told(case: str) -> None:
    assert heard(case, 1e9) < 1.1 * heard(case, 1e6)


@pytest.mark.parametrize("case", ["nfn", "nfn, scalars"])
def test_without_norms_it_has_no_bound(case: str) -> None:
    assert heard(case, 1e9) > 100 * heard(case, 1e6)
