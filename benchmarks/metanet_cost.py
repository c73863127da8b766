"""What one optimizer step costs with every metanet, beside Adam, on the two networks of Neural Graphs' table.

    python -m benchmarks metanet_cost [--threads 1] [--repeats 30]

FM-16 and C10-32 (Kofinas et al. 2024, arXiv 2403.12143) with random weights and gradients: what is timed does not
depend on them. All optimizers take turns, so that a busy machine slows each alike; figures are medians, and
processor time stands beside wall-clock time, which on an idle machine with one thread it equals. Also
counts the meta-parameters on a 2-32-32-1 implicit network. Writes benchmarks/results/metanet_cost.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import lopt
from lopt.cli.arguments import Parser
from lopt.errors import GraphError
from lopt.files import write_atomically
from lopt.metanets.published.wiring import wiring_of
from lopt.runs.provenance import provenance
from lopt.training.runtime import prepare_cpu
from meta_tasks.networks import convnet, mlp

RESULT = Path(__file__).parent / "results" / "metanet_cost.json"
SEED = 0
NETWORKS_AT_ONCE = 8

NETWORKS = {
    "FM-16": (lambda: convnet((1, 28, 28), (16, 32, 32), 10), (2, 1, 28, 28)),
    "C10-32": (lambda: convnet((3, 32, 32), (32, 64, 64), 10), (2, 3, 32, 32)),
}

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in lopt.metanets.METANETS},
    "nfn, a layer its own": ("nfn", {"depth": 4}),
    "ng_gnn, width 32, 4 layers": ("ng_gnn", {"width": 32, "layers": 4}),
    "ng_t, width 64 and 32, 4 layers": (
        "ng_t",
        {"node_width": 64, "edge_width": 32, "attention_width": 128, "heads": 8, "layers": 4},
    ),
    "ng_gnn, by edge list": ("ng_gnn", {"execution": "edges"}),
    "ng_t, by edge list": ("ng_t", {"execution": "edges"}),
    "gmn, by edge list": ("gmn", {"execution": "edges"}),
}
"""Every metanet with its defaults, and what the published classifiers of implicit networks use."""


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    prepare_cpu()
    costs = {name: {str(n): cost(name, n, args.repeats) for n in args.threads} for name in NETWORKS}
    result: dict[str, Any] = {
        "what": "milliseconds per optimizer step (medians); ratio of processor times to torch.optim.Adam's in this run",
        "seed": SEED,
        "repeats": args.repeats,
        "ms_per_step_by_network_and_threads": costs,
        "meta_training": {
            "what": f"processor ms per inner step and network, FM-16, there and back, {NETWORKS_AT_ONCE} vmapped",
            "ms": meta_training(),
        },
        "parameter_counts": parameter_counts(),
        "provenance": provenance(),
    }
    write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())
    print(table(costs))
    print("\nmeta-training, FM-16")
    for name, ms in result["meta_training"]["ms"].items():
        print(f"  {name:34} {ms:9.1f} ms per inner step and network")


def cost(network: str, threads: int, repeats: int) -> dict[str, dict[str, float | int]]:
    """Median time of each optimizer, all in turns."""
    torch.set_num_threads(threads)
    build, shape = NETWORKS[network]
    optimizers = {"adam": adam(build)}
    for setting in SETTINGS:
        try:
            optimizers[setting] = learned(build, shape, setting)
        except GraphError as refusal:
            print(f"{setting}: {refusal}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in optimizers}
    for _ in tqdm(range(repeats + 3), desc=f"{network}, {threads} threads", disable=None):
        for name, optimizer in optimizers.items():
            start = time.perf_counter(), time.process_time()
            optimizer.step()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = {
        name: tuple(1e3 * median(values) for values in zip(*seconds[3:], strict=True))
        for name, seconds in times.items()
    }
    return {
        name: {
            "ms": round(wall, 3),
            "processor_ms": round(processor, 3),
            "times_adam": round(processor / medians["adam"][1], 1),
            "meta_parameters": meta_parameters(name),
        }
        for name, (wall, processor) in medians.items()
    }


def meta_training(steps: int = 2, repeats: int = 3) -> dict[str, float]:
    """Medians of the metanet's share of an unroll: updates of many networks at once, and their derivative."""
    torch.set_num_threads(1)
    build, shape = NETWORKS["FM-16"]
    model = with_gradients(build)
    graph = lopt.ParameterGraph.trace(model, (torch.zeros(shape),))
    start, grads = (
        {name: torch.stack([value(p)] * NETWORKS_AT_ONCE) for name, p in model.named_parameters()}
        for value in (lambda p: p.detach(), lambda p: p.grad)
    )
    result = {}
    for setting in tqdm([s for s in SETTINGS if s != "dwsnet"], desc="meta-training", disable=None):
        rule = rule_of(setting)
        bound = rule.on(graph)
        state = torch.vmap(bound.init)(start)
        times = []
        for _ in range(1 + repeats):
            began = time.process_time()
            params, now = start, state
            for _ in range(steps):
                params, now = torch.vmap(bound.update)(grads, now, params)
            total = sum(p.square().sum() for p in params.values())
            torch.autograd.grad(total, list(rule.parameters()), allow_unused=True)
            times.append(1e3 * (time.process_time() - began) / steps / NETWORKS_AT_ONCE)
        result[setting] = round(median(times[1:]), 2)
    return result


def adam(build: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(with_gradients(build).parameters())


def learned(build: Any, shape: tuple[int, ...], setting: str) -> torch.optim.Optimizer:
    model = with_gradients(build)
    graph = lopt.ParameterGraph.trace(model, (torch.zeros(shape),))
    rule = rule_of(setting)
    rule.on(graph)
    return lopt.LearnedOptimizer(model.named_parameters(), rule=rule, graph=graph)


def with_gradients(build: Any) -> nn.Module:
    torch.manual_seed(SEED)
    model: nn.Module = build()
    for p in model.parameters():
        p.grad = 0.01 * torch.randn_like(p)
    return model


def rule_of(setting: str) -> Any:
    torch.manual_seed(SEED)
    name, options = SETTINGS[setting]
    return lopt.make_rule(name, **options)


def meta_parameters(setting: str) -> int:
    return 0 if setting == "adam" else sum(p.numel() for p in rule_of(setting).parameters())


def parameter_counts() -> dict[str, Any]:
    """Meta-parameters of the two Neural Graphs metanets at the settings of the paper's published INR classifiers."""
    model = mlp(2, (32, 32), 1)
    graph = lopt.ParameterGraph.trace(model, (torch.zeros(2, 2),))
    wiring = wiring_of(graph)
    return {
        "network": "2-32-32-1",
        "scalars": graph.numel,
        "neurons": wiring.nodes,
        "edges": sum(wire.size for wire in wiring.edges),
        "meta_parameters": {name: meta_parameters(name) for name in SETTINGS if "4 layers" in name},
    }


def table(costs: dict[str, Any]) -> str:
    lines = []
    for network, by_threads in costs.items():
        for threads, rows in by_threads.items():
            lines.append(f"\n{network}, {threads} threads")
            lines += [
                f"  {n:34} {r['processor_ms']:9.2f} ms {r['times_adam']:8.1f} x Adam" for n, r in rows.items()
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
