"""Each family of operations on a small network: the axes by hand, and the function unchanged by a permutation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lopt.errors import GraphWarning
from lopt.graph import ParameterGraph
from lopt.graph.tracing.ops.table import RULES
from tests.graph.expectations import assert_axes

Forward = Callable[..., Tensor]


class Net(nn.Module):
    """A network from named parameters, modules and a function of them."""

    def __init__(self, forward: Forward, **parts: object) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            if isinstance(part, tuple):
                part = nn.Parameter(torch.randn(part) / 3)
            setattr(self, name, part)

    def forward(self, *args: Tensor) -> Tensor:
        return self.run(self, *args)


def linear(i: int, o: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(i, o, bias=bias)


torch.manual_seed(0)
X = torch.randn(3, 5)
SEQUENCE = torch.randn(2, 6, 5)
IMAGE = torch.randn(2, 3, 8, 8)
IDS = torch.arange(8).reshape(2, 4)


def gated(m: Net, x: Tensor) -> Tensor:
    a, b = m.into(x).chunk(2, -1)
    return m.out(F.silu(a) * b)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def grouped_queries(m: Net, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    return m.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def repeated_keys(m: Net, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(2, 4, 6, -1) for t in (k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(3), -1)
    return m.o((weights @ v).transpose(1, 2).reshape(2, 6, -1))


def rotary(m: Net, x: Tensor) -> Tensor:
    angle = torch.arange(6)[:, None] * torch.tensor([1.0, 0.1])
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))

    def turned(t: Tensor) -> Tensor:
        a, b = t.chunk(2, -1)
        return t * cos + torch.cat([-b, a], -1) * sin

    q, k, v = (heads(p(x), 2) for p in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2))


def fused_permute(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).reshape(2, 6, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, 8))


def fused_per_head(m: Net, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).reshape(2, 6, 2, 12).transpose(1, 2).chunk(3, -1)
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 6, 8))


def alibi(m: Net, x: Tensor) -> Tensor:
    q, k, v = (heads(p(x), 2) for p in (m.q, m.k, m.v))
    slopes = torch.tensor([0.5, 0.25])[:, None, None]
    scores = q @ k.transpose(-1, -2) + slopes * torch.arange(6)
    return m.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def bucketed_bias(m: Net, x: Tensor) -> Tensor:
    q, k, v = (heads(p(x), 2) for p in (m.q, m.k, m.v))
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    scores = q @ k.transpose(-1, -2) + m.bias[distance].permute(2, 0, 1)
    return m.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def squeeze_excite(m: Net, x: Tensor) -> Tensor:
    h = m.into(x)
    scale = torch.sigmoid(m.up(F.relu(m.down(h.mean((2, 3), keepdim=True)))))
    return m.out(h * scale)


def dense_net(m: Net, x: Tensor) -> Tensor:
    a = m.a(x)
    b = m.b(a.relu())
    c = m.c(torch.cat([a, b], 1).relu())
    return m.out(torch.cat([a, b, c], 1).flatten(1))


def deep_sets(m: Net, x: Tensor) -> Tensor:
    h = m.own(x) + m.pooled(x.mean(1, keepdim=True))
    return m.out(h.relu().amax(1))


def tri_planes(m: Net, x: Tensor) -> Tensor:
    pairs = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]])
    return m.out(F.grid_sample(m.planes, pairs[:, :, None], align_corners=True)[..., 0].sum(0).t())


def state_space(m: Net, x: Tensor) -> Tensor:
    h, z = m.into(x).chunk(2, -1)
    h = F.silu(m.conv(h.transpose(1, 2))[..., :6].transpose(1, 2))
    b, c = m.bc(h).chunk(2, -1)
    decay = -torch.exp(m.log_a)
    state = torch.zeros(2, 4, 3)
    ys = []
    for t in range(6):
        state = torch.exp(decay) * state + h[:, t, :, None] * b[:, t, None]
        ys.append((state * c[:, t, None]).sum(-1))
    return m.out((torch.stack(ys, 1) + h * m.skip) * F.silu(z))


def joint_attention(m: Net, x: Tensor, y: Tensor) -> Tensor:
    qkv = [torch.cat([heads(p(x), 2), heads(r(y), 2)], 2) for p, r in ((m.q, m.qy), (m.k, m.ky), (m.v, m.vy))]
    both = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
    return m.o(both[:, :6]) + m.oy(both[:, 6:])


def message_passing(m: Net, x: Tensor, edges: Tensor) -> Tensor:
    messages = m.message(x)[edges[0]]
    h = torch.zeros(len(x), messages.shape[1]).index_add(0, edges[1], messages.relu())
    h = h.scatter_add(0, edges[0][:, None].expand_as(messages), messages)
    return m.out(h + m.own(x))


def spatial_mix(m: Net, x: Tensor) -> Tensor:
    patches = m.patch(F.unfold(m.into(x), 2, stride=2).transpose(1, 2))
    return F.fold(m.back(patches).transpose(1, 2), 8, 2, stride=2)


def padded_shortcut(m: Net, x: Tensor) -> Tensor:
    a = m.a(x)
    return m.out((m.b(a.relu()) + F.pad(a, (0, 0, 0, 0, 1, 2))).relu())


def written_slices(m: Net, x: Tensor) -> Tensor:
    h = torch.zeros(3, 7)
    h[:, :4] = m.a(x)
    h[:, 4:] = m.b(x)
    return m.out(h.relu())


def masked(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    h[x[..., 0] > 0] = 0.0
    return m.out(h.masked_fill(x[..., :1] < -1, 2.0))


def low_rank(m: Net, x: Tensor) -> Tensor:
    return m.out(F.linear(x, m.w + m.up @ m.down).relu())


def shuffled(m: Net, x: Tensor) -> Tensor:
    h = m.a(x).view(2, 2, 3, 8, 8).transpose(1, 2).reshape(2, 6, 8, 8)
    return m.out(h.relu())


def learned_tokens(m: Net, ids: Tensor) -> Tensor:
    h = torch.cat([m.cls.expand(2, -1, -1), m.embed(ids)], 1) + m.place[:, :5]
    return m.out(F.layer_norm(h, (6,), m.scale, m.shift)[:, 0])


def top_experts(m: Net, x: Tensor) -> Tensor:
    h = m.into(x)
    weight, choice = m.router(h).softmax(-1).topk(2)
    mix = torch.zeros(3, 4).scatter(1, choice, weight)
    hidden = torch.einsum("nd,edh->neh", h, m.up).relu()
    return m.out(torch.einsum("neh,ehd,ne->nd", hidden, m.down, mix))


def prototypes(m: Net, x: Tensor) -> Tensor:
    return -torch.cdist(m.into(x), m.centres)


def normalised(m: Net, x: Tensor) -> Tensor:
    return m.out(F.normalize(m.into(x), dim=-1) * m.scale.exp())


def extremes(m: Net, x: Tensor) -> Tensor:
    h = m.into(x)
    pooled = torch.stack([h.max(1).values, h.mean(1), h.std(1)], -1)
    return m.out(pooled.flatten(1))


def arg_extreme(m: Net, x: Tensor) -> Tensor:
    h = m.into(x)
    value, place = h.max(-1)
    return m.out(h) * value[:, None] + place[:, None]


def graph_convolution(m: Net, x: Tensor, adjacency: Tensor) -> Tensor:
    h = torch.sparse.mm(adjacency, m.into(x)).relu()
    return torch.sparse.addmm(m.shift, adjacency, m.out(h)) + adjacency.to_dense().sum()


def weighted_edges(m: Net, x: Tensor, places: Tensor) -> Tensor:
    edges = torch.sparse_coo_tensor(places, m.edges, (4, 4), check_invariants=False)
    h = torch.sparse.softmax(edges.coalesce(), 1) @ m.into(x)
    return m.out(torch.spmm(edges, h.relu()))


NO_BIAS = {"bias": False}
ADJACENCY = torch.eye(3).roll(1, 0)
NETS: dict[str, tuple[nn.Module, tuple[Tensor, ...], dict[str, list[str]]]] = {
    "gated unit": (
        Net(gated, into=linear(5, 8), out=linear(4, 2)), (X,), {"into.weight": ["h+h", "."], "out.weight": [".", "h"]}
    ),
    "glu": (
        nn.Sequential(linear(5, 8), nn.GLU(), linear(4, 2)), (X,), {"0.weight": ["h+h", "."], "2.weight": [".", "h"]}
    ),
    "grouped queries, fused": (
        Net(grouped_queries, q=linear(5, 12), k=linear(5, 6), v=linear(5, 6), o=linear(12, 2)), (SEQUENCE,),
        {"q.weight": ["g*r*k", "."], "k.weight": ["g*k", "."], "v.weight": ["g*v", "."], "o.weight": [".", "g*r*v"]},
    ),
    "grouped queries, repeated": (
        Net(repeated_keys, q=linear(5, 12), k=linear(5, 6), v=linear(5, 6), o=linear(12, 2)), (SEQUENCE,),
        {"q.weight": ["g*r*k", "."], "k.weight": ["g*k", "."], "v.weight": ["g*v", "."], "o.weight": [".", "g*r*v"]},
    ),
    "rotary": (
        Net(rotary, q=linear(5, 8), k=linear(5, 8), v=linear(5, 8), o=linear(8, 2)), (SEQUENCE,),
        {"q.weight": ["h*.", "."], "k.weight": ["h*.", "."], "v.weight": ["h*v", "."], "o.weight": [".", "h*v"]},
    ),
    "fused projection, three in front": (
        Net(fused_permute, qkv=linear(5, 24), o=linear(8, 2)), (SEQUENCE,),
        {"qkv.weight": ["h*k+h*k+h*v", "."], "o.weight": [".", "h*v"]},
    ),
    "fused projection, three inside of heads": (  # one order for all three is what products can say
        Net(fused_per_head, qkv=linear(5, 24), o=linear(8, 2)), (SEQUENCE,),
        {"qkv.weight": ["h*.*k", "."], "o.weight": [".", "h*k"]},
    ),
    "alibi": (
        Net(alibi, q=linear(5, 8), k=linear(5, 8), v=linear(5, 8), o=linear(8, 2)), (SEQUENCE,),
        {"q.weight": [".*k", "."], "k.weight": [".*k", "."], "v.weight": [".*v", "."], "o.weight": [".", ".*v"]},
    ),
    "bucketed position bias": (
        Net(bucketed_bias, q=linear(5, 8), k=linear(5, 8), v=linear(5, 8), o=linear(8, 2), bias=(6, 2)), (SEQUENCE,),
        {"q.weight": ["h*k", "."], "k.weight": ["h*k", "."], "v.weight": ["h*v", "."], "o.weight": [".", "h*v"],
         "bias": [".", "h"]},
    ),
    "squeeze and excite": (
        Net(squeeze_excite, into=nn.Conv2d(3, 6, 1, **NO_BIAS), down=nn.Conv2d(6, 2, 1, **NO_BIAS),
            up=nn.Conv2d(2, 6, 1, **NO_BIAS), out=nn.Conv2d(6, 2, 1, **NO_BIAS)), (IMAGE,),
        {"into.weight": ["c", ".", ".", "."], "down.weight": ["s", "c", ".", "."], "up.weight": ["c", "s", ".", "."],
         "out.weight": [".", "c", ".", "."]},
    ),
    "dense connections": (
        Net(dense_net, a=nn.Conv2d(3, 4, 3, **NO_BIAS), b=nn.Conv2d(4, 3, 1, **NO_BIAS),
            c=nn.Conv2d(7, 2, 1, **NO_BIAS), out=linear(9 * 36, 2)), (IMAGE,),
        {"a.weight": ["a", ".", ".", "."], "b.weight": ["b", "a", ".", "."], "c.weight": ["c", "a+b", ".", "."],
         "out.weight": [".", "a*.+b*.+c*."]},
    ),
    "deep sets": (
        Net(deep_sets, own=linear(5, 6), pooled=linear(5, 6), out=linear(6, 2)), (SEQUENCE,),
        {"own.weight": ["h", "."], "pooled.weight": ["h", "."], "out.weight": [".", "h"]},
    ),
    "tri-planes": (
        Net(tri_planes, planes=(3, 4, 5, 5), out=linear(4, 2)), (torch.rand(7, 3),),
        {"planes": [".", "c", ".", "."], "out.weight": [".", "c"]},
    ),
    "state space": (
        Net(state_space, into=linear(5, 8), conv=nn.Conv1d(4, 4, 3, padding=2, groups=4, bias=False), bc=linear(4, 6),
            log_a=(4, 3), skip=(4,), out=linear(4, 2)), (SEQUENCE,),
        {"into.weight": ["d+d", "."], "conv.weight": ["d", ".", "."], "bc.weight": ["n+n", "d"], "log_a": ["d", "n"],
         "skip": ["d"], "out.weight": [".", "d"]},
    ),
    "joint attention of two streams": (
        Net(joint_attention, **{n: linear(5, 8) for n in ("q", "k", "v", "qy", "ky", "vy")}, o=linear(8, 2),
            oy=linear(8, 2)), (SEQUENCE, SEQUENCE + 1),
        {**{n + ".weight": ["h*k", "."] for n in ("q", "k", "qy", "ky")},
         **{n + ".weight": ["h*v", "."] for n in ("v", "vy")}, "o.weight": [".", "h*v"], "oy.weight": [".", "h*v"]},
    ),
    "message passing": (
        Net(message_passing, message=linear(5, 4), own=linear(5, 4), out=linear(4, 2)),
        (torch.randn(6, 5), torch.tensor([[0, 1, 2, 3, 5], [1, 2, 3, 4, 0]])),
        {"message.weight": ["h", "."], "own.weight": ["h", "."], "out.weight": [".", "h"]},
    ),
    "sparse adjacency": (
        Net(graph_convolution, into=linear(5, 4), out=linear(4, 2), shift=(1, 2)), (X, ADJACENCY.to_sparse()),
        {"into.weight": ["h", "."], "out.weight": [".", "h"], "shift": [".", "."]},
    ),
    "a sparse matrix of learned edges": (
        Net(weighted_edges, into=linear(5, 4), out=linear(4, 2), edges=(4,)),
        (torch.randn(4, 5), torch.tensor([[0, 1, 2, 3], [1, 2, 0, 2]])),
        {"into.weight": ["h", "."], "out.weight": [".", "h"], "edges": ["."]},
    ),
    "unfold and fold": (
        Net(spatial_mix, into=nn.Conv2d(3, 4, 1, **NO_BIAS), patch=linear(16, 6), back=linear(6, 8)), (IMAGE,),
        {"into.weight": ["c", ".", ".", "."], "patch.weight": ["h", "c*."], "back.weight": [".", "h"]},
    ),
    "zero-padded shortcut": (
        Net(padded_shortcut, a=nn.Conv2d(3, 4, 1, **NO_BIAS), b=nn.Conv2d(4, 7, 1, **NO_BIAS),
            out=nn.Conv2d(7, 2, 1, **NO_BIAS)), (IMAGE,),
        {"a.weight": ["a", ".", ".", "."], "b.weight": [".+a+c", "a", ".", "."],
         "out.weight": [".", ".+a+c", ".", "."]},
    ),
    "slices written in place": (
        Net(written_slices, a=linear(5, 4), b=linear(5, 3), out=linear(7, 2)), (X,),
        {"a.weight": ["a", "."], "b.weight": ["b", "."], "out.weight": [".", "a+b"]},
    ),
    "masks": (Net(masked, a=linear(5, 4), out=linear(4, 2)), (X,), {"a.weight": ["h", "."], "out.weight": [".", "h"]}),
    "masks over several dimensions": (
        Net(masked, a=linear(5, 4), out=linear(4, 2)), (SEQUENCE,), {"a.weight": ["h", "."], "out.weight": [".", "h"]}
    ),
    "low rank": (
        Net(low_rank, w=(6, 5), up=(6, 3), down=(3, 5), out=linear(6, 2)), (X,),
        {"w": ["h", "."], "up": ["h", "r"], "down": ["r", "."], "out.weight": [".", "h"]},
    ),
    "channel shuffle": (
        Net(shuffled, a=nn.Conv2d(3, 6, 1, **NO_BIAS), out=nn.Conv2d(6, 2, 1, **NO_BIAS)), (IMAGE,),
        {"a.weight": ["g*c", ".", ".", "."], "out.weight": [".", "c*g", ".", "."]},
    ),
    "class token, positions, norm": (
        Net(learned_tokens, cls=(1, 1, 6), embed=nn.Embedding(9, 6), place=(1, 7, 6), scale=(6,), shift=(6,),
            out=linear(6, 2)), (IDS,),
        {"cls": [".", ".", "d"], "embed.weight": [".", "d"], "place": [".", ".", "d"], "scale": ["d"], "shift": ["d"],
         "out.weight": [".", "d"]},
    ),
    "mixture of experts, dense": (
        Net(top_experts, into=linear(5, 6), router=linear(6, 4), up=(4, 6, 3), down=(4, 3, 6), out=linear(6, 2)), (X,),
        {"into.weight": ["d", "."], "router.weight": ["x", "d"], "up": ["x", "d", "h"], "down": ["x", "h", "e"],
         "out.weight": [".", "e"]},
    ),
    "distances": (
        Net(prototypes, into=linear(5, 4), centres=(3, 4)), (X,), {"into.weight": ["h", "."], "centres": [".", "h"]}
    ),
    "places returned": (
        Net(lambda m, x: (m.a(x).topk(2)[1], m.b(x).argmax(1), m.c(x).max(1)[1]), a=linear(5, 4), b=linear(5, 4),
            c=linear(5, 4)), (X,),
        {"a.weight": [".", "."], "b.weight": [".", "."], "c.weight": [".", "."]},
    ),
    "distances in a batch": (
        Net(lambda m, x: torch.cdist(m.into(x), m.centres), into=linear(5, 4), centres=(3, 4)), (SEQUENCE,),
        {"into.weight": ["h", "."], "centres": [".", "h"]},
    ),
    "groups across parts": (
        Net(lambda m, x: m.out(m.norm(torch.cat([m.a(x), m.b(x)], 1))), a=nn.Conv2d(3, 3, 1, bias=False),
            b=nn.Conv2d(3, 5, 1, bias=False), norm=nn.GroupNorm(2, 8), out=nn.Conv2d(8, 2, 1, bias=False)), (IMAGE,),
        {"a.weight": ["a", ".", ".", "."], "b.weight": [".+b", ".", ".", "."], "norm.weight": ["a+.+b"],
         "norm.bias": ["a+.+b"], "out.weight": [".", "a+.+b", ".", "."]},
    ),
    "losses of logits and whole quotients": (
        Net(lambda m, x: F.binary_cross_entropy_with_logits(m.a(x), m.b(x).sigmoid() // m.c), a=linear(5, 4),
            b=linear(5, 4), c=(4,)), (X,),
        {"a.weight": ["h", "."], "b.weight": ["h", "."], "c": ["h"]},
    ),
    "unit norm and temperature": (
        Net(normalised, into=linear(5, 4), scale=(), out=linear(4, 2)), (X,),
        {"into.weight": ["h", "."], "scale": [], "out.weight": [".", "h"]},
    ),
    "extremes and moments": (
        Net(extremes, into=linear(5, 4), out=linear(12, 2)), (SEQUENCE,),
        {"into.weight": ["h", "."], "out.weight": [".", "h*."]},
    ),
    "the place of an extreme": (
        Net(arg_extreme, into=linear(5, 4), out=linear(4, 2)), (X,),
        {"into.weight": [".", "."], "out.weight": [".", "."]},
    ),
    "transposed convolution in groups": (
        nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ConvTranspose2d(4, 6, 2, 2, groups=2, bias=False),
                      nn.Conv2d(6, 2, 1, bias=False)), (IMAGE,),
        {"0.weight": ["g*i", ".", ".", "."], "1.weight": ["g*i", "o", ".", "."], "2.weight": [".", "g*o", ".", "."]},
    ),
    "pixel shuffle": (
        nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.PixelShuffle(2), nn.PReLU(3), nn.Conv2d(3, 2, 1, bias=False)),
        (IMAGE,), {"0.weight": ["c*.", ".", ".", "."], "2.weight": ["c"], "3.weight": [".", "c", ".", "."]},
    ),
    "instance norm and resampling": (
        nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.InstanceNorm2d(4, affine=True), nn.Upsample(scale_factor=2),
                      nn.AvgPool2d(3), nn.Conv2d(4, 2, 1, bias=False)), (IMAGE,),
        {"0.weight": ["c", ".", ".", "."], "1.weight": ["c"], "1.bias": ["c"], "4.weight": [".", "c", ".", "."]},
    ),
    "neighbouring channels": (
        nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.LocalResponseNorm(3), nn.Conv2d(4, 2, 1, bias=False)),
        (IMAGE,),
        {"0.weight": [".", ".", ".", "."], "2.weight": [".", ".", ".", "."]},
    ),
    "bilinear": (
        Net(lambda m, x: m.out(m.both(m.a(x), m.b(x)).tanh()), a=linear(5, 3), b=linear(5, 4),
            both=nn.Bilinear(3, 4, 6, bias=False), out=linear(6, 2)), (X,),
        {"a.weight": ["a", "."], "b.weight": ["b", "."], "both.weight": ["h", "a", "b"], "out.weight": [".", "h"]},
    ),
    "embedding bag": (
        Net(lambda m, ids: m.out(m.bag(ids)), bag=nn.EmbeddingBag(9, 4), out=linear(4, 2)), (IDS,),
        {"bag.weight": [".", "h"], "out.weight": [".", "h"]},
    ),
    "spectral norm": (
        nn.Sequential(nn.utils.parametrizations.spectral_norm(linear(5, 4)), nn.ReLU(), linear(4, 2)), (X,),
        {"0.parametrizations.weight.original": ["h", "."], "0.parametrizations.weight.0._u": ["h"],
         "2.weight": [".", "h"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_axes_equal_hand_written_ones_and_verify(name: str) -> None:
    model, args, expected = NETS[name]
    graph = ParameterGraph.trace(model, args)
    assert graph.rung == "traced"
    assert_axes(graph, expected)
    report = graph.verify(model, args)
    assert report.max_error < 1e-11
    assert report.ok, report


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.rnn = kind(4, 6, batch_first=True, **options)
        self.out = linear(self.rnn.proj_size or 6, 3) if not self.rnn.bidirectional else linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0])


H4, H3 = "h+h+h+h", "h+h+h"
RECURRENT = {
    "gru": (
        nn.GRU, {}, {"weight_ih_l0": [H3, "e"], "weight_hh_l0": [H3, "h"], "bias_ih_l0": [H3], "bias_hh_l0": [H3]}, "h"
    ),
    "elman": (nn.RNN, {"bias": False}, {"weight_ih_l0": ["h", "e"], "weight_hh_l0": ["h", "h"]}, "h"),
    "lstm without bias": (nn.LSTM, {"bias": False}, {"weight_ih_l0": [H4, "e"], "weight_hh_l0": [H4, "h"]}, "h"),
    "lstm with projection": (
        nn.LSTM, {"bias": False, "proj_size": 3},
        {"weight_ih_l0": [H4, "e"], "weight_hh_l0": [H4, "p"], "weight_hr_l0": ["p", "h"]}, "p",
    ),
    "both directions": (
        nn.RNN, {"bias": False, "bidirectional": True},
        {"weight_ih_l0": ["h", "e"], "weight_hh_l0": ["h", "h"], "weight_ih_l0_reverse": ["b", "e"],
         "weight_hh_l0_reverse": ["b", "b"]}, "h+b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name: str) -> None:
    kind, options, own, out = RECURRENT[name]
    model = Recurrent(kind, **options)
    graph = ParameterGraph.trace(model, (IDS,))
    expected = {"embed.weight": [".", "e"], "out.weight": [".", out]}
    assert_axes(graph, expected | {f"rnn.{n}": axes for n, axes in own.items()})
    report = graph.verify(model, (IDS,))
    assert report.ok, report


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_recurrent_cells_in_a_python_loop(kind: type[nn.RNNCellBase], gates: int) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return m.out(state[0] if isinstance(state, tuple) else state)

    model = Net(forward, cell=kind(5, 4, bias=False), out=linear(4, 2))
    graph = ParameterGraph.trace(model, (SEQUENCE,))
    h = "+".join("h" * gates)
    assert_axes(graph, {"cell.weight_ih": [h, "."], "cell.weight_hh": [h, "h"], "out.weight": [".", "h"]})
    assert graph.verify(model, (SEQUENCE,)).ok


def test_packed_sequences() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4]), batch_first=True)
        output, last = m.gru(packed)
        return m.out(last[-1] + nn.utils.rnn.pad_packed_sequence(output, batch_first=True)[0].sum(1))

    model = Net(forward, gru=nn.GRU(5, 4, num_layers=2, bias=False), out=linear(4, 2))
    with pytest.warns(GraphWarning, match="recorded|read from one forward pass"):
        graph = ParameterGraph.trace(model, (SEQUENCE,))
    first, second = "+".join("a" * 3), "+".join("b" * 3)
    assert_axes(graph, {
        "gru.weight_ih_l0": [first, "."], "gru.weight_hh_l0": [first, "a"],
        "gru.weight_ih_l1": [second, "a"], "gru.weight_hh_l1": [second, "b"], "out.weight": [".", "b"],
    })  # fmt: skip
    assert graph.verify(model, (SEQUENCE,)).ok


def test_kinds_of_attention_gates_and_positions() -> None:
    def kinds(name: str) -> dict[str, str]:
        model, args, _ = NETS[name]
        return {n: s.kind for n, s in ParameterGraph.trace(model, args).parameters.items()}

    attention = {"q.weight": "query", "k.weight": "key", "v.weight": "value", "o.weight": "output"}
    assert kinds("grouped queries, fused") == attention
    assert kinds("grouped queries, repeated") == attention
    assert kinds("rotary") == attention
    assert kinds("bucketed position bias") == attention | {"bias": "position"}
    assert kinds("squeeze and excite")["up.weight"] == "gate"
    tokens = kinds("class token, positions, norm")
    assert (tokens["cls"], tokens["place"]) == ("embedding", "position")
    assert kinds("tri-planes")["planes"] == "embedding"
    assert kinds("pixel shuffle")["2.weight"] == "scale"
    model, args, _ = NETS["gated unit"]
    assert ParameterGraph.trace(model, args).parameters["into.weight"].block_kinds == ("gate", "weight")


def test_joining_nothing_to_nothing_says_nothing_of_the_network() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        return m.out(m.into(x)) + torch.cat([x.new_zeros(0), x.new_zeros(0)]).sum()

    model = Net(forward, into=linear(5, 4), out=linear(4, 2))
    assert_axes(ParameterGraph.trace(model, (X,)), {"into.weight": ["h", "."], "out.weight": [".", "h"]})


@pytest.mark.parametrize("of", [
    lambda x: x.max(0).values, lambda x: x.max(0).indices, lambda x: x.argmax(0), lambda x: x.median(-1).indices,
    lambda x: x.cumsum(0), lambda x: x.cummax(0).indices, lambda x: x.sort(0).indices, lambda x: x.topk(1, 0).indices,
    lambda x: x.squeeze(0),
])  # fmt: skip
def test_a_number_has_one_dimension_where_an_operation_asks_for_it(of: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda m, x: m.out(m.into(x)) + of(x.sum()), into=linear(5, 4), out=linear(4, 2))
    assert_axes(ParameterGraph.trace(model, (X,)), {"into.weight": ["h", "."], "out.weight": [".", "h"]})


def test_a_mistake_in_a_rule_is_told_and_costs_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(s: object, *args: object) -> None:
        raise TypeError("no such argument")

    monkeypatch.setitem(RULES, "tanh", mistaken)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.warns(
        GraphWarning, match="rule for the operation aten.tanh has a mistake .TypeError: no such"
    ):
        graph = ParameterGraph.trace(model, (torch.randn(2, 3),))
    assert graph.rung == "traced"
    assert not any(group.permutable for group in graph.groups)


EDGES = torch.tensor([0, 2, 1, 0, 2])
ROWS = EDGES[:, None].expand(-1, 6)
EVERY_OTHER = torch.tensor([True, False] * 3)

WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "scatter_add": lambda h: torch.zeros(3, 6).scatter_add(0, ROWS, h),
    "scatter_reduce": lambda h: torch.zeros(3, 6).scatter_reduce(0, ROWS, h, "amax"),
    "scatter of fewer rows": lambda h: torch.zeros(9, 6).scatter(0, ROWS, h),
    "index_copy": lambda h: torch.zeros(9, 6).index_copy(0, torch.arange(5), h),
    "slice_scatter": lambda h: torch.zeros(7, 6).slice_scatter(h, 0, 1, 6),
    "select_scatter": lambda h: torch.zeros(5, 6).select_scatter(h[0], 0, 2),
    "renorm": lambda h: h.renorm(2, 0, 1.0),
    "fake quantisation": lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127),
}
"""What writes neurons into a constant, along other axes, and what does something to each by itself."""


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_into_a_constant_are_the_same_neurons(name: str) -> None:
    net = Net(lambda m, x: m.b(WRITTEN[name](torch.tanh(m.a(x)))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    x = torch.randn(5, 4)
    graph = ParameterGraph.trace(net, (x,))
    assert graph.parameters["a.weight"].axes[0] == graph.parameters["b.weight"].axes[1]
    assert graph.verify(net, (x,)).max_error < 1e-9


def observed(m: Net, w: Tensor) -> Tensor:
    on = torch.ones(1, dtype=torch.int64)
    running = (m.low, m.high, m.scale, m.zero_point)
    return torch.fused_moving_avg_obs_fake_quant(w, on, on, *running, 0.1, -128, 127, 0, True)  # type: ignore[arg-type]


def fixed_scales(m: Net, w: Tensor) -> Tensor:
    return torch.fake_quantize_per_channel_affine(w, m.scale, m.zero_point, 0, -128, 127)  # type: ignore[arg-type]


@pytest.mark.parametrize("rounded", [observed, fixed_scales])
def test_quantisation_with_a_scale_for_each_neuron(rounded: Callable[[Net, Tensor], Tensor]) -> None:
    """In float32, as its kernels want."""
    net = Net(lambda m, x: m.b(torch.tanh(x @ rounded(m, m.a).T)), a=(6, 4), b=nn.Linear(6, 2))
    for name in ("low", "high", "scale"):
        net.register_buffer(name, torch.rand(6) / 50 + 0.01)
    net.register_buffer("zero_point", torch.zeros(6, dtype=torch.int32))
    x = torch.randn(5, 4)
    graph = ParameterGraph.trace(net, (x,))
    assert graph.parameters["a"].axes[0] == graph.parameters["b.weight"].axes[1]
    held = copy.deepcopy(net.state_dict())
    outputs = net(x)
    net.load_state_dict(graph.permute(held, graph.random_permutation(torch.Generator().manual_seed(0))))
    assert not torch.equal(net.a, held["a"])
    torch.testing.assert_close(net(x), outputs)


PLACED: dict[str, Callable[[Tensor], Tensor]] = {
    "masked_scatter": lambda h: torch.zeros(5, 6).masked_scatter(torch.ones(5, 6, dtype=torch.bool), h),
    "constants": lambda h: h + torch.ones(6).masked_scatter(EVERY_OTHER, torch.zeros(6)),
    "identity": lambda h: h @ torch.zeros(6, 6).scatter(1, torch.arange(6)[:, None], 1.0),
    "fold": lambda h: h + F.fold(torch.ones(1, 3, 4), (6, 1), (3, 1))[0, :, :, 0],
}
"""What is done to each neuron by its place."""


@pytest.mark.parametrize("name", PLACED)
def test_places_that_are_written_to_stay(name: str) -> None:
    net = Net(lambda m, x: m.b(PLACED[name](torch.tanh(m.a(x)))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    x = torch.randn(5, 4)
    graph = ParameterGraph.trace(net, (x,))
    assert not any(group.permutable for group in graph.groups)


ALIKE: dict[str, tuple[nn.Module, Callable[[Net, Tensor], Tensor]]] = {
    "batch norm": (nn.BatchNorm2d(6), lambda m, x: m.own(x[:, :1].expand(-1, 6, -1, -1))),
    "group norm": (nn.GroupNorm(2, 6), lambda m, x: m.own(x[:, :1].expand(-1, 6, -1, -1))),
    "layer norm": (
        nn.LayerNorm(6),
        lambda m, x: m.own(x[:, :1].expand(-1, 6, -1, -1).movedim(1, -1)).movedim(-1, 1),
    ),
    "bias": (nn.BatchNorm2d(6), lambda m, x: F.conv2d(x, torch.ones(6, 3, 3, 3), m.own.bias)),
    "blur": (
        nn.Conv2d(3, 6, 1),
        lambda m, x: F.conv2d(m.own(x), torch.ones(6, 1, 3, 3) / 9, groups=6),
    ),
}
"""A layer of six channels that sees the same in all of them, or behind which a constant kernel stands."""


@pytest.mark.parametrize("name", ALIKE)
def test_channels_that_see_the_same_are_those_of_what_acts_on_them(name: str) -> None:
    own, channels = ALIKE[name]
    net = Net(lambda m, x: m.out(channels(m, x).relu().mean((2, 3))), own=own, out=nn.Linear(6, 2))
    graph = ParameterGraph.trace(net.eval(), (IMAGE,))
    assert graph.parameters["own.bias"].axes[0] == graph.parameters["out.weight"].axes[1]
    assert graph.verify(net, (IMAGE,)).max_error < 1e-9
