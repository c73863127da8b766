"""The ladder: an unknown operation, control flow that depends on values, and a model that cannot be recorded."""

from __future__ import annotations

import importlib
import queue
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lopt.errors import GraphError, GraphWarning
from lopt.graph import ParameterGraph
from tests.graph.expectations import assert_axes

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def unknown() -> Iterator[object]:
    library = torch.library.Library("lopt_test", "DEF")
    library.define("reverse(Tensor x) -> Tensor")
    library.impl("reverse", lambda x: x.flip(-1), "CompositeExplicitAutograd")
    yield torch.ops.lopt_test.reverse
    library._destroy()


class WithUnknown(nn.Module):
    def __init__(self, operation: object) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 2)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.operation(self.first(x))).relu())  # type: ignore[operator]


def test_an_unknown_operation_unties_only_what_it_touches(unknown: object) -> None:
    model = WithUnknown(unknown)
    with pytest.warns(GraphWarning) as caught:
        graph = ParameterGraph.trace(model, (X,))
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "lopt_test.reverse" in text
    assert "first.bias, first.weight" in text
    assert "third" not in text
    assert graph.rung == "traced"
    assert_axes(graph, {
        "first.weight": [".", "."], "first.bias": ["."],
        "second.weight": ["h", "."], "second.bias": ["h"],
        "third.weight": [".", "h"], "third.bias": ["."],
    })  # fmt: skip
    out, into = graph.parameters["first.weight"].axes[0], graph.parameters["second.weight"].axes[1]
    assert out != into, "what comes out of an unknown operation is not what went in"
    assert graph.groups[out[0][0]].kind == "untied"
    assert graph.verify(model, (X,)).ok


class Branching(nn.Module):
    """Routes rows by comparing values; what `argmax` or `topk` choose would be traced without them."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 6)
        self.gate = nn.Linear(6, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6)) for _ in range(2)
        )
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.into(x))
        scores = self.gate(h)
        choice = (scores[:, 1] > scores[:, 0]).long()
        result = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            mine = choice == number
            if mine.sum().item():  # how many there are is no question of shapes
                rows = mine.nonzero()[:, 0]
                result = result.index_add(0, rows, expert(h[rows]))
        return self.out(h + result)


def _routed() -> tuple[Branching, Tensor]:
    torch.manual_seed(1)
    return Branching(), torch.randn(16, 5)


def test_control_flow_by_values_is_read_from_a_recorded_forward_pass() -> None:
    model, x = _routed()
    with pytest.warns(
        GraphWarning, match="DataDependentOutputException.*read from one forward pass"
    ) as caught:
        graph = ParameterGraph.trace(model, (x,))
    assert len(caught) == 1
    assert caught[0].filename == __file__, "the warning points at the line that asked for the graph"
    assert graph.rung == "recorded"
    expected = {
        "into.weight": ["s", "."], "into.bias": ["s"], "gate.weight": [".", "s"], "gate.bias": ["."],
        "norm.weight": ["s"], "norm.bias": ["s"], "out.weight": [".", "s"], "out.bias": ["."],
    }  # fmt: skip
    for i, hidden in enumerate("ab"):
        expected |= {
            f"experts.{i}.0.weight": [hidden, "s"], f"experts.{i}.0.bias": [hidden],
            f"experts.{i}.2.weight": ["s", hidden], f"experts.{i}.2.bias": ["s"],
        }  # fmt: skip
    assert_axes(graph, expected)
    assert graph.verify(model, (x,)).ok


def test_recording_changes_neither_buffers_nor_random_numbers() -> None:
    model, x = _routed()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.warns(GraphWarning):
        ParameterGraph.trace(model, (x,))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


class InPlace(nn.Module):
    """Needs values, and writes to its parameters: recording it would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() < 1e9:
            with torch.no_grad():
                self.first.weight.clamp_(-0.1, 0.1)
        return self.first(x)


