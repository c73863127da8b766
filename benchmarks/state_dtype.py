"""What a rule's state in bfloat16 saves, and whether training notices.

    python -m benchmarks state_dtype --data DIR [--steps 500] [--seeds 3]

FM-16 on FashionMNIST (batch 128) and a GPT of .2 million parameters on Tiny Shakespeare (batch 32, 64 characters),
each rule that ships with its state in float32 and in bfloat16: the same initial weights and batches. Bytes are those
of the state for each parameter; the loss is the mean over all steps and over the last twentieth, and, in turns, the
processor time of the optimizer's step is a median. Writes benchmarks/results/state_dtype.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import lopt
from lopt.cli.arguments import Parser, positive
from lopt.comparison.report import write_results
from lopt.files import output_path, user_path
from lopt.rules import pretrained_names
from lopt.runs.provenance import provenance
from lopt.tables import aligned
from lopt.training.runtime import prepare_cpu
from meta_tasks.data.images import load_images
from meta_tasks.data.text import load_text
from meta_tasks.networks import TransformerLanguageModel, convnet

OUT = Path(__file__).parent / "results" / "state_dtype.json"
CONTEXT = 64
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}

Batch = Callable[[torch.Generator], tuple[Tensor, Tensor]]


def fm16(data: str | None) -> tuple[Callable[[], nn.Module], Batch]:
    images = load_images("fashion_mnist", root=data)
    inputs = (images.images["train"].float() - images.mean[:, None, None]) / images.std[:, None, None]
    labels = images.labels["train"].long()

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(labels), (128,), generator=generator)
        return inputs[index], labels[index]

    return lambda: convnet((1, 28, 28), (16, 32, 32), 10), batch


def gpt(data: str | None) -> tuple[Callable[[], nn.Module], Batch]:
    text = load_text("tinyshakespeare", root=data)
    codes = text.codes["train"].long()

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(codes) - CONTEXT, (32, 1), generator=generator)
        found = codes[starts + torch.arange(CONTEXT + 1)]
        return found[:, :-1], found[:, 1:]

    return lambda: TransformerLanguageModel(len(text.characters), CONTEXT, 64, 4, 4), batch


TASKS = {"FM-16": fm16, "GPT": gpt}


def train(build: Callable[[], nn.Module], batch: Batch, rule: str, steps: int, seed: int) -> dict[str, Any]:
    """One run with each kind of state, a step of one after a step of the other."""
    runs: dict[str, tuple[nn.Module, lopt.LearnedOptimizer]] = {}
    for name, dtype in DTYPES.items():
        torch.manual_seed(seed)
        net = build()
        graph = lopt.trace_on_first_forward(net)
        options: dict[str, Any] = {"rule": rule, "graph": graph, "total_steps": steps, "state_dtype": dtype}
        runs[name] = net, lopt.LearnedOptimizer(net.parameters(), **options)
    losses: dict[str, list[float]] = {name: [] for name in runs}
    times: dict[str, list[float]] = {name: [] for name in runs}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs, wanted = batch(generator)
        for name, (net, optimizer) in runs.items():
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs).flatten(0, -2), wanted.flatten())
            loss.backward()
            start = time.process_time()
            optimizer.step()
            times[name].append(time.process_time() - start)
            losses[name].append(loss.item())
    last = -(-steps // 20)
    return {
        name: {
            "mean": mean(losses[name]),
            "final": mean(losses[name][-last:]),
            "ms": 1e3 * median(times[name]),
            "bytes": _bytes(net, optimizer),
        }
        for name, (net, optimizer) in runs.items()
    }


def _bytes(net: nn.Module, optimizer: lopt.LearnedOptimizer) -> float:
    """Of the state for each parameter."""
    held = [value for state in optimizer.state.values() for value in state.values()]
    return sum(x.numel() * x.element_size() for x in held) / sum(p.numel() for p in net.parameters())


def row(task: str, rule: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and the difference of losses from seed to seed."""
    found: dict[str, Any] = {"task": task, "rule": rule}
    for name in DTYPES:
        found[name] = {key: mean(run[name][key] for run in runs) for key in runs[0][name]}
    for key in ("mean", "final"):
        each = [run["bfloat16"][key] - run["float32"][key] for run in runs]
        found[f"{key}_difference"] = {"mean": mean(each), "std": stdev(each) if len(each) > 1 else None}
        found[f"{key}_std_of_seeds"] = stdev(run["float32"][key] for run in runs) if len(each) > 1 else None
    return found


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--data", metavar="DIR", help="folder of the images and texts (default: $LOPT_DATA)")
    parser.add_argument("--steps", type=positive, default=500)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--out", type=user_path, metavar="FILE", default=OUT)
    args = parser.parse_args()
    out = output_path(args.out)
    prepare_cpu()
    rows = []
    for task, make in TASKS.items():
        build, batch = make(args.data)
        for rule in tqdm(pretrained_names(), desc=task, disable=None):
            runs = [train(build, batch, rule, args.steps, 500 + seed) for seed in range(args.seeds)]
            rows.append(row(task, rule, runs))
    write_results({"steps": args.steps, "seeds": args.seeds, "rows": rows, "provenance": provenance()}, out)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    header = ["task", "rule", "state", "bytes", "mean loss", "final loss", "ms"]
    lines: list[list[str]] = []
    for found in rows:
        for name in DTYPES:
            own = found[name]
            figures = [f"{own['bytes']:.2f}", f"{own['mean']:.4f}", f"{own['final']:.4f}", f"{own['ms']:.2f}"]
            lines.append([found["task"], found["rule"], name, *figures])
    return aligned(header, lines)


if __name__ == "__main__":
    main()
