from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lopt.errors import GraphError
from lopt.graph import ParameterGraph
from tests.graph.expectations import assert_axes


class ResBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.head((x + y).relu().mean((2, 3)))


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.place = nn.Embedding(8, 6)
        self.up = nn.Linear(6, 9)
        self.down = nn.Linear(9, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
        h = h + self.down(F.gelu(self.up(h)))
        return self.head(self.norm(h))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 8)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        return self.out(h + self.mha(h, h, h)[0])


class CharLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 11)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(ids))[0])


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 2, stride=2)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.dec = nn.Conv2d(9, 7, 3, padding=1)
        self.out = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enc(x).relu()
        up = self.up(self.down(skip).relu())
        return self.out(self.dec(torch.cat([skip, up], 1)).relu())


IDS = torch.arange(10).reshape(2, 5)
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 3),
    )


def _depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))


def _group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def _grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 4, 1))


NETS = {
    "mlp": (
        _mlp,
        (torch.randn(2, 5),),
        {
            "0.weight": ["a", "."], "0.bias": ["a"],
            "2.weight": ["b", "a"], "2.bias": ["b"],
            "4.weight": [".", "b"], "4.bias": ["."],
        },
    ),
    "cnn with batch norm and flatten": (
        _cnn,
        (IMAGE,),
        {
            "0.weight": ["c", ".", ".", "."], "0.bias": ["c"],
            "1.weight": ["c"], "1.bias": ["c"], "1.running_mean": ["c"], "1.running_var": ["c"],
            "5.weight": [".", "c*."], "5.bias": ["."],
        },
    ),
    "residual block": (
        ResBlock,
        (IMAGE,),
        {
            "stem.weight": ["s", ".", ".", "."], "stem.bias": ["s"],
            "conv1.weight": ["c", "s", ".", "."],
            "bn1.weight": ["c"], "bn1.bias": ["c"],
            "conv2.weight": ["s", "c", ".", "."],
            "bn2.weight": ["s"], "bn2.bias": ["s"],
            "head.weight": [".", "s"], "head.bias": ["."],
        },
    ),
    "depthwise": (
        _depthwise,
        (IMAGE,),
        {
            "0.weight": ["c", ".", ".", "."], "0.bias": ["c"],
            "1.weight": ["c", ".", ".", "."], "1.bias": ["c"],
            "2.weight": [".", "c", ".", "."], "2.bias": ["."],
        },
    ),
    "group norm": (
        _group_norm,
        (IMAGE,),
        {
            "0.weight": ["g*c", ".", ".", "."], "0.bias": ["g*c"],
            "1.weight": ["g*c"], "1.bias": ["g*c"],
            "3.weight": [".", "g*c", ".", "."], "3.bias": ["."],
        },
    ),
    "grouped convolution": (
        _grouped,
        (IMAGE,),
        {
            "0.weight": ["g*i", ".", ".", "."], "0.bias": ["g*i"],
            "1.weight": ["g*o", "i", ".", "."], "1.bias": ["g*o"],
            "2.weight": [".", "g*o", ".", "."], "2.bias": ["."],
        },
    ),
    "language model with tied embedding": (
        TiedLanguageModel,
        (IDS,),
        {
            "embed.weight": [".", "d"], "place.weight": [".", "d"],
            "up.weight": ["h", "d"], "up.bias": ["h"], "down.weight": ["d", "h"], "down.bias": ["d"],
            "norm.weight": ["d"], "norm.bias": ["d"],
        },
    ),
    "multi-head attention": (
        SelfAttention,
        (torch.randn(2, 4, 5),),
        {
            "into.weight": ["d", "."], "into.bias": ["d"],
            "mha.in_proj_weight": ["h*k+h*k+h*v", "d"], "mha.in_proj_bias": ["h*k+h*k+h*v"],
            "mha.out_proj.weight": ["d", "h*v"], "mha.out_proj.bias": ["d"],
            "out.weight": [".", "d"], "out.bias": ["."],
        },
    ),
    "transformer layer": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)),
        (torch.randn(2, 4, 5),),
        {
            "0.weight": ["d", "."], "0.bias": ["d"],
            "1.self_attn.in_proj_weight": ["h*k+h*k+h*v", "d"], "1.self_attn.in_proj_bias": ["h*k+h*k+h*v"],
            "1.self_attn.out_proj.weight": ["d", "h*v"], "1.self_attn.out_proj.bias": ["d"],
            "1.linear1.weight": ["f", "d"], "1.linear1.bias": ["f"],
            "1.linear2.weight": ["d", "f"], "1.linear2.bias": ["d"],
            "1.norm1.weight": ["d"], "1.norm1.bias": ["d"], "1.norm2.weight": ["d"], "1.norm2.bias": ["d"],
            "2.weight": [".", "d"], "2.bias": ["."],
        },
    ),
    "lstm": (
        CharLSTM,
        (IDS,),
        {
            "embed.weight": [".", "e"],
            "lstm.weight_ih_l0": ["h+h+h+h", "e"], "lstm.weight_hh_l0": ["h+h+h+h", "h"],
            "lstm.bias_ih_l0": ["h+h+h+h"], "lstm.bias_hh_l0": ["h+h+h+h"],
            "lstm.weight_ih_l1": ["k+k+k+k", "h"], "lstm.weight_hh_l1": ["k+k+k+k", "k"],
            "lstm.bias_ih_l1": ["k+k+k+k"], "lstm.bias_hh_l1": ["k+k+k+k"],
            "head.weight": [".", "k"], "head.bias": ["."],
        },
    ),
    "u-net": (
        UNet,
        (IMAGE,),
        {
            "enc.weight": ["s", ".", ".", "."], "enc.bias": ["s"],
            "down.weight": ["d", "s", ".", "."], "down.bias": ["d"],
            "up.weight": ["d", "u", ".", "."], "up.bias": ["u"],
            "dec.weight": ["c", "s+u", ".", "."], "dec.bias": ["c"],
            "out.weight": [".", "c", ".", "."], "out.bias": ["."],
        },
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 7)), nn.ReLU(), nn.Linear(7, 3)),
        (torch.randn(2, 5),),
        {
            "0.bias": ["h"],
            "0.parametrizations.weight.original0": ["h", "."],
            "0.parametrizations.weight.original1": ["h", "."],
            "1.weight": [], "2.weight": [".", "h"], "2.bias": ["."],
        },
    ),
}  # fmt: skip
NETS["weight norm"][2].pop("1.weight")


