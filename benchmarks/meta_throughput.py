"""Inner steps per second of meta-training (networks x steps), and the memory it takes, on one thread.

    python -m benchmarks meta_throughput [--quick]
    python -m benchmarks meta_throughput --mixture configs/short_lives.yaml --data DIR [--pairs 16 64] [--kinds 0 3]

The setting is that of a published measurement of google/learned_optimization: a small per-parameter MLP (32 wide, 2
layers) trains MLPs 64-32-10 on batches of 128, 16 at a time, in truncations of 20. Every row runs in a process of its
own, so that its peak memory is its own; the figure is the median over the repeats. Both runs of an antithetic pair are
counted as one. Writes benchmarks/results/meta_throughput.json.

With `--mixture`, whole lives of 100 steps of one task of each family of a config, with its rule and estimator: eager,
compiled with guards (`torch.compile`), and as meta-training compiles them; processor seconds of the first life hold
tracing and compiling, those of the compiler's processes too, from an empty cache and, "again", from a full one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

import lopt
from lopt.cli.arguments import Parser
from lopt.comparison.report import write_results
from lopt.config import load
from lopt.inner import compiled
from lopt.runs.provenance import provenance
from lopt.tables import aligned
from lopt.training.build import fresh_rule
from lopt.training.cohort import Cohort, Horizons
from lopt.training.estimators import ES, PES, Estimator, TruncatedBackprop
from lopt.training.gauges import peak_memory
from lopt.training.run_config import RunConfig
from lopt.training.runtime import prepare_cpu
from meta_tasks import make_family
from meta_tasks.module_task import ModuleTask
from meta_tasks.networks import mlp

MODES = ("vmapped", "looped", "compiled")
"""All networks at once, one after the other, or all at once with compiled inner steps."""
OUT = Path(__file__).parent / "results" / "meta_throughput.json"
TRUNCATION, BATCH = 20, 128
LIFE, LIVES = 100, 2
RULES: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32, "layers": 2},
    "axisnet": {"width": 8, "neuron_width": 16, "layers": 2},
}
ESTIMATORS: dict[str, Estimator] = {
    "backprop": TruncatedBackprop(TRUNCATION),
    "backprop, first order": TruncatedBackprop(TRUNCATION, second_order=False),
    "backprop, rematerialised": TruncatedBackprop(TRUNCATION, rematerialise=True),
    "es": ES(TRUNCATION),
    "pes": PES(TRUNCATION),
}
TASKS = {"64-32-10": 16, "784-128-10": 1}
"""Sizes of the layers, and how many networks at a time."""
REFERENCE = {
    "64-32-10": {"backprop": 309, "pes": 1130, "es": 1212},
    "784-128-10": {"backprop": 7, "pes": 25},
}
"""google/learned_optimization on JAX 0.10 and one core of such a machine, per-parameter MLP with 39 features."""


class RandomData(ModuleTask):
    """Classification of noise: what it costs does not depend on the data."""

    def __init__(self, sizes: str) -> None:
        self.inputs, hidden, self.classes = map(int, sizes.split("-"))
        super().__init__(sizes, partial(mlp, self.inputs, (hidden,), self.classes))

    def sample(self, split: str, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(count, BATCH, self.inputs, generator=generator)
        return inputs, torch.randint(self.classes, (count, BATCH), generator=generator)

    def figures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": cross_entropy(outputs, targets)}

    def evaluation(self, split: str) -> list[tuple[Tensor, Tensor]]:
        return []


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small network only")
    parser.add_argument("--mixture", metavar="FILE", help="whole lives of the families of a config instead")
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--pairs", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--kinds", type=int, nargs="+", help="which of its families, from 0 (default: all)")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        row = json.loads(args.row)
        print(json.dumps((measure_lives if "config" in row else measure)(**row)))
        return
    record: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    if args.mixture:
        kinds = args.kinds or range(len(load(RunConfig, args.mixture).tasks))
        lives = mixture(args.mixture, args.data, kinds, args.pairs)
        found = {"config": args.mixture, "life": LIFE, "rows": lives, "provenance": provenance()}
        write_results({**record, "mixture": found}, OUT)
        return
    tasks = ["64-32-10"] if args.quick else list(TASKS)
    rows: list[dict[str, Any]] = []
    for task, rule, estimator, mode in product(tasks, RULES, ESTIMATORS, MODES):
        if wanted(task, estimator, mode):
            looped = mode == "looped"
            options = {"task": task, "rule": rule, "estimator": estimator, "mode": mode}
            rows.append(run_row({**options, "repeats": 1 if looped else 3}))
            print(json.dumps(rows[-1]), flush=True)
            results = {"rows": rows, "reference": REFERENCE, "truncation": TRUNCATION, "threads_of_a_row": 1}
            write_results({**record, **results, "provenance": provenance()}, OUT)
    print(table(rows))


def wanted(task: str, estimator: str, mode: str) -> bool:
    """Loops, compiled steps and the large network are measured for the two estimators that matter most."""
    if mode == "looped" and TASKS[task] == 1:
        return False
    return (mode == "vmapped" and TASKS[task] > 1) or estimator in ("backprop", "pes")


def run_row(row: dict[str, Any], **environment: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.meta_throughput", "--row", json.dumps(row)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def measure(task: str, rule: str, estimator: str, mode: str, repeats: int) -> dict[str, Any]:
    """Rates by the wall clock and by the processor's time, which differ on a machine that others use too."""
    torch.set_num_threads(1)
    prepare_cpu()
    torch.manual_seed(0)
    networks = TASKS[task]
    built, made = RandomData(task), lopt.make_rule(rule, **RULES[rule])
    generator, horizons = Generator().manual_seed(0), Horizons(1000, 1000, TRUNCATION)
    sizes = [1] * networks if mode == "looped" else [networks]
    truncation = replace(ESTIMATORS[estimator], compiled=mode == "compiled")
    cohorts = [Cohort.start(built, {}, made.on(built.graph), size, horizons, generator) for size in sizes]
    before = peak_memory()
    walls, busy = [], []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        for cohort in cohorts:
            estimate = truncation(made, cohort, generator)
            assert not estimate.skipped
        walls.append(time.perf_counter() - wall)
        busy.append(time.process_time() - cpu)
    # The first is a warm-up, and the time of the compiler, which works in processes of its own too.
    first, walls, busy = walls[0], walls[1:], busy[1:]
    steps = networks * TRUNCATION
    return {
        "task": task,
        "networks": networks,
        "rule": rule,
        "meta_parameters": sum(p.numel() for p in made.parameters()),
        "estimator": estimator,
        "mode": mode,
        "networks_at_once": sizes[0],
        "first_truncation_seconds": round(first, 1),
        "inner_steps_per_second": round(steps / median(walls), 1),
        "inner_steps_per_cpu_second": round(steps / median(busy), 1),
        "peak_memory_mib": round(peak_memory()),
        "memory_above_start_mib": round(peak_memory() - before),
        "reference": REFERENCE[task].get(estimator) if rule == "mlp" else None,
    }


