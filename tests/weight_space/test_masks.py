"""Readers of masks: equivariant, told which input is which, and they learn what is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.weight_space.fitting import FitOptions, fit, mean_loss
from lopt.weight_space.masks import MASKERS, MaskReader, flat_masks, make_masker, mask_loss
from lopt.weight_space.network_set import NetworkSet
from lopt.weight_space.perceptrons import PerceptronShape, initial
from lopt.weight_space.tickets import MASK, by_layer
from tests.helpers import seeded

SHAPE = PerceptronShape(sizes=(5, 4, 6, 3))


def networks(count: int = 8) -> NetworkSet:
    """With masks of what is large, where the input is one of the first two."""
    params = {name: value.double() for name, value in initial(SHAPE, range(count)).items()}
    columns = {}
    for name in SHAPE.weights:
        size = params[name].abs()
        lit = torch.arange(size.shape[2]) < 2 if name == SHAPE.weights[0] else torch.ones(size.shape[2])
        columns[MASK + name] = size * lit > size.mean()
    return NetworkSet(params, columns, torch.zeros(count), {"architecture": SHAPE.model_dump()})


def masker(name: str) -> MaskReader:
    torch.manual_seed(0)
    return make_masker(name, networks()).double().eval()


def moved(tensors: dict[str, Tensor], graph: ParameterGraph) -> dict[str, Tensor]:
    permutation = graph.random_permutation(seeded(1))
    count = len(next(iter(tensors.values())))
    each = [graph.permute({n: t[i] for n, t in tensors.items()}, permutation) for i in range(count)]
    return {n: torch.stack([one[n] for one in each]) for n in tensors}


@pytest.mark.parametrize("name", MASKERS)
def test_masks_of_permuted_networks_are_permuted_masks(name: str) -> None:
    reader, params = masker(name), networks().params
    graph = ParameterGraph.trace(SHAPE.build(), (torch.zeros(2, 5),))
    with torch.no_grad():
        found, again = reader(params), reader(moved(params, graph))
        for weight, value in moved(found, graph).items():
            assert (again[weight] - value).abs().max() < 1e-9
            assert (found[weight] - value).abs().max() > 1e-4, "the permutation does something"
        # What is no symmetry: the order of the inputs.
        swapped = reader({**params, SHAPE.weights[0]: params[SHAPE.weights[0]].flip(2)})
        assert (swapped[SHAPE.weights[0]].flip(2) - found[SHAPE.weights[0]]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["pointwise", "nfn_np", "paths"])
def test_they_learn_which_weights_are_kept(name: str) -> None:
    data, reader = networks(), masker(name)
    wanted = flat_masks(data)
    before = mean_loss(reader, data, wanted, mask_loss)
    fit(reader, data, wanted, FitOptions(passes=8 * 60, batch=8, lr=1e-2), loss=mask_loss)
    assert mean_loss(reader, data, wanted, mask_loss) < before - 0.1
    with torch.no_grad():
        said = reader(data.params)
    chosen = by_layer(said, dict.fromkeys(said, 3))
    assert all((mask.flatten(1).sum(1) == 3).all() for mask in chosen.values())
    dark = chosen[SHAPE.weights[0]][..., 2:].double().mean()
    assert dark < 0.1, "inputs that are never lit"


def test_a_matrix_may_be_kept_whole_or_not_at_all() -> None:
    data = networks()
    for weight, kept in zip(SHAPE.weights, (0, 1), strict=False):
        data.columns[MASK + weight].fill_(kept)
    reader = make_masker("paths", data).double()
    assert all(value.isfinite().all() for value in reader(data.params).values())


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="no reader 'x' of masks; there are pointwise"):
        make_masker("x", networks())
