"""Networks made of `torch.nn` alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo.registry import Built, architecture

TORCH = "torch.nn"


def _image(channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(2, channels, size, size)


def _tokens(length: int = 10, vocabulary: int = 29) -> Tensor:
    return torch.randint(vocabulary, (2, length))


# -- dense


@architecture("MLP", TORCH)
def mlp() -> Built:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)), (
        torch.randn(4, 64),
    )


@architecture("MLP with layer norm and dropout", TORCH)
def mlp_layer_norm() -> Built:
    layers = [nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 10)]
    return nn.Sequential(*layers).eval(), (torch.randn(4, 64),)


@architecture("residual MLP", TORCH)
def residual_mlp() -> Built:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.BatchNorm1d(16), nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.mish(self.up(self.norm(x))))

    model = nn.Sequential(nn.Linear(8, 16), Block(), Block(), nn.Linear(16, 3))
    return model.eval(), (torch.randn(4, 8),)


@architecture("autoencoder", TORCH)
def autoencoder() -> Built:
    sizes = [64, 32, 8, 32, 64]
    layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]), (torch.randn(4, 64),)


@architecture("variational autoencoder", TORCH)
def variational_autoencoder() -> Built:
    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = (
                nn.Linear(64, 32),
                nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 64)),
            )
            self.moments = nn.Linear(32, 12)

        def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_variance = self.moments(self.encode(x).relu()).chunk(2, dim=-1)
            return self.decode(mean + noise * torch.exp(0.5 * log_variance)), mean, log_variance

    return VAE(), (torch.randn(4, 64), torch.randn(4, 6))


@architecture("SIREN", TORCH)
def siren() -> Built:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * x)

    return nn.Sequential(nn.Linear(2, 32), Sine(), nn.Linear(32, 32), Sine(), nn.Linear(32, 3)), (
        torch.rand(16, 2),
    )


@architecture("NeRF", TORCH)
def nerf() -> Built:
    class NeRF(nn.Module):
        """Fourier features, a skip connection by concatenation, a density head and a view-dependent colour."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(24, 32), nn.Linear(32, 32)
            self.third, self.density = nn.Linear(56, 32), nn.Linear(32, 1)
            self.feature, self.view, self.colour = nn.Linear(32, 32), nn.Linear(44, 16), nn.Linear(16, 3)

        def encode(self, x: Tensor, frequencies: int) -> Tensor:
            angles = x[..., None] * 2 ** torch.arange(frequencies)
            return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)

        def forward(self, point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
            p = self.encode(point, 4)
            x = self.second(self.first(p).relu()).relu()
            x = self.third(torch.cat([p, x], dim=-1)).relu()
            view = self.view(torch.cat([self.feature(x), self.encode(direction, 2)], dim=-1)).relu()
            return self.density(x).relu(), self.colour(view).sigmoid()

    return NeRF(), (torch.rand(16, 3), torch.rand(16, 3))


@architecture("tri-plane feature grid", TORCH)
def tri_plane() -> Built:
    class TriPlane(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.planes = nn.Parameter(torch.randn(3, 6, 8, 8))
            self.decode = nn.Sequential(nn.Linear(6, 16), nn.Softplus(), nn.Linear(16, 4))

        def forward(self, points: Tensor) -> Tensor:
            pairs = torch.stack([points[:, [0, 1]], points[:, [1, 2]], points[:, [0, 2]]])
            sampled = F.grid_sample(self.planes, pairs[:, None], align_corners=True)
            return self.decode(sampled.sum(0)[:, 0].T)

    return TriPlane(), (torch.rand(10, 3) * 1.8 - 0.9,)


@architecture("highway network", TORCH)
def highway() -> Built:
    class Highway(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform, self.gate = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            gate = self.gate(x).sigmoid()
            return gate * self.transform(x).relu() + (1 - gate) * x

    return nn.Sequential(nn.Linear(8, 16), Highway(), Highway(), nn.Linear(16, 3)), (torch.randn(4, 8),)


@architecture("maxout network", TORCH)
def maxout() -> Built:
    class Maxout(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.linear, self.outputs = nn.Linear(inputs, outputs * 3), outputs

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).view(len(x), self.outputs, 3).amax(-1)

    return nn.Sequential(Maxout(8, 16), Maxout(16, 12), nn.Linear(12, 3)), (torch.randn(4, 8),)


@architecture("bilinear two-tower", TORCH)
def two_tower() -> Built:
    class TwoTower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 10), nn.Linear(7, 9)
            self.both, self.head = nn.Bilinear(10, 9, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(self.both(self.left(x).relu(), self.right(y).relu()).relu())

    return TwoTower(), (torch.randn(4, 6), torch.randn(4, 7))


@architecture("wide and deep (tabular)", TORCH)
def wide_and_deep() -> Built:
    class WideAndDeep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(n, 4) for n in (5, 7, 9)])
            self.deep = nn.Sequential(
                nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)
            )
            self.wide = nn.Linear(6, 1)

        def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
            embedded = [table(categories[:, i]) for i, table in enumerate(self.tables)]
            return self.wide(numbers) + self.deep(torch.cat([numbers, *embedded], dim=-1))

    return WideAndDeep(), (torch.randn(4, 6), torch.randint(5, (4, 3)))


