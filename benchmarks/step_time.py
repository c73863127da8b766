"""What one step of the shipped rules costs beside Adam, AdamW and Muon, from small networks to 30 million parameters.

    python -m benchmarks step_time [--threads 1 2] [--networks gpt-1M gpt-3M] [--rounds 4]
                                   [--compile] [--unprepared] [--memory] [--quick]

784-128-10, FM-16 and C10-32 (Kofinas et al. 2024, arXiv 2403.12143), and GPTs of 1, 3, 10 and 30 million parameters,
with random weights and gradients: what is timed does not depend on them. The optimizers of a network take turns in
random order, so that a busy machine and a cold cache slow each alike; figures are medians, of wall-clock and of
processor time, and of several rounds the lowest median, as other work on the machine only ever adds. Every network
has a process of its own, so that its peak memory is its own; with `--memory` so has every rule, and what its first
two steps add to the memory of model and gradients at their peak, state included, is told too (on Linux). State is
counted in the memory that it holds. The shipped rules
are timed with and without fused kernels. Writes benchmarks/results/step_time.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import lopt
from lopt.cli.arguments import Parser, positive
from lopt.comparison.report import write_results
from lopt.files import user_path
from lopt.rules import pretrained_names
from lopt.runs.provenance import provenance
from lopt.tables import aligned
from lopt.training.gauges import peak_memory
from lopt.training.runtime import prepare_cpu
from meta_tasks.networks import TransformerLanguageModel, convnet, mlp

OUT = Path(__file__).parent / "results" / "step_time.json"
SEED, WARM_UP, CONTEXT, CHARACTERS = 0, 3, 64, 65

Build = Callable[[], tuple[nn.Module, Tensor]]


def classifier(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Build:
    return lambda: (build(), torch.zeros(1, *shape))


def gpt(width: int, depth: int, heads: int, characters: int = CHARACTERS) -> Build:
    codes = torch.zeros(1, CONTEXT, dtype=torch.int64)
    return lambda: (TransformerLanguageModel(characters, CONTEXT, width, depth, heads), codes)


NETWORKS: dict[str, Build] = {
    "784-128-10": classifier(partial(mlp, 784, (128,), 10), (784,)),
    "FM-16": classifier(partial(convnet, (1, 28, 28), (16, 32, 32), 10), (1, 28, 28)),
    "C10-32": classifier(partial(convnet, (3, 32, 32), (32, 64, 64), 10), (3, 32, 32)),
    "gpt-1M": gpt(144, 4, 4),
    "gpt-3M": gpt(224, 5, 4),
    "gpt-10M": gpt(384, 6, 6),
    "gpt-30M": gpt(560, 8, 8),
    "gpt-2": gpt(768, 12, 12, 50_257),
}
QUICK = ("784-128-10", "FM-16", "C10-32", "gpt-1M")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--threads", type=positive, nargs="+", default=[1])
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, metavar="NETWORK", help=", ".join(NETWORKS)
    )
    parser.add_argument("--repeats", type=positive, default=15, help="timed steps (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=positive, default=1, help="processes for each network (default: %(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="also the shipped rules under torch.compile")
    parser.add_argument(
        "--unprepared",
        action="store_true",
        help="without lopt.training.runtime.prepare_cpu, as in a process that does not call it",
    )
    parser.add_argument("--memory", action="store_true", help="also the peak memory of every rule")
    parser.add_argument(
        "--quick", action="store_true", help="networks up to a million parameters, three steps"
    )
    parser.add_argument("--out", type=user_path, metavar="FILE", default=OUT)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        row = json.loads(args.row)
        print(json.dumps(measure_memory(**row) if "memory_of" in row else measure(**row)))
        return
    repeats = 3 if args.quick else args.repeats
    names = args.networks or (QUICK if args.quick else [name for name in NETWORKS if name != "gpt-2"])
    rows: list[dict[str, Any]] = []
    for name in tqdm(names, disable=None):
        for threads in args.threads:
            row = {
                "network": name,
                "threads": threads,
                "repeats": repeats,
                "compiled": args.compile,
                "prepared": not args.unprepared,
            }
            rows.append(lowest([run_row(row) for _ in range(args.rounds)]))
            for rule in ("muon", *pretrained_names()) if args.memory else ():
                found = run_row({"network": name, "threads": threads, "memory_of": rule})
                rows[-1]["optimizers"][rule] |= found
    result = {
        "what": "milliseconds per step (medians), by wall clock and of the processor; memory is the process's peak",
        "repeats": repeats,
        "rows": rows,
        "provenance": provenance(),
    }
    write_results(result, args.out)
    print(table(rows))


def run_row(row: dict[str, Any]) -> dict[str, Any]:
    """Measure in a process of its own: the arguments of `measure`."""
    command = [sys.executable, "-m", "benchmarks.step_time", "--row", json.dumps(row)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(row["threads"])}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def measure(network: str, threads: int, repeats: int, compiled: bool, prepared: bool) -> dict[str, Any]:
    """All optimizers of one network, in turns."""
    torch.set_num_threads(threads)
    if prepared:
        prepare_cpu()
    model, inputs = network_with_gradients(network)
    size = sum(p.numel() for p in model.parameters())
    graph = lopt.ParameterGraph.trace(model, (inputs,))
    optimizers = all_optimizers(model, graph)
    steps: dict[str, Callable[[], object]] = {name: optimizer.step for name, optimizer in optimizers.items()}
    if compiled:
        named = list(model.named_parameters())
        for rule in pretrained_names():
            optimizer = lopt.LearnedOptimizer(named, rule=rule, graph=graph)
            optimizers[f"{rule}, compiled"] = optimizer
            steps[f"{rule}, compiled"] = torch.compile(optimizer.step, dynamic=False)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    order = random.Random(SEED)
    for _ in range(WARM_UP + repeats):
        for name in order.sample(list(steps), len(steps)):
            start = time.perf_counter(), time.process_time()
            steps[name]()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = {
        name: [1e3 * median(values) for values in zip(*seconds[WARM_UP:], strict=True)]
        for name, seconds in times.items()
    }
    figures = {
        name: {
            "ms": round(wall, 3),
            "processor_ms": round(processor, 3),
            "state_bytes_per_parameter": round(held(optimizers[name]) / size, 3),
        }
        for name, (wall, processor) in medians.items()
    }
    return {
        "network": network,
        "parameters": size,
        "threads": threads,
        "prepared": prepared,
        "peak_memory_mib": round(peak_memory()),
        "optimizers": figures,
    }


def measure_memory(network: str, threads: int, memory_of: str) -> dict[str, float]:
    """Bytes for each parameter that two steps of one optimizer take beyond model and gradients, at their peak."""
    torch.set_num_threads(threads)
    model, inputs = network_with_gradients(network)
    graph = lopt.ParameterGraph.trace(model, (inputs,))
    optimizer = all_optimizers(model, graph)[memory_of]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in range(2):
        optimizer.step()
    size = sum(p.numel() for p in model.parameters())
    return {"peak_bytes_per_parameter": round((resident("VmHWM") - before) / size, 2)}


def resident(key: str) -> int:
    """Bytes that this process has in memory now (VmRSS) or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def lowest(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One row out of several: the lowest time of each optimizer, and what follows from it."""
    times = {
        name: {key: min(row["optimizers"][name][key] for row in rounds) for key in ("ms", "processor_ms")}
        for name in rounds[0]["optimizers"]
    }
    adam, size = times["adam, foreach"]["processor_ms"], rounds[0]["parameters"]
    muon = times["muon"]["processor_ms"]
    figures = {
        name: {
            **rounds[0]["optimizers"][name],
            **seconds,
            "nanoseconds_per_parameter": round(1e6 * seconds["processor_ms"] / size, 2),
            "times_adam": round(seconds["processor_ms"] / adam, 1),
            "times_muon": round(seconds["processor_ms"] / muon, 2),
        }
        for name, seconds in times.items()
    }
    return {**rounds[0], "rounds": len(rounds), "optimizers": figures}


def all_optimizers(model: nn.Module, graph: lopt.ParameterGraph) -> dict[str, torch.optim.Optimizer]:
    """All move the same parameters in turn; what a step costs does not depend on where they are."""
    params = list(model.parameters())
    named = list(model.named_parameters())
    return {
        "adam, foreach": torch.optim.Adam(params, foreach=True),
        "adam, fused": torch.optim.Adam(params, fused=True),
        "adamw, foreach": torch.optim.AdamW(params, foreach=True),
        "muon": lopt.LearnedOptimizer(named, rule=lopt.make_rule("muon"), graph=graph),
        **{
            rule + ", fused" * fused: lopt.LearnedOptimizer(named, rule=rule, graph=graph, fused=fused)
            for rule in pretrained_names()
            for fused in (False, True)
        },
    }


def network_with_gradients(network: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(SEED)
    model, inputs = NETWORKS[network]()
    for p in model.parameters():
        p.grad = 0.01 * torch.randn_like(p)
    return model, inputs


def held(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all storages that the state keeps alive."""
    storages = [v.untyped_storage() for state in optimizer.state.values() for v in state.values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    header = [
        "network",
        "threads",
        "optimizer",
        "ms",
        "processor ms",
        "ns/parameter",
        "x Adam",
        "x Muon",
        "state bytes/parameter",
        "peak bytes/parameter",
    ]
    cells = [
        [
            row["network"], str(row["threads"]), name, f"{record['ms']:.2f}", f"{record['processor_ms']:.2f}",
            f"{record['nanoseconds_per_parameter']:.1f}", f"{record['times_adam']:.1f}",
            f"{record['times_muon']:.2f}", f"{record['state_bytes_per_parameter']:.2f}",
            str(record.get("peak_bytes_per_parameter", "")),
        ]
        for row in rows
        for name, record in row["optimizers"].items()
    ]  # fmt: skip
    return aligned(header, cells)


if __name__ == "__main__":
    main()
