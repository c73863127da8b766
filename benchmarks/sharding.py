"""What a step costs each of several ranks under FSDP2: memory, bytes sent and time, by the number of ranks.

    python -m benchmarks sharding [--ranks 1 2 4] [--network gpt-3M] [--steps 8] [--rules lopt-small muon]

A GPT learns a made-up language on batches that the ranks share; one rank is a plain process without FSDP2, and the
others must give its curve. Bytes are counted, not estimated, in a step that makes roots, where a rule whitens: those
that an optimizer keeps, those of all tensors that live at the same time beyond parameters, gradients and state, and
those that leave a rank (a sum of n bytes over N ranks as 2 (N - 1) / N n, as in a ring). Time is that of the
optimizer's step, by wall clock and of the processor on the busiest rank, on average, as roots are made in one step of
four: where there are fewer cores than ranks, the latter tells what a rank has to do. Muon is ours, its matrices spread
over the ranks by the same code. Writes benchmarks/results/sharding.json.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lopt
from benchmarks.step_time import CHARACTERS, CONTEXT, NETWORKS
from lopt.cli.arguments import Parser, positive
from lopt.comparison.report import write_results
from lopt.files import user_path
from lopt.optim.sharding import local
from lopt.runs.provenance import provenance
from lopt.tables import aligned

OUT = Path(__file__).parent / "results" / "sharding.json"
RULES = ("lopt-small", "lopt-base", "muon", "adamw")
SEQUENCES = 4
"""In a batch of all ranks."""
METERED = 4
"""The step that is counted, from 0: lopt-base makes roots in it, and has made its state. Those after it are timed."""


class Meter(TorchDispatchMode):
    """Bytes of the tensors that live beyond those `known`, at their peak, and bytes and messages sent."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.sent = self.messages = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.messages += 1
            self.sent += _sent(func.name(), args)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _sent(name: str, args: Any) -> int:
    ranks = dist.get_world_size()
    if "allreduce" in name:
        return sum(2 * t.nbytes * (ranks - 1) // ranks for t in args[0])
    if "alltoall_base" in name:
        _, values, _, _, sizes, *_ = args
        return (values.numel() - sizes[dist.get_rank()]) * values.element_size()
    raise NotImplementedError(f"expected a sum or an exchange, found {name}")


def batch(step: int) -> Tensor:
    """(SEQUENCES, CONTEXT + 1) codes: mostly five times the one before."""
    generator = torch.Generator().manual_seed(step)
    codes = [torch.randint(CHARACTERS, (SEQUENCES,), generator=generator)]
    for _ in range(CONTEXT):
        odd = torch.rand(SEQUENCES, generator=generator) < 0.1
        other = torch.randint(CHARACTERS, (SEQUENCES,), generator=generator)
        codes.append(torch.where(odd, other, (5 * codes[-1] + 1) % CHARACTERS))
    return torch.stack(codes, 1)


def measure(rank: int, ranks: int, network: str, rule: str, steps: int, folder: str) -> None:
    """One rank of one training; its figures go to a file."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model, example = NETWORKS[network]()
    graph = lopt.ParameterGraph.trace(model, (example,))
    if ranks > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    made = lopt.load_rule(rule) if rule.startswith("lopt") else lopt.make_rule(rule)
    optimizer = lopt.LearnedOptimizer(model.named_parameters(), rule=made, graph=graph, total_steps=1000)
    losses, walls, processors = [], [], []
    meter = Meter([])
    for step in range(METERED + 1 + steps):
        codes = batch(step).chunk(ranks)[rank]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
        loss.backward()
        shared = loss.detach() / ranks
        dist.all_reduce(shared)
        losses.append(shared.item())
        if step == METERED:
            meter = Meter([*map(local, kept(model)), *map(local, states(optimizer))])
            with meter:
                optimizer.step()
            continue
        wall, processor = time.perf_counter(), time.process_time()
        optimizer.step()
        walls.append(1e3 * (time.perf_counter() - wall))
        processors.append(1e3 * (time.process_time() - processor))
    record = {
        "losses": losses,
        "state_bytes": sum(local(t).nbytes for t in states(optimizer)),
        "model_bytes": sum(local(t).nbytes for t in kept(model)),
        "temporary_bytes": meter.peak,
        "sent_bytes": meter.sent,
        "messages": meter.messages,
        "wall_ms": mean(walls[METERED:]),
        "processor_ms": mean(processors[METERED:]),
    }
    torch.save(record, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def kept(model: nn.Module) -> list[Tensor]:
    """Parameters and gradients."""
    return [tensor for p in model.parameters() for tensor in (p.detach(), p.grad) if tensor is not None]


def states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


def run(ranks: int, network: str, rule: str, steps: int) -> dict[str, Any]:
    """The figures of the busiest rank."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (ranks, network, rule, steps, folder)
        spawn(measure, arguments, nprocs=ranks)
        found = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(ranks)]
    figures = {key: max(record[key] for record in found) for key in found[0] if key != "losses"}
    return {"rule": rule, "ranks": ranks, **figures, "losses": found[0]["losses"]}