@architecture("matrix factorisation", TORCH)
def matrix_factorisation() -> Built:
    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(11, 6), nn.Embedding(13, 6)
            self.user_bias, self.item_bias = nn.Embedding(11, 1), nn.Embedding(13, 1)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            product = (self.users(user) * self.items(item)).sum(-1)
            return product + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]

    return Factors(), (torch.randint(11, (5,)), torch.randint(13, (5,)))


@architecture("DeepSets (equivariant layers)", TORCH)
def deep_sets() -> Built:
    class Equivariant(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.own, self.mean = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.elu(self.own(x) + self.mean(x.mean(1, keepdim=True)))

    class DeepSets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.Sequential(Equivariant(3, 16), Equivariant(16, 12)), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(x).sum(1))

    return DeepSets(), (torch.randn(4, 7, 3),)


@architecture("mixture of experts (dense routing)", TORCH)
def mixture_of_experts() -> Built:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.router, self.head = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 3)
            self.up = nn.Parameter(torch.randn(4, 16, 24) / 4)
            self.down = nn.Parameter(torch.randn(4, 24, 16) / 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            hidden = torch.einsum("bi,eih->beh", x, self.up).relu()
            outputs = torch.einsum("beh,eho->beo", hidden, self.down)
            return self.head(x + torch.einsum("be,beo->bo", self.router(x).softmax(-1), outputs))

    return Experts(), (torch.randn(4, 8),)


@architecture("actor-critic with shared trunk", TORCH)
def actor_critic() -> Built:
    class ActorCritic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh())
            self.policy, self.value = nn.Linear(24, 4), nn.Linear(24, 1)
            self.log_std = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            hidden = self.trunk(x)
            return self.policy(hidden), self.log_std.exp().expand(len(x), 4), self.value(hidden)

    return ActorCritic(), (torch.randn(4, 8),)


# -- convolutional


@architecture("LeNet-5", TORCH)
def lenet() -> Built:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    ), (_image(1, 28),)  # fmt: skip


@architecture("CNN with global pooling (FM-16)", TORCH)
def fm16() -> Built:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ), (_image(1, 28),)  # fmt: skip


@architecture("CNN with batch norm and flatten", TORCH)
def cnn_flatten() -> Built:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.LeakyReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(12 * 16, 24), nn.ReLU(), nn.Linear(24, 10),
    ).eval(), (_image(),)  # fmt: skip


@architecture("CNN with group norm and PReLU", TORCH)
def cnn_group_norm() -> Built:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.PReLU(8), nn.Conv2d(8, 12, 3), nn.InstanceNorm2d(12, affine=True),
        nn.PReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    ), (_image(),)  # fmt: skip


@architecture("1-d CNN (dilated, weight norm)", TORCH)
def temporal_cnn() -> Built:
    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
            super().__init__()
            norm = nn.utils.parametrizations.weight_norm
            self.conv = norm(nn.Conv1d(inputs, outputs, 3, padding=2 * dilation, dilation=dilation))
            self.short, self.cut = nn.Conv1d(inputs, outputs, 1), 2 * dilation

        def forward(self, x: Tensor) -> Tensor:
            return (self.short(x) + self.conv(x)[..., : -self.cut].relu()).relu()

    return nn.Sequential(Block(4, 8, 1), Block(8, 8, 2), nn.Conv1d(8, 2, 1)), (torch.randn(2, 4, 20),)


