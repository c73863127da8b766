"""What constants of the base can pay: the best shared vector of six of them, beside the base.

    python -m benchmarks ceiling --data ~/data [--generations 6] [--pairs 24] [--networks 16]

Six small tasks of kinds that rules are trained on, whole runs of 200 steps. Every generation trains antithetic pairs
of networks on each of them (`WholeLives`, rank fitness) and moves one vector that all tasks share down the mean of
their meta-gradients, each at norm one; the metanet stays at zero. Then fresh networks, the same ones for every vector:
mean log validation loss less the base's, with 95 % intervals over networks; on four other tasks, too. Each generation
is kept in benchmarks/results/ceiling.json: stopped, it goes on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

import lopt
from lopt.cli.arguments import Parser
from lopt.files import write_atomically
from lopt.inner.evaluation import train_networks
from lopt.inner.task import Task
from lopt.rules import LearnedRule
from lopt.rules.constants import SPEED
from lopt.runs.provenance import provenance
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import WholeLives
from lopt.training.runtime import prepare_cpu
from meta_tasks import make_task

RESULT = Path(__file__).parent / "results" / "ceiling.json"
STEPS = 200
SIGMA = 0.03
"""0.3 of a constant's logarithm or logit."""
STRIDE = 0.2
"""Length of the first generation's step; the others' fall in a line to a fifth of it."""

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "perceptron": ("mlp", {"dataset": "fashion_mnist", "size": 8, "widths": [32, 32], "batch_size": 32}),
    "GPT": ("char_lm", {"network": "transformer", "width": 16, "heads": 2, "context": 12, "batch_size": 16}),
    "LSTM": ("char_lm", {"network": "lstm", "width": 16, "context": 12, "batch_size": 16}),
    "autoencoder": (
        "autoencoder",
        {"dataset": "fashion_mnist", "size": 8, "widths": [32], "code": 8, "batch_size": 32},
    ),
    "SIREN": ("siren", {"widths": [24, 24]}),
    "table": ("tabular", {"dataset": "wine", "widths": [32, 32]}),
}
ASIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "CNN": ("cnn", {"widths": [8, 8], "batch_size": 32}),
    "deep perceptron": ("mlp", {"widths": [32, 32, 32, 32], "batch_size": 32}),
    "regression": ("tabular", {"dataset": "diabetes", "widths": [32, 32]}),
    "autoencoder, deep": ("autoencoder", {"widths": [48, 24], "code": 6, "batch_size": 32}),
}
"""Tasks that the search does not see, on data that it does not see."""
CONSTANTS = ("second_decay", "momentum_decay", "output_rate", "warm_up", "relative")
"""Beside the rate of all tensors, which is a meta-parameter of every rule."""

BY_HAND = {
    "second decay .95": {"second_decay": -3.96},
    "second decay .9": {"second_decay": -4.71},
    "fastest decay .8": {"momentum_decay": -0.81},
    "rate x 2": {"rate": math.log(2)},
    "rate x .5": {"rate": -math.log(2)},
}
"""What the constants are moved by, for comparison."""


def base() -> LearnedRule:
    """lopt-small's rule, fresh, with a metanet that stays silent."""
    torch.manual_seed(0)
    rule = lopt.make_rule(
        "tensor_mlp", width=1, decays=(0.9, 0.99), update_form="preconditioned",
        directions=("adam", "slow", "gradient"), weights=(0.9, 0.0, 0.1), rate=0.055,
        scales={"matrix": 0.35, "output": 0.5, "vector": 0.25}, widest=100.0, relative=True, warm_up=0.1, fade=100.0,
        weight_decay=0.1, decay_horizon=1500.0, constants=CONSTANTS,
    )  # fmt: skip
    assert isinstance(rule, LearnedRule)
    rule.metanet.requires_grad_(False)
    return rule


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder of the data sets")
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=24, help="of networks, for each task and generation")
    parser.add_argument("--networks", type=int, default=16, help="fresh ones for the table")
    args = parser.parse_args()
    prepare_cpu()
    tasks = {name: make_task(*task, data_root=args.data) for name, task in TASKS.items()}
    rule = base()
    record = json.loads(RESULT.read_text()) if RESULT.exists() else {"path": []}
    for generation in tqdm(range(len(record["path"]), args.generations), "generations"):
        if record["path"]:
            load(rule, record["path"][-1]["vector"])
        share = generation / max(args.generations - 1, 1)
        losses = descend(rule, tasks, args.pairs, generation, STRIDE * (1 - 0.8 * share))
        record["path"].append({"vector": vector(rule), "outer_loss": losses})
        keep(record)
    vectors: dict[str, dict[str, Any]] = {"base": {}, **BY_HAND}
    if record["path"]:
        load(rule, record["path"][-1]["vector"])
        vectors["found"] = named(rule)
    record["vectors"], record["networks"], record["steps"] = vectors, args.networks, STEPS
    aside = {name: make_task(*task, data_root=args.data) for name, task in ASIDE.items()}
    for key, group in (("log_loss", tasks), ("aside", aside)):
        record[key] = {
            name: final_log_losses(task, list(vectors.values()), args.networks)
            for name, task in tqdm(group.items(), key)
        }
    record["provenance"] = provenance()
    keep(record)
    print(table(record), table({**record, "log_loss": record["aside"]}), sep="\n\n")