def beside_one(rows: list[dict[str, Any]]) -> None:
    """Compare each row with one process, where there is one, and with Muon on as many ranks."""
    by_case = {(row["rule"], row["ranks"]): row for row in rows}
    for row in rows:
        row["bytes"] = sum(row[f"{part}_bytes"] for part in ("model", "state", "temporary"))
    for row in rows:
        if one := by_case.get((row["rule"], 1)):
            own = ("state", "temporary")
            row["of_one"] = row["bytes"] / one["bytes"]
            row["optimizer_of_one"] = sum(row[f"{p}_bytes"] for p in own) / sum(
                one[f"{p}_bytes"] for p in own
            )
            pairs = zip(row["losses"], one["losses"], strict=True)
            row["curve_error"] = max(abs(a - b) / b for a, b in pairs)
        if muon := by_case.get(("muon", row["ranks"])):
            row["times_muon"] = row["processor_ms"] / muon["processor_ms"]


def table(rows: list[dict[str, Any]]) -> str:
    columns = {"state": "state_bytes", "temporary": "temporary_bytes", "sent": "sent_bytes"}
    times = ("messages", "wall ms", "cpu ms", "curve")
    header = ["rule", "ranks", *(f"{name} MB" for name in columns), "of one", *times]
    lines = []
    for row in rows:
        sizes = [f"{row[key] / 1e6:.2f}" for key in columns.values()]
        beside = [f"{row['of_one']:.3f}"] if "of_one" in row else ["-"]
        took = [f"{row['wall_ms']:.0f}", f"{row['processor_ms']:.0f}"]
        curve = f"{row['curve_error']:.1e}" if "curve_error" in row else "-"
        lines.append([row["rule"], str(row["ranks"]), *sizes, *beside, str(row["messages"]), *took, curve])
    return aligned(header, lines)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--ranks", type=positive, nargs="+", default=[1, 2, 4])
    parser.add_argument("--network", choices=NETWORKS, default="gpt-3M")
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument(
        "--steps", type=positive, default=8, help="timed steps, a multiple of 4 (default: %(default)s)"
    )
    parser.add_argument("--out", type=user_path, metavar="FILE", default=OUT)
    args = parser.parse_args()
    if largest := [ranks for ranks in args.ranks if SEQUENCES % ranks]:
        parser.error(f"--ranks: expected divisors of {SEQUENCES}, found {largest[0]}")
    rows: list[dict[str, Any]] = []
    for rule in args.rules:
        for ranks in args.ranks:
            rows.append(run(ranks, args.network, rule, args.steps))
            write_results(report(args.network, rows), args.out)
    print(table(rows))


def report(network: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    beside_one(rows)
    return {
        "what": "of the busiest rank, by rule and number of ranks; milliseconds of the optimizer's step are means",
        "network": network,
        "cores": os.cpu_count(),
        "rows": rows,
        "provenance": provenance(),
    }


if __name__ == "__main__":
    main()