def mixture(config: str, data: str | None, kinds: Iterable[int], pairs: list[int]) -> list[dict[str, Any]]:
    """Rows of families of a config."""
    rows = []
    for kind, count in product(kinds, pairs):
        with tempfile.TemporaryDirectory() as cache:
            for mode in ("eager", "guarded", "compiled", "again"):
                row = {"config": config, "data": data, "kind": kind, "pairs": count, "mode": mode}
                # One after the other, the compiler's processes are this one's children.
                where = os.path.join(cache, "guarded" if mode == "guarded" else "compiled")
                own = {"TORCHINDUCTOR_CACHE_DIR": where, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
                rows.append(run_row(row, **own))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_lives(config: str, data: str | None, kind: int, pairs: int, mode: str) -> dict[str, Any]:
    """The median over lives, after a first one, by the processor's time."""
    torch.set_num_threads(1)
    prepare_cpu()
    warnings.filterwarnings("error", message="inner steps run uncompiled")
    compiled.TRACED = mode != "guarded"
    described = load(RunConfig, config)
    rule, entry = fresh_rule(described, config), described.tasks[kind]
    family = make_family(entry.family, entry.options, data)
    task = family.build(family.sample_spec(Generator().manual_seed(kind)))
    estimator = replace(described.meta.make_estimator(), compiled=mode != "eager")
    generator, horizons = Generator().manual_seed(0), Horizons(LIFE, LIFE, TRUNCATION, 1.0, shared=True)
    cohort = Cohort.start(task, {}, rule.on(task.graph), pairs, horizons, generator)
    busy = []
    for _ in range(1 + LIVES):
        before = spent()
        estimate = estimator(rule, cohort, generator)
        assert not estimate.skipped
        busy.append(spent() - before)
    return {
        "kind": entry.family,
        "task": task.name,
        "parameters": task.graph.numel,
        "pairs": pairs,
        "mode": mode,
        "first_life_cpu_seconds": round(busy[0], 1),
        "pair_steps_per_cpu_second": round(pairs * LIFE / median(busy[1:]), 1),
        "peak_memory_mib": round(peak_memory()),
    }


def spent() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    header = [
        "rule",
        "task",
        "estimator",
        "mode",
        "inner steps/s",
        "by CPU time",
        "peak MiB",
        "reference",
    ]
    cells = [
        [
            row["rule"], row["task"], row["estimator"], row["mode"],
            f"{row['inner_steps_per_second']:.0f}", f"{row['inner_steps_per_cpu_second']:.0f}",
            str(row["peak_memory_mib"]), str(row["reference"] or "-"),
        ]
        for row in rows
    ]  # fmt: skip
    return aligned(header, cells)


if __name__ == "__main__":
    main()
