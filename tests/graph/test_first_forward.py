"""Tracing on the first batch: it never stands in the way of the model's own run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lopt
from lopt.errors import GraphError, GraphWarning

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients_are_passed_over(quiet: type) -> None:
    model = _mlp()
    first = lopt.trace_on_first_forward(model)
    with quiet():
        model.eval()(X)
    assert first.graph is None
    model.train()(X)
    assert first.graph is not None
    assert first.graph.rung == "traced"
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_first_batch_that_raises_raises_its_own_error_and_the_next_one_traces() -> None:
    model = _mlp()
    first = lopt.trace_on_first_forward(model)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.ones(2, 7))
    assert first.graph is None
    model(X)
    assert first.graph is not None
    assert first.graph.rung == "traced"


def test_a_lazy_module_is_traced_once_it_knows_its_shapes() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(2))
    first = lopt.trace_on_first_forward(model)
    model(X)
    assert first.graph is not None
    assert first.graph.rung == "traced"
    assert first.graph.parameters["0.weight"].shape == (8, 3)


@pytest.mark.parametrize(
    "where", [torch.autocast("cpu", torch.bfloat16), torch.device("meta")], ids=["autocast", "meta"]
)
def test_the_surroundings_of_the_first_call_do_not_matter(where: object) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _mlp()

        def forward(self, x: Tensor) -> Tensor:
            shift = torch.ones(3)
            return self.body(x + shift.to(x.device))

    model = Shifted()
    example = X.to("meta") if isinstance(where, torch.device) else X
    first = lopt.trace_on_first_forward(model.to(example.device))
    with where:  # type: ignore[attr-defined]
        model(example)
    assert first.graph is not None
    assert [g.size for g in first.graph.groups if g.permutable] == [8]


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="PyTorch 2.8 tells of hooks"
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_first_call_that_is_checkpointed(reentrant: bool) -> None:
    """A checkpoint counts the tensors that its pass saves, and would count those of the trace."""
    models = [_mlp(), _mlp()]
    first, x = lopt.trace_on_first_forward(models[0]), X.clone().requires_grad_()
    checkpoint(models[0], x, use_reentrant=reentrant).sum().backward()
    models[1](x).sum().backward()
    assert first.graph is not None
    assert first.graph.rung == "traced"
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


def test_what_is_no_module_is_refused_at_once() -> None:
    with pytest.raises(GraphError, match=r"expected a torch\.nn\.Module, found generator"):
        lopt.trace_on_first_forward(_mlp().parameters())  # type: ignore[arg-type]


def test_what_cannot_be_traced_is_told_once_and_trains_untied(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(lopt.ParameterGraph, "trace", fails)
    model = _mlp()
    optimizer = lopt.LearnedOptimizer(
        model.parameters(), rule="lopt-small", graph=lopt.trace_on_first_forward(model)
    )
    with pytest.warns(GraphWarning, match="stay untied: too deep") as caught:
        model(X).square().sum().backward()
    assert len(caught) == 1
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(X)


def test_a_model_without_code_of_its_own_is_refused_at_once() -> None:
    with pytest.raises(GraphError, match=r"pass model\.module"):
        lopt.trace_on_first_forward(nn.DataParallel(_mlp()))
    with pytest.raises(GraphError, match="train without a graph, which works"):
        lopt.trace_on_first_forward(torch.jit.script(_mlp()))


def test_transforms_of_torch_func_are_passed_over() -> None:
    """A trace inside of one left fake tensors that outlived it, and crashed Python with a segmentation fault."""
    model = _mlp()
    first = lopt.trace_on_first_forward(model)
    params = {name: p.detach() for name, p in model.named_parameters()}
    torch.func.grad(lambda p: torch.func.functional_call(model, p, (X,)).square().sum())(params)
    torch.vmap(model)(X)
    assert first.graph is None
    with pytest.raises(GraphError, match=r"outside of torch\.func's transforms"):
        torch.vmap(lambda x: lopt.ParameterGraph.trace(model, (x,)))(X)
    model(X)
    assert first.graph is not None
    assert first.graph.rung == "traced"


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Code that was compiled for another module of the same class calls no hooks of this one."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_a_compiled_module_whose_inside_is_compiled_anew(fresh_compiler: None) -> None:
    """As Lightning's Fabric does with what it is given."""
    model = _mlp()
    first = lopt.trace_on_first_forward(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    torch.compile(model, backend="eager")(X)
    assert first.graph is not None
    assert first.graph.rung == "traced"
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_model_compiled_to_one_graph(fresh_compiler: None) -> None:
    model = _mlp()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    first = lopt.trace_on_first_forward(compiled)
    with torch.no_grad():
        compiled(X)
    compiled(X)
    assert first.graph is not None
    assert first.graph.rung == "traced"


def test_a_model_whose_inside_is_compiled_to_one_graph_is_told_what_to_give(fresh_compiler: None) -> None:
    inner = _mlp()
    lopt.trace_on_first_forward(inner)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"give it what torch\.compile returns"):
        torch.compile(inner, backend="eager", fullgraph=True)(X)


def test_parameters_are_known_by_themselves_however_many_have_their_shape() -> None:
    """The upper layers alone, without names: their shapes would fit in several ways."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    model[0].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    first = lopt.trace_on_first_forward(model)
    optimizer = lopt.LearnedOptimizer(trained[::-1], rule="lopt-small", graph=first)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    assert all(p in optimizer.state for p in trained)
    assert first.graph is not None
    assert optimizer.graph is first.graph
    named = lopt.LearnedOptimizer(
        [(f"wrapped.{name}", p) for name, p in model.named_parameters()], rule="lopt-small", graph=first
    )
    named.step()
    assert named.graph is first.graph


def test_traces_do_not_get_in_the_way_of_each_other() -> None:
    """Of two optimizers, of a part and the whole, of one that is asked for and one that waits."""
    model = _mlp()
    waiting = [lopt.trace_on_first_forward(each) for each in (model, model, model[0])]
    asked = lopt.ParameterGraph.trace(model, (X,))
    assert asked.verify(model, (X,)).ok
    assert [each.graph for each in waiting] == [None] * 3
    model(X)
    found = [each.graph for each in waiting if each.graph is not None]
    assert [graph.rung for graph in found] == ["traced"] * 3
    assert found[0].summary() == found[1].summary() == asked.summary()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
