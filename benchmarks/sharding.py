"""What a step costs each of several ranks under FSDP2: memory, bytes sent and time, by the number of ranks.

    python -m benchmarks sharding [--ranks 1 2 4] [--network gpt-3M] [--rounds 5] [--rules lopt-small muon]

A GPT learns a made-up language on batches that the ranks share; one rank is a plain process without FSDP2, and the
others must give its curve. Bytes are counted, not estimated, in a step that makes roots, where a rule whitens: those
that an optimizer keeps, those of all tensors that live at the same time beyond parameters, gradients and state, and
those that leave a rank (a sum of n bytes over N ranks as 2 (N - 1) / N n, as in a ring). Time is that of the
optimizer's step, by wall clock and of the processor on the busiest rank: where there are fewer cores than ranks, the
latter tells what a rank has to do. Rules take turns, step by step, in the same processes, so that a busy machine slows
each alike; figures are medians over rounds of four steps, in one of which roots are made, and so are ratios to Muon in
the same round. Shipped rules are measured with and without fused kernels; what kernels give is counted, what one holds
within itself is not. Muon is ours, its matrices spread over the ranks by the same code. Writes
benchmarks/results/sharding.json.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

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
from lopt.numerics import fused as kernels
from lopt.optim.sharding import local
from lopt.rules import pretrained_names
from lopt.runs.provenance import provenance
from lopt.tables import aligned

OUT = Path(__file__).parent / "results" / "sharding.json"
RULES = ("lopt-small", "lopt-base", "muon", "adamw")
SEQUENCES = 4
"""In a batch of all ranks."""
METERED = 4
"""The step that is counted, from 0: lopt-base makes roots in it, and has made its state. Those after it are timed."""
ROUND = 4
"""Steps from one making of roots to the next."""


class Case(NamedTuple):
    rule: str
    fused: bool

    @classmethod
    def of(cls, rules: Sequence[str]) -> list[Case]:
        return [
            cls(rule, fused) for rule in rules for fused in (False, True)[: 1 + (rule in pretrained_names())]
        ]


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
        return self.met(result)

    def met(self, result: Any) -> Any:
        """Count what a call has given."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def __enter__(self) -> Meter:
        super().__enter__()
        # Kernels take memory without telling anyone.
        self._kernels = dict(kernels._KERNELS)
        for key, kernel in self._kernels.items():
            if kernel is not key[0]:
                kernels._KERNELS[key] = partial(self._through, kernel)
        return self

    def __exit__(self, *raised: Any) -> None:
        kernels._KERNELS.update(self._kernels)
        super().__exit__(*raised)

    def _through(self, kernel: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
        return self.met(kernel(leaves))

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
        kept = sizes[dist.get_rank()] if sizes else values.numel() // ranks
        return (values.numel() - kept) * values.element_size()
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


class Training:
    """One rank's part in the training by one rule."""

    def __init__(self, case: Case, network: str, ranks: int) -> None:
        torch.manual_seed(0)
        self.model, example = NETWORKS[network]()
        graph = lopt.ParameterGraph.trace(self.model, (example,))
        if ranks > 1:
            fully_shard(self.model, mesh=init_device_mesh("cpu", (ranks,)))
        made = lopt.load_rule(case.rule) if case.rule.startswith("lopt") else lopt.make_rule(case.rule)
        named = self.model.named_parameters()
        self.optimizer = lopt.LearnedOptimizer(
            named, rule=made, graph=graph, total_steps=1000, fused=case.fused
        )
        self.ranks = ranks
        self.losses: list[float] = []
        self.meter = Meter([])
        self.seconds: list[tuple[float, float]] = []
        """By wall clock and of the processor, of each step."""

    def step(self, codes: Tensor, metered: bool) -> None:
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
        loss.backward()
        shared = loss.detach() / self.ranks
        dist.all_reduce(shared)
        self.losses.append(shared.item())
        if metered:
            self.meter = Meter([*map(local, kept(self.model)), *map(local, states(self.optimizer))])
            with self.meter:
                self.optimizer.step()
            return
        wall, processor = time.perf_counter(), time.process_time()
        self.optimizer.step()
        self.seconds.append((time.perf_counter() - wall, time.process_time() - processor))

    def record(self) -> dict[str, Any]:
        wall, processor = zip(*self.seconds[METERED:], strict=True)
        return {
            "losses": self.losses,
            "state_bytes": sum(local(t).nbytes for t in states(self.optimizer)),
            "model_bytes": sum(local(t).nbytes for t in kept(self.model)),
            "temporary_bytes": self.meter.peak,
            "sent_bytes": self.meter.sent,
            "messages": self.meter.messages,
            "wall_rounds": in_rounds(wall),
            "processor_rounds": in_rounds(processor),
        }


def in_rounds(seconds: Sequence[float]) -> list[float]:
    """Milliseconds of a step, on average over each round."""
    starts = range(0, len(seconds), ROUND)
    return [1e3 * sum(seconds[start : start + ROUND]) / ROUND for start in starts]


def measure(rank: int, ranks: int, network: str, cases: Sequence[Case], rounds: int, folder: str) -> None:
    """One rank of the trainings; its figures go to a file."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=ranks)
    trainings = [Training(case, network, ranks) for case in cases]
    for step in range(METERED + 1 + ROUND * rounds):
        for training in trainings:
            training.step(batch(step).chunk(ranks)[rank], step == METERED)
    torch.save([training.record() for training in trainings], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def kept(model: nn.Module) -> list[Tensor]:
    """Parameters and gradients."""
    return [tensor for p in model.parameters() for tensor in (p.detach(), p.grad) if tensor is not None]


def states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


def run(ranks: int, network: str, cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    """The figures of the busiest rank, for each case."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(measure, (ranks, network, cases, rounds, folder), nprocs=ranks)
        found = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(ranks)]
    rows = []
    for case, *records in zip(cases, *found, strict=True):
        row: dict[str, Any] = {**case._asdict(), "ranks": ranks}
        for key, value in records[0].items():
            values = [record[key] for record in records]
            if key.endswith("rounds"):
                row[key] = [max(those) for those in zip(*values, strict=True)]
                row[key.replace("rounds", "ms")] = median(row[key])
            else:
                row[key] = value if key == "losses" else max(values)
        rows.append(row)
    return rows


