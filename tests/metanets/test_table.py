"""Every metanet x every network: what holds for all of them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lopt import load_rule, make_rule, save_rule
from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.graph.spec import Permutation
from lopt.metanets import METANETS
from lopt.rules import LearnedRule
from lopt.rules.base import State
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import TruncatedBackprop
from tests.helpers import Network, TinyTask, flat_state, hand_graph, relative_error, seeded
from tests.metanets.cases import CASES, PAIRS, REFUSED, network

unclipped = partial(TruncatedBackprop, network_clip=math.inf)

STEPS = 4


def test_every_metanet_is_in_the_table() -> None:
    assert {case.metanet for case in CASES.values()} == set(METANETS)


def train(
    rule: LearnedRule, net: Network, graph: ParameterGraph, params: dict[str, Tensor]
) -> tuple[dict[str, Tensor], State]:
    bound = rule.on(graph)
    state = bound.init(params, 50.0)
    with torch.no_grad():
        for _ in range(STEPS):
            params, state = bound.update(torch.func.grad(net.loss)(params), state, params)
    return params, state


def permuted_state(graph: ParameterGraph, state: State, permutation: Permutation) -> dict[str, Tensor]:
    moved = {}
    for name, entry in state.items():
        shape = graph.parameters[name].shape
        for key, value in entry.items():
            rows = value.reshape(-1, *shape) if key not in ("step", "total_steps") else value[None]
            if key not in ("step", "total_steps"):
                rows = torch.stack([graph.permute({name: row}, permutation)[name] for row in rows])
            moved[f"{name}/{key}"] = rows.reshape(value.shape)
    return moved


def equivariance_errors(
    rule: LearnedRule, net: Network, graph: ParameterGraph | None = None, one_sided: bool = False
) -> tuple[float, float]:
    """How far P of training from theta is from training from P theta: parameters, state."""
    permutation = net.graph.random_permutation(seeded(4))
    start = net.params
    moved_start = net.graph.permute(start, permutation)
    if one_sided:
        first = next(iter(start))
        moved_start = {**start, first: moved_start[first]}
    params, state = train(rule, net, graph or net.graph, start)
    moved, moved_state = train(rule, net, graph or net.graph, moved_start)
    assert min((params[name] - start[name]).abs().max() for name in start) > 1e-4, "every tensor has moved"
    expected = net.graph.permute(params, permutation)
    return relative_error(moved, expected), relative_error(
        flat_state(moved_state), permuted_state(net.graph, state, permutation)
    )


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_training_is_equivariant(case: str, name: str) -> None:
    weights, state = equivariance_errors(CASES[case].rule(scale=0.2), network(name))
    assert weights < 1e-9
    assert state < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_half_a_permutation_is_no_symmetry(case: str) -> None:
    assert max(equivariance_errors(CASES[case].rule(scale=0.2), network("mlp"), one_sided=True)) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_wrong_ties_show_where_neurons_are_known(case: str) -> None:
    """The biases of the two hidden layers, both of 6, are exchanged in the graph: 6 and 6 fit."""
    entry = CASES[case]
    wrong = hand_graph(
        {"INPUT": 4, "first": 6, "second": 6, "OUTPUT": 3},
        {
            "0.weight": "weight out:first in:INPUT",
            "0.bias": "bias out:second",
            "2.weight": "weight out:second in:first",
            "2.bias": "bias out:first",
            "4.weight": "weight out:OUTPUT in:second",
            "4.bias": "bias out:OUTPUT",
        },
    )
    error, _ = equivariance_errors(entry.rule(scale=0.2), network("mlp"), wrong)
    assert (error > 1e-7) == entry.knows_neurons


@pytest.mark.parametrize(("case", "name"), REFUSED)
def test_other_networks_are_refused(case: str, name: str) -> None:
    with pytest.raises(GraphError, match=r"expected|for chains of|inputs and outputs"):
        CASES[case].rule().on(network(name).graph)


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_a_fresh_rule_is_its_base_optimizer(case: str, name: str) -> None:
    """Zero heads, whatever the features: exactly the update of a rule that has no metanet to speak of."""
    net, entry = network(name), CASES[case]
    torch.manual_seed(0)
    fresh = make_rule(entry.metanet, **entry.options).double()
    assert isinstance(fresh, LearnedRule)
    reference = make_rule("mlp").double()
    found, _ = train(fresh, net, net.graph, net.params)
    expected, _ = train(reference, net, net.graph, net.params)  # type: ignore[arg-type]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


EXTREMES = {"zero": 0.0, "huge": 1e30, "tiny": 1e-30}


@pytest.mark.parametrize("scale", EXTREMES)
@pytest.mark.parametrize("case", CASES)
def test_updates_stay_finite(case: str, scale: str) -> None:
    """Gradients at the ends of float32, then ordinary ones, and the derivative by the meta-parameters."""
    net = network(CASES[case].networks[-1])
    rule = CASES[case].rule().float()
    bound = rule.on(net.graph)
    params = {name: p.float() for name, p in net.params.items()}
    state = bound.init(params)
    for factor in (EXTREMES[scale], 1.0):
        grads = {name: factor * torch.randn(p.shape, generator=seeded(1)) for name, p in params.items()}
        params, state = bound.update(grads, state, params)
    assert all(torch.isfinite(p).all() for p in params.values())
    assert all(torch.isfinite(value).all() for value in flat_state(state).values())
    derivatives = torch.autograd.grad(
        sum(p.square().sum() for p in params.values()), list(rule.parameters()), allow_unused=True
    )
    assert all(torch.isfinite(d).all() for d in derivatives if d is not None)


ONE_ELEMENT = hand_graph(
    {"INPUT": 1, "hidden": 1, "OUTPUT": 1},
    {"w": "weight out:hidden in:INPUT", "b": "bias out:hidden", "v": "weight out:OUTPUT in:hidden"},
)


@pytest.mark.parametrize("case", CASES)
def test_one_element_tensors(case: str) -> None:
    entry = CASES[case]
    options = {**(entry.tiny or entry.options)}
    if "ends" in options:
        options["ends"] = (1, 1)
    rule = make_rule(entry.metanet, **options)
    bound = rule.on(ONE_ELEMENT)
    params = {name: torch.ones(spec.shape) for name, spec in ONE_ELEMENT.parameters.items()}
    state = bound.init(params)
    for _ in range(3):
        params, state = bound.update({name: p * 0.1 for name, p in params.items()}, state, params)
    assert all(torch.isfinite(p).all() and (p < 1).all() for p in params.values())


@pytest.mark.parametrize("case", CASES)
def test_parameters_without_axes(case: str) -> None:
    """A temperature and a lone bias: no edge, no chain."""
    graph = hand_graph({"hidden": 3}, {"temperature": "scale", "b": "bias out:hidden"})
    if CASES[case].metanet in ("nfn", "dwsnet"):
        with pytest.raises(GraphError, match="chains"):
            CASES[case].rule().on(graph)
        return
    bound = CASES[case].rule().on(graph)
    params = {"temperature": torch.ones((), dtype=torch.float64), "b": torch.ones(3, dtype=torch.float64)}
    moved, _ = bound.update(params, bound.init(params), params)
    assert all(torch.isfinite(p).all() for p in moved.values())


@pytest.mark.parametrize("case", CASES)
def test_vmap_equals_loop(case: str) -> None:
    net = network(CASES[case].networks[-1])
    bound = CASES[case].rule().on(net.graph)
    many = {name: torch.stack([p, p.sin(), 0.3 * p]) for name, p in net.params.items()}

    def two_steps(params: dict[str, Tensor]) -> dict[str, Tensor]:
        state: Any = bound.init(params)
        for _ in range(2):
            params, state = bound.update({n: p.cos() for n, p in params.items()}, state, params)
        return params

    together = torch.vmap(two_steps)(many)
    for index in range(3):
        alone = two_steps({name: p[index] for name, p in many.items()})
        assert relative_error({name: p[index] for name, p in together.items()}, alone) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_everything_goes_along_to_another_device(case: str) -> None:
    """On "meta" nothing is computed, but tensors of two devices do not mix."""
    net = network(CASES[case].networks[-1])
    bound = CASES[case].rule().to("meta").on(net.graph)
    params = {name: p.to("meta") for name, p in net.params.items()}
    moved, state = bound.update(params, bound.init(params), params)
    assert {value.device.type for value in [*moved.values(), *flat_state(state).values()]} == {"meta"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_update_equals_eager(case: str) -> None:
    net = network(CASES[case].networks[-1])
    bound = CASES[case].rule().float().on(net.graph)
    params = {name: p.float() for name, p in net.params.items()}
    grads = {name: p.cos() for name, p in params.items()}
    state = bound.init(params)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled, _ = torch.compile(bound.update, backend="aot_eager", fullgraph=True)(grads, state, params)
        eager, _ = bound.update(grads, state, params)
    assert relative_error(compiled, eager) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_save_and_load_bit_for_bit(case: str, tmp_path: Path) -> None:
    net = network(CASES[case].networks[-1])
    rule = CASES[case].rule().float()
    save_rule(rule, tmp_path / "rule.safetensors")
    loaded = load_rule(tmp_path / "rule.safetensors")
    params = {name: p.float() for name, p in net.params.items()}
    grads = {name: p.cos() for name, p in params.items()}
    results = []
    for each in (rule, loaded):
        bound = each.on(net.graph)
        results.append(bound.update(grads, bound.init(params), params)[0])
    assert loaded.config == rule.config
    assert all(torch.equal(results[0][name], results[1][name]) for name in params)


@pytest.mark.parametrize("case", CASES)
def test_meta_training_lowers_the_outer_loss(case: str) -> None:
    """The metanet alone learns, the base rate is held: the same networks and batches, before and after."""
    task, entry = TinyTask(), CASES[case]
    torch.manual_seed(0)
    rule = make_rule(entry.metanet, rate=1e-3, **(entry.tiny or entry.options))
    assert isinstance(rule, LearnedRule)
    estimator = unclipped(5)

    def estimate() -> Any:
        generator = seeded(0)
        cohort = Cohort.start(task, {}, rule.on(task.graph), 3, Horizons(5, 5, 5), generator)
        return estimator(rule, cohort, generator)

    named = {name: p for name, p in rule.named_parameters() if name != "log_rate"}
    outer = torch.optim.Adam(named.values(), lr=0.05)
    before = estimate().outer_loss
    for _ in range(3):
        found = estimate()
        assert not found.skipped
        for name, p in named.items():
            p.grad = found.gradient[name]
        outer.step()
    assert estimate().outer_loss < before - 0.003