@pytest.mark.parametrize("name", NETS)
def test_axes_equal_hand_written_ones_and_verify(name: str) -> None:
    torch.manual_seed(0)
    build, args, expected = NETS[name]
    model = build()
    graph = ParameterGraph.trace(model, args)
    assert graph.rung == "traced"
    assert_axes(graph, expected)
    report = graph.verify(model, args)
    assert report.ok, report
    assert report.controls == report.controls_detected > 0


@pytest.mark.parametrize("name", NETS)
def test_blocks_tile_each_parameter(name: str) -> None:
    build, args, _ = NETS[name]
    graph = ParameterGraph.trace(build(), args)
    for spec in graph.parameters.values():
        covered = torch.zeros(spec.shape)
        for block in (b for b in graph.blocks if b.parameter == spec.name):
            covered[block.slices].reshape(block.shape)  # the block has the sizes of its groups
            covered[block.slices] += 1
        assert (covered == 1).all()


def test_groups_say_size_activation_and_why_they_are_fixed() -> None:
    graph = ParameterGraph.trace(_cnn(), (IMAGE,))
    kinds = {(g.size, g.kind, g.permutable, g.activation) for g in graph.groups}
    assert kinds == {
        (8, "hidden", True, "relu"), (3, "input", False, None), (3, "tap", False, None),
        (16, "position", False, None), (3, "output", False, None),
    }  # fmt: skip


def test_a_tied_parameter_is_one_tensor_with_aliases() -> None:
    graph = ParameterGraph.trace(TiedLanguageModel(), (IDS,))
    assert "head.weight" not in graph.parameters
    assert graph.parameters["embed.weight"].aliases == ("head.weight",)
    assert graph.parameters["embed.weight"].kind == "embedding"
    assert graph.groups[graph.parameters["embed.weight"].axes[0][0][0]].kind == "vocabulary"


