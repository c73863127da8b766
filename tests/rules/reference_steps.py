"""What the steps of rule files were when `reference_steps.safetensors` was made, on ten networks.

    python -m tests.rules.reference_steps        # makes the file anew: only where a rule is meant to step otherwise

For each tensor: the sum, the norm and a projection of where four steps have moved it. Networks and meta-parameters
are in float64, so that what is only another order of sums stays far below what another rule would change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import lopt
from meta_tasks.networks import TransformerLanguageModel, convnet

FILE = Path(__file__).with_suffix(".safetensors")
RULE_FILES = Path(__file__).parents[2] / "benchmarks" / "rules"
STEPS, HORIZON = 4, 6
SILENT = "attention.key.bias"
"""A softmax does not hear of it: its gradient is rounding, whose signs are those of the machine."""

SHIPPED = ("lopt-small", "lopt-base")
IN_PIECES = (*SHIPPED, "axisnet")
OTHERS = (
    "axisnet",
    "ablation/adam-base.0",
    "ablation/mixture.0",
    "ablation/paths.0",
    "ablation/per-parameter.0",
    "from_adam/factored.0",
    "from_adam/graph.0",
    "neural_graphs/metanets-deepsets",
    "neural_graphs/metanets-tensor_lstm",
    "neural_graphs/metanets-unf",
)


def rule_of(name: str) -> lopt.rules.Rule:
    found = lopt.load_rule(name if name in SHIPPED else RULE_FILES / f"{name}.safetensors")
    return found.double()


def perceptron() -> tuple[nn.Module, Tensor]:
    layers = nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 40), nn.LayerNorm(40), nn.Tanh(), nn.Linear(40, 3)
    return nn.Sequential(*layers), torch.randn(9, 8)


def convolutions() -> tuple[nn.Module, Tensor]:
    return convnet((3, 12, 12), (6, 8), 4), torch.randn(4, 3, 12, 12)


class Grouped(nn.Module):
    """Grouped and depthwise kernels, batch norm, a scalar gain, channels times positions at the flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.pairs = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 8, 1, groups=2)
        self.gain, self.last = nn.Parameter(torch.ones(())), nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.last(self.gain * self.pairs(F.relu(self.depthwise(x))).flatten(1))


def grouped() -> tuple[nn.Module, Tensor]:
    return Grouped(), torch.randn(4, 3, 8, 8)


def encoder() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 16)


def language_model() -> tuple[nn.Module, Tensor]:
    return TransformerLanguageModel(17, 8, 12, 2, 3), torch.randint(17, (3, 8))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.out = (
            nn.Embedding(11, 8),
            nn.LSTM(8, 10, batch_first=True),
            nn.Linear(10, 11),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(x))[0])


def recurrent() -> tuple[nn.Module, Tensor]:
    return Recurrent(), torch.randint(11, (3, 6))


class Attention(nn.Module):
    """Query, key and value fused in columns, x @ W, as in Hugging Face's GPT-2; the tied table is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(0.3 * torch.randn(13, 12))
        self.fused, self.out = (
            nn.Parameter(0.3 * torch.randn(12, 36)),
            nn.Parameter(0.3 * torch.randn(12, 12)),
        )
        self.up, self.down = nn.Parameter(0.3 * torch.randn(12, 30)), nn.Parameter(0.3 * torch.randn(30, 12))

    def forward(self, codes: Tensor) -> Tensor:
        x = self.table[codes]
        query, key, value = (
            part.unflatten(-1, (3, 4)).transpose(1, 2) for part in (x @ self.fused).chunk(3, -1)
        )
        heard = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + heard @ self.out
        return (x + F.gelu(x @ self.up) @ self.down) @ self.table.T


def attention() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.randint(13, (3, 7))


class Dense(nn.Module):
    """Concatenated features: the weights that read them consist of several blocks of columns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 9), nn.Linear(15, 7), nn.Linear(22, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.first(x))], -1)
        return self.last(torch.cat([x, F.relu(self.second(x))], -1))


def dense() -> tuple[nn.Module, Tensor]:
    return Dense(), torch.randn(7, 6)


class Ensemble(nn.Module):
    """Three members, each with matrices of its own in one stacked tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Parameter(0.3 * torch.randn(3, 6, 10)), nn.Parameter(torch.zeros(3, 1, 10))
        self.second = nn.Parameter(0.3 * torch.randn(3, 10, 10))
        self.last = nn.Parameter(0.3 * torch.randn(3, 10, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(torch.bmm(x.expand(3, -1, -1), self.first) + self.bias)
        return torch.bmm(torch.tanh(torch.bmm(x, self.second)), self.last).mean(0)


def ensemble() -> tuple[nn.Module, Tensor]:
    return Ensemble(), torch.randn(1, 8, 6)


def autoencoder() -> tuple[nn.Module, Tensor]:
    down = nn.Conv2d(2, 5, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(45, 6), nn.Linear(6, 45)
    up = nn.Unflatten(1, (5, 3, 3)), nn.GroupNorm(1, 5), nn.ConvTranspose2d(5, 2, 3, stride=2)
    return nn.Sequential(*down, *up), torch.randn(3, 2, 8, 8)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    f.__name__: f
    for f in (
        perceptron, convolutions, grouped, encoder, language_model,
        recurrent, attention, dense, ensemble, autoencoder,
    )
}  # fmt: skip


def steps(rule: str, network: str) -> Tensor:
    """(2, B, 3): with a graph and a horizon, and without either, what is said above of each of B tensors."""
    return torch.stack([_moved(rule, network, with_graph) for with_graph in (True, False)])


def _moved(rule: str, network: str, with_graph: bool) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = NETWORKS[network]()
    model.double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    graph = lopt.ParameterGraph.trace(model, (inputs,)) if with_graph else None
    total = HORIZON if with_graph else None
    optimizer = lopt.LearnedOptimizer(
        model.named_parameters(), rule=rule_of(rule), graph=graph, total_steps=total
    )
    before = [p.detach().clone() for p in model.parameters()]
    for step in range(STEPS):
        optimizer.zero_grad()
        (model(inputs) - step).square().mean().backward()
        optimizer.step()
    changes = [
        torch.zeros_like(old) if name.endswith(SILENT) else p.detach() - old
        for (name, p), old in zip(model.named_parameters(), before, strict=True)
    ]
    return torch.stack([torch.stack([d.sum(), d.norm(), _projection(d)]) for d in changes])


def _projection(d: Tensor) -> Tensor:
    """Onto waves along the flat tensor, which tell one order of its entries from another."""
    return (d.flatten() * torch.cos(torch.arange(d.numel(), dtype=d.dtype) ** 1.5)).sum()


def every() -> Iterator[tuple[str, str]]:
    return ((rule, network) for rule in (*SHIPPED, *OTHERS) for network in NETWORKS)


def known() -> dict[str, Tensor]:
    return load_file(FILE)


if __name__ == "__main__":
    save_file({f"{rule}/{network}": steps(rule, network) for rule, network in every()}, FILE)
    sys.stdout.write(f"{FILE}: {FILE.stat().st_size} bytes\n")
