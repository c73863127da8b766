"""Long runs: whether a rule stays where it has brought a network, for 20,000 steps of noisy batches and spikes of lr.

    python -m benchmarks stability [--rules lopt-small adamw] [--networks mlp siren] [--steps 20000]

Six small networks learn a task whose examples are drawn anew for every batch of 16, with noise in the targets, so that
no loss can go to zero and a minibatch says little. No horizon is told: the rules never anneal. Every 2,000 steps the
learning rate is ten times itself for 20 steps. Of every run: weights that are not finite, steps skipped, and the
longest stretch of steps for which the loss (mean of the last 100 batches) was above twice the best it had been.

"adamw" is the control: torch's, under the same spikes, at whichever of five rates has the lowest loss after 2,000 steps
without any. Writes benchmarks/results/stability.json after each run; runs that are in it are not done again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from tqdm import tqdm

import lopt
from lopt.cli.arguments import Parser, positive
from lopt.comparison.report import write_results
from lopt.files import user_path
from lopt.rules import pretrained_names
from lopt.runs.provenance import provenance
from lopt.tables import aligned
from lopt.training.runtime import prepare_cpu
from meta_tasks.networks import TransformerLanguageModel, convnet, mlp, siren

OUT = Path(__file__).parent / "results" / "stability.json"
STEPS, BATCH, WINDOW = 20_000, 16, 100
SPIKE_EVERY, SPIKE_STEPS, SPIKE = 2_000, 20, 10.0
ALLOWED = 500
"""Steps in a row above twice the best loss that are no failure."""
CONTROL = "adamw"
RATES, TUNING_STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), 2_000

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


class Recurrent(nn.Module):
    """Classifies a sequence by the last state of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 12, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def classes(shape: tuple[int, ...], count: int) -> Draw:
    """Gaussian clouds around one point for each class, a tenth of the labels wrong."""
    centers = torch.randn(count, *shape, generator=torch.Generator().manual_seed(7)) / 2

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        y = torch.randint(count, (BATCH,), generator=generator)
        x = centers[y] + torch.randn(BATCH, *shape, generator=generator)
        wrong = torch.rand(BATCH, generator=generator) < 0.1
        return x, torch.where(wrong, torch.randint(count, (BATCH,), generator=generator), y)

    return draw