@architecture("WaveNet (gated, skip sums)", TORCH)
def wavenet() -> Built:
    class WaveNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv1d(1, 8, 1), nn.Sequential(nn.ReLU(), nn.Conv1d(10, 16, 1))
            self.gates = nn.ModuleList([nn.Conv1d(8, 16, 2, dilation=d) for d in (1, 2, 4)])
            self.residuals = nn.ModuleList([nn.Conv1d(8, 8, 1) for _ in range(3)])
            self.skips = nn.ModuleList([nn.Conv1d(8, 10, 1) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            x, total = self.first(x), None
            for dilation, gate, residual, skip in zip(
                (1, 2, 4), self.gates, self.residuals, self.skips, strict=True
            ):
                signal, opening = gate(F.pad(x, (dilation, 0))).chunk(2, dim=1)
                y = signal.tanh() * opening.sigmoid()
                x, total = x + residual(y), skip(y) if total is None else total + skip(y)
            return self.head(total)

    return WaveNet(), (torch.randn(2, 1, 16),)


@architecture("3-d CNN (video)", TORCH)
def video_cnn() -> Built:
    return nn.Sequential(
        nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 8, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval(), (torch.randn(2, 3, 4, 8, 8),)  # fmt: skip


@architecture("text CNN (parallel widths)", TORCH)
def text_cnn() -> Built:
    class TextCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(29, 8)
            self.convs = nn.ModuleList([nn.Conv1d(8, 6, width) for width in (2, 3, 4)])
            self.head = nn.Linear(18, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens).transpose(1, 2)
            return self.head(torch.cat([conv(x).relu().amax(-1) for conv in self.convs], dim=1))

    return TextCNN(), (_tokens(),)


@architecture("convolutional autoencoder", TORCH)
def conv_autoencoder() -> Built:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(12 * 16, 10), nn.Linear(10, 12 * 16), nn.ReLU(), nn.Unflatten(1, (12, 4, 4)),
        nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1),
    ), (_image(),)  # fmt: skip


@architecture("DCGAN generator", TORCH)
def generator() -> Built:
    return nn.Sequential(
        nn.ConvTranspose2d(10, 16, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1), nn.Tanh(),
    ).eval(), (torch.randn(2, 10, 1, 1),)  # fmt: skip


@architecture("sub-pixel super-resolution", TORCH)
def super_resolution() -> Built:
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2), nn.Tanh(), nn.Conv2d(12, 32, 3, padding=1), nn.PixelShuffle(2), nn.Tanh(),
        nn.Conv2d(8, 1, 3, padding=1),
    ), (_image(1, 8),)  # fmt: skip


@architecture("U-Net", TORCH)
def unet() -> Built:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down1, self.down2, self.middle = self.block(1, 6), self.block(6, 8), self.block(8, 10)
            self.up2, self.up1 = nn.ConvTranspose2d(10, 8, 2, stride=2), nn.ConvTranspose2d(9, 6, 2, stride=2)
            self.merge2, self.merge1, self.head = self.block(16, 9), self.block(12, 7), nn.Conv2d(7, 2, 1)

        def block(self, inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            one = self.down1(x)
            two = self.down2(F.max_pool2d(one, 2))
            x = self.middle(F.max_pool2d(two, 2))
            x = self.merge2(torch.cat([self.up2(x), two], dim=1))
            return self.head(self.merge1(torch.cat([self.up1(x), one], dim=1)))

    return UNet().eval(), (_image(1),)


@architecture("diffusion U-Net (time embedding, attention)", TORCH)
def diffusion_unet() -> Built:
    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.norm1, self.conv1 = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
            self.time = nn.Linear(24, outputs)
            self.norm2, self.conv2 = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
            self.short = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            y = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
            return self.short(x) + self.conv2(F.silu(self.norm2(y)))

    class Attention(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.qkv, self.out = (
                nn.GroupNorm(4, width),
                nn.Conv2d(width, 3 * width, 1),
                nn.Conv2d(width, width, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
            weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), dim=-1)
            return x + self.out((v @ weights.transpose(1, 2)).reshape(x.shape))

    class DiffusionUNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 24), nn.SiLU())
            self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), Block(8, 8)
            self.shrink, self.middle, self.attention = (
                nn.Conv2d(8, 16, 3, stride=2, padding=1),
                Block(16, 16),
                Attention(16),
            )
            self.grow, self.up = nn.Conv2d(16, 8, 3, padding=1), Block(16, 8)
            self.head = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

        def forward(self, x: Tensor, step: Tensor) -> Tensor:
            angles = step[:, None] / 1000 ** (torch.arange(8) / 8)
            time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
            skip = self.down(self.stem(x), time)
            x = self.attention(self.middle(self.shrink(skip), time))
            x = self.grow(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            return self.head(self.up(torch.cat([x, skip], dim=1), time))

    return DiffusionUNet(), (_image(size=8), torch.rand(2) * 1000)


# -- recurrent and attention


class _LanguageModel(nn.Module):
    def __init__(self, core: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.embedding, self.core, self.head = nn.Embedding(29, 12), core, nn.Linear(width, 29)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.embedding(tokens))[0])