def test_what_cannot_even_be_recorded_stays_untied() -> None:
    model = InPlace()
    before = model.first.weight.clone()
    with pytest.warns(GraphWarning, match=r"first\.weight, first\.bias.*writes to its parameters") as caught:
        graph = ParameterGraph.trace(model, (X,))
    assert len(caught) == 1
    assert graph.rung == "untied"
    assert_axes(graph, {"first.weight": [".", "."], "first.bias": ["."]})
    assert torch.equal(before, model.first.weight)


def test_without_values_control_flow_by_values_stays_untied() -> None:
    with torch.device("meta"):
        model = Branching()
    with pytest.warns(GraphWarning, match="no values on the meta device"):
        graph = ParameterGraph.trace(model, (torch.randn(16, 5),))
    assert graph.rung == "untied"


def test_a_cache_outside_of_the_model_keeps_no_fake_tensor() -> None:
    import functools

    @functools.lru_cache
    def places(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.float32)

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x + places(5))

    model = Cached()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ParameterGraph.trace(model, (X,))
    assert type(model(X)) is Tensor


class AsksInside(nn.Module):
    """Asks about values in a function of its own, which has a variable of the forward pass."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.into, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        if self.way == "generator":
            large = any(bool(h[i].sum() > 1e9) for i in range(2))
        else:
            ask = lambda: bool(h.sum() > 1e9)  # noqa: E731 - that is what is tested
            if self.way == "kept":
                KEPT.put(ask)
            large = ask()
        return self.out(-h if large else h)


KEPT: queue.SimpleQueue[object] = queue.SimpleQueue()
"""Somebody's, where no trace puts back what was there."""


@pytest.mark.parametrize("way", ["generator", "lambda"])
def test_questions_in_a_nested_function_are_answered_by_a_recorded_forward_pass(way: str) -> None:
    model = AsksInside(way)
    with pytest.warns(GraphWarning, match="read from one forward pass"):
        graph = ParameterGraph.trace(model, (X,))
    assert graph.rung == "recorded"
    assert graph.verify(model, (X,)).ok
    assert type(model(X)) is Tensor


def test_a_function_that_others_hold_is_not_emptied() -> None:
    with pytest.raises(GraphError, match="a variable that a function closes over"):
        ParameterGraph.trace(AsksInside("kept"), (X,))
    KEPT.get()


def test_inputs_of_several_lengths_stay_untied() -> None:
    """A jagged tensor has no shape of numbers: nothing can be recorded, though the network takes it well."""
    batch = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.warns(GraphWarning, match="stay untied"):
        graph = ParameterGraph.trace(model, (batch,))
    assert graph.rung == "untied"
    assert model(batch).shape[0] == 2


class Flexible(nn.Module):
    """Attention as an operation of higher order, which calls functions of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 48).requires_grad_(False)  # on the CPU it has no derivative
        self.out, self.head = nn.Linear(16, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        return self.head(torch.relu(self.out(flex_attention(q, k, v)[:, 0])))


def test_an_operation_of_higher_order_unties_only_what_it_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
    model, x = Flexible(), torch.randn(2, 3, 4)
    with pytest.warns(GraphWarning, match=r"flex_attention \(parameters qkv.bias, qkv.weight\)"):
        graph = ParameterGraph.trace(model, (x,))
    assert graph.rung == "traced"
    hidden = {spec.axes[0] for name, spec in graph.parameters.items() if name.startswith("out.")}
    assert hidden == {graph.parameters["head.weight"].axes[1]}
    assert graph.verify(model, (x,)).ok


def test_an_operation_on_numbers_alone_is_no_mistake_of_its_rule() -> None:
    class Chunked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            float(x.sum())  # a question about a value: the pass is recorded
            half = int(torch.div(6, 2, rounding_mode="trunc"))
            return self.second(torch.relu(self.first(x)).view(-1, 2, half).flatten(1))

    with pytest.warns(GraphWarning) as told:
        graph = ParameterGraph.trace(Chunked(), (X,))
    assert graph.rung == "recorded"
    assert not any("mistake" in str(warning.message) for warning in told)