def test_kinds_come_from_the_data_flow() -> None:
    kinds = {n: s.kind for n, s in ParameterGraph.trace(TiedLanguageModel(), (IDS,)).parameters.items()}
    assert kinds == {
        "embed.weight": "embedding", "place.weight": "position", "up.weight": "weight", "up.bias": "bias",
        "down.weight": "weight", "down.bias": "bias", "norm.weight": "scale", "norm.bias": "shift",
    }  # fmt: skip
    attention = ParameterGraph.trace(SelfAttention(), (torch.randn(2, 4, 5),)).parameters
    assert attention["mha.in_proj_weight"].block_kinds == ("query", "key", "value")
    assert attention["mha.out_proj.weight"].kind == "output"
    lstm = ParameterGraph.trace(CharLSTM(), (IDS,)).parameters
    assert lstm["lstm.weight_hh_l1"].block_kinds == ("input_gate", "forget_gate", "cell_gate", "output_gate")
    depthwise = ParameterGraph.trace(_depthwise(), (IMAGE,)).parameters
    assert [depthwise[f"{i}.weight"].kind for i in range(3)] == ["weight", "depthwise", "weight"]


def test_roles_follow_the_direction_of_the_data() -> None:
    graph = ParameterGraph.trace(UNet(), (IMAGE,))
    assert graph.parameters["down.weight"].roles == ("out", "in", "tap", "tap")
    assert graph.parameters["up.weight"].roles == ("in", "out", "tap", "tap")


def test_depth_grows_from_input_to_output() -> None:
    depths = [spec.depth for spec in ParameterGraph.trace(_mlp(), (torch.randn(2, 5),)).parameters.values()]
    assert depths == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]


