"""Pieces hold every scalar once, whole rows of matrices, and one member of a stack."""

from __future__ import annotations

import pytest
import torch

import lopt
from lopt.metanets.pieces import cut, uncut
from tests.rules.reference_steps import NETWORKS


@pytest.mark.parametrize("network", ["ensemble", "attention", "grouped"])
@pytest.mark.parametrize("most", [1, 30, 10**6])
def test_what_is_taken_and_put_back_is_everything(network, most):
    model, inputs = NETWORKS[network]()
    graph = lopt.ParameterGraph.trace(model, (inputs,))
    flat = [p.detach().reshape(-1) for p in model.parameters()]
    stacked = [torch.stack([tensor, -tensor]) for tensor in flat]
    for bundles in (uncut(graph)[0].bundles, cut(graph, most, 8)):
        found = [torch.full_like(tensor, torch.nan) for tensor in stacked]
        counts = torch.zeros(len(flat))
        for bundle in bundles:
            for piece in bundle.pieces:
                taken = piece.take(stacked)
                assert taken.shape == (2, sum(piece.sizes))
                piece.put(taken, found)
                counts[piece.owners] += torch.tensor(piece.sizes, dtype=torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(found, stacked, strict=True))
        assert counts.tolist() == graph.sizes


def test_pieces_end_where_rows_and_members_do():
    model, inputs = NETWORKS["ensemble"]()
    graph = lopt.ParameterGraph.trace(model, (inputs,))
    names = list(graph.parameters)
    pieces = {names[b.owners[0]]: [p.sizes[0] for p in b.pieces] for b in cut(graph, 45, 50)}
    assert pieces["second"] == [30, 30, 40] * 3  # three members of ten rows of ten
    assert sum(pieces["first"]) == 180
