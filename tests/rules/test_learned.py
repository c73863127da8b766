"""The learned rule: its base optimizer, its bound, its equivariance, its behaviour at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lopt
from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.numerics import segments
from lopt.numerics.schedules import annealing, decay_share
from lopt.optim.loss_guard import base_of
from lopt.rules import LearnedRule, LearnedRuleConfig, learned, load_rule, make_rule
from lopt.rules.base import BoundRule, State
from lopt.rules.directions import DIRECTIONS
from lopt.rules.forms import FORMS
from tests.helpers import (
    NETWORKS,
    Network,
    cnn,
    flat_state,
    hand_graph,
    mlp,
    randomised,
    relative_error,
    seeded,
    small_rule,
)

SHAPES = {"conv": (4, 3, 3, 3), "weight": (6, 5), "row": (1, 5), "bias": (5,), "one": (1,), "scalar": ()}


def tensors(seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, Tensor]:
    generator = seeded(seed)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()
    }


def gradient(params: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    """A noisy gradient that depends on the parameters, so that errors would grow over the steps."""
    noise = tensors(t, next(iter(params.values())).dtype)
    return {name: p.sin() + noise[name] for name, p in params.items()}


def run(
    bound: BoundRule, params: dict[str, Tensor], steps: int, total: float | None = None
) -> dict[str, Tensor]:
    state = bound.init(params, total)
    for t in range(steps):
        params, state = bound.update(gradient(params, t), state, params)
    return params


def run_adam(params: dict[str, Tensor], steps: int, lr: float) -> dict[str, Tensor]:
    params = {name: p.clone() for name, p in params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=lr)
    for t in range(steps):
        for name, g in gradient(params, t).items():
            params[name].grad = g
        optimizer.step()
    return params


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("total", "anneal"), [(None, True), (100.0, False)])
def test_fresh_rule_equals_adam(
    dtype: torch.dtype, tolerance: float, total: float | None, anneal: bool
) -> None:
    """The rate is stored as a float32 logarithm, which is good for about 1e-7 of it: float64 compares to what is."""
    params = tensors(0, dtype)
    rule = LearnedRule(LearnedRuleConfig(rate=5e-3, anneal=anneal)).to(dtype)
    rate = 5e-3 if dtype == torch.float32 else rule.gauges()["base_rate"]
    assert rate == pytest.approx(5e-3, rel=1e-6)
    ours = run(rule.on(ParameterGraph.untied(params.items())), params, 100, total)
    theirs = run_adam(params, 100, rate)
    for name, start in params.items():
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)
        assert (theirs[name] - start).abs().max() > 0.01, "the run moved the parameters"


def test_fresh_rule_does_not_equal_adam_at_another_rate() -> None:
    params = tensors(0)
    ours = run(
        LearnedRule(LearnedRuleConfig(rate=5e-3)).on(ParameterGraph.untied(params.items())), params, 20
    )
    assert relative_error(ours, run_adam(params, 20, 5.1e-3)) > 1e-4


def test_fresh_rule_equals_adam_with_one_cycle() -> None:
    """torch's own scheduler, from a 25th of the peak rate and back to a hundredth of it."""
    params, total = tensors(0), 60
    rule = LearnedRule(LearnedRuleConfig(rate=5e-3, warm_up=0.25)).double()
    peak = rule.gauges()["base_rate"]
    ours = run(rule.on(ParameterGraph.untied(params.items())), params, total, float(total))
    theirs = {name: p.clone() for name, p in params.items()}
    optimizer = torch.optim.Adam(theirs.values(), lr=peak)
    for t in range(total):
        for group in optimizer.param_groups:
            group["lr"] = peak * one_cycle(t / total, 0.25)
        for name, g in gradient(theirs, t).items():
            theirs[name].grad = g
        optimizer.step()
    assert relative_error(ours, theirs) < 1e-6


def one_cycle(done: float, rise: float) -> float:
    def half_cosine(start: float, end: float, part: float) -> float:
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * part))

    return (
        half_cosine(0.04, 1.0, done / rise)
        if done < rise
        else half_cosine(1.0, 0.01, (done - rise) / (1 - rise))
    )


def test_without_a_horizon_the_rate_fades_if_asked_to() -> None:
    steps = torch.tensor([1.0, 18.0, 301.0, 2701.0])
    unknown, known = torch.zeros(4), torch.full((4,), 1e4)
    torch.testing.assert_close(annealing(steps, unknown), torch.ones(4))
    expected = torch.tensor([1 / 180, 0.1 / (1 + 17 / 900) ** 0.5, (3 / 4) ** 0.5, 0.5])
    torch.testing.assert_close(annealing(steps, unknown, fade=900.0), expected)
    torch.testing.assert_close(annealing(steps, known, fade=900.0), annealing(steps, known))


