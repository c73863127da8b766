"""AxisNet equals two slow twins: loops in the docstring's notation, and edge lists with gather and scatter."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lopt.errors import ConfigError
from lopt.graph import ParameterGraph
from lopt.graph.spec import PARAMETER_KINDS
from lopt.metanets.axisnet import AxisLayer, AxisNet, ScalarUpdate
from lopt.numerics.newton_schulz import COEFFICIENTS
from lopt.rules import make_rule
from tests.helpers import hand_graph, randomised, seeded

FEATURES, CONTEXT, OUTPUTS, WIDTH, NEURONS = 3, 4, 2, 3, 5

GRAPHS = {
    "mlp": (
        {"INPUT": 2, "hidden": 3, "OUTPUT": 2},
        {
            "w": "weight out:hidden in:INPUT",
            "b": "bias out:hidden",
            "v": "weight out:OUTPUT in:hidden",
        },
    ),
    "flatten": (
        {"IMAGE": 1, "channel": 2, "TAP": 3, "POSITION": 2, "OUTPUT": 2},
        {
            "conv": "weight out:channel in:IMAGE tap:TAP",
            "scale": "scale out:channel",
            "head": "weight out:OUTPUT in:channel*POSITION",
            "temperature": "other",
        },
    ),
    "attention": (
        {"stream": 3, "head": 2, "query": 2, "value": 1, "TAP": 2},
        {
            "qkv": "query,key,value out:head*query+head*query+head*value in:stream",
            "qkv.bias": "bias out:head*query+head*query+head*value",
            "out": "output out:stream in:head*value",
            "filter": "depthwise out:stream in: tap:TAP",
            "shift": "shift out:stream",
        },
    ),
    "recurrent": (
        {"INPUT": 2, "hidden": 2},
        {
            "ih": "input_gate,forget_gate out:hidden+hidden in:INPUT",
            "hh": "input_gate,forget_gate out:hidden+hidden in:hidden",
            "bilinear": "weight out:hidden in:hidden in:hidden",
        },
    ),
    "scalars alone": ({}, {"a": "other", "b": "scale"}),
}


@pytest.fixture(params=list(GRAPHS))
def graph(request: pytest.FixtureRequest) -> ParameterGraph:
    return hand_graph(*GRAPHS[request.param])


def make_net(layers: int = 2, paths: int = 0) -> AxisNet:
    torch.manual_seed(0)
    return randomised(AxisNet(FEATURES, CONTEXT, OUTPUTS, WIDTH, NEURONS, layers, paths).double(), scale=0.3)


def make_inputs(graph: ParameterGraph) -> tuple[Tensor, Tensor]:
    generator = seeded(1)
    features = torch.randn(FEATURES, graph.numel, generator=generator, dtype=torch.float64)
    return features, torch.randn(CONTEXT, len(graph.parameters), generator=generator, dtype=torch.float64)


Index = tuple[int, ...]


class SlowAxisNet:
    """The docstring's equations with one small vector for each scalar, neuron and block, and no tensor algebra."""

    def __init__(self, net: AxisNet, graph: ParameterGraph) -> None:
        self.net, self.graph = net, graph
        self.entries = {
            b: list(itertools.product(*map(range, block.shape))) for b, block in enumerate(graph.blocks)
        }

    def __call__(self, features: Tensor, context: Tensor) -> Tensor:
        graph, net = self.graph, self.net
        places = self.places()
        names = list(graph.parameters)
        e = {(b, i): features[:, places[b, i]] for b in self.entries for i in self.entries[b]}
        c = {}
        for b, block in enumerate(graph.blocks):
            embedding = net.kind_embedding[PARAMETER_KINDS.index(block.kind)]
            c[b] = relu(net.encode_context(context[:, names.index(block.parameter)]) + embedding)
        n: dict[tuple[int, int], Tensor] | None = None
        heard = self.along_paths(net.paths.mix, e) if net.paths else dict.fromkeys(e, features[:0, 0])
        e = {key: torch.cat([value, heard[key]]) for key, value in e.items()}
        for layer in net.layers:
            e, n, c = self.layer(layer, e, n, c)
        e = {key: torch.cat([value, heard[key]]) for key, value in e.items()}
        raw = torch.zeros(OUTPUTS, graph.numel, dtype=torch.float64)
        for (b, i), value in self.scalar_update(net.head, e, n, c).items():
            raw[:, places[b, i]] = value
        return raw

    def places(self) -> dict[tuple[int, Index], int]:
        """Where entry i of block b lies in the flat vector, through the positions along the parameter's own axes."""
        found = {}
        for b, block in enumerate(self.graph.blocks):
            spec = self.graph.parameters[block.parameter]
            for i in self.entries[b]:
                atoms, position = iter(i), self.graph.offsets[block.parameter]
                for dim, (size, cut) in enumerate(zip(spec.shape, block.slices, strict=True)):
                    segment = self.segment(spec.axes[dim], cut)
                    inside = 0
                    for group in segment:
                        inside = inside * self.graph.groups[group].size + next(atoms)
                    position += (cut.start + inside) * math.prod(spec.shape[dim + 1 :])
                    assert cut.start + inside < size
                found[b, i] = position
        return found

    def segment(self, axis: tuple[tuple[int, ...], ...], cut: slice) -> tuple[int, ...]:
        start = 0
        for segment in axis:
            if start == cut.start:
                return segment
            start += math.prod(self.graph.groups[group].size for group in segment)
        raise AssertionError("the block's slice begins at no segment")

    def along_paths(self, mix: Tensor, e: dict) -> dict:
        """What each scalar hears: sums over paths of three and five scalars, one Newton-Schulz step after another."""
        heard = {}
        for b, block in enumerate(self.graph.blocks):
            entries = self.entries[b]
            if len(block.roles) < 2:
                heard |= {(b, i): torch.zeros(len(mix), dtype=mix.dtype) for i in entries}
                continue
            lead = len(
                list(itertools.takewhile(lambda role, first=block.roles[0]: role == first, block.roles))
            )
            lead = 1 if lead == len(block.roles) else lead
            rows, columns = ({i[:lead] for i in entries}, {i[lead:] for i in entries})
            x = {i: mix @ e[b, i] for i in entries}
            norm = sum(value**2 for value in x.values()).sqrt()
            x = {i: value / norm for i, value in x.items()}
            for _ in range(5):
                x = self.newton_schulz_step(x, rows, columns)
            size = max(len(rows), len(columns)) ** 0.5
            heard |= {(b, i): size * x[i] for i in entries}
        return heard

    @staticmethod
    def newton_schulz_step(x: dict[Index, Tensor], rows: set[Index], columns: set[Index]) -> dict:
        agree = {(i, k): sum(x[i + j] * x[k + j] for j in columns) for i in rows for k in rows}
        three = {i + j: sum(agree[i, k] * x[k + j] for k in rows) for i in rows for j in columns}
        five = {i + j: sum(agree[i, k] * three[k + j] for k in rows) for i in rows for j in columns}
        a, b, c = COEFFICIENTS
        return {i: a * x[i] + b * three[i] + c * five[i] for i in x}

    def neurons(self, b: int, i: Index) -> list[tuple[str, tuple[int, int]]]:
        """(role, neuron) of each out and in axis of entry i."""
        block = self.graph.blocks[b]
        triples = zip(block.roles, block.groups, i, strict=True)
        return [(role, (group, k)) for role, group, k in triples if role in ("out", "in")]

    def scalar_update(self, update: ScalarUpdate, e: dict, n: dict | None, c: dict) -> dict:
        outputs = update.scalar.shape[0]
        result = {}
        for (b, i), value in e.items():
            total = update.scalar @ value + update.context(c[b])
            for role, neuron in self.neurons(b, i) if n is not None else ():
                both = update.neuron(n[neuron])
                total = total + (both[:outputs] if role == "out" else both[outputs:])
            result[b, i] = total
        return result

    def layer(self, layer: AxisLayer, e: dict, n: dict | None, c: dict) -> tuple[dict, dict, dict]:
        e = {key: relu(value) for key, value in self.scalar_update(layer.update, e, n, c).items()}
        new_n = {}
        for group in self.graph.groups:
            for k in range(group.size):
                messages = [self.message(e, role, (group.id, k)) for role in ("out", "in")]
                known = [] if n is None else [n[group.id, k]]
                new_n[group.id, k] = relu(layer.neuron(torch.cat([*known, *messages])))
        overall = sum(c.values()) / len(c)
        new_c = {}
        for b in c:
            mean = sum(e[b, i] for i in self.entries[b]) / len(self.entries[b])
            new_c[b] = relu(layer.context(torch.cat([c[b], overall, mean])))
        return e, new_n, new_c

    def message(self, e: dict, role: str, neuron: tuple[int, int]) -> Tensor:
        """The mean over each block's axis that holds the neuron in that role, then over those axes."""
        means = []
        for b, block in enumerate(self.graph.blocks):
            for axis, (group, axis_role) in enumerate(zip(block.groups, block.roles, strict=True)):
                if (group, axis_role) == (neuron[0], role):
                    heard = [e[b, i] for i in self.entries[b] if i[axis] == neuron[1]]
                    means.append(sum(heard) / len(heard))
        return sum(means) / len(means) if means else torch.zeros(WIDTH, dtype=torch.float64)


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


