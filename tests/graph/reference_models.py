"""Small networks with their symmetries written down by hand, from theory and not from any tool's output.

Notation, one text per parameter or buffer: axes are separated by `,`, the parts of a concatenation by `|`, the
factors of a product by `x`. A number is a fixed axis of that size (input, output, kernel tap, vocabulary, position);
a letter is a group of neurons that may be permuted, and the same letter is the same group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Reference:
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    sizes: Mapping[str, int]
    """Size of each permutable group."""
    axes: Mapping[str, str]
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Kinds of some parameters; the parts of a concatenation separated by `|`."""


REFERENCES: dict[str, Reference] = {}


def _add(
    name: str, build: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], **rest: Any
) -> None:
    REFERENCES[name] = Reference(build, inputs, **rest)


def _image(channels: int, size: int = 8) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(2, channels, size, size),)


def _vector(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(*shape),)


def _tokens() -> tuple[Tensor]:
    return (torch.randint(11, (2, 6)),)


def _norm(name: str, group: str) -> dict[str, str]:
    return {f"{name}.weight": group, f"{name}.bias": group}


def _batch_norm(name: str, group: str) -> dict[str, str]:
    return {**_norm(name, group), f"{name}.running_mean": group, f"{name}.running_var": group}


def _affine(name: str, out: str, rest: str) -> dict[str, str]:
    return {f"{name}.weight": f"{out}, {rest}", f"{name}.bias": out}


# -- feed-forward -----------------------------------------------------------------------------------------------------

_add(
    "mlp",
    lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)),
    _vector(2, 5),
    sizes={"a": 16, "b": 8},
    axes={**_affine("0", "a", "5"), **_affine("2", "b", "a"), **_affine("4", "3", "b")},
    kinds={"0.weight": "weight", "0.bias": "bias"},
)


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(30 * self.second(torch.sin(30 * self.first(x)))))


_add(
    "siren",
    Siren,
    _vector(7, 2),
    sizes={"a": 16, "b": 12},
    axes={**_affine("first", "a", "2"), **_affine("second", "b", "a"), **_affine("last", "3", "b")},
)

_add(
    "weight_norm",
    lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 16)), nn.ReLU(), nn.Linear(16, 3)
    ),
    _vector(2, 5),
    sizes={"a": 16},
    axes={
        "0.bias": "a",
        "0.parametrizations.weight.original0": "a, 1",
        "0.parametrizations.weight.original1": "a, 5",
        **_affine("2", "3", "a"),
    },
)


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 5)
        self.bilinear, self.head = nn.Bilinear(6, 5, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.bilinear(self.left(x).relu(), self.right(y).relu()).relu())


_add(
    "bilinear",
    TwoTowers,
    lambda: (torch.randn(2, 4), torch.randn(2, 3)),
    sizes={"a": 6, "b": 5, "c": 7},
    axes={
        **_affine("left", "a", "4"),
        **_affine("right", "b", "3"),
        **_affine("bilinear", "c", "a, b"),
        **_affine("head", "2", "c"),
    },
)

# -- convolutional ----------------------------------------------------------------------------------------------------

_add(
    "cnn_flatten",
    lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(6 * 4, 10),
    ),
    _image(1),
    sizes={"a": 4, "b": 6},
    axes={
        **_affine("0", "a", "1, 3, 3"), **_batch_norm("1", "a"),
        "4.weight": "b, a, 3, 3", **_batch_norm("5", "b"),
        **_affine("9", "10", "b x 4"),
    },
    kinds={"0.weight": "weight", "1.weight": "scale", "1.bias": "shift"},
)  # fmt: skip