class Everything(nn.Module):
    """Dropout, batch statistics, a cache as attribute, a lookup kept in a list: all that tracing could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.bn(self.conv(x))).flatten(2).transpose(1, 2)
        self.seen.append(h)
        self.cache = h
        return self.head(self.lstm(h)[0].mean(1))


@pytest.mark.parametrize("training", [True, False])
def test_tracing_and_verification_leave_the_model_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    model = Everything().train(training)
    calls = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    objects = {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    state, python_state = torch.get_rng_state(), random.getstate()
    graph = ParameterGraph.trace(model, (IMAGE,))
    assert graph.verify(model, (IMAGE,)).ok
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert objects == {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    assert attributes == {name: set(module.__dict__) for name, module in model.named_modules()}
    assert torch.equal(state, torch.get_rng_state())
    assert python_state == random.getstate()
    assert all(module.training == training for module in model.modules())
    assert model.seen == []
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert len(model.head._forward_hooks) == 1
    assert model(IMAGE).shape == (2, 2)  # with real tensors again


def test_a_model_on_the_meta_device_has_the_same_graph() -> None:
    with torch.device("meta"):
        ghost = SelfAttention()
    x = torch.randn(2, 4, 5)
    expected = _content(ParameterGraph.trace(SelfAttention(), (x,)))
    assert _content(ParameterGraph.trace(ghost, (x,))) == expected
    assert _content(ParameterGraph.trace(ghost, (x.to("meta"),))) == expected


def _content(graph: ParameterGraph) -> tuple[object, ...]:
    return graph.parameters, graph.groups, graph.buffers, graph.rung


def test_tracing_is_deterministic_and_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b = (ParameterGraph.trace(UNet(), (IMAGE,)) for _ in range(2))
    assert _content(a) == _content(b)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 2)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).half().float())


def test_casts_go_along_and_unused_parameters_stay_in_place() -> None:
    graph = ParameterGraph.trace(Half(), (torch.randn(2, 4),))
    assert_axes(graph, {
        "first.weight": ["h", "."], "first.bias": ["h"], "second.weight": [".", "h"], "second.bias": ["."],
        "spare.weight": [".", "."], "spare.bias": ["."],
    })  # fmt: skip
    assert {graph.groups[s[0]].kind for s in graph.parameters["spare.weight"].axes[0]} == {"unused"}


class Scaled(nn.Module):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("only square images are supported")


X = torch.ones(2)
BAD = {
    "no parameters": (nn.ReLU(), (X,), "found none in ReLU"),
    "complex": (
        Scaled(torch.ones(2, dtype=torch.complex64)),
        (X,),
        "found w which is complex.*view_as_complex",
    ),
    "scripted": (
        torch.jit.script(nn.Linear(2, 2)),
        (X,),
        "found the network itself .*made from.*without a graph",
    ),
    "scripted part": (nn.Sequential(torch.jit.script(nn.Linear(2, 2))), (X,), "Python code, found 0 "),
    "jit.trace": (torch.jit.trace(nn.Linear(2, 2), X), (X,), "compiled by torch.jit"),
    "DataParallel": (nn.DataParallel(nn.Linear(2, 2)), (X,), "wrapped in DataParallel: pass model.module"),
    "sparse": (Scaled(torch.eye(2).to_sparse()), (X,), "found w which is sparse"),
    "lazy": (nn.LazyLinear(3), (X,), "not initialised yet"),
    "not a module": (torch.relu, (X,), "expected a torch.nn.Module"),
    "not a tuple": (nn.Linear(2, 2), X, r"found Tensor: write \(x,\)"),
    "wrong shape": (
        nn.Linear(3, 2),
        (torch.ones(4, 5),),
        "Linear accepts, but its forward pass raised RuntimeError",
    ),
    "too many": (nn.Linear(3, 2), (torch.ones(3), X), "TypeError"),
    "the model raises": (Raises(), (X,), "only square images are supported"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_error(name: str) -> None:
    model, args, message = BAD[name]
    with pytest.raises(GraphError, match=message) as caught:
        ParameterGraph.trace(model, args)
    assert "\n" not in str(caught.value)


def test_a_hundred_million_parameters_need_no_memory() -> None:
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True, norm_first=True)
        model = nn.Sequential(
            nn.Embedding(50257, 768), nn.TransformerEncoder(layer, 12, enable_nested_tensor=False),
            nn.Linear(768, 50257, bias=False),
        )  # fmt: skip
    graph = ParameterGraph.trace(model, (torch.zeros(1, 8, dtype=torch.long),))
    assert graph.rung == "traced"
    assert graph.numel > 1.6e8
    sizes = sorted(g.size for g in graph.groups if g.permutable)
    assert (
        sizes == [12] * 12 + [64] * 24 + [768] + [3072] * 12
    )  # heads; head sizes of q, k and of v; stream; hidden


class RotaryHalves(nn.Module):
    """Fused attention whose heads are rotated in part; what is not rotated, or what is, may be nothing."""

    def __init__(self, rotated: int) -> None:
        super().__init__()
        self.qkv, self.out, self.rotated = nn.Linear(6, 24), nn.Linear(8, 3), rotated

    def rotate(self, x: Tensor) -> Tensor:
        turned, passed = x[..., : self.rotated], x[..., self.rotated :]
        half = turned.shape[-1] // 2
        other = torch.cat([-turned[..., half:], turned[..., :half]], -1)
        angle = torch.arange(x.shape[-2]).view(-1, 1).float()
        return torch.cat([turned * angle.cos() + other * angle.sin(), passed], -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], 8))


@pytest.mark.parametrize("rotated", [0, 2, 4])
def test_rotary_halves_may_be_empty(rotated: int) -> None:
    model, x = RotaryHalves(rotated), torch.randn(2, 5, 6)
    graph = ParameterGraph.trace(model, (x,))
    assert graph.rung == "traced"
    heads, head_size = graph.parameters["out.weight"].axes[1][0]
    assert graph.groups[heads].permutable
    assert graph.groups[head_size].permutable
    assert graph.verify(model, (x,)).ok


class EmptyPieces(nn.Module):
    def __init__(self, pieces: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.nothing, self.pieces = nn.Parameter(torch.zeros(0, 8)), pieces

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        match self.pieces:
            case "split":
                first, all_of_it, last = h.split([0, 8, 0], -1)
                h = torch.cat([last, all_of_it.relu(), first], -1)
            case "slice":
                h = torch.cat([h[:, 8:], h[:, :8].tanh()], -1)
            case "tensor_split":
                first, rest = h.tensor_split([0], -1)
                h = torch.cat([first.flatten().view(x.shape[0], 0), rest.sigmoid()], -1)
            case "rows":
                h = torch.cat([h.relu(), self.nothing, self.nothing.tanh()], 0)
            case "pad":
                h = F.pad(h[:, 8:], (8, 0)) + h.relu()
            case "sum":
                h = h.relu() + h[:, :0].sum() + self.b.weight[:, 8:].sum()
            case "product":
                return self.b(h.relu()) + h[:, :0] @ self.b.weight[:, :0].T
        return self.b(h)


@pytest.mark.parametrize("pieces", ["split", "slice", "tensor_split", "rows", "pad", "sum", "product"])
def test_pieces_may_be_empty(pieces: str) -> None:
    model, x = EmptyPieces(pieces), torch.randn(5, 4)
    graph = ParameterGraph.trace(model, (x,))
    assert graph.rung == "traced"
    hidden = graph.groups[graph.parameters["a.weight"].axes[0][0][0]]
    assert (hidden.size, hidden.kind) == (8, "hidden")
    assert {m[0] for m in hidden.members} >= {"a.weight", "a.bias", "b.weight"}
    assert graph.verify(model, (x,)).ok


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (0, 3, 4)])
def test_a_batch_without_entries_shows_the_same_graph(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    empty, full = (ParameterGraph.trace(model, (torch.zeros(s),)) for s in (shape, (2, 4)))
    assert [spec.axes for spec in empty.parameters.values()] == [s.axes for s in full.parameters.values()]
    assert [(g.size, g.kind) for g in empty.groups] == [(g.size, g.kind) for g in full.groups]


class LoopedExperts(nn.Module):
    """Each expert runs on the tokens that chose it; how they are found is written in as many ways as are common."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.gate, self.out, self.way = nn.Linear(6, 4), nn.Linear(6, 3), way
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(-1).topk(2)
        total = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            match self.way:
                case "where":
                    rows, place = torch.where(mine)
                    if len(rows) == 0:
                        continue
                    total = total.index_add(0, rows, expert(x[rows]) * weight[rows, place, None])
                case "mask":
                    rows = mine.any(-1)
                    if not rows.any():
                        continue
                    total[rows] += expert(x[rows]) * (weight * mine).sum(-1)[rows, None]
                case "one hot":
                    rows, place = F.one_hot(chosen, 4)[..., i].nonzero(as_tuple=True)
                    total.index_add_(0, rows, expert(x[rows]) * weight[rows, place, None])
                case "masked_select":
                    rows = torch.arange(len(x)).masked_select(mine.any(-1))
                    total.index_add_(0, rows, expert(x[rows]) * (weight * mine).sum(-1)[rows, None])
        return self.out(x + total)