@pytest.mark.parametrize(("layers", "paths"), [(1, 0), (2, 0), (3, 0), (1, 1), (2, 2)])
def test_equals_the_slow_twin(graph: ParameterGraph, layers: int, paths: int) -> None:
    net, inputs = make_net(layers, paths), make_inputs(graph)
    with torch.no_grad():
        raw, memory = net(graph, *inputs)
        expected = SlowAxisNet(net, graph)(*inputs)
    assert memory is None
    assert raw.shape == (OUTPUTS, graph.numel)
    torch.testing.assert_close(raw, expected, rtol=1e-10, atol=1e-10)


def edge_list_axisnet(net: AxisNet, graph: ParameterGraph, features: Tensor, context: Tensor) -> Tensor:
    """AxisNet over `graph.to_pyg`: gather by node, scatter-mean back. One row for each scalar."""
    numbers = graph.unflatten(torch.arange(graph.numel))
    data = graph.to_pyg(numbers)
    scalar = torch.cat([data.edge_scalar, data.node_scalar])
    back = scalar.argsort()
    source = torch.cat([data.edge_index[0], torch.zeros_like(data.node_index)])[back]
    target = torch.cat([data.edge_index[1], data.node_index])[back]
    kind = torch.cat([data.edge_type, data.node_attr_type])[back]
    taps = torch.cat([data.edge_tap_index, data.node_tap_index], 1)[:, back]
    block = torch.empty(graph.numel, dtype=torch.long)
    columns = []
    for b, spec in enumerate(graph.blocks):
        members = numbers[spec.parameter][spec.slices].reshape(-1)
        block[members] = b
        columns += [
            (b, members, role, column) for role, column in node_columns(spec, members, source, target, taps)
        ]

    nodes, blocks = data.num_nodes, len(graph.blocks)
    names = list(graph.parameters)
    owner = torch.tensor([names.index(spec.parameter) for spec in graph.blocks])
    first = torch.stack([(block == b).nonzero()[0, 0] for b in range(blocks)])
    c = relu(net.encode_context(context.T[owner]) + net.kind_embedding[kind[first]])
    e, x = features.T, None

    def update(layer: ScalarUpdate) -> Tensor:
        total = e @ layer.scalar.T + layer.context(c)[block]
        if x is not None:
            out, into = layer.neuron(x).chunk(2, -1)
            for _, members, role, column in columns:
                total = total.index_add(0, members, (out if role == "out" else into)[column])
        return total

    for layer in net.layers:
        e = relu(update(layer.update))
        parts = [] if x is None else [x]
        for role in ("out", "in"):
            heard, blocks_heard = (
                torch.zeros(nodes, e.shape[1], dtype=e.dtype),
                torch.zeros(nodes, 1, dtype=e.dtype),
            )
            for _, members, column_role, column in columns:
                if column_role == role:
                    count = torch.zeros(nodes, 1, dtype=e.dtype).index_add(
                        0, column, e.new_ones(len(column), 1)
                    )
                    heard += torch.zeros_like(heard).index_add(0, column, e[members]) / count.clamp(min=1)
                    blocks_heard += (count > 0).to(e.dtype)
            parts.append(heard / blocks_heard.clamp(min=1))
        means = torch.stack([e[block == b].mean(0) for b in range(blocks)])
        x = relu(layer.neuron(torch.cat(parts, -1)))
        c = relu(layer.context(torch.cat([c, c.mean(0).expand_as(c), means], -1)))
    return update(net.head).T