class ResNet(nn.Module):
    """A block with an identity shortcut, then one with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 9, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(9)
        self.conv4, self.bn4 = nn.Conv2d(9, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.short, self.bns = nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        x = (self.bns(self.short(x)) + self.bn4(self.conv4(self.bn3(self.conv3(x)).relu()))).relu()
        return self.fc(x.mean((2, 3)))


_add(
    "resnet",
    ResNet,
    _image(3),
    sizes={"s": 8, "m": 5, "n": 9, "t": 12},
    axes={
        "stem.weight": "s, 3, 3, 3", **_batch_norm("bn", "s"),
        "conv1.weight": "m, s, 3, 3", **_batch_norm("bn1", "m"),
        "conv2.weight": "s, m, 3, 3", **_batch_norm("bn2", "s"),
        "conv3.weight": "n, s, 3, 3", **_batch_norm("bn3", "n"),
        "conv4.weight": "t, n, 3, 3", **_batch_norm("bn4", "t"),
        "short.weight": "t, s, 1, 1", **_batch_norm("bns", "t"),
        **_affine("fc", "10", "t"),
    },
)  # fmt: skip

_add(
    "depthwise_separable",
    lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(), nn.Conv2d(6, 8, 1), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ),
    _image(3),
    sizes={"a": 6, "b": 8},
    axes={
        **_affine("0", "a", "3, 3, 3"), **_affine("2", "a", "1, 3, 3"), **_affine("4", "b", "a, 1, 1"),
        **_affine("8", "4", "b"),
    },
    kinds={"2.weight": "depthwise"},
)  # fmt: skip

_add(
    "grouped_convolution",
    lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 5, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ),
    _image(3),
    sizes={"g": 2, "i": 4, "o": 3},
    axes={
        **_affine("0", "g x i", "3, 1, 1"), **_affine("2", "g x o", "i, 3, 3"), **_affine("4", "5", "g x o, 1, 1"),
    },
)  # fmt: skip


class Dense(nn.Module):
    """Each layer reads everything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.norm, self.two = nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3, padding=1)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([x, self.one(x).relu()], dim=1)
        x = torch.cat([x, self.two(self.norm(x).relu())], dim=1)
        return self.fc(x.relu().mean((2, 3)))


_add(
    "dense_concatenation",
    Dense,
    _image(3),
    sizes={"a": 4, "b": 3, "c": 5},
    axes={
        **_affine("stem", "a", "3, 3, 3"),
        **_affine("one", "b", "a, 3, 3"),
        **_batch_norm("norm", "a|b"),
        **_affine("two", "c", "a|b, 3, 3"),
        **_affine("fc", "10", "a|b|c"),
    },
)

_add(
    "group_norm",
    lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 6, 3), nn.GroupNorm(1, 6), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ),
    _image(3),
    sizes={"g": 4, "i": 2, "b": 6},
    axes={
        **_affine("0", "g x i", "3, 3, 3"), **_norm("1", "g x i"),
        **_affine("3", "b", "g x i, 3, 3"), **_norm("4", "b"), **_affine("8", "4", "b"),
    },
    kinds={"1.weight": "scale", "1.bias": "shift"},
)  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        gate = self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.fc((x * gate).mean((2, 3)))


