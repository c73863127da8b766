"""Several networks at once, (channels, networks, columns), are what each of them is alone."""

from __future__ import annotations

import pytest
import torch

from lopt.metanets import METANETS, Gmn, NgGnn, NgT
from lopt.metanets.published.exchange import Execution
from tests.helpers import randomised, seeded
from tests.metanets.cases import CASES, network

TAKEN = [name for name, metanet in METANETS.items() if metanet.side_by_side]


def test_these_take_several_at_once() -> None:
    assert {METANETS[name] for name in TAKEN} == {NgGnn, NgT, Gmn}


@pytest.mark.parametrize("execution", ["dense", "edges"])
@pytest.mark.parametrize("name", ["mlp", "chain", "resnet", "transformer", "lstm"])
@pytest.mark.parametrize("case", TAKEN)
def test_networks_side_by_side_equal_each_alone(case: str, name: str, execution: Execution) -> None:
    graph, probes = network(name).graph, 5 if case != "gmn" else 0
    torch.manual_seed(0)
    options = {**CASES[case].options, "execution": execution, **({"probes": probes} if probes else {})}
    metanet = randomised(METANETS[case](4, 3, 2, **options).double(), scale=0.2)  # type: ignore[arg-type]
    count, generator = 3, seeded(1)

    def drawn(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, count, columns, generator=generator, dtype=torch.float64)

    told = [drawn(4, graph.numel), drawn(3, len(graph.parameters))]
    extra = {"probes": drawn(probes, sum(group.size for group in graph.groups))} if probes else {}
    together = metanet(graph, *told, **extra)[0]
    for index in range(count):
        own = {key: value[:, index] for key, value in extra.items()}
        alone = metanet(graph, *(value[:, index] for value in told), **own)[0]
        assert (together[:, index] - alone).abs().max() < 1e-12
    assert (together[:, 0] - together[:, 1]).abs().max() > 1e-3