@architecture("RNN language model", TORCH)
def rnn() -> Built:
    return _LanguageModel(nn.RNN(12, 16, num_layers=2, batch_first=True), 16), (_tokens(),)


@architecture("LSTM language model", TORCH)
def lstm() -> Built:
    return _LanguageModel(nn.LSTM(12, 16, num_layers=2, batch_first=True), 16), (_tokens(),)


@architecture("LSTM, both directions, with projection", TORCH)
def bidirectional_lstm() -> Built:
    core = nn.LSTM(12, 16, batch_first=True, bidirectional=True, proj_size=6)
    return _LanguageModel(core, 12), (_tokens(),)


@architecture("GRU language model", TORCH)
def gru() -> Built:
    return _LanguageModel(nn.GRU(12, 16, batch_first=True), 16), (_tokens(),)


@architecture("LSTM and GRU cells, unrolled", TORCH)
def cells() -> Built:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.gru, self.head = nn.LSTMCell(5, 12), nn.GRUCell(12, 10), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            h, c, g = x.new_zeros(len(x), 12), x.new_zeros(len(x), 12), x.new_zeros(len(x), 10)
            for step in x.unbind(1):
                h, c = self.lstm(step, (h, c))
                g = self.gru(h, g)
            return self.head(g)

    return Cells(), (torch.randn(3, 4, 5),)


@architecture("embedding-bag classifier", TORCH)
def embedding_bag() -> Built:
    return nn.Sequential(nn.EmbeddingBag(29, 12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2)), (
        _tokens(),
    )


@architecture("nn.MultiheadAttention", TORCH)
def multihead_attention() -> Built:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.memory, self.head = nn.Linear(6, 16), nn.Linear(7, 12), nn.Linear(16, 2)
            self.own = nn.MultiheadAttention(16, 4, batch_first=True)
            self.cross = nn.MultiheadAttention(16, 4, kdim=12, vdim=12, batch_first=True)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            x, memory = self.stem(x), self.memory(memory)
            x = x + self.own(x, x, x)[0]
            return self.head(x + self.cross(x, memory, memory, need_weights=False)[0])

    return Attention(), (torch.randn(2, 5, 6), torch.randn(2, 8, 7))


@architecture("nn.TransformerEncoder", TORCH)
def transformer_encoder() -> Built:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 16), encoder, nn.Linear(16, 3)).eval(), (torch.randn(2, 6, 5),)


@architecture("nn.Transformer (encoder and decoder)", TORCH)
def transformer() -> Built:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source, self.target = nn.Embedding(29, 16), nn.Embedding(29, 16)
            self.core = nn.Transformer(16, 4, 2, 2, 24, batch_first=True)
            self.head = nn.Linear(16, 29)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
            return self.head(
                self.core(self.source(source), self.target(target), tgt_mask=mask, tgt_is_causal=True)
            )

    return Translator().eval(), (_tokens(), _tokens(7))


@architecture("set transformer (induced points)", TORCH)
def set_transformer() -> Built:
    class SetTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.points = nn.Linear(3, 16), nn.Parameter(torch.randn(1, 4, 16))
            self.gather = nn.MultiheadAttention(16, 2, batch_first=True)
            self.spread = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            points = self.points.expand(len(x), -1, -1)
            induced = self.gather(points, x, x, need_weights=False)[0]
            return self.head(x + self.spread(x, induced, induced, need_weights=False)[0]).mean(1)

    return SetTransformer(), (torch.randn(2, 9, 3),)


@architecture("state-space model (diagonal, by convolution)", TORCH)
def state_space() -> Built:
    class StateSpace(nn.Module):
        """S4D: one diagonal state per channel; the impulse response is a sum of decaying exponentials."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Linear(3, 8), nn.Linear(8, 16), nn.Linear(8, 2)
            self.decay, self.weight = nn.Parameter(torch.rand(8, 6)), nn.Parameter(torch.randn(8, 6))
            self.through = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).transpose(1, 2)
            times = torch.arange(x.shape[-1])
            kernel = (self.weight[..., None] * torch.exp(-self.decay.exp()[..., None] * times)).sum(1)
            y = F.conv1d(F.pad(x, (len(times) - 1, 0)), kernel.flip(-1)[:, None], groups=8)
            y = F.gelu(y + self.through[:, None] * x)
            return self.head(F.glu(self.mix(y.transpose(1, 2)), dim=-1))

    return StateSpace(), (torch.randn(2, 12, 3),)