_add(
    "squeeze_and_excite",
    SqueezeExcite,
    _image(3),
    sizes={"a": 8, "r": 2},
    axes={
        **_affine("conv", "a", "3, 3, 3"),
        **_affine("squeeze", "r", "a, 1, 1"),
        **_affine("excite", "a", "r, 1, 1"),
        **_affine("fc", "4", "a"),
    },
)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.merge, self.last = nn.Conv2d(9, 7, 3, padding=1), nn.Conv2d(7, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        x = self.up(self.middle(F.max_pool2d(skip, 2)).relu()).relu()
        return self.last(self.merge(torch.cat([x, skip], dim=1)).relu())


_add(
    "unet",
    UNet,
    _image(1),
    sizes={"a": 4, "b": 6, "u": 5, "d": 7},
    axes={
        **_affine("down", "a", "1, 3, 3"),
        **_affine("middle", "b", "a, 3, 3"),
        "up.weight": "b, u, 2, 2",
        "up.bias": "u",
        **_affine("merge", "d", "u|a, 3, 3"),
        **_affine("last", "1", "d, 1, 1"),
    },
)


class Mixer(nn.Module):
    """Patches of 2 x 2 on 8 x 8 pixels: 16 tokens, which the positions keep in place."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm1, self.norm2 = nn.Conv2d(3, 6, 2, stride=2), nn.LayerNorm(6), nn.LayerNorm(6)
        self.token1, self.token2 = nn.Linear(16, 5), nn.Linear(5, 16)
        self.channel1, self.channel2 = nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.token2(F.gelu(self.token1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.channel2(F.gelu(self.channel1(self.norm2(x))))
        return self.head(x.mean(1))


_add(
    "mixer",
    Mixer,
    _image(3),
    sizes={"s": 6, "t": 5, "c": 9},
    axes={
        **_affine("patch", "s", "3, 2, 2"), **_norm("norm1", "s"), **_norm("norm2", "s"),
        **_affine("token1", "t", "16"), **_affine("token2", "16", "t"),
        **_affine("channel1", "c", "s"), **_affine("channel2", "s", "c"),
        **_affine("head", "4", "s"),
    },
)  # fmt: skip

# -- attention --------------------------------------------------------------------------------------------------------


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


_add(
    "tied_embedding",
    TiedLanguageModel,
    _tokens,
    sizes={"s": 6, "f": 9},
    axes={
        "embedding.weight": "11, s", **_norm("norm", "s"), **_affine("up", "f", "s"), **_affine("down", "s", "f"),
    },
    kinds={"embedding.weight": "embedding"},
)  # fmt: skip


class Attention(nn.Module):
    """`nn.MultiheadAttention` between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


_FUSED = "h x q|h x q|h x v"

_add(
    "multihead_attention",
    Attention,
    _vector(2, 6, 5),
    sizes={"s": 8, "h": 2, "q": 4, "v": 4, "t": 8},
    axes={
        **_affine("stem", "s", "5"),
        "attention.in_proj_weight": f"{_FUSED}, s",
        "attention.in_proj_bias": _FUSED,
        **_affine("attention.out_proj", "t", "h x v"),
        **_affine("head", "3", "t"),
    },
    kinds={"attention.in_proj_weight": "query|key|value", "attention.out_proj.weight": "output"},
)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)))


_add(
    "transformer_encoder_layer",
    Encoder,
    _vector(2, 6, 5),
    sizes={"s": 8, "h": 2, "q": 4, "v": 4, "f": 12},
    axes={
        **_affine("stem", "s", "5"),
        "layer.self_attn.in_proj_weight": f"{_FUSED}, s",
        "layer.self_attn.in_proj_bias": _FUSED,
        **_affine("layer.self_attn.out_proj", "s", "h x v"),
        **_affine("layer.linear1", "f", "s"), **_affine("layer.linear2", "s", "f"),
        **_norm("layer.norm1", "s"), **_norm("layer.norm2", "s"),
        **_affine("head", "3", "s"),
    },
)  # fmt: skip


