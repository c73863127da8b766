"""The layers of NFN and DWSNet span exactly the equivariant linear maps: counted by characters of the group."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt import make_rule
from lopt.errors import ConfigError, GraphError
from lopt.metanets.published.chain import EquivariantLinear, SharedLinear, Slot, chain_of, chain_slots
from lopt.metanets.published.dwsnet import DwsNet
from lopt.metanets.published.nfn import Nfn
from tests.helpers import hand_graph, seeded
from tests.metanets.cases import network

SIZES = (2, 3, 2, 2)


def values_of(sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    """One channel of w_0, v_0, w_1, v_1... of a chain."""
    generator = seeded(seed)
    values = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        values += [torch.randn(1, fan_out, fan_in, generator=generator, dtype=torch.float64)]
        values += [torch.randn(1, fan_out, generator=generator, dtype=torch.float64)]
    return values


def permuted(values: list[Tensor], permutations: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    result = []
    for layer in range(len(values) // 2):
        rows, columns = list(permutations[layer + 1]), list(permutations[layer])
        result += [values[2 * layer][:, rows][:, :, columns], values[2 * layer + 1][:, rows]]
    return result


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in values])


def group(sizes: tuple[int, ...], hidden_alone: bool) -> Any:
    identity = [tuple(range(n)) for n in sizes]
    choices = [list(itertools.permutations(range(n))) for n in sizes]
    if hidden_alone:
        choices[0], choices[-1] = [identity[0]], [identity[-1]]
    return list(itertools.product(*choices))


def characters(sizes: tuple[int, ...], hidden_alone: bool) -> tuple[float, float]:
    """Dimensions of the spaces of equivariant maps and of invariant vectors: mean of trace^2 and of trace."""
    labels = flat(values_of(sizes, 0))
    traces = [
        (flat(permuted(values_of(sizes, 0), g)) == labels).sum().item() for g in group(sizes, hidden_alone)
    ]
    return sum(t * t for t in traces) / len(traces), sum(traces) / len(traces)


@pytest.mark.parametrize("hidden_alone", [False, True])
def test_as_many_coefficients_as_there_are_equivariant_maps(hidden_alone: bool) -> None:
    slots = chain_slots(3, 1, 1, (SIZES[0], SIZES[-1]) if hidden_alone else None)
    layer = EquivariantLinear(slots)
    maps, invariants = characters(SIZES, hidden_alone)
    assert sum(w.numel() for w in layer.weights) == maps
    assert sum(b.numel() for b in layer.biases) == invariants


def outputs(layer: EquivariantLinear, values: list[Tensor]) -> Tensor:
    return flat(layer(values))


def test_the_maps_are_independent() -> None:
    """One coefficient at a time on enough random inputs: the outputs have full rank."""
    layer = EquivariantLinear(chain_slots(3, 1, 1, None)).double()
    inputs = [values_of(SIZES, seed) for seed in range(12)]
    columns = []
    for weight in layer.weights:
        for index in range(weight.numel()):
            with torch.no_grad():
                for other in layer.parameters():
                    other.zero_()
                weight.view(-1)[index] = 1.0
                columns.append(torch.cat([outputs(layer, values) for values in inputs]))
    assert torch.linalg.matrix_rank(torch.stack(columns)) == len(columns)


@pytest.mark.parametrize("shared", [False, True])
def test_layers_commute_with_every_permutation(shared: bool) -> None:
    torch.manual_seed(0)
    layer = (SharedLinear(1) if shared else EquivariantLinear(chain_slots(3, 1, 1, None))).double()
    values = values_of(SIZES, 0)
    for g in group(SIZES, hidden_alone=False):
        torch.testing.assert_close(flat(layer(permuted(values, g))), flat(permuted(layer(values), g)))


def test_shared_coefficients_are_a_special_case() -> None:
    """Every shared coefficient changes the output in a way that the layers' own coefficients can copy."""
    shared, own = SharedLinear(1).double(), EquivariantLinear(chain_slots(3, 1, 1, None)).double()
    inputs = [values_of(SIZES, seed) for seed in range(12)]

    def responses(layer: Any) -> Tensor:
        columns = []
        for parameter in layer.parameters():
            for index in range(parameter.numel()):
                with torch.no_grad():
                    for other in layer.parameters():
                        other.zero_()
                    parameter.view(-1)[index] = 1.0
                    columns.append(torch.cat([outputs(layer, values) for values in inputs]))
        return torch.stack(columns)

    theirs, ours = responses(own), responses(shared)
    assert torch.linalg.matrix_rank(torch.cat([theirs, ours])) == torch.linalg.matrix_rank(theirs)
    assert torch.linalg.matrix_rank(ours) == len(ours)