def node_columns(
    block, members: Tensor, source: Tensor, target: Tensor, taps: Tensor
) -> list[tuple[str, Tensor]]:
    """(role, node of each member) for each out and in axis of the block, out of PyG's target, source and taps."""
    out = [axis for axis, role in enumerate(block.roles) if role == "out"]
    into = [axis for axis, role in enumerate(block.roles) if role == "in"]
    edge = len(block.slices) > 1
    ends = [*out[:1], *(into[:1] if edge else [])]
    columns = [("out", target[members])] if out else []
    columns += [("in", source[members])] if edge and into else []
    rest = [axis for axis in range(len(block.shape)) if axis not in ends]
    rows = [(block.roles[axis], taps[k][members]) for k, axis in enumerate(rest)]
    return columns + [(role, column) for role, column in rows if role in ("out", "in")]


@pytest.mark.parametrize("name", ["mlp", "flatten", "attention"])
def test_equals_edge_lists_over_pyg_data(name: str) -> None:
    graph = hand_graph(*GRAPHS[name])
    net, inputs = make_net(), make_inputs(graph)
    with torch.no_grad():
        torch.testing.assert_close(
            net(graph, *inputs)[0], edge_list_axisnet(net, graph, *inputs), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("paths", [0, 2])
def test_fresh_heads_give_zero(graph: ParameterGraph, paths: int) -> None:
    raw, _ = AxisNet(FEATURES, CONTEXT, OUTPUTS, paths=paths).double()(graph, *make_inputs(graph))
    assert torch.equal(raw, torch.zeros_like(raw))


@pytest.mark.parametrize("paths", [0, 2])
def test_permuted_features_give_permuted_outputs(graph: ParameterGraph, paths: int) -> None:
    net, (features, context) = make_net(paths=paths), make_inputs(graph)
    permutation = graph.random_permutation(seeded(2))

    def permuted(rows: Tensor) -> Tensor:
        one = [graph.flatten(graph.permute(graph.unflatten(row), permutation)) for row in rows]
        return torch.stack(one)

    raw = net(graph, features, context)[0]
    torch.testing.assert_close(
        net(graph, permuted(features), context)[0], permuted(raw), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("paths", [0, 2])
def test_vmap_equals_a_loop(graph: ParameterGraph, paths: int) -> None:
    net, (features, context) = make_net(paths=paths), make_inputs(graph)
    many = torch.stack([features, 2 * features, -features]), torch.stack([context, -context, 3 * context])
    looped = torch.stack([net(graph, f, c)[0] for f, c in zip(*many, strict=True)])
    vmapped = torch.vmap(lambda f, c: net(graph, f, c)[0])(*many)
    torch.testing.assert_close(vmapped, looped, rtol=1e-12, atol=1e-12)


def test_paths_tell_what_means_over_rows_and_columns_do_not() -> None:
    """Two matrices with the same scalars in each row and column, one of them with rows alike by pairs."""
    graph = hand_graph({"INPUT": 4, "hidden": 4}, {"w": "weight out:hidden in:INPUT"})
    alike = [[1, 1, -1, -1], [1, 1, -1, -1], [-1, -1, 1, 1], [-1, -1, 1, 1]]
    unlike = [[1, 1, -1, -1], [1, -1, 1, -1], [-1, 1, -1, 1], [-1, -1, 1, 1]]
    context = torch.ones(CONTEXT, 1, dtype=torch.float64)

    def said(matrix: list[list[int]], paths: int) -> Tensor:
        features = torch.tensor(matrix, dtype=torch.float64).reshape(1, -1).repeat(FEATURES, 1)
        raw = make_net(paths=paths)(graph, features, context)[0]
        return torch.stack([raw[:, features[0] == sign].mean(1) for sign in (1, -1)])

    torch.testing.assert_close(said(alike, 0), said(unlike, 0))
    assert (said(alike, 1) - said(unlike, 1)).abs().max() > 1e-3


def test_scalars_hear_their_neurons_and_only_their_kind() -> None:
    """A bias and a scale of the same neurons and values differ in nothing but their kind, and are told apart."""
    graph = hand_graph({"hidden": 3}, {"bias": "bias out:hidden", "scale": "scale out:hidden"})
    features = torch.ones(FEATURES, 6, dtype=torch.float64)
    raw = make_net()(graph, features, torch.ones(CONTEXT, 2, dtype=torch.float64))[0]
    torch.testing.assert_close(raw[:, 0], raw[:, 1])
    assert (raw[:, 0] - raw[:, 3]).abs().min() > 1e-6


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
@pytest.mark.parametrize("paths", [0, 2])
def test_empty_tensors_change_nothing_else(shape: tuple[int, ...], paths: int) -> None:
    """A layer of no neurons is allowed in PyTorch; it says nothing to the others."""
    full = ParameterGraph.untied({"w": torch.zeros(2, 3)}.items())
    graph = ParameterGraph.untied({"w": torch.zeros(2, 3), "empty": torch.zeros(shape)}.items())
    net, (features, context) = make_net(paths=paths), make_inputs(graph)
    raw = net(graph, features, context)[0]
    torch.testing.assert_close(raw, net(full, features, context[:, :1])[0])


@pytest.mark.parametrize(
    "options",
    [{"width": 0}, {"width": -1}, {"neuron_width": 0}, {"layers": 0}, {"width": 2.5}, {"paths": -1}],
)
def test_sizes_below_one_are_named(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"metanet.{next(iter(options))}: expected"):
        make_rule("axisnet", **options)
