"""What a tensor is to its network, whatever axes of size one it has and however many members it stacks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lopt import LearnedOptimizer, load_rule
from lopt.errors import GraphWarning
from lopt.graph import ParameterGraph
from lopt.graph.tensor_classes import Matrices, class_of, matrices_of, usual_rms
from lopt.rules.classical import Muon


class Mixed(nn.Module):
    """Experts and their biases, a gain, a token, a convolution and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.conv = nn.Conv1d(6, 8, 3)
        self.gain = nn.Parameter(torch.ones(1, 8, 1))
        self.dense = nn.Linear(8, 6)
        self.up, self.up_bias = nn.Parameter(torch.randn(5, 6, 9)), nn.Parameter(torch.zeros(5, 1, 9))
        self.down, self.down_bias = nn.Parameter(torch.randn(5, 9, 3)), nn.Parameter(torch.zeros(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.token.expand(len(x), -1, -1)], 1)
        x = self.dense((self.conv(x.mT) * self.gain).mT).flatten(0, 1)
        h = torch.relu(torch.bmm(x[None].expand(5, -1, -1), self.up) + self.up_bias)
        return (torch.bmm(h, self.down) + self.down_bias[:, None]).mean(0)


def test_a_traced_graph_tells_gains_tokens_and_experts_from_kernels() -> None:
    graph = ParameterGraph.trace(Mixed(), (torch.randn(2, 7, 6),))
    classes = {name: class_of(graph, name) for name in graph.parameters}
    assert classes == {
        "token": "vector", "conv.weight": "kernel", "conv.bias": "vector", "gain": "vector",
        "dense.weight": "matrix", "dense.bias": "vector",
        "up": "matrix", "up_bias": "vector", "down": "output", "down_bias": "vector",
    }  # fmt: skip
    assert matrices_of(graph, "up") == Matrices(5, 6, 9)
    assert matrices_of(graph, "conv.weight") == Matrices(1, 8, 18)
    usual = dict(zip(graph.parameters, usual_rms(graph), strict=True))
    assert usual["up"] == pytest.approx((3 * 6) ** -0.5)
    assert usual["gain"] == usual["up_bias"] == 0
    assert graph.groups[graph.parameters["up"].axes[0][0][0]].permutable


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("gain", (1, 8, 1, 1), "vector"), ("gain", (8, 1, 1), "vector"), ("token", (1, 1, 8), "vector"),
        ("w", (8, 6), "matrix"), ("w", (1, 6), "matrix"), ("w", (8, 6, 3), "kernel"), ("w", (8, 6, 3, 3), "kernel"),
        ("w", (768, 48, 128), "kernel"), ("w", (4, 32, 24), "matrix"), ("experts.w", (8, 4, 6), "matrix"),
        ("w", (8, 1, 3), "kernel"), ("w", (2, 1, 3, 3), "kernel"), ("b", (), "vector"),
        ("w", (8, 6, 1, 1), "matrix"), ("w", (8, 6, 1), "matrix"), ("w", (1, 6, 3), "kernel"),
        ("place", (1, 50, 24), "table"), ("place", (1, 7, 7, 24), "table"), ("cls", (1, 1, 24), "vector"),
    ],
)  # fmt: skip
def test_without_a_graph_shapes_and_names_tell(name: str, shape: tuple[int, ...], expected: str) -> None:
    graph = ParameterGraph.untied([(name, torch.zeros(shape)), ("other", torch.zeros(3))])
    assert class_of(graph, name) == expected


