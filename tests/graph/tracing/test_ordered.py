"""Axes that look exchangeable and are not: each of these graphs was wrong once, or could not be derived.

Every model is permuted by its graph in float64 here, apart from `verify`, which is asked as well.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.func import functional_call
from torch.nn import functional as F

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from lopt.graph.tracing.isolation import output_tensors
from tests.helpers import seeded

X = torch.randn(4, 5, generator=seeded(0), dtype=torch.float64)


class Net(nn.Module):
    """Two layers around a function of the hidden features (B, 8) and the module."""

    def __init__(self, between: Callable[[Any, Tensor], Any], out: int = 8, **parameters: Tensor) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(5, 8), nn.Linear(out, 3), between
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x).tanh()))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(1))


def masked_by(write: Callable[[Tensor], object]) -> Callable[[Any, Tensor], Tensor]:
    def between(net: Any, h: Tensor) -> Tensor:
        mask = torch.ones(8, dtype=h.dtype)
        write(mask)
        return h * mask

    return between


def diagonal(net: Any, h: Tensor) -> Tensor:
    return h @ torch.zeros(8, 8, dtype=h.dtype).fill_diagonal_(1)[:, :4].repeat(1, 2)


def put(net: Any, h: Tensor) -> Tensor:
    places = torch.tensor([1, 4])
    return h * torch.ones(8, dtype=h.dtype).index_put((places,), torch.zeros(2, dtype=h.dtype))


def rows_put(net: Any, h: Tensor) -> Tensor:
    buffer = torch.zeros(6, 8, dtype=h.dtype)
    buffer[torch.tensor([4, 1, 3])] = net.rows
    return h * (buffer * torch.arange(6, dtype=h.dtype)[:, None]).sum(0)


def initial_state(layer: type[nn.RNNBase], layers: int, both: bool) -> type[nn.Module]:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = layer(5, 6, layers, bidirectional=both)  # type: ignore[call-arg]
            self.h = nn.Parameter(normal(layers * (1 + both), 1, 6))
            self.head = nn.Linear(6 * (1 + both), 3)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            h = self.h.expand(-1, len(x), -1).contiguous()
            state = (h, h.tanh()) if isinstance(self.rnn, nn.LSTM) else h
            return self.head(self.rnn(x.expand(3, -1, -1), state)[0].sum(0))

    return Learned


def causal(net: Any, h: Tensor) -> Tensor:
    y = h[:, None] + net.positions
    for _ in range(2):
        y = y + F.scaled_dot_product_attention(y, y, y, is_causal=True)
    return y.mean(1)


def hand_made_causal(net: Any, h: Tensor) -> Tensor:
    mask = torch.full((6, 6), -torch.inf, dtype=h.dtype)
    for i in range(6):
        mask[i, : i + 1] = 0.0
    y = h[:, None] + net.positions
    for _ in range(2):
        y = y + F.scaled_dot_product_attention(y, y, y, attn_mask=mask)
    return y.mean(1)


def drawn(net: Any, h: Tensor) -> Tensor:
    return torch.normal(h @ net.mu, (h @ net.sigma).exp())


def drawn_by_distribution(net: Any, h: Tensor) -> Tensor:
    return Normal(h @ net.mu, (h @ net.sigma).exp()).rsample()


def chosen(net: Any, h: Tensor) -> Tensor:
    return net.rows[torch.multinomial((h @ net.mu).softmax(-1), 1)[:, 0]]


class Nested(nn.Module):
    """24 features seen as 3 x 8, of which half are taken, and as 12 x 2 in three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.taps = nn.Linear(5, 24), nn.Parameter(normal(12, 4, 1))
        self.all, self.part = nn.Linear(24, 3), nn.Linear(12, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        eights, pairs = h.view(-1, 3, 8), h.view(-1, 12, 2)
        taken = eights[:, :, :4] * 1
        return self.all(F.conv1d(pairs, self.taps, groups=3).flatten(1)) + self.part(taken.flatten(1))


def unsqueezed(net: Any, h: Tensor) -> Tensor:
    return (h * 2).unsqueeze_(1).sum(1) + h


def transposed(net: Any, h: Tensor) -> Tensor:
    return (h * 2).t_().unsqueeze_(0).sum(0).t() * h


def square(net: Any, h: Tensor) -> Tensor:
    return h @ (net.square * 2).t_()


def quantile(net: Any, h: Tensor) -> Tensor:
    return h - torch.quantile(h, 0.5, dim=1, keepdim=True)


def implicit_einsum(net: Any, h: Tensor) -> Tensor:
    return torch.einsum("...i,ij", h.view(2, 2, 8), net.square).flatten(0, 1)


def places(net: Any, h: Tensor) -> Tensor:
    return (h @ net.mu > 0).long()


def gathered(net: Any, h: Tensor) -> Tensor:
    return net.rows.expand(4, 2).gather(1, places(net, h))


def scattered(net: Any, h: Tensor) -> Tensor:
    return h.new_zeros(4, 2).scatter_add(1, places(net, h), h) @ net.rows


def selected(net: Any, h: Tensor) -> Tensor:
    return h[:, :2].index_select(1, places(net, h)[0])


def added(net: Any, h: Tensor) -> Tensor:
    return h.new_zeros(4, 2).index_add(1, places(net, h)[0], h) @ net.rows


def bags(net: Any, h: Tensor) -> Tensor:
    rows = torch.arange(8).expand(4, 8)
    return F.embedding_bag(rows, net.rows, mode="sum", per_sample_weights=h)


def picked(net: Any, h: Tensor) -> Tensor:
    return h * F.nll_loss(net.rows, places(net, net.mu)[0])


def in_order(net: Any, h: Tensor) -> Tensor:
    return h.view(4, 4, 2).sort(-1).values.flatten(1)


def largest(net: Any, h: Tensor) -> Tensor:
    return h * (h >= h.topk(3, 1).values[:, -1:])


def sparse_code(net: Any, h: Tensor) -> Tensor:
    values, places = h.topk(3, -1)
    return torch.zeros_like(h).scatter(-1, places, values.exp())


def straight_through(net: Any, h: Tensor) -> Tensor:
    return F.gumbel_softmax(h, hard=True) + torch.zeros_like(h).scatter(1, h.argmax(1, keepdim=True), 1.0)


def other_read_there(net: Any, h: Tensor) -> Tensor:
    return (h @ net.mu).gather(1, h.topk(2, 1)[1]) @ net.rows


def longer_code(net: Any, h: Tensor) -> Tensor:
    return h.new_zeros(4, 9).scatter(1, h.topk(3, 1)[1], 1.0) @ net.rows


def places_told(net: Any, h: Tensor) -> Tensor:
    places = h.topk(3, 1)[1]
    return torch.zeros_like(h).scatter(1, places, 1.0) + places.sum(1, keepdim=True)


def places_changed(net: Any, h: Tensor) -> Tensor:
    places = h.topk(3, 1)[1]
    places[:, 0] = 0
    return torch.zeros_like(h).scatter(1, places, 1.0)


def places_of_places(net: Any, h: Tensor) -> Tensor:
    own = places(net, h).gather(1, h.topk(3, 1)[1])
    return torch.zeros_like(h).scatter(1, own, 1.0)


def place_asked(net: Any, h: Tensor) -> Tensor:
    return h * net.rows[h.mean(0).argmax(0).item()]


def set_where(net: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[h < 0] = 0.5
    h[torch.tensor([True, False, True, False])] = 0.25
    return h


def set_at_columns(net: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, torch.arange(8) < 3] = 0.5
    return h


def mixed(net: Any, h: Tensor) -> Tensor:
    return h @ net.square.inverse() * torch.slogdet(net.square)[1] * torch.det(net.square)


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    free: dict[str, int]
    """For some tensors, how many entries of their first axis may be exchanged."""


CASES = {
    "filled slice": Case(lambda: Net(masked_by(lambda m: m[:3].fill_(0))), {"a.weight": 8}),
    "filled steps": Case(lambda: Net(masked_by(lambda m: m[::2].zero_())), {"a.weight": 0}),
    "filled entry": Case(lambda: Net(masked_by(lambda m: m[2].fill_(0))), {"a.weight": 0}),
    "filled whole": Case(lambda: Net(masked_by(lambda m: m.fill_(0.5))), {"a.weight": 8}),
    "filled diagonal": Case(lambda: Net(diagonal), {}),
    "index_put": Case(lambda: Net(put), {"a.weight": 0}),
    "rows put": Case(lambda: Net(rows_put, rows=normal(3, 8)), {"rows": 0, "a.weight": 8}),
    "state of a GRU": Case(initial_state(nn.GRU, 2, False), {"h": 0}),
    "state of an LSTM": Case(initial_state(nn.LSTM, 2, True), {"h": 0}),
    "state of an RNN": Case(initial_state(nn.RNN, 1, True), {"h": 0}),
    "causal attention": Case(lambda: Net(causal, positions=normal(6, 8)), {"positions": 0, "a.weight": 8}),
    "hand-made mask": Case(lambda: Net(hand_made_causal, positions=normal(6, 8)), {"positions": 0}),
    "drawn": Case(lambda: Net(drawn, mu=normal(8, 8), sigma=normal(8, 8)), {"b.weight": 0}),
    "drawn by a distribution": Case(
        lambda: Net(drawn_by_distribution, mu=normal(8, 8), sigma=normal(8, 8)), {"a.weight": 8}
    ),
    "chosen": Case(lambda: Net(chosen, mu=normal(8, 8), rows=normal(8, 8)), {"a.weight": 8}),
    "nested": Case(Nested, {}),
    "unsqueeze_": Case(lambda: Net(unsqueezed), {"a.weight": 8}),
    "t_": Case(lambda: Net(transposed), {"a.weight": 8}),
    "t_ of a square": Case(lambda: Net(square, square=normal(8, 8)), {"a.weight": 8, "square": 8}),
    "quantile": Case(lambda: Net(quantile), {"a.weight": 8}),
    "gathered": Case(lambda: Net(gathered, mu=normal(8, 8), rows=normal(1, 2)), {"a.weight": 8}),
    "scattered": Case(lambda: Net(scattered, mu=normal(8, 8), rows=normal(2, 8)), {"a.weight": 0}),
    "selected": Case(lambda: Net(selected, mu=normal(8, 8)), {}),
    "added": Case(lambda: Net(added, mu=normal(8, 8), rows=normal(2, 8)), {"a.weight": 0}),
    "bags": Case(lambda: Net(bags, rows=normal(8, 8)), {"a.weight": 0}),
    "picked": Case(lambda: Net(picked, mu=normal(8, 8), rows=normal(8, 2)), {"rows": 0}),
    "in order": Case(lambda: Net(in_order), {"a.weight": 8}),
    "largest": Case(lambda: Net(largest), {"a.weight": 8}),
    "sparse code": Case(lambda: Net(sparse_code), {"a.weight": 8}),
    "straight through": Case(lambda: Net(straight_through), {"a.weight": 8}),
    "other read there": Case(lambda: Net(other_read_there, mu=normal(8, 8), rows=normal(2, 8)), {"a.weight": 8}),
    "longer code": Case(lambda: Net(longer_code, rows=normal(9, 8)), {"a.weight": 0}),
    "places told": Case(lambda: Net(places_told), {"a.weight": 0}),
    "places changed": Case(lambda: Net(places_changed), {"a.weight": 0}),
    "places of places": Case(lambda: Net(places_of_places, mu=normal(8, 8)), {"a.weight": 8, "b.weight": 0}),
    "place asked": Case(lambda: Net(place_asked, rows=normal(8, 8)), {"a.weight": 0, "rows": 0}),
    "set where": Case(lambda: Net(set_where), {"a.weight": 8}),
    "set at columns": Case(lambda: Net(set_at_columns), {"a.weight": 0}),
    "mixed": Case(lambda: Net(mixed, square=normal(8, 8)), {"a.weight": 8, "square": 8}),
    "implicit einsum": Case(lambda: Net(implicit_einsum, square=normal(8, 8)), {"a.weight": 8}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:tracing without values failed")  # distributions check their arguments
@pytest.mark.parametrize("name", CASES)
def test_permuting_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = CASES[name].model()
    graph = ParameterGraph.trace(model, (X,))
    generator = seeded(2)
    params = {
        n: p.detach() + 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in model.named_parameters()
    }
    permutation = {k: p.roll(1) if p.equal(torch.arange(len(p))) else p
                   for k, p in graph.random_permutation(generator).items()}  # fmt: skip
    outputs = []
    for given in (params, graph.permute(params, permutation)):
        torch.manual_seed(3)
        outputs.append(functional_call(model, given, (X,)))
    if name not in (
        "drawn",
        "drawn by a distribution",
        "straight through",
    ):  # noise is exchangeable, not permuted
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    assert graph.verify(model, (X,)).max_error < 1e-9
    for tensor, count in CASES[name].free.items():
        segments = graph.parameters[tensor].axes[0]
        free = [s for s in segments if s and all(graph.groups[g].permutable for g in s)]
        sizes = [torch.Size(graph.groups[g].size for g in s).numel() for s in free]
        assert sum(size for size in sizes if size > 1) == count, graph.summary()


@pytest.mark.filterwarnings("ignore:tracing without values failed")
def test_what_is_drawn_belongs_to_what_it_is_drawn_around() -> None:
    for between in (drawn, drawn_by_distribution):
        graph = ParameterGraph.trace(Net(between, mu=normal(8, 8), sigma=normal(8, 8)), (X,))
        assert graph.parameters["mu"].axes[1] == graph.parameters["sigma"].axes[1]
        assert graph.parameters["mu"].axes[1] == graph.parameters["b.weight"].axes[1]


class Policy(nn.Module):
    """Returns an object that is no tensor, list, mapping or dataclass."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.wrap = nn.Linear(5, 8), nn.Linear(8, 3), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.b(self.a(x).tanh()))


@pytest.mark.filterwarnings("ignore::lopt.errors.GraphWarning")
@pytest.mark.parametrize(
    "wrap", [lambda y: Categorical(logits=y), lambda y: SimpleNamespace(logits=y, aux=None)]
)
def test_outputs_in_an_object_of_any_class(wrap: Callable[[Tensor], object]) -> None:
    model = Policy(wrap)
    assert output_tensors(model(X.float()))
    graph = ParameterGraph.trace(model, (X.float(),))
    (out,) = graph.parameters["b.bias"].axes[0]
    assert not any(graph.groups[g].permutable for g in out)
    assert any(graph.groups[g].permutable for g in graph.parameters["a.bias"].axes[0][0])
    report = graph.verify(model, (X.float(),))
    assert report.ok
    assert report.controls_detected > 0


def test_a_model_that_returns_no_tensors_is_refused() -> None:
    with pytest.raises(GraphError, match="expected tensors in what Policy returns, found none"):
        ParameterGraph.trace(Policy(lambda y: None), (X.float(),))


class Undefined(nn.Module):
    """Its outputs are not numbers for most parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.v, self.b = nn.Linear(5, 64), nn.Parameter(torch.ones(64)), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) / self.v.sub(40).sqrt())


def test_verify_is_not_content_with_outputs_that_show_nothing() -> None:
    model = Undefined()
    report = ParameterGraph.trace(model, (X.float(),)).verify(model, (X.float(),))
    assert not report.ok
    assert "the outputs show nothing of the parameters" in str(report)


class Cache:
    def __init__(self) -> None:
        self.h: Tensor | None = None
        self.past: list[Tensor] = []


class Remembers(nn.Module):
    """Keeps what it computes in containers and objects, and counts in a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 3)
        self.nested: dict[str, Any] = {"h": []}
        self.queue: deque[Tensor] = deque(maxlen=2)
        self.cache = Cache()
        self.calls = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.nested["h"].append(h)
        self.queue.append(h)
        self.cache.h = h
        self.cache.past.append(h)
        self.calls.add_(1)
        return h + len(self.nested["h"])


def test_tracing_leaves_nothing_in_containers_and_objects() -> None:
    model = Remembers()
    graph = ParameterGraph.trace(model, (X.float(),))
    graph.verify(model, (X.float(),))
    assert model.nested == {"h": []}
    assert not model.queue
    assert (model.cache.h, model.cache.past) == (None, [])
    assert model.calls == 0
    out = model(X.float())
    assert type(out) is Tensor
    assert model.calls == 1


class Renormalised(nn.Module):
    """Replaces the values of its weight in the forward pass, as EEGNet does, and branches on values."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data = torch.renorm(self.a.weight.data, 2, 0, 0.1)
        return self.a(x) if x.sum() > -1e9 else x


def test_recording_leaves_the_values_of_parameters() -> None:
    model = Renormalised()
    before = model.a.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ParameterGraph.trace(model, (X.float(),))
    assert torch.equal(model.a.weight, before)