def test_fresh_rule_with_weight_decay_is_adamw_but_for_vectors() -> None:
    params, decay = tensors(0, torch.float64), 0.3
    rule = LearnedRule(LearnedRuleConfig(rate=5e-3, weight_decay=decay)).double()
    ours = run(rule.on(ParameterGraph.untied(params.items())), params, 50)
    theirs = {name: p.clone() for name, p in params.items()}
    groups = [
        {"params": [p for p in theirs.values() if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in theirs.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=rule.gauges()["base_rate"])
    for t in range(50):
        for name, g in gradient(theirs, t).items():
            theirs[name].grad = g
        adamw.step()
    assert relative_error(ours, theirs) < 1e-9
    assert relative_error(ours, run_adam(params, 50, 5e-3)) > 1e-3


def test_weight_decay_grows_with_the_horizon_and_without_one_with_the_steps() -> None:
    steps, horizon = torch.tensor([1.0, 50.0, 7.0, 150.0]), torch.tensor([50.0, 50.0, 0.0, 0.0])
    torch.testing.assert_close(decay_share(steps, horizon), torch.ones(4))
    expected = torch.tensor([1 / 4, 1 / 4, 7 / 157, 1 / 2])
    torch.testing.assert_close(decay_share(steps, horizon, 150.0), expected)


@pytest.mark.parametrize("total", [None, 50.0])
def test_weight_decay_follows_the_rate(total: float | None) -> None:
    """Without gradients it is all that moves the weights, scaled and annealed as steps are."""
    weight = torch.ones(4, 3, dtype=torch.float64)
    config = LearnedRuleConfig(
        rate=0.02, weight_decay=0.1, decay_horizon=150.0, warm_up=0.1, fade=20.0, scales={"matrix": 0.5}
    )
    rule = LearnedRule(config).double()
    bound = rule.on(ParameterGraph.untied([("w", weight)]))
    params, state = {"w": weight}, bound.init({"w": weight}, total)
    expected = torch.ones(1, dtype=torch.float64)
    for t in range(1, 31):
        step, horizon = torch.tensor([t]).double(), torch.tensor([total or 0]).double()
        share = (total or t) / ((total or t) + 150)
        rate = rule.gauges()["base_rate"] * 0.5 * annealing(step, horizon, 0.1, 20.0)
        expected = expected * (1 - rate * 0.1 * share)
        params, state = bound.update({"w": torch.zeros_like(weight)}, state, params)
    torch.testing.assert_close(params["w"], expected.expand(4, 3))


def values_on(graph: ParameterGraph) -> dict[str, Tensor]:
    return {
        name: torch.randn(spec.shape, generator=seeded(1), dtype=torch.float64)
        for name, spec in graph.parameters.items()
    }


def test_scales_multiply_the_rate_of_each_class() -> None:
    """One rule whose classes have their own rates equals as many rules, each on its own tensor."""
    graph = hand_graph(
        {"IN": 1, "channel": 3, "TAP": 3, "hidden": 4, "WORDS": 3, "OUTPUT": 2},
        {
            "conv": "weight out:channel in:IN tap:TAP tap:TAP",
            "dense": "weight out:hidden in:channel",
            "words": "embedding in:WORDS out:hidden",
            "bias": "bias out:hidden",
            "head": "weight out:OUTPUT in:hidden",
        },
    )
    scales = {"kernel": 2.0, "matrix": 0.5, "table": 3.0, "vector": 0.25, "output": 0.1}
    drawn = values_on(graph)
    moved = {}
    for given in ({}, scales):
        bound = LearnedRule(LearnedRuleConfig(rate=1e-4, scales=given)).double().on(graph)
        moved[bool(given)] = bound.delta(drawn, bound.init(drawn), drawn)[0]
    classes = {"conv": "kernel", "dense": "matrix", "words": "table", "bias": "vector", "head": "output"}
    for name in drawn:
        expected = moved[False][name] * scales[classes[name]]
        torch.testing.assert_close(moved[True][name], expected)


def test_steps_of_wide_hidden_matrices_stop_growing() -> None:
    """With orthogonalised directions of one rms: the largest singular value is that of a matrix of 16 columns."""
    graph = hand_graph(
        {"IN": 16, "WIDE": 64, "hidden": 4, "OUTPUT": 2},
        {
            "narrow": "weight out:hidden in:IN",
            "wide": "weight out:hidden in:WIDE",
            "head": "weight out:OUTPUT in:WIDE",
        },
    )
    drawn = values_on(graph)
    deltas = {}
    for widest in (0.0, 16.0):
        config = LearnedRuleConfig(rate=1e-4, directions=("grafted",), widest=widest)
        bound = LearnedRule(config).double().on(graph)
        deltas[widest] = bound.delta(drawn, bound.init(drawn), drawn)[0]
    for name, factor in {"narrow": 1.0, "wide": 0.5, "head": 1.0}.items():
        torch.testing.assert_close(deltas[16.0][name], factor * deltas[0.0][name])


def test_steps_of_output_layers_shrink_with_the_inputs_that_they_add_up() -> None:
    """A logit then moves by as much however wide the network is, where all inputs and steps agree in sign."""
    config = LearnedRuleConfig(rate=1e-4, directions=("adam",), widest_output=16.0)
    for layout, size in (("out:OUTPUT in:WIDE", (3, 64)), ("in:WIDE out:OUTPUT", (64, 3))):
        moved = {}
        for wide in (8, 16, 64):
            graph = hand_graph(
                {"IN": 4, "WIDE": wide, "OUTPUT": 3},
                {"hidden": "weight out:WIDE in:IN", "head": f"weight {layout}"},
            )
            params = values_on(graph)
            bound = LearnedRule(config).double().on(graph)
            gradients = {name: torch.ones_like(value) for name, value in params.items()}
            delta = bound.delta(gradients, bound.init(params), params)[0]["head"]
            moved[wide] = delta.abs().sum(layout.split().index("in:WIDE"))
            assert wide < 64 or delta.shape == size
        torch.testing.assert_close(moved[64], moved[16])
        torch.testing.assert_close(moved[16], 2 * moved[8])


def test_small_weights_take_small_steps_where_asked() -> None:
    """In proportion to their rms below that of PyTorch's initial weights, down to a tenth; vectors as ever."""
    graph = hand_graph(
        {"IN": 8, "hidden": 6, "OUTPUT": 3, "WORDS": 5},
        {
            "dense": "weight out:hidden in:IN",
            "bias": "bias out:hidden",
            "words": "embedding in:WORDS out:hidden",
            "turned": "weight in:IN out:hidden",
            "head": "weight out:OUTPUT in:hidden",
        },
    )
    usual = {"dense": 24**-0.5, "words": 3**-0.5, "turned": 24**-0.5, "head": 18**-0.5}
    drawn = values_on(graph)
    for share, expected in {0.0: 0.1, 0.05: 0.1, 0.4: 0.4, 1.0: 1.0, 7.0: 1.0}.items():
        params = {name: share * usual.get(name, 1.0) * p / rms(p) for name, p in drawn.items()}
        moved = {}
        for relative in (False, True):
            config = LearnedRuleConfig(rate=1e-4, directions=("grafted",), relative=relative)
            bound = LearnedRule(config).double().on(graph)
            moved[relative] = bound.delta(drawn, bound.init(params), params)[0]
        for name in drawn:
            factor = 1.0 if name == "bias" else expected
            torch.testing.assert_close(moved[True][name], factor * moved[False][name])


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0])
def test_step_is_bounded_relative_to_each_tensor(scale: float) -> None:
    params = tensors(0, torch.float64, scale)
    rule = small_rule(scale=0.5, rate=50.0, max_step=0.3)
    bound = rule.on(ParameterGraph.untied(params.items()))
    state, reached = bound.init(params), False
    for t in range(5):
        deltas, state = bound.delta(gradient(params, t), state, params)
        for name, delta in deltas.items():
            limit = 0.3 * max(rms(params[name]), 0.1)
            assert rms(delta) <= limit * (1 + 1e-9)
            reached |= rms(delta) > 0.99 * limit
        params = {name: p + deltas[name] for name, p in params.items()}
    assert reached, "with such a rate the bound binds"