class GPT(nn.Module):
    """One block with a fused query-key-value projection."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attend, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 11, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        parts = self.attend(x).split(8, dim=2)
        q, k, v = (part.view(*part.shape[:2], 2, 4).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(y.transpose(1, 2).reshape(x.shape))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x))


_add(
    "gpt",
    GPT,
    _tokens,
    sizes={"s": 8, "h": 2, "q": 4, "v": 4, "f": 12},
    axes={
        "tokens.weight": "11, s", "positions.weight": "6, s",
        **_norm("norm1", "s"), **_norm("norm2", "s"), **_norm("norm", "s"),
        **_affine("attend", _FUSED, "s"), **_affine("project", "s", "h x v"),
        **_affine("up", "f", "s"), **_affine("down", "s", "f"), "head.weight": "11, s",
    },
    kinds={"attend.weight": "query|key|value", "project.weight": "output", "tokens.weight": "embedding"},
)  # fmt: skip


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Llama(nn.Module):
    """Rotary position embedding, four query heads on two key-value heads, gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, 12), nn.Linear(12, 11, bias=False)
        self.norm1, self.norm2, self.norm = RMSNorm(12), RMSNorm(12), RMSNorm(12)
        self.q, self.k = nn.Linear(12, 16, bias=False), nn.Linear(12, 8, bias=False)
        self.v, self.o = nn.Linear(12, 8, bias=False), nn.Linear(16, 12, bias=False)
        self.gate, self.up = nn.Linear(12, 10, bias=False), nn.Linear(12, 10, bias=False)
        self.down = nn.Linear(10, 12, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2])[:, None] / 10 ** torch.arange(2)
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    def attention(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q = self.rotate(self.q(x).view(batch, time, 4, 4).transpose(1, 2))
        k = self.rotate(self.k(x).view(batch, time, 2, 4).transpose(1, 2))
        v = self.v(x).view(batch, time, 2, 4).transpose(1, 2)
        k, v = (y[:, :, None].expand(batch, 2, 2, time, 4).reshape(batch, 4, time, 4) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(batch, time, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return self.head(self.norm(x + self.down(F.silu(self.gate(y)) * self.up(y))))


_add(
    "llama",
    Llama,
    _tokens,
    # The rotation turns each pair of a head's four query-key channels by an angle of its own: they stay in place.
    sizes={"s": 12, "k": 2, "r": 2, "v": 4, "f": 10},
    axes={
        "tokens.weight": "11, s", "head.weight": "11, s",
        "norm1.weight": "s", "norm2.weight": "s", "norm.weight": "s",
        "q.weight": "k x r x 4, s", "k.weight": "k x 4, s", "v.weight": "k x v, s", "o.weight": "s, k x r x v",
        "gate.weight": "f, s", "up.weight": "f, s", "down.weight": "s, f",
    },
    kinds={"q.weight": "query", "k.weight": "key", "v.weight": "value", "o.weight": "output", "norm.weight": "scale"},
)  # fmt: skip

# -- recurrent --------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, core: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.embedding, self.core, self.head = nn.Embedding(11, 6), core, nn.Linear(width, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.embedding(tokens))[0])


def _recurrence(layer: str, hidden: str, gates: int, reads: str) -> dict[str, str]:
    out = "|".join([hidden] * gates)
    return {
        f"core.weight_ih_{layer}": f"{out}, {reads}", f"core.weight_hh_{layer}": f"{out}, {hidden}",
        f"core.bias_ih_{layer}": out, f"core.bias_hh_{layer}": out,
    }  # fmt: skip


_add(
    "lstm_language_model",
    lambda: Recurrent(nn.LSTM(6, 8, num_layers=2, batch_first=True), 8),
    _tokens,
    sizes={"e": 6, "a": 8, "b": 8},
    axes={
        "embedding.weight": "11, e",
        **_recurrence("l0", "a", 4, "e"),
        **_recurrence("l1", "b", 4, "a"),
        **_affine("head", "11", "b"),
    },
    kinds={"core.weight_hh_l0": "input_gate|forget_gate|cell_gate|output_gate"},
)

_add(
    "gru_both_directions",
    lambda: Recurrent(nn.GRU(6, 5, batch_first=True, bidirectional=True), 10),
    _tokens,
    sizes={"e": 6, "f": 5, "b": 5},
    axes={
        "embedding.weight": "11, e",
        **_recurrence("l0", "f", 3, "e"),
        **_recurrence("l0_reverse", "b", 3, "e"),
        **_affine("head", "11", "f|b"),
    },
    kinds={"core.weight_ih_l0": "reset_gate|update_gate|new_gate"},
)
