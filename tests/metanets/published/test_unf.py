"""UNF: one layer written out by hand on an MLP, on a recurrent weight, on heads."""

from __future__ import annotations

import torch
from torch import Tensor

from lopt.metanets.published.unf import OWN, Unf, UnfLayer, axes_of, relation
from tests.helpers import hand_graph, randomised, seeded
from tests.metanets.cases import network

D = 3
OUT, IN = "out", "in"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(D, *shape, generator=seeded(seed), dtype=torch.float64)


def layer_of() -> UnfLayer:
    torch.manual_seed(0)
    return randomised(UnfLayer(D).double(), scale=0.3)  # type: ignore[arg-type]


def on(weight: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("ab,b...->a...", weight, value)


def test_layer_on_an_mlp() -> None:
    """w_0 (h, x), v_0 (h,), w_1 (y, h): every term by name."""
    graph = hand_graph(
        {"INPUT": 2, "hidden": 4, "OUTPUT": 3},
        {"w0": "weight out:hidden in:INPUT", "v0": "bias out:hidden", "w1": "weight out:OUTPUT in:hidden"},
    )
    layer = layer_of()
    w0, v0, w1 = random(4, 2), random(4, seed=1), random(3, 4, seed=2)
    own = {name: layer.own[index] for index, name in enumerate(OWN)}
    whole = (w0.mean((1, 2)) + v0.mean(1) + w1.mean((1, 2))) / 3

    def from_others(role: str) -> Tensor:
        """What arrives at the hidden neurons of a block that has them as its `role` axis."""
        fed = on(layer.others[relation([role], (OUT,))], (w0.mean(2) + v0) / 2)
        return fed + on(layer.others[relation([role], (IN,))], w1.mean(1))

    def linear(value: Tensor) -> Tensor:
        shift = layer.scalar.bias
        assert shift is not None
        return (
            on(layer.scalar.weight, value)
            + (shift + on(layer.others[0], whole)).reshape(-1, *[1] * (value.dim() - 1))
            + on(own["all"], value.flatten(1).mean(1)).reshape(-1, *[1] * (value.dim() - 1))
        )

    expected = [
        linear(w0)
        + on(own["out"], w0.mean(2))[:, :, None]
        + on(own["in"], w0.mean(1))[:, None]
        + from_others(OUT)[:, :, None],
        linear(v0) + from_others(OUT),
        linear(w1)
        + on(own["out"], w1.mean(2))[:, :, None]
        + on(own["in"], w1.mean(1))[:, None]
        + from_others(IN)[:, None],
    ]
    found = layer(axes_of(graph), [w0.flatten(1), v0, w1.flatten(1)])
    for ours, by_hand in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.relu(by_hand).flatten(1))


def test_a_recurrent_weight_reads_its_transpose() -> None:
    graph = hand_graph({"hidden": 4}, {"u": "weight out:hidden in:hidden"})
    layer = layer_of()
    crossed = relation([OUT, IN], (IN, OUT))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.others[crossed] = torch.eye(D)
    u = random(4, 4)
    (found,) = layer(axes_of(graph), [u.flatten(1)])
    torch.testing.assert_close(found, torch.relu(u.transpose(1, 2)).flatten(1))


def test_axes_in_another_order_are_matched_by_group() -> None:
    """The output projection (stream, head x value) reads the value weight (head x value, stream)."""
    graph = hand_graph(
        {"head": 2, "value": 3, "stream": 4},
        {"value": "value out:head*value in:stream", "output": "output out:stream in:head*value"},
    )
    layer = layer_of()
    crossed = relation([IN, IN, OUT], (OUT, OUT, IN))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.others[crossed] = torch.eye(D)
    value, output = random(2, 3, 4), random(4, 2, 3, seed=1)
    found = layer(axes_of(graph), [value.flatten(1), output.flatten(1)])
    # Both relate to each other by the same two pairs of roles, at every subset that has a head or value and a stream.
    at_output = value.permute(0, 3, 1, 2)
    partial = at_output.mean(3, keepdim=True) + at_output.mean(2, keepdim=True)
    torch.testing.assert_close(found[1], torch.relu(at_output + partial).flatten(1))


def test_relations_are_told_apart() -> None:
    seen = {relation([r], (s,)) for r in (OUT, IN) for s in (OUT, IN)}
    seen |= {relation([OUT, IN], s) for s in ((OUT, IN), (IN, OUT), (OUT, OUT), (IN, IN))}
    assert len(seen) == 8
    assert seen <= set(range(1, 16))


def test_taps_are_pooled_but_not_matched() -> None:
    """Each scalar of a kernel reads the mean over its taps; a kernel moves no other pair of neurons' taps apart."""
    graph = network("resnet").graph
    torch.manual_seed(0)
    net = randomised(Unf(4, 3, 2, width=4).double())  # type: ignore[arg-type]
    features = torch.randn(4, graph.numel, generator=seeded(0), dtype=torch.float64)
    context = torch.randn(3, len(graph.parameters), generator=seeded(1), dtype=torch.float64)
    rows = graph.unflatten(features)
    shuffled = {**rows, "inner.weight": rows["inner.weight"].flip(-1)}
    before = graph.unflatten(net(graph, features, context)[0])
    after = graph.unflatten(net(graph, graph.flatten(shuffled), context)[0])
    torch.testing.assert_close(after["inner.weight"], before["inner.weight"].flip(-1))
    torch.testing.assert_close(after["outer.weight"], before["outer.weight"])