def keep(record: dict[str, Any]) -> None:
    write_atomically(RESULT, (json.dumps(record, indent=1) + "\n").encode())


def vector(rule: LearnedRule) -> list[float]:
    """All meta-parameters but the metanet's."""
    assert rule.constants.weights is not None
    return [rule.log_rate.item(), *rule.constants.weights.tolist()]


def load(rule: LearnedRule, values: list[float]) -> None:
    """The inverse of `vector`."""
    assert rule.constants.weights is not None
    with torch.no_grad():
        rule.log_rate.fill_(values[0])
        rule.constants.weights.copy_(torch.tensor(values[1:]))


def named(rule: LearnedRule) -> dict[str, Any]:
    """What each constant is moved by: the weights of [1, log horizon, fraction over]."""
    moved = {name: (SPEED * rule.constants.of(name)).tolist() for name in CONSTANTS}
    return {"rate": SPEED * (rule.log_rate - base().log_rate).item(), **moved}


def descend(
    rule: LearnedRule, tasks: dict[str, Task], pairs: int, seed: int, stride: float
) -> dict[str, float]:
    """One generation; returns each task's mean relative loss at the end of its lives."""
    estimator = WholeLives(1, "final", SIGMA, "rank", final_batches=20, outer_data="validation")
    total, losses = dict.fromkeys(dict(rule.named_parameters()), torch.zeros(())), {}
    for name, task in tasks.items():
        generator = Generator().manual_seed(1000 + seed)
        horizons = Horizons(STEPS, STEPS, 1, known=1.0, shared=True)
        cohort = Cohort.start(task, {}, rule.on(task.graph), pairs, horizons, generator)
        estimate = estimator(rule, cohort, generator)
        losses[name] = estimate.outer_loss
        norm = math.sqrt(sum(g.square().sum().item() for g in estimate.gradient.values()))
        total = {key: value + estimate.gradient[key] / max(norm, 1e-12) for key, value in total.items()}
    length = math.sqrt(sum(g.square().sum().item() for g in total.values()))
    with torch.no_grad():
        for key, p in rule.named_parameters():
            p -= stride / max(length, 1e-12) * total[key]
    return losses


def final_log_losses(task: Task, vectors: list[dict[str, Any]], count: int) -> list[list[float]]:
    """(V, N) log validation losses after a whole run, of the same N networks with each of V vectors."""
    logs = []
    for values in vectors:
        seeds = range(77, 77 + count)
        curves = train_networks(moved_by(values).on(task.graph), task, seeds, STEPS, total_steps=STEPS)
        final = curves.metrics["validation"]["loss"]
        logs.append(final.clamp(1e-12, 1e12).log().nan_to_num(nan=27.6).tolist())
    return logs


def moved_by(values: dict[str, Any]) -> LearnedRule:
    """The base with its constants moved; of numbers, by that throughout."""
    rule = base()
    with torch.no_grad():
        for name, value in values.items():
            if name == "rate":
                rule.log_rate += value / SPEED
            elif isinstance(value, list):
                rule.constants.of(name).copy_(torch.tensor(value) / SPEED)
            else:
                rule.constants.of(name)[0] = value / SPEED
    return rule


def table(record: dict[str, Any]) -> str:
    """Mean log validation loss less the base's, and half of its 95 % interval over networks."""
    rows = [
        f"| vector | {' | '.join(record['log_loss'])} | mean |",
        "|---" * (len(record["log_loss"]) + 2) + "|",
    ]
    for index, name in enumerate(record["vectors"]):
        cells, every = [], []
        for logs in record["log_loss"].values():
            gaps = torch.tensor(logs[index]) - torch.tensor(logs[0])
            every.append(gaps)
            cells.append(_with_interval(gaps))
        rows.append(f"| {name} | {' | '.join(cells)} | {_with_interval(torch.stack(every).mean(0))} |")
    return "\n".join(rows)


def _with_interval(gaps: Tensor) -> str:
    return f"{gaps.mean():+.3f} ± {1.96 * gaps.std() / len(gaps) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
