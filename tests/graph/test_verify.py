from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lopt.errors import GraphError, GraphWarning
from lopt.graph import AxisGroup, ParameterGraph


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3))


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def _traced() -> tuple[nn.Sequential, ParameterGraph]:
    model = _mlp()
    return model, ParameterGraph.trace(model, (X,))


def _with_axis(graph: ParameterGraph, name: str, dim: int, group: int) -> ParameterGraph:
    """The same graph with one axis of one parameter put into another group."""
    spec = graph.parameters[name]
    axes = tuple(((group,),) if k == dim else axis for k, axis in enumerate(spec.axes))
    parameters = {**graph.parameters, name: replace(spec, axes=axes)}
    groups = tuple(
        replace(
            g,
            members=tuple(
                (n, k) for n, s in parameters.items() for k, a in enumerate(s.axes) if (g.id,) in a
            ),
        )
        for g in graph.groups
    )
    return ParameterGraph(parameters, groups, graph.buffers, graph.rung)


def test_a_right_graph_passes_with_every_control_noticed() -> None:
    model, graph = _traced()
    report = graph.verify(model, (X,))
    assert report.ok
    assert report.max_error < 1e-12
    assert report.controls == report.controls_detected == 6
    assert report.undetected == report.inert == ()
    assert "6 of 6" in str(report)


def test_inputs_taken_for_free_fail() -> None:
    model, graph = _traced()
    groups = tuple(replace(g, permutable=g.permutable or g.kind == "input") for g in graph.groups)
    report = ParameterGraph(graph.parameters, groups, {}, "traced").verify(model, (X,))
    assert not report.ok
    assert report.max_error > 1e-3


def test_a_tie_of_two_layers_fails_where_they_are_not_the_same_neurons() -> None:
    model, graph = _traced()
    first, second = (graph.parameters[f"{i}.weight"].axes[0][0][0] for i in (0, 2))
    wrong = _with_axis(graph, "4.weight", 1, first)
    assert first != second
    report = wrong.verify(model, (X,))
    assert not report.ok
    assert report.max_error > 1e-3


@pytest.mark.parametrize(("name", "dim"), [("0.bias", 0), ("2.weight", 1), ("4.weight", 1)])
def test_a_missing_tie_fails(name: str, dim: int) -> None:
    model, graph = _traced()
    size = graph.parameters[name].shape[dim]
    alone = len(graph.groups)
    larger = ParameterGraph(
        graph.parameters, (*graph.groups, AxisGroup(alone, size, "hidden", True)), graph.buffers, graph.rung
    )
    report = _with_axis(larger, name, dim, alone).verify(model, (X,))
    assert not report.ok
    assert report.max_error > 1e-3


class Summed(nn.Module):
    """Nothing tells the neurons of `first` apart; after a softmax `key`, the same for all scores, is inert."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.softmax = softmax
        self.first = nn.Linear(5, 4, bias=False)
        self.scale = nn.Parameter(torch.ones(3))
        self.key = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        scores = h.sum(-1, keepdim=True) * self.scale + (h * 0 + self.key).sum(-1, keepdim=True)
        return torch.softmax(scores, -1) if self.softmax else scores


@pytest.mark.parametrize("softmax", [False, True])
def test_axes_of_tensors_without_effect_are_inert_not_undetected(softmax: bool) -> None:
    model = Summed(softmax)
    graph = ParameterGraph.trace(model, (X,))
    report = graph.verify(model, (X,))
    assert report.max_error < 1e-12
    unnoticed = report.inert if softmax else report.undetected  # a sum does not need the tie of the two
    assert {c.tensor for c in unnoticed} == {"first.weight", "key"}
    assert len(report.inert) + len(report.undetected) == 2
    assert not report.ok


class _Siamese(nn.Module):
    """What is compared is the same up to a shift: the last bias shows nowhere, and alone is tied to its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(self.embed(x), self.embed(y))


def test_what_is_tied_to_inert_axes_alone_has_nothing_to_be_uncoupled_from() -> None:
    torch.manual_seed(0)
    model, args = _Siamese(), (X, X.flip(0) + 1)
    report = ParameterGraph.trace(model, args).verify(model, args)
    assert report.ok
    assert {(c.tensor, c.axis) for c in report.inert} == {("embed.2.weight", 0), ("embed.2.bias", 0)}
    assert report.controls_detected == report.controls == 3


def test_controls_can_be_limited() -> None:
    model, graph = _traced()
    report = graph.verify(model, (X,), max_controls=2)
    assert report.controls == report.controls_detected == 2


@dataclass
class Result:
    logits: Tensor
    more: dict[str, list[Tensor]]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, *, scale: Tensor) -> Result:
        h = self.second(self.first(x).relu() * scale)
        return Result(h, {"rest": [h.argmax(-1), (h > 0)]})


def test_outputs_may_be_nested_and_inputs_named() -> None:
    model = Nested()
    kwargs = {"scale": torch.tensor(2.0)}
    graph = ParameterGraph.trace(model, (X,), kwargs)
    report = graph.verify(model, (X,), example_kwargs=kwargs)
    assert report.ok
    assert report.controls == 3


class LowPrecision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 2)
        self.constant = torch.ones(6, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).to(torch.float32)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True, dtype=torch.float32) + 1e-6) * self.constant[0]
        return self.second(h.to(x.dtype))


def test_norms_in_float32_and_bf16_parameters_are_checked_in_float64() -> None:
    model = LowPrecision().bfloat16()
    graph = ParameterGraph.trace(model, (X.bfloat16(),))
    report = graph.verify(model, (X.bfloat16(),))
    assert report.ok
    assert report.max_error < 1e-12