def assert_experts_apart(graph: ParameterGraph) -> None:
    """Each of four experts was traced, and has hidden neurons of its own."""
    assert graph.rung == "traced"
    for i in range(4):
        hidden = graph.groups[graph.parameters[f"experts.{i}.0.weight"].axes[0][0][0]]
        assert hidden.permutable
        assert [name for name, _ in hidden.members] == [
            f"experts.{i}.{n}" for n in ("0.weight", "0.bias", "2.weight")
        ]


@pytest.mark.parametrize("way", ["where", "mask", "one hot", "masked_select"])
def test_experts_are_traced_whatever_the_example_routes(way: str) -> None:
    torch.manual_seed(0)
    model, x = LoopedExperts(way), torch.randn(3, 6)
    graph = ParameterGraph.trace(model, (x[:1],))  # one token: at least two experts see none
    assert_experts_apart(graph)
    assert graph.verify(model, (torch.randn(30, 6),)).ok


class RoutedExperts(nn.Module):
    """Experts that are asked who they are, how many rows they get, or which of them anybody chose."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.gate, self.out, self.way = nn.Linear(6, 4, bias=False), nn.Linear(6, 3), way
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(-1).topk(2)
        return self.out(x + getattr(self, "by_" + self.way)(x, weight, chosen))

    def by_hits(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        mask, total = F.one_hot(chosen, 4).permute(2, 1, 0), torch.zeros_like(x)
        for hit in (mask.sum((-1, -2)) > 0).nonzero():
            place, rows = torch.where(mask[hit].squeeze(0))
            total.index_add_(0, rows, self.experts[hit](x[rows]) * weight[rows, place, None])
        return total

    def by_list_of_hits(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for hit in chosen.unique().tolist():
            rows, place = (chosen == hit).nonzero(as_tuple=True)
            total[rows] += self.experts[hit](x[rows]) * weight[rows, place, None]
        return total

    def by_number(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        total, numbers = torch.zeros_like(x), chosen.flatten().bincount(minlength=4).tolist()
        for i, number in enumerate(numbers):
            mine = chosen == i
            if number == 0 or mine.sum() == 0 or not mine.sum().item():
                continue
            rows = mine.any(-1).nonzero().squeeze(-1)
            total = total.index_add(0, rows, self.experts[i](x[rows]) * (weight * mine).sum(-1)[rows, None])
        return total

    def by_slices(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        order = chosen.flatten().argsort()
        sent, parts, start = x[order // 2], [], 0
        for i, number in enumerate(chosen.new_zeros(len(x), 4).scatter_(1, chosen, 1).sum(0).tolist()):
            if number:
                parts.append(self.experts[i](sent[start : start + number]))
                start += number
        joined = torch.cat(parts)
        back = torch.empty_like(joined)
        back[order] = joined
        return (back.unflatten(0, (-1, 2)) * weight[..., None]).sum(1)

    def by_split(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        order = chosen.flatten().argsort()
        numbers = torch.histc(chosen.float(), 4, 0, 3).int()
        parts = x[order // 2].split(numbers.tolist())
        joined = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return torch.zeros_like(x).index_add(0, order // 2, joined * weight.flatten()[order, None])

    def by_token(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        rows = [
            sum(weight[i, k] * self.experts[chosen[i, k]](x[i : i + 1]) for k in range(2))
            for i in range(len(x))
        ]
        return torch.cat(rows)


@pytest.mark.parametrize("way", ["hits", "list_of_hits", "number", "slices", "split", "token"])
def test_experts_are_traced_whatever_the_network_asks_of_its_routes(way: str) -> None:
    torch.manual_seed(0)
    model, x = RoutedExperts(way), torch.randn(5, 6)
    with torch.no_grad():
        model.gate.weight[:2] = model.gate.weight[:1]  # experts of equal scores: the example leaves some out
        model.gate.weight[2:] = -model.gate.weight[:1]
    graph = ParameterGraph.trace(model, (x,))
    assert_experts_apart(graph)
    assert graph.verify(model, (torch.randn(30, 6),)).ok


@pytest.mark.parametrize(
    "question",
    [
        lambda chosen: (chosen == 1).all(),
        lambda chosen: chosen.max() > 1,
        lambda chosen: (chosen == 1).logical_not_().any(),  # no longer the mask that it was
    ],
)
def test_choices_answer_only_what_every_route_needs(question: Callable[[Tensor], Tensor]) -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.out = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x) if question(self.gate(x).argmax(-1)) else self.out(2 * x)

    with pytest.warns(match="read from one forward pass"):
        assert ParameterGraph.trace(Early(), (torch.randn(3, 4),)).rung == "recorded"


def test_questions_about_other_values_stay_open() -> None:
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            if (ids == 7).any() or x.isnan().any():
                return torch.zeros(len(x), 2)
            return self.b(self.a(x).relu())

    example = (torch.randn(3, 4), torch.arange(3))
    with pytest.warns(match="read from one forward pass"):
        graph = ParameterGraph.trace(Guarded(), example)
    assert graph.rung == "recorded"
    assert graph.groups[graph.parameters["b.weight"].axes[1][0][0]].permutable


class GroupedExperts(nn.Module):
    """Tokens sorted by expert, and one grouped product for all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(8, 4), nn.Linear(8, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 8)), nn.Parameter(torch.randn(4, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(-1).topk(2)
        order = chosen.flatten().argsort()
        token = order // 2
        ends = torch.histc(chosen.float(), bins=4, min=0, max=3).cumsum(0, dtype=torch.int32)
        hidden = torch._grouped_mm(x[token], self.up.transpose(1, 2), offs=ends).relu()
        rows = torch._grouped_mm(hidden, self.down.transpose(1, 2), offs=ends) * weight.flatten()[order, None]
        return self.out(torch.zeros_like(x).index_add(0, token, rows))


def test_grouped_products_are_traced_in_any_dtype() -> None:
    torch.manual_seed(0)
    model, x = GroupedExperts(), torch.randn(10, 8)
    graph = ParameterGraph.trace(model, (x,))
    assert graph.rung == "traced"
    ((hidden,),) = graph.parameters["up"].axes[1]
    assert graph.groups[hidden].permutable
    assert list(graph.groups[hidden].members) == [("up", 1), ("down", 2)]
    assert graph.verify(model, (x,)).ok


def test_triangular_systems_are_solved_row_by_row() -> None:
    class Solver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 5), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            k = self.a(x)
            lower = (k @ k.mT).tril(-1) + torch.eye(x.shape[-2])
            return self.out(torch.linalg.solve_triangular(lower, self.b(x), upper=False, unitriangular=True))

    model, x = Solver(), torch.randn(2, 3, 4)
    graph = ParameterGraph.trace(model, (x,))
    assert [g.size for g in graph.groups if g.permutable] == [5, 6]
    assert graph.verify(model, (x,)).ok