def letters(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A Markov chain over 11 codes: two of three times the next one, else any."""
    codes = [torch.randint(11, (BATCH,), generator=generator)]
    for _ in range(8):
        jump = torch.rand(BATCH, generator=generator) < 1 / 3
        codes.append(
            torch.where(jump, torch.randint(11, (BATCH,), generator=generator), (3 * codes[-1] + 1) % 11)
        )
    text = torch.stack(codes, 1)
    return text[:, :-1], text[:, 1:]


def signs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whether the sum of a sequence is above zero, a tenth of the answers wrong."""
    x = torch.randn(BATCH, 8, 4, generator=generator)
    wrong = torch.rand(BATCH, generator=generator) < 0.1
    return x, ((x.sum((1, 2)) > 0) ^ wrong).long()


def compressed(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points near a three-dimensional subspace, to be reproduced."""
    basis = torch.randn(3, 32, generator=torch.Generator().manual_seed(7))
    x = torch.randn(BATCH, 3, generator=generator) @ basis
    x = x + 0.3 * torch.randn(BATCH, 32, generator=generator)
    return x, x


def waves(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(BATCH, 2, generator=generator) - 1
    y = torch.sin(5 * x[:, :1]) * torch.cos(4 * x[:, 1:])
    return x, y + 0.2 * torch.randn(BATCH, 1, generator=generator)


def over_letters(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), y.flatten())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Draw, Loss]] = {
    "mlp": (lambda: mlp(16, (24,), 4), classes((16,), 4), cross_entropy),
    "convnet": (lambda: convnet((1, 8, 8), (6, 8), 4), classes((1, 8, 8), 4), cross_entropy),
    "transformer": (lambda: TransformerLanguageModel(11, 8, 16, 1, 2), letters, over_letters),
    "recurrent": (Recurrent, signs, cross_entropy),
    "autoencoder": (
        lambda: nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 32)),
        compressed,
        mse_loss,
    ),
    "siren": (lambda: siren((24, 24), 1, 10.0), waves, mse_loss),
}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--rules", nargs="+", default=[*pretrained_names(), CONTROL], metavar="RULE")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--steps", type=positive, default=STEPS)
    parser.add_argument("--out", type=user_path, metavar="FILE", default=OUT)
    args = parser.parse_args()
    prepare_cpu()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    for network in args.networks:
        for rule in args.rules:
            key = {"network": network, "rule": rule, "steps": args.steps}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append({**key, **run(network, rule, args.steps)})
            write_results(
                {"what": __doc__.splitlines()[0], "rows": rows, "provenance": provenance()}, args.out
            )
    print(table(rows))


def run(network: str, rule: str, steps: int) -> dict[str, Any]:
    """One run, seen through its smoothed loss."""
    if rule != CONTROL:
        return train(network, rule, 1.0, steps, SPIKE)
    rate = min(RATES, key=lambda rate: _last_loss(train(network, rule, rate, TUNING_STEPS, 1.0)))
    return {"rate": rate, **train(network, rule, rate, steps, SPIKE)}


def train(network: str, rule: str, rate: float, steps: int, spike: float) -> dict[str, Any]:
    """One run at a learning rate that is `spike` times itself from time to time."""
    make, draw, loss_of = NETWORKS[network]
    torch.manual_seed(0)
    model, generator = make(), torch.Generator().manual_seed(1)
    optimizer = optimizer_of(rule, model, draw(torch.Generator())[0])
    recent: deque[float] = deque(maxlen=WINDOW)
    best, stretch, longest, worst = float("inf"), 0, 0, 0.0
    for step in tqdm(range(1, steps + 1), desc=f"{network}, {rule}", disable=None):
        disturbed = step > SPIKE_STEPS and step % SPIKE_EVERY < SPIKE_STEPS
        optimizer.param_groups[0]["lr"] = rate * (spike if disturbed else 1.0)
        x, y = draw(generator)
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        recent.append(float(loss.detach()))
        if len(recent) < WINDOW:
            continue
        smooth = sum(recent) / WINDOW
        # NaN is above everything, too.
        above = not smooth <= 2 * best
        stretch = stretch + 1 if above and best < float("inf") else 0
        longest, best = max(longest, stretch), min(best, smooth)
        worst = max(worst, smooth / best)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "not_finite": sum(int((~torch.isfinite(p)).sum()) for p in model.parameters()),
        "skipped": getattr(optimizer, "skipped_steps", 0),
        "best_loss": round(best, 5),
        "last_loss": round(sum(recent) / WINDOW, 5),
        "worst_ratio": round(worst, 3),
        "longest_above_twice_best": longest,
        "largest_weight": round(max(float(p.detach().abs().max()) for p in model.parameters()), 2),
    }


def optimizer_of(rule: str, model: nn.Module, example: Tensor) -> torch.optim.Optimizer:
    if rule == CONTROL:
        return torch.optim.AdamW(model.parameters())
    graph = lopt.ParameterGraph.trace(model, (example,))
    return lopt.LearnedOptimizer(model.named_parameters(), rule=rule, graph=graph)


def _last_loss(row: dict[str, Any]) -> float:
    """Infinity where it is not a number, so that a minimum ends."""
    last: float = row["last_loss"]
    return last if last == last else float("inf")


def failures(row: dict[str, Any]) -> list[str]:
    """What a run must not show."""
    return [
        *([f"{row['not_finite']} weights that are not finite"] if row["not_finite"] else []),
        *([f"{row['longest_above_twice_best']} steps above twice the best loss"]
          if row["longest_above_twice_best"] > ALLOWED else []),
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    header = [
        "network",
        "rule",
        "steps",
        "best loss",
        "last",
        "worst / best",
        "longest above 2 x best",
        "verdict",
    ]
    cells = [
        [
            row["network"], row["rule"], str(row["steps"]), f"{row['best_loss']:.4f}", f"{row['last_loss']:.4f}",
            f"{row['worst_ratio']:.2f}", str(row["longest_above_twice_best"]), ", ".join(failures(row)) or "holds",
        ]
        for row in rows
    ]  # fmt: skip
    return aligned(header, cells)


if __name__ == "__main__":
    main()