class WritesItself(nn.Module):
    """Rescales a weight in place at its first evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scaled = nn.Linear(5, 6), nn.Linear(6, 2), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not self.scaled:
            with torch.no_grad():
                self.first.weight.div_(2)
            self.scaled = True
        return self.second(self.first(x).relu())


def test_a_model_that_writes_to_its_parameters_is_checked_on_copies() -> None:
    model = WritesItself()
    before = model.first.weight.clone()
    report = ParameterGraph.trace(model, (X,)).verify(model, (X,))
    assert report.ok
    assert torch.equal(before, model.first.weight)
    assert not model.scaled


def test_a_model_without_values_gets_some() -> None:
    with torch.device("meta"):
        model = _mlp()
    assert ParameterGraph.trace(model, (X,)).verify(model, (X,)).ok


def test_in_inference_mode() -> None:
    model, graph = _traced()
    with torch.inference_mode():
        assert graph.verify(model, (X,)).ok


def test_dead_and_saturated_units_do_not_hide_a_control() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU6(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU6(),
        nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    for p in model.parameters():
        nn.init.zeros_(p)
    x = torch.randn(2, 3, 8, 8)
    report = ParameterGraph.trace(model, (x,)).verify(model, (x,))
    assert report.ok, report
    assert report.inert == ()


def test_the_graph_of_another_model_is_refused() -> None:
    _, graph = _traced()
    with pytest.raises(GraphError, match=r"found 0.weight with shape \(7, 4\) instead of \(7, 5\)"):
        graph.verify(nn.Sequential(nn.Linear(4, 7)), (X,))


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X[:, :4],), None, "RuntimeError"),
        (X, None, r"expected example inputs as a tuple .* found Tensor: write \(x,\) for x"),
        ({"input": X}, None, r"as a tuple .* found dict: write them after \(\) if they have names"),
        ((), [X], "expected named example inputs as a dict, found list"),
    ],
)
def test_inputs_that_do_not_fit_get_one_clear_error(args: Any, kwargs: Any, message: str) -> None:
    model, graph = _traced()
    with pytest.raises(GraphError, match=message):
        graph.verify(model, args, kwargs)
    with pytest.raises(GraphError, match=message):
        ParameterGraph.trace(model, args, kwargs)


def test_a_model_that_writes_to_its_inputs_leaves_the_examples_alone() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), _mlp())
    x = X.double()
    before = x.clone()
    assert ParameterGraph.trace(model.double(), (x,)).verify(model, (x,)).ok
    assert torch.equal(before, x)


class _RoutedExperts(nn.Module):
    """Rows sorted by expert, each block of them through its own weight by the fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 16), nn.Linear(8, 2)
        self.experts = nn.Parameter(torch.randn(3, 16, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([1, 1, len(x)], dtype=torch.int32)
        return self.head(torch._grouped_mm(self.stem(x), self.experts, ends).relu())


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped matrix product")
def test_a_grouped_product_is_verified_though_its_kernel_has_no_float64() -> None:
    torch.manual_seed(0)
    model = _RoutedExperts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # its fake kernel only takes bfloat16
        graph = ParameterGraph.trace(model, (X,))
    assert sorted(g.size for g in graph.groups if g.permutable) == [8, 16]
    report = graph.verify(model, (X,))
    assert report.ok
    assert report.controls == report.controls_detected == 5


def test_progress_counts_controls_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lopt.progress.SECONDS_BETWEEN_LINES", 0.0)
    model, args = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(5, 3),)
    graph = ParameterGraph.trace(model, args)
    report = graph.verify(model, args)
    assert capsys.readouterr().err == ""
    assert graph.verify(model, args, progress=True) == report
    assert f"verifying: 1 of {report.controls} controls" in capsys.readouterr().err


def _drawn_with(noise: Callable[[Tensor], Tensor]) -> tuple[nn.Module, ParameterGraph]:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(noise(torch.tanh(self.a(x))))

    torch.manual_seed(0)
    model = Noisy()
    return model, ParameterGraph.trace(model, (X,))


@pytest.mark.parametrize(
    "noise",
    [
        lambda h: h + torch.randn_like(h),
        lambda h: h + torch.rand(h.shape) * h,
        lambda h: torch.normal(h, h.abs()),
        lambda h: nn.functional.dropout(h, 0.5, training=True),
        lambda h: h * torch.bernoulli(h.sigmoid()),
        lambda h: h + torch.poisson(h.exp()),
        lambda h: h + torch.empty_like(h).exponential_(),
        lambda h: h * torch.randint(1, 5, h.shape),
        lambda h: nn.functional.gumbel_softmax(h) + h,
    ],
    ids=["randn", "rand", "normal", "dropout", "bernoulli", "poisson", "exponential", "randint", "gumbel"],
)
def test_noise_in_hidden_neurons_is_exchangeable(noise: Callable[[Tensor], Tensor]) -> None:
    """A VAE, or dropout that stays on: each neuron draws for itself, and all draw alike."""
    model, graph = _drawn_with(noise)
    report = graph.verify(model, (X,))
    assert report.ok, str(report)
    assert report.controls == 3
    assert graph.groups[graph.parameters["a.bias"].axes[0][0][0]].permutable


def test_noise_hides_no_missing_tie() -> None:
    model, graph = _drawn_with(lambda h: h + torch.randn_like(h))
    alone = AxisGroup(len(graph.groups), 7, "hidden", True)
    larger = ParameterGraph(graph.parameters, (*graph.groups, alone), graph.buffers, graph.rung)
    assert _with_axis(larger, "a.bias", 0, alone.id).verify(model, (X,)).max_error > 1e-3


def test_named_inputs_may_be_given_by_position_as_to_trace() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, *, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    model = Named()
    assert ParameterGraph.trace(model, (), {"x": X}).verify(model, (), {"x": X}).ok