@pytest.mark.parametrize("times", [1.0, 20.0])
def test_a_gradient_far_beyond_its_usual_length_shortens_the_step_of_its_tensor_alone(times: float) -> None:
    moved = {c: after_thirty_steps(times, directions=("adam",), caution=c) for c in (0.0, 2.0)}
    factor = min(1.0, 2.0 * usual_over_last(times)) ** 2
    assert factor == 1.0 if times == 1.0 else factor < 0.3
    for name, step in moved[0.0].items():
        torch.testing.assert_close(moved[2.0][name], (factor if name == "conv" else 1.0) * step)


@pytest.mark.parametrize("times", [1.0, 0.2])
def test_a_gradient_far_below_its_usual_length_brings_back_the_decay_of_its_tensor(times: float) -> None:
    options = ({}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decay_below": 0.5})
    without, full, now = (after_thirty_steps(times, directions=("adam",), **option) for option in options)
    share = min(1.0, 0.5 * usual_over_last(times)) ** 2
    assert 0.1 < share < 0.5 if times == 1.0 else share == 1.0
    torch.testing.assert_close(now["conv"] - without["conv"], share * (full["conv"] - without["conv"]))
    assert (full["conv"] - without["conv"]).abs().max() > 1e-7, "it does decay"


def after_thirty_steps(times: float, **options: Any) -> dict[str, Tensor]:
    """The last step of a rule, whose last gradient is `times` as long in one tensor."""
    params = tensors(0, torch.float64)
    bound = (
        LearnedRule(LearnedRuleConfig(rate=1e-4, **options))
        .double()
        .on(ParameterGraph.untied(params.items()))
    )
    state, moved = bound.init(params), {}
    for t in range(30):
        grads = tensors(t, torch.float64)
        last = {**grads, "conv": times * grads["conv"]} if t == 29 else grads
        moved, state = bound.delta(last, state, params)
    return moved


def usual_over_last(times: float) -> float:
    """The root of that tensor's second moment over the root-mean-square of that last gradient."""
    # Unbiased after 30 steps, the second moment holds the last gradient to this share.
    share = 0.001 / (1 - 0.999**30)
    squares = torch.stack([tensors(t, torch.float64)["conv"].square().mean() for t in range(30)])
    weights = share * 0.999 ** torch.arange(29, -1, -1, dtype=torch.float64)
    squares[-1] *= times**2
    return (weights * squares).sum().sqrt().item() / squares[-1].sqrt().item()


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def train(
    rule: Any,
    network: Network,
    graph: ParameterGraph,
    start: Change,
    back: Callable[[int, Tensor, str], Tensor],
) -> Trained:
    """20 steps on the network's own loss; parameters and state, mapped back at the end."""
    params = start(network.params)
    bound = rule.on(graph)
    state: State = bound.init(params, 50.0)
    for _ in range(20):
        grads = torch.func.grad(network.loss)(params)
        params, state = bound.update(grads, state, params)
    return {name: back(0, p, name) for name, p in params.items()}, {
        f"{name}/{key}": back(value.dim() - params[name].dim(), value, name) if key not in COUNTERS else value
        for name, entry in state.items()
        for key, value in entry.items()
        if not key.startswith(SIDES)
    }


COUNTERS = ("step", "total_steps", "pace")
SIDES = ("rows_", "columns_")
"""What is of a matrix's sides is permuted as no parameter is: it has a test of its own (`test_whitening`)."""


Trained = tuple[dict[str, Tensor], dict[str, Tensor]]


def training_pair(
    rule: Any, network: Network, graph: ParameterGraph | None = None, one_side: bool = False
) -> tuple[Trained, Trained]:
    """Weights and state after training from theta, and after training from P theta, mapped back by P^-1."""
    true_graph = network.graph
    permutation = true_graph.random_permutation(seeded(4))
    inverse = {group: p.argsort() for group, p in permutation.items()}

    def permuted(params: dict[str, Tensor]) -> dict[str, Tensor]:
        both = true_graph.permute(params, permutation)
        first = next(iter(params))
        return {**params, first: both[first]} if one_side else both

    def back(leading: int, value: Tensor, name: str) -> Tensor:
        flat = value.reshape(-1, *value.shape[leading:])
        return torch.stack([true_graph.permute({name: row}, inverse)[name] for row in flat]).reshape(
            value.shape
        )

    plain = train(rule, network, graph or true_graph, dict, lambda _leading, value, _name: value)
    moved = train(rule, network, graph or true_graph, permuted, back)
    start = network.params
    moves = [(plain[0][name] - p).abs().max() for name, p in start.items() if "weight" in name]
    assert min(moves) > 1e-3, "every weight has moved"
    return plain, moved


def equivariance_error(*args: Any, **options: Any) -> float:
    """The largest relative error of weights and state."""
    plain, moved = training_pair(*args, **options)
    return max(relative_error(found, expected) for found, expected in zip(moved, plain, strict=True))


DIRECTION_SETS = {
    "default": LearnedRuleConfig().directions,
    "orthogonal": ("orthogonal", "adam", "parameter"),
    "momentum": ("momentum", "gradient"),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_training_is_equivariant_on_the_traced_graph(name: str) -> None:
    """The rule reads the traced graph; the symmetry is that of the one written by hand."""
    network = NETWORKS[name]()
    traced = ParameterGraph.trace(network.module, (network.inputs,))
    assert traced.rung == "traced"
    assert sum(group.permutable for group in traced.groups) == sum(g.permutable for g in network.graph.groups)
    assert equivariance_error(small_rule(scale=0.1), network, traced) < 1e-9


@pytest.mark.parametrize("directions", list(DIRECTION_SETS))
@pytest.mark.parametrize("name", list(NETWORKS))
def test_training_is_equivariant(name: str, directions: str) -> None:
    """Weights, biases, scales and all of the state, 20 steps from theta and from P theta."""
    rule = small_rule(scale=0.1, directions=DIRECTION_SETS[directions])
    assert equivariance_error(rule, NETWORKS[name]()) < 1e-9


@pytest.mark.parametrize("form", ["orthogonal", "preconditioned"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_training_is_equivariant_where_matrices_are_orthogonalised(name: str, form: str) -> None:
    rule = small_rule(scale=0.1, directions=("adam", "slow", "gradient"), update_form=form)
    assert equivariance_error(rule, NETWORKS[name]()) < 1e-9


def test_rounding_noise_stays_where_it_is() -> None:
    """The gradient of a bias before a batch norm is 0, in floating point 1e-17 of any sign, which Adam blows up.

    That bias does nothing, but what the metanet hears of it would reach all the others.
    """
    network = cnn(bias=True)
    plain, moved = training_pair(small_rule(scale=0.1), network)
    noisy = ("0.bias", "3.bias")
    for found, expected in zip(moved, plain, strict=True):
        heard = {name: value for name, value in expected.items() if not name.startswith(noisy)}
        assert relative_error(found, heard) < 1e-9
        assert all((found[name] - value).abs().max() < 1e-7 for name, value in expected.items())


class ElementDependent:
    """A rule that tells the scalars of a tensor apart by their place."""

    def __init__(self, rule: LearnedRule) -> None:
        self.rule = rule

    def on(self, graph: ParameterGraph) -> ElementDependent:
        self.bound = self.rule.on(graph)
        return self

    def init(self, params: Any, total: float) -> State:
        return self.bound.init(params, total)

    def update(self, grads: Any, state: State, params: Any) -> Any:
        deltas, state = self.bound.delta(grads, state, params)
        place = {
            n: 1 + 1e-3 * torch.arange(d.numel()).reshape(d.shape) / d.numel() for n, d in deltas.items()
        }
        return {n: p + deltas[n] * place[n] for n, p in params.items()}, state


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_rule_that_knows_places_is_not_equivariant(name: str) -> None:
    assert equivariance_error(ElementDependent(small_rule(scale=0.2)), NETWORKS[name]()) > 1e-6


def test_one_tie_too_many_is_not_equivariant() -> None:
    """Both hidden layers taken for the same neurons: 6 and 6 fit, but they permute apart."""
    wrong = hand_graph(
        {"INPUT": 4, "hidden": 6, "OUTPUT": 3},
        {
            "0.weight": "weight out:hidden in:INPUT",
            "0.bias": "bias out:hidden",
            "2.weight": "weight out:hidden in:hidden",
            "2.bias": "bias out:hidden",
            "4.weight": "weight out:OUTPUT in:hidden",
            "4.bias": "bias out:OUTPUT",
        },
    )
    assert equivariance_error(small_rule(scale=0.2), mlp(), wrong) > 1e-6


def test_a_permutation_of_one_side_alone_is_no_symmetry() -> None:
    assert equivariance_error(small_rule(scale=0.2), mlp(), one_side=True) > 1e-3


def test_graph_matters_to_the_update() -> None:
    """The same values on another graph give another step, or the graph would be for nothing."""
    network = mlp()
    grads = torch.func.grad(network.loss)(network.params)
    rule = small_rule(scale=0.2)
    steps = []
    for graph in (network.graph, ParameterGraph.untied(network.params.items())):
        bound = rule.on(graph)
        steps.append(bound.delta(grads, bound.init(network.params), network.params)[0])
    assert relative_error(*steps) > 1e-3


EXTREMES = {
    "zero gradients": (1.0, 0.0),
    "huge gradients": (1.0, 1e30),
    "infinite in square": (1.0, 3e38),
    "tiny gradients": (1.0, 1e-30),
    "denormal gradients": (1.0, 1e-42),
    "zero parameters": (0.0, 1.0),
    "zero everything": (0.0, 0.0),
    "huge parameters": (1e30, 1.0),
    "tiny parameters": (1e-30, 1e-10),
    "huge both": (1e15, 1e30),
}


@pytest.mark.parametrize("total", [None, 3.0, 1e9])
@pytest.mark.parametrize("case", list(EXTREMES))
def test_updates_are_finite_and_bounded_at_extremes(case: str, total: float | None) -> None:
    size, slope = EXTREMES[case]
    params = tensors(0, scale=size)
    rule = randomised(LearnedRule(LearnedRuleConfig(directions=tuple(DIRECTIONS))), scale=0.3)
    bound = rule.on(ParameterGraph.untied(params.items()))
    state = bound.init(params, total)
    for t in range(6):
        # From the extreme to ordinary gradients and back: what is remembered must not spoil later steps.
        unit = {name: g.sign() * (0.5 + g.abs().clamp(max=0.5)) for name, g in tensors(t).items()}
        grads = {name: g * (slope if t % 3 < 2 else 1.0) for name, g in unit.items()}
        deltas, state = bound.delta(grads, state, params)
        for name, delta in deltas.items():
            assert torch.isfinite(delta).all(), (case, t, name)
            norm = (delta.double().square().mean()).sqrt()
            limit = 0.5 * params[name].double().square().mean().sqrt().clamp(min=0.1)
            assert norm <= limit * (1 + 1e-4)
            assert size > 1e20 or norm > 0 or (slope == 0 and t < 2), "and the rule is not frozen"
        params = {name: p + deltas[name] for name, p in params.items()}
    assert all(torch.isfinite(value).all() for value in flat_state(state).values())


@pytest.mark.parametrize("steps", [1e4, 1e7, 1e9])
@pytest.mark.parametrize("total", [0.0, 10.0, 1e10])
def test_updates_are_finite_after_any_number_of_steps(steps: float, total: float) -> None:
    """Also past the horizon that was announced."""
    params = tensors(0)
    rule = randomised(LearnedRule(LearnedRuleConfig()), scale=0.3)
    bound = rule.on(ParameterGraph.untied(params.items()))
    state = bound.init(params, total)
    for entry in state.values():
        entry["step"] = entry["step"] + steps
    for t in range(3):
        params, state = bound.update(gradient(params, t), state, params)
    assert all(torch.isfinite(p).all() for p in params.values())
    assert all(entry["step"] >= steps for entry in state.values())


def test_known_horizon_is_used_and_unknown_is_zero() -> None:
    params, rule = tensors(0, torch.float64), small_rule(scale=0.3)
    bound = rule.on(ParameterGraph.untied(params.items()))
    unknown, zero, known = (run(bound, params, 3, total) for total in (None, 0.0, 5.0))
    assert relative_error(unknown, zero) == 0
    assert relative_error(known, unknown) > 1e-4


def test_inputs_are_not_modified() -> None:
    params, rule = tensors(0), LearnedRule(LearnedRuleConfig())
    bound = rule.on(ParameterGraph.untied(params.items()))
    grads, state = gradient(params, 0), bound.init(params, 10.0)
    values = [*params.values(), *grads.values(), *flat_state(state).values()]
    before = [value.clone() for value in values]
    bound.update(grads, state, params)
    assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))


def test_half_precision_parameters_keep_float32_state() -> None:
    params = {name: p.bfloat16() for name, p in tensors(0).items()}
    bound = LearnedRule(LearnedRuleConfig(rate=0.1)).on(ParameterGraph.untied(params.items()))
    state = bound.init(params)
    new_params, state = bound.update(gradient(params, 0), state, params)
    assert {p.dtype for p in new_params.values()} == {torch.bfloat16}
    assert {value.dtype for value in flat_state(state).values()} == {torch.float32}
    assert all(not torch.equal(new_params[name], p) for name, p in params.items())


def test_state_follows_the_layout_and_not_the_memory_format() -> None:
    params = {"conv": torch.randn(4, 3, 2, 2, generator=seeded(0)).to(memory_format=torch.channels_last)}
    grads = {"conv": torch.randn(4, 3, 2, 2, generator=seeded(1))}
    rule = LearnedRule(LearnedRuleConfig())
    bound = rule.on(ParameterGraph.untied(params.items()))
    plain = {"conv": params["conv"].contiguous()}
    ours, _ = bound.update(grads, bound.init(params), params)
    theirs, _ = bound.update(grads, bound.init(plain), plain)
    assert torch.equal(ours["conv"], theirs["conv"])


def test_other_meta_parameters_by_functional_call() -> None:
    params, rule, other = tensors(0, torch.float64), small_rule(1), small_rule(2)
    graph = ParameterGraph.untied(params.items())
    called = run(rule.on(graph, dict(other.named_parameters())), params, 5)
    own = run(rule.on(graph), params, 5)
    rule.load_state_dict(other.state_dict())
    loaded = run(rule.on(graph), params, 5)
    assert relative_error(called, loaded) == 0
    assert relative_error(own, loaded) > 1e-4


def test_vmap_over_meta_parameters() -> None:
    """What evolution strategies need: many rules on one network at once."""
    params = tensors(0, torch.float64)
    graph = ParameterGraph.untied(params.items())
    rules = [small_rule(seed) for seed in range(3)]
    stacked, _ = torch.func.stack_module_state(rules)
    grads = [gradient(params, t) for t in range(3)]

    def final(meta: dict[str, Tensor]) -> dict[str, Tensor]:
        bound = rules[0].on(graph, meta)
        p, state = params, bound.init(params, 10.0)
        for g in grads:
            p, state = bound.update(g, state, p)
        return p

    many = torch.vmap(final)(stacked)
    for index, rule in enumerate(rules):
        alone = final(dict(rule.named_parameters()))
        torch.testing.assert_close({n: v[index] for n, v in many.items()}, alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_update_equals_eager(backend: str) -> None:
    """In one graph, compiled once, without a warning: warnings are errors here."""
    torch._dynamo.reset()  # what earlier tests compiled would count as recompilation
    parameters = {"qkv": "query,key,value out:head*q+head*q+head*q in:stream", "scale": "scale out:stream"}
    graph = hand_graph({"stream": 4, "head": 2, "q": 3}, parameters)
    params = {name: torch.randn(spec.shape, generator=seeded(0)) for name, spec in graph.parameters.items()}
    rule = small_rule(scale=0.1, weight_decay=0.5, decay_horizon=20.0)
    bound = rule.float().on(graph)
    state = bound.init(params, 50.0)
    theirs, their_state = params, state
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(bound.update, backend=backend, fullgraph=True)
        for t in range(3):
            grads = {name: p.cos() * (t + 1) for name, p in params.items()}
            params, state = bound.update(grads, state, params)
            theirs, their_state = compiled(grads, their_state, theirs)
    torch.testing.assert_close(theirs, params, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(flat_state(their_state), flat_state(state), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"metanet": "none such"},
        {"directions": ()},
        {"directions": ("adam", "sideways")},
        {"rate": 0.0},
        {"rate": float("inf")},
        {"rate": float("nan")},
        {"max_step": -1.0},
        {"decays": ()},
        {"decays": (0.9,)},
        {"decays": (0.9, 1.0)},
        {"second_decay": 1.0},
        {"warm_up": 1.0},
        {"warm_up": "long"},
        {"scales": {"kernels": 1.0}},
        {"scales": {"kernel": 0.0}},
        {"scales": 2.0},
        {"fade": -1.0},
        {"widest": -1.0},
        {"widest_output": -1.0},
        {"relative": "yes"},
        {"weight_decay": -0.1},
        {"decay_horizon": float("inf")},
        {"directions": ["adam", "adam"]},
        {"directions": {"adam": "a"}},
        {"directions": {"adam": math.nan}},
        {"weights": [1.0, 2.0], "directions": ["adam"]},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        LearnedRuleConfig(**options)


def test_gauges_and_description() -> None:
    config = LearnedRuleConfig(
        rate=2e-3, metanet={"name": "axisnet", "width": 3}, directions=("slow", "adam")
    )
    rule = LearnedRule(config)
    assert rule.gauges()["base_rate"] == pytest.approx(2e-3, rel=1e-6)
    assert LearnedRule.from_description(rule.describe()).config == config


def test_fresh_rule_with_orthogonal_momentum_and_decay_is_muon() -> None:
    """With momentum 0.9, and its weights the same at the first step, when bias correction is what differs later."""
    rate, decay = 0.02, 0.1
    weights = {"a": torch.randn(6, 5, generator=seeded(1), dtype=torch.float64),
               "b": torch.randn(5, generator=seeded(2), dtype=torch.float64)}  # fmt: skip
    rule = make_rule(
        "axisnet", rate=rate, directions=["orthogonal", "parameter"], weights=[1.0, decay]
    ).double()
    bound = rule.on(ParameterGraph.untied(weights.items()))
    grads = {name: torch.sin(3 * p) for name, p in weights.items()}
    muon = make_rule("muon", lr=rate, momentum=0.9, weight_decay=decay).on(bound.graph)
    with torch.no_grad():
        ours, _ = bound.update(grads, bound.init(weights), weights)
        theirs, _ = muon.update(grads, muon.init(weights), weights)
    for name in weights:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_fresh_rule_that_knows_the_horizon_is_adam_with_cosine_decay() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    rule = make_rule("axisnet", rate=0.02).double()
    bound = rule.on(ParameterGraph.untied([("w", weight)]))
    params, state = {"w": weight}, bound.init({"w": weight}, total_steps=30)
    reference = torch.nn.Parameter(weight.clone())
    adam = torch.optim.Adam([reference], lr=0.02)
    for step in range(40):
        adam.param_groups[0]["lr"] = 0.02 * (0.01 + 0.495 * (1 + math.cos(math.pi * min(step / 30, 1))))
        reference.grad = reference.detach() - target
        adam.step()
        with torch.no_grad():
            params, state = bound.update({"w": params["w"] - target}, state, params)
    assert torch.allclose(params["w"], reference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["lopt-base", "lopt-small"])
def test_empty_matrices_do_no_harm(name: str) -> None:
    shapes = {"hidden": (4, 3), "empty": (0, 3), "none": (3, 0, 2)}
    params = {n: torch.ones(shape) for n, shape in shapes.items()}
    graph = ParameterGraph.untied(params.items())
    alone = {"hidden": params["hidden"]}
    with torch.no_grad():
        results = []
        for given in (params, alone):
            bound = load_rule(name).on(graph.subset(given))
            results.append(bound.update(given, bound.init(given), given)[0])
    assert results[0]["empty"].shape == (0, 3)
    assert torch.isfinite(results[0]["hidden"]).all()
    assert relative_error({"hidden": results[0]["hidden"]}, alone) > 0


@pytest.mark.parametrize("double", ["one", "other"])
def test_float64_with_float32_is_computed_in_float64(double: str) -> None:
    dtypes = {name: torch.float64 if name == double else torch.float32 for name in ("one", "other")}
    params = {name: torch.linspace(-1, 1, 6, dtype=dtype).reshape(3, 2) for name, dtype in dtypes.items()}
    wide = {name: p.double() for name, p in params.items()}
    results = []
    for given in (params, wide):
        bound = small_rule().on(ParameterGraph.untied(given.items()))
        state = bound.init(given)
        deltas, _ = bound.delta(given, state, given)
        results.append(deltas)
    assert all(delta.dtype == torch.float64 for delta in results[0].values())
    assert relative_error(*results) < 1e-6


def test_a_metanet_that_sees_no_scalars_is_given_the_same_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """With features of scalars or without, which it does not read: the same steps."""
    params = tensors(0, torch.float64)
    rule = small_rule(scale=0.3, metanet="tensor_mlp", metanet_options={"width": 4})
    assert not rule.metanet.sees_scalars
    bound = rule.on(ParameterGraph.untied(params.items()))
    without = run(bound, params, 5, 20.0)
    monkeypatch.setattr(rule.metanet, "sees_scalars", True)
    assert relative_error(without, run(bound, params, 5, 20.0)) < 1e-12
    assert relative_error(without, params) > 1e-3, "the run moved the parameters"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("metanet", ["tensor_mlp", "axisnet"])
def test_large_networks_take_the_same_steps(form: str, metanet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows taken one at a time, and raw outputs repeated late, as from `LONG` scalars on."""
    params = tensors(0, torch.float64)
    options = {"width": 4} if metanet == "tensor_mlp" else {"width": 4, "neuron_width": 6, "layers": 2}
    rule = small_rule(scale=0.3, metanet=metanet, metanet_options=options, update_form=form)
    bound = rule.on(ParameterGraph.untied(params.items()))
    small = run(bound, params, 5, 20.0)
    for module in (learned, segments):
        monkeypatch.setattr(module, "LONG", 0)
    assert relative_error(run(bound, params, 5, 20.0), small) < 1e-12
    assert relative_error(small, params) > 1e-4, "the run moved the parameters"


def test_the_base_of_a_rule_takes_the_same_steps_on_large_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    params = tensors(0, torch.float64)
    bound = base_of(small_rule(scale=0.3)).on(ParameterGraph.untied(params.items()))
    small = run(bound, params, 3)
    for module in (learned, segments):
        monkeypatch.setattr(module, "LONG", 0)
    assert relative_error(run(bound, params, 3), small) < 1e-12


class Gained(torch.nn.Module):
    """A gain behind a convolution, stored in any shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3, bias=False)
        self.gain = torch.nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x) * self.gain.reshape(1, 8, 1, 1)


@pytest.mark.parametrize("name", ["lopt-small", "lopt-base"])
def test_axes_of_size_one_of_a_gain_change_no_step(name: str) -> None:
    rule, ends = lopt.load_rule(name).double(), []
    for shape in ((8,), (1, 8, 1, 1)):
        torch.manual_seed(0)
        model, x = Gained(shape).double(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
        graph = lopt.ParameterGraph.trace(model, (x,))
        optimizer = lopt.LearnedOptimizer(model.named_parameters(), rule=rule, graph=graph)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        ends.append([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)