def test_pools_and_repeats_name_their_axes() -> None:
    """A weight of sets (1, 0) and a bias of set 1, written out."""
    layer = EquivariantLinear([Slot((1, 0), 1, 1), Slot((1,), 1, 1)]).double()
    w, v = torch.randn(1, 3, 2, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    by = dict(zip(layer.members, layer.weights, strict=True))
    rows, columns, whole = w.mean(2), w.mean(1), w.mean((1, 2))
    both = lambda s, x, y: by[s] @ torch.stack([x[0], y[0]])  # noqa: E731
    at_rows, at_all = both((1,), rows, v), both((), whole, v.mean(1))
    expected_w = (
        by[(0, 1)] * w + (by[(0,)] @ columns)[:, None] + at_rows[0][None, :, None] + at_all[0][None, None]
    )
    found_w, found_v = layer([w, v])
    torch.testing.assert_close(found_w, expected_w)
    torch.testing.assert_close(found_v[0], at_rows[1] + at_all[1])


def test_chain_is_followed_from_input_to_output() -> None:
    """Whatever the order of the parameters; a bias that is not there is None."""
    graph = hand_graph(
        {"INPUT": 2, "a": 3, "b": 4, "OUTPUT": 2},
        {
            "last": "weight out:OUTPUT in:b",
            "bias": "bias out:b",
            "first": "weight out:a in:INPUT",
            "middle": "weight out:b in:a",
        },
    )
    links = chain_of(graph, 9)
    assert [link.weight.block.parameter for link in links] == ["first", "middle", "last"]
    assert [link.bias and link.bias.block.parameter for link in links] == [None, "bias", None]


NO_CHAINS = {
    "two readers": {"a": "weight out:h in:INPUT", "b": "weight out:OUTPUT in:h", "c": "weight out:OUTPUT in:h"},
    "apart": {"a": "weight out:h in:INPUT", "b": "weight out:OUTPUT in:g"},
    "recurrent": {"a": "weight out:h in:h"},
    "norm": {"a": "weight out:h in:INPUT", "n": "scale out:h"},
    "two biases": {"a": "weight out:h in:INPUT", "b": "bias out:h", "c": "bias out:h"},
    "taps": {"a": "weight out:h in:INPUT tap:TAP"},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_CHAINS)
def test_what_is_no_chain_is_refused(name: str) -> None:
    graph = hand_graph({"INPUT": 2, "h": 3, "g": 3, "TAP": 10, "OUTPUT": 2}, NO_CHAINS[name])
    with pytest.raises(GraphError, match="takes chains alone"):
        chain_of(graph, 9)


def test_taps_can_be_raised() -> None:
    graph = hand_graph({"INPUT": 2, "h": 3, "TAP": 10}, NO_CHAINS["taps"])
    assert chain_of(graph, 10)[0].weight.slots == 10


def test_shared_coefficients_take_any_depth() -> None:
    net = Nfn(4, 3, 2, width=4)
    for name in ("mlp", "chain"):
        net.prepare(network(name).graph)
    net.prepare(
        hand_graph({"INPUT": 2, "OUTPUT": 2}, {"w": "weight out:OUTPUT in:INPUT", "b": "bias out:OUTPUT"})
    )


def test_other_depths_and_ends_are_named() -> None:
    with pytest.raises(GraphError, match="chains of 2 layers, found one of 3"):
        Nfn(4, 3, 2, depth=2).prepare(network("mlp").graph)
    with pytest.raises(GraphError, match=r"\(2, 1\) inputs and outputs, found \(4, 3\)"):
        DwsNet(4, 3, 2).prepare(network("mlp").graph)


@pytest.mark.parametrize(
    "options",
    [
        {"symmetry": "all"},
        {"symmetry": "hnp"},
        {"symmetry": "hnp", "depth": 1, "ends": (2, 1)},
        {"symmetry": "hnp", "depth": 3},
        {"ends": (2, 1)},
        {"symmetry": "hnp", "depth": 3, "ends": (2, 1), "norms": True},
    ],
)
def test_bad_symmetries_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"metanet\.symmetry: expected|metanet: (hnp|ends|norms)"):
        make_rule("nfn", **options)
