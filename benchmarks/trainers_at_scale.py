"""lopt-base at ten million parameters under every trainer: is everything finite, does it learn, what does it cost?

    python -m benchmarks trainers_at_scale [--steps 100] [--others 25] [--trainers plain ddp] [--data DIR]
    (pip install lightning transformers accelerate)

A GPT on Tiny Shakespeare and a ResNet-18 on CIFAR-10, under a plain loop, Lightning, the Hugging Face Trainer,
Accelerate, and two gloo processes of DDP and of FSDP2 with a sharded checkpoint in the middle. Every row runs in
processes of its own, with one thread each where there is no GPU. Writes benchmarks/results/trainers_at_scale.json;
rows of a model and trainer that are not run again stay there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.at_scale.loops import PROCESSES, TRAINERS
from benchmarks.at_scale.run import Run
from benchmarks.at_scale.workloads import WORKLOADS
from lopt.cli.arguments import Parser, positive
from lopt.comparison.report import write_results
from lopt.files import user_path
from lopt.runs.provenance import provenance
from lopt.tables import aligned
from lopt.training.runtime import prepare_cpu

OUT = Path(__file__).parent / "results" / "trainers_at_scale.json"


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--steps", type=positive, default=100, help="of the plain loop (default: %(default)s)"
    )
    parser.add_argument("--others", type=positive, default=25, help="of each trainer (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the data sets (default: $LOPT_DATA)"
    )
    parser.add_argument("--out", type=user_path, metavar="FILE", default=OUT)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        measure(**json.loads(args.row), data=args.data, out=args.out)
        return
    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    for model, trainer in product(args.models, args.trainers):
        steps = args.steps if trainer == "plain" else args.others
        row = run_row(model, trainer, max(steps, 2), args.data)
        rows = [r for r in rows if (r["model"], r["trainer"]) != (model, trainer)] + [row]
        rows.sort(key=lambda r: (list(WORKLOADS).index(r["model"]), list(TRAINERS).index(r["trainer"])))
        write_results({"rule": "lopt-base", "rows": rows}, args.out)
        print(f"{model} under {trainer}: loss {row['first_loss']} to {row['last_loss']}", flush=True)
    print(f"\n{table(rows)}")


def run_row(model: str, trainer: str, steps: int, data: Path | None) -> dict[str, Any]:
    """Measure in processes of its own."""
    processes = PROCESSES.get(trainer, 1)
    row = json.dumps({"model": model, "trainer": trainer, "steps": steps})
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [
            sys.executable, *(launcher if processes > 1 else []), "-m", "benchmarks.trainers_at_scale",
            "--row", row, "--out", str(out), *(["--data", str(data)] if data else []),
        ]  # fmt: skip
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise SystemExit(f"{model} under {trainer} failed:\n{done.stdout[-4000:]}")
        record: dict[str, Any] = json.loads(out.read_text())
        return record


def measure(model: str, trainer: str, steps: int, data: Path | None, out: Path) -> None:
    """Train, and write the row."""
    if not torch.cuda.is_available():
        prepare_cpu()
    processes = PROCESSES.get(trainer, 1)
    if processes > 1:
        dist.init_process_group("gloo")
    run = Run(model, steps, data)
    record = TRAINERS[trainer](run)
    row = {"model": model, "trainer": trainer, "processes": processes, **run.report(), **record}
    if processes == 1 or dist.get_rank() == 0:
        write_results({**row, "provenance": provenance()}, out)
    if processes > 1:
        dist.destroy_process_group()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    header = [
        "model",
        "trainer",
        "steps",
        "first loss",
        "last loss",
        "finite",
        "skipped",
        "s/step",
        "of which optimizer",
    ]
    cells = [
        [
            row["model"], row["trainer"], str(row["steps"]), f"{row['first_loss']:.3f}", f"{row['last_loss']:.3f}",
            "yes" if all(row["finite"].values()) else f"no: {row['finite']}", str(row["skipped_steps"]),
            f"{row['optimizer_seconds_per_step'] + row['other_seconds_per_step']:.2f}",
            f"{row['optimizer_seconds_per_step']:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    return aligned(header, cells)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
