"""What a step costs each of N ranks, from the shapes of a network alone: a model, checked against what is counted.

    python -m benchmarks step_cost [--network gpt-3M]

The model gives, for the busiest of N ranks that hold rows of every tensor (FSDP2), the operations in products of
matrices, the bytes that leave it, its messages and its state, of lopt-small, lopt-base, Muon and AdamW. Of lopt-base,
bytes and messages are of a step that makes roots, one of four, and operations of the others, as finding eigenvectors is
no product. It is checked where it can be: operations with torch's counter on one process, the rest against
benchmarks/results/sharding.json. Then it speaks of models and clusters that were not at hand, at rates that are
assumed. Writes benchmarks/results/step_cost.json; docs/at-scale.md tells what it means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import lopt
from benchmarks.step_time import NETWORKS
from lopt.cli.arguments import Parser
from lopt.comparison.report import write_results
from lopt.files import user_path
from lopt.graph.tensor_classes import Matrices, is_hidden_matrix, matrices_of
from lopt.metanets.pieces import CACHED, LARGE
from lopt.numerics.newton_schulz import GRAM_FROM
from lopt.rules.shards import FEW
from lopt.rules.whitening import Whitening
from lopt.runs.provenance import provenance
from lopt.tables import aligned

RESULTS = Path(__file__).parent / "results"
OUT = RESULTS / "step_cost.json"
STEPS = 5
"""Of Newton-Schulz."""
FLOAT = 4
LARGEST = Whitening().largest
MOMENTS = {"lopt-small": (3, 3), "lopt-base": (3, 3), "muon": (1, 2), "adamw": (2, 2)}
"""State in numbers for each scalar of a hidden matrix, and of any other tensor."""
MATRIX_RATE, LINK_RATE, MEMORY_RATE, MESSAGE = 50e12, 50e9, 2.5e12, 30e-6
"""Assumed of a GPU: float32 operations a second in products, bytes a second out of it and through its memory (three
quarters of an H100's data sheet, and a card of 400 Gbit/s for each), and seconds for each message."""


class Shapes(NamedTuple):
    """A network to an optimizer."""

    hidden: list[Matrices]
    """What is orthogonalised."""
    others: list[int]
    """Scalars of all other tensors."""

    @classmethod
    def of(cls, graph: lopt.ParameterGraph) -> Shapes:
        hidden = [name for name in graph.parameters if is_hidden_matrix(graph, name)]
        others = [spec.numel for name, spec in graph.parameters.items() if name not in hidden]
        return cls([matrices_of(graph, name) for name in hidden], others)

    @classmethod
    def llama(cls, layers: int, width: int, inner: int, keys: int, words: int) -> Shapes:
        """A decoder with grouped keys and a gated block, as in Llama 3 (Grattafiori et al. 2024, table 3)."""
        attention = [Matrices(1, width, width)] * 2 + [Matrices(1, keys, width)] * 2
        block = [Matrices(1, inner, width)] * 2 + [Matrices(1, width, inner)]
        return cls((attention + block) * layers, [width] * (2 * layers + 1) + [words * width] * 2)

    @property
    def matrix_scalars(self) -> int:
        return sum(m * r * c for m, r, c in self.hidden)


class Cost(NamedTuple):
    """Of one step, on the busiest rank."""

    operations: int
    sent: float
    messages: int
    state: float


LLAMAS = {
    "1B": Shapes.llama(16, 2048, 8192, 512, 128_256),
    "8B": Shapes.llama(32, 4096, 14_336, 1024, 128_256),
    "70B": Shapes.llama(80, 8192, 28_672, 1024, 128_256),
}


def operations(members: int, rows: int, columns: int) -> int:
    """Of five Newton-Schulz steps: on the Gram matrix, 17 products of it, where columns are many."""
    r, c = sorted((rows, columns))
    one = (
        4 * r * r * c + (4 * STEPS - 3) * 2 * r**3
        if c > GRAM_FROM * r
        else STEPS * (4 * r * r * c + 2 * r**3)
    )
    return members * one


def sides(rows: int, columns: int) -> list[int]:
    """Of a whitened matrix, lengths; none of one that is too large."""
    return [rows, columns] if min(rows, columns) <= LARGEST else []


def side_state(members: int, rows: int, columns: int) -> int:
    """Numbers: triangles of moment and root, or a diagonal of the moment."""
    return members * sum(n * (n + 1) if n <= LARGEST else n for n in sides(rows, columns))


def whitening(members: int, rows: int, columns: int) -> int:
    """Operations: Gram matrices of short sides, and their roots around what is orthogonalised and what comes of it."""
    return members * sum(6 * n * rows * columns for n in sides(rows, columns) if n <= LARGEST)


def summed(numbers: int, ranks: int) -> float:
    """Numbers that a rank sends for their sums over all: a few to everyone, else as in a ring."""
    return (ranks - 1) * numbers * (1 if numbers * ranks <= FEW else 2 / ranks)


def cost(rule: str, shapes: Shapes, ranks: int) -> Cost:
    """The model."""
    own, other = MOMENTS[rule]
    beside = {shape: side_state(*shape) if rule == "lopt-base" else 0 for shape in shapes.hidden}
    held = own * shapes.matrix_scalars + other * sum(shapes.others) + sum(beside[s] for s in shapes.hidden)
    state = FLOAT * held / ranks
    agreements = 2 * (ranks > 1)
    if rule == "adamw":
        return Cost(0, 0.0, agreements, state)
    costly = sorted(shapes.hidden, key=lambda s: s[0] * s[1] * s[2] * min(s[1:]), reverse=True)
    waves = [costly[start : start + ranks] for start in range(0, len(costly), ranks)]
    work = sum(
        max(operations(*s) + (whitening(*s) if rule == "lopt-base" else 0) for s in wave) for wave in waves
    )
    if ranks == 1:
        return Cost(work, 0.0, 0, state)
    # The first of a wave is the largest: its rank sends its rows of the others, and back the others' rows of its own.
    sizes = [[m * r * c for m, r, c in wave] for wave in waves]
    sent = FLOAT * sum(sum(wave[1:]) / ranks + wave[0] * (ranks - 1) / ranks for wave in sizes)
    # Gradients go there, too, and sides there and back.
    whitened = [[(m * r * c, s) for m, r, c in wave if (s := beside[m, r, c])] for wave in waves]
    whitened = [wave for wave in whitened if wave]
    sent += FLOAT * sum(
        sum(n + s for n, s in wave[1:]) / ranks + wave[0][1] * (ranks - 1) / ranks for wave in whitened
    )
    if rule == "muon":
        return Cost(work, sent, 2 * len(waves) + agreements, state)
    tensors = len(shapes.hidden) + len(shapes.others)
    alone = sum(size >= LARGE for size in shapes.others)
    gathered = -(-sum(size for size in shapes.others if size < LARGE) // CACHED)
    # Statistics; then what lengths follow from, of each matrix, of large tensors and of small ones.
    sums = [9 * tensors, *(4 * sum(m for m, *_ in wave) for wave in waves), *[2] * alone]
    sums.append(2 * (len(shapes.others) - alone))
    small = FLOAT * sum(summed(numbers, ranks) for numbers in sums)
    return Cost(
        work, sent + small, 3 * len(waves) + 2 * len(whitened) + alone + gathered + 1 + agreements, state
    )


def seconds(found: Cost, traffic: float) -> float:
    """Nothing is done at the same time as anything else, as in the code of today."""
    waits = found.sent / LINK_RATE + MESSAGE * found.messages
    return found.operations / MATRIX_RATE + waits + traffic / MEMORY_RATE


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, but for views and products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not any(name in func.name() for name in ("mm", "detach", "empty")):
            touched = tree_leaves((args, kwargs, result))
            self.bytes += sum(t.numel() * t.element_size() for t in touched if isinstance(t, Tensor))
        return result


def counted(rule: str, network: str) -> tuple[Shapes, int, float]:
    """Shapes, operations and bytes of memory traffic for each scalar, of a step in one process."""
    torch.manual_seed(0)
    model, example = NETWORKS[network]()
    graph = lopt.ParameterGraph.trace(model, (example,))
    made = lopt.load_rule(rule) if rule.startswith("lopt") else lopt.make_rule(rule)
    optimizer = lopt.LearnedOptimizer(model.named_parameters(), rule=made, graph=graph, total_steps=1000)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    flops, traffic = FlopCounterMode(display=False), Traffic()
    with flops:
        optimizer.step()
    with traffic:
        optimizer.step()
    return Shapes.of(graph), flops.get_total_flops(), traffic.bytes / graph.numel


def checks(network: str, rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """What the model says over what was counted, and traffic by rule."""
    found, traffic = [], {}
    for rule in MOMENTS:
        shapes, flops, traffic[rule] = counted(rule, network)
        if flops:
            ratio = cost(rule, shapes, 1).operations / flops
            found.append({"rule": rule, "ranks": 1, "what": "operations", "ratio": ratio})
        for row in rows:
            if row["rule"] != rule or row["fused"]:  # which sends the same
                continue
            said = cost(rule, shapes, row["ranks"])
            pairs = {"sent_bytes": said.sent, "messages": said.messages, "state_bytes": said.state}
            found += [
                {"rule": rule, "ranks": row["ranks"], "what": what, "ratio": value / row[what]}
                for what, value in pairs.items()
                if row[what]
            ]
    return found, traffic


def projections(traffic: dict[str, float]) -> list[dict[str, Any]]:
    rows = []
    for model, shapes in LLAMAS.items():
        scalars = shapes.matrix_scalars + sum(shapes.others)
        for ranks in (8, 64, 256, 1024):
            for rule in MOMENTS:
                found = cost(rule, shapes, ranks)
                took = seconds(found, traffic[rule] * scalars / ranks)
                rows.append(
                    {"model": model, "ranks": ranks, "rule": rule, **found._asdict(), "seconds": took}
                )
    return rows


def tables(found: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> str:
    checked = [[c["rule"], str(c["ranks"]), c["what"], f"{c['ratio']:.2f}"] for c in found]
    header = ["model", "GPUs", "rule", "TFLOP", "sent MB", "messages", "state GB", "ms"]
    projected = [
        [
            row["model"], str(row["ranks"]), row["rule"], f"{row['operations'] / 1e12:.1f}",
            f"{row['sent'] / 1e6:.0f}", str(row["messages"]), f"{row['state'] / 1e9:.2f}",
            f"{1e3 * row['seconds']:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    return (
        aligned(["rule", "ranks", "what", "model / counted"], checked) + "\n\n" + aligned(header, projected)
    )


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="gpt-3M", help="that of sharding.json")
    parser.add_argument("--out", type=user_path, metavar="FILE", default=OUT)
    args = parser.parse_args()
    measured = json.loads((RESULTS / "sharding.json").read_text())
    rows = measured["rows"] if measured["network"] == args.network else []
    found, traffic = checks(args.network, rows)
    projected = projections(traffic)
    result = {
        "what": "the model over what was counted, and what it says of larger models: of the busiest rank, one step",
        "checks": found,
        "traffic_bytes_per_scalar": traffic,
        "projections": projected,
        "provenance": provenance(),
    }
    write_results(result, args.out)
    print(tables(found, projected))


if __name__ == "__main__":
    main()