def beside_one(rows: list[dict[str, Any]]) -> None:
    """Compare each row with one process, where there is one, and with Muon on as many ranks."""
    by_case = {(row["rule"], row["fused"], row["ranks"]): row for row in rows}
    for row in rows:
        row["bytes"] = sum(row[f"{part}_bytes"] for part in ("model", "state", "temporary"))
    for row in rows:
        if one := by_case.get((row["rule"], row["fused"], 1)):
            own = ("state", "temporary")
            row["of_one"] = row["bytes"] / one["bytes"]
            row["optimizer_of_one"] = sum(row[f"{p}_bytes"] for p in own) / sum(
                one[f"{p}_bytes"] for p in own
            )
            pairs = zip(row["losses"], one["losses"], strict=True)
            row["curve_error"] = max(abs(a - b) / b for a, b in pairs)
        if muon := by_case.get(("muon", False, row["ranks"])):
            for key, ratio in (("processor", "times_muon"), ("wall", "wall_times_muon")):
                pairs = zip(row[f"{key}_rounds"], muon[f"{key}_rounds"], strict=True)
                row[ratio] = median(own / its for own, its in pairs)


def table(rows: list[dict[str, Any]]) -> str:
    columns = {"state": "state_bytes", "temporary": "temporary_bytes", "sent": "sent_bytes"}
    times = ("messages", "wall ms", "cpu ms", "times muon", "curve")
    header = ["rule", "fused", "ranks", *(f"{name} MB" for name in columns), "of one", *times]
    lines = []
    for row in rows:
        sizes = [f"{row[key] / 1e6:.2f}" for key in columns.values()]
        beside = [f"{row['of_one']:.3f}"] if "of_one" in row else ["-"]
        took = [f"{row['wall_ms']:.0f}", f"{row['processor_ms']:.0f}"]
        curve = f"{row['curve_error']:.1e}" if "curve_error" in row else "-"
        ratio = f"{row['times_muon']:.2f}" if "times_muon" in row else "-"
        case = [row["rule"], "yes" if row["fused"] else "no", str(row["ranks"])]
        lines.append([*case, *sizes, *beside, str(row["messages"]), *took, ratio, curve])
    return aligned(header, lines)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--ranks", type=positive, nargs="+", default=[1, 2, 4])
    parser.add_argument("--network", choices=NETWORKS, default="gpt-3M")
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument(
        "--rounds", type=positive, default=5, help=f"of {ROUND} timed steps (default: %(default)s)"
    )
    parser.add_argument("--out", type=user_path, metavar="FILE", default=OUT)
    args = parser.parse_args()
    if largest := [ranks for ranks in args.ranks if SEQUENCES % ranks]:
        parser.error(f"--ranks: expected divisors of {SEQUENCES}, found {largest[0]}")
    rows: list[dict[str, Any]] = []
    for ranks in args.ranks:
        rows += run(ranks, args.network, Case.of(args.rules), args.rounds)
        write_results(report(args.network, rows), args.out)
    print(table(rows))


def report(network: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    beside_one(rows)
    return {
        "what": "of the busiest rank, by rule and number of ranks; milliseconds of a step are medians over rounds",
        "network": network,
        "cores": os.cpu_count(),
        "rows": rows,
        "provenance": provenance(),
    }


if __name__ == "__main__":
    main()