class Members(nn.Module):
    """Four perceptrons that read the same data; each has an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Parameter(torch.randn(4, 8, 6)), nn.Parameter(torch.randn(4, 3, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.einsum("bi,eoi->ebo", x, self.hidden).relu()
        return torch.einsum("ebh,eoh->ebo", h, self.last)


def test_hidden_weights_of_members_that_are_all_outputs_are_hidden() -> None:
    graph = ParameterGraph.trace(Members(), (torch.randn(5, 6),))
    assert [class_of(graph, name) for name in ("hidden", "last")] == ["matrix", "output"]


def test_a_stacked_ensemble_without_a_graph_is_read_by_member_and_told() -> None:
    shapes = {"0.weight": (3, 8, 6), "0.bias": (3, 8), "2.weight": (3, 3, 8), "2.bias": (3, 3)}
    with pytest.warns(GraphWarning, match="all 4 parameters have 3 entries along their first axis"):
        graph = ParameterGraph.untied((name, torch.zeros(shape)) for name, shape in shapes.items())
    assert [class_of(graph, name) for name in shapes] == ["matrix", "vector", "matrix", "vector"]
    assert matrices_of(graph, "0.weight") == Matrices(3, 8, 6)


def test_muon_steps_each_expert_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    stack = torch.randn(4, 20, 24)
    together = Muon(lr=0.1).on(ParameterGraph.untied([("experts", stack), ("b", torch.zeros(2))]))
    alone = Muon(lr=0.1).on(ParameterGraph.untied([("w", stack[0])]))
    grads = torch.randn_like(stack)
    all_params = {"experts": stack, "b": torch.zeros(2)}
    new, _ = together.update({"experts": grads, "b": torch.zeros(2)}, together.init(all_params), all_params)
    for member, grad, found in zip(stack, grads, new["experts"], strict=True):
        params = {"w": member}
        expected, _ = alone.update({"w": grad}, alone.init(params), params)
        torch.testing.assert_close(found, expected["w"])


@pytest.mark.parametrize("rule", ["lopt-small", "lopt-base"])
def test_gains_of_any_shape_take_the_steps_of_vectors(rule: str) -> None:
    """All but what the number of axes itself tells a metanet of scalars."""
    ends = []
    for shape in ((8,), (1, 8, 1, 1)):
        gain = nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(shape))
        optimizer = LearnedOptimizer([gain], rule=load_rule(rule))
        for t in range(20):
            gain.grad = torch.sin(torch.arange(8.0) + t).reshape(shape)
            optimizer.step()
        ends.append(gain.detach().flatten())
    torch.testing.assert_close(ends[0], ends[1], atol=0.02, rtol=0)


def test_a_gain_without_gradient_is_left_alone() -> None:
    gain = nn.Parameter(torch.ones(1, 8, 1, 1))
    optimizer = LearnedOptimizer([gain], rule="lopt-small")
    for _ in range(30):
        gain.grad = torch.zeros_like(gain)
        optimizer.step()
    torch.testing.assert_close(gain, torch.ones_like(gain))


class Routed(nn.Module):
    """A router sends each token to two experts, whose weights and biases are stacked; used in the common ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.router, self.out = way, nn.Linear(8, 4), nn.Linear(8, 3)
        self.up, self.up_bias = nn.Parameter(torch.randn(4, 16, 8)), nn.Parameter(torch.randn(4, 16))
        self.down, self.down_bias = nn.Parameter(torch.randn(4, 8, 16)), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).sigmoid().topk(2)
        return self.out(x + getattr(self, self.way)(x, weight, chosen))

    def grouped(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        of_expert, order = chosen.flatten().sort()
        ends = torch.histc(of_expert.float(), bins=4, min=0, max=3).cumsum(0, dtype=torch.int32)
        token = order // 2
        h = torch._grouped_mm(x[token], self.up.mT, offs=ends) + self.up_bias[of_expert]
        rows = torch._grouped_mm(h.relu(), self.down.mT, offs=ends) + self.down_bias[of_expert]
        return torch.zeros_like(x).index_add(0, token, rows * weight.flatten()[order, None])

    def gathered(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        h = torch.einsum("nkoi,ni->nko", self.up[chosen], x) + self.up_bias[chosen]
        rows = torch.einsum("nkoi,nki->nko", self.down[chosen], h.relu()) + self.down_bias[chosen]
        return (rows * weight[..., None]).sum(1)

    def selected(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for i in range(4):
            token, place = torch.where(chosen == i)
            h = nn.functional.linear(x[token], self.up[i], self.up_bias[i])
            rows = nn.functional.linear(h.relu(), self.down[i], self.down_bias[i])
            total = total.index_add(0, token, rows * weight[token, place, None])
        return total


@pytest.mark.parametrize("way", ["grouped", "gathered", "selected"])
def test_routed_experts_are_matrices_and_vectors_each_by_itself(way: str) -> None:
    torch.manual_seed(0)
    model, x = Routed(way), torch.randn(10, 8)
    graph = ParameterGraph.trace(model, (x,))
    assert graph.rung == "traced"
    assert graph.verify(model, (x,)).ok
    assert {name: class_of(graph, name) for name in ("up", "down", "up_bias", "down_bias", "router.weight")} == {
        "up": "matrix", "down": "matrix", "up_bias": "vector", "down_bias": "vector", "router.weight": "matrix",
    }  # fmt: skip
    assert matrices_of(graph, "up") == Matrices(4, 16, 8)
    ((hidden,),) = graph.parameters["up"].axes[1]
    assert graph.groups[hidden].permutable
    experts = {
        graph.parameters[name].axes[0] for name in ("router.weight", "up", "down", "up_bias", "down_bias")
    }
    assert len(experts) == 1 or way == "selected"


class Soft(nn.Module):
    """All experts read every token, weighted by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(8, 4), nn.Linear(8, 3)
        self.up, self.up_bias = nn.Parameter(torch.randn(4, 5, 8)), nn.Parameter(torch.randn(4, 5))
        self.down = nn.Parameter(torch.randn(4, 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = (torch.einsum("ehi,ni->neh", self.up, x) + self.up_bias).relu()
        rows = torch.einsum("eoh,neh->neo", self.down, hidden)
        return self.out((self.router(x).softmax(-1)[..., None] * rows).sum(1))


def test_experts_that_all_are_asked_are_permuted_with_the_routers_outputs() -> None:
    torch.manual_seed(0)
    model, x = Soft(), torch.randn(10, 8)
    graph = ParameterGraph.trace(model, (x,))
    assert graph.verify(model, (x,)).ok
    experts = {graph.parameters[n].axes[0] for n in ("router.weight", "router.bias", "up", "up_bias", "down")}
    ((((group,),)),) = (*experts,)
    assert graph.groups[group].permutable
    assert matrices_of(graph, "up") == Matrices(4, 5, 8)
    assert matrices_of(graph, "down") == Matrices(4, 8, 5)
    assert matrices_of(graph, "router.weight") == Matrices(1, 4, 8)
    assert {class_of(graph, name) for name in ("up", "down", "router.weight")} == {"matrix"}
    assert class_of(graph, "up_bias") == "vector"


def test_a_codebook_is_a_table_though_its_entries_are_chosen() -> None:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.codes, self.decode = (
                nn.Linear(3, 6),
                nn.Parameter(torch.randn(9, 6)),
                nn.Linear(6, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            z = self.encode(x)
            nearest = torch.cdist(z, self.codes).argmin(-1)
            return self.decode(z + self.codes[nearest])

    graph = ParameterGraph.trace(Quantised(), (torch.randn(5, 3),))
    assert class_of(graph, "codes") != "vector"
    assert graph.parameters["codes"].roles[0] != "tap"


def test_a_convolution_of_one_tap_is_of_the_class_of_the_same_dense_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = ParameterGraph.trace(model, (torch.randn(1, 3, 4, 4),))
    weights = [class_of(graph, name) for name in graph.parameters if name.endswith("weight")]
    assert weights == ["kernel", "matrix", "output"]
