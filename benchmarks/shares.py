"""How much to take of what a meta-training run has found: nothing, a part or all of it.

    python -m benchmarks shares benchmarks/runs/short_lives --config configs/broad_lives.yaml --data DIR
        [--shares 0.3 0.6 1] [--steps 300] [--networks 8] [--keep 0.5 FILE]

Whole runs on one task of each family of a config, with the rule moved from what it was fresh (share 0) to what it
became (1); the same networks and batches for all. Of each share the mean difference from share 0 of the logarithm of
the mean loss on the way, the final training loss and the validation loss, with 1.96 standard errors over tasks. A rule
found on few kinds of task overshoots on others. Each run is kept in benchmarks/results/shares.json and not done again;
`--keep` writes a rule with a share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Generator

from benchmarks.runner.kinds import mean_with_interval
from lopt.cli.arguments import Parser
from lopt.comparison.report import write_results
from lopt.config import load
from lopt.inner.evaluation import train_networks
from lopt.rules import LearnedRule, load_rule, save_rule
from lopt.rules.io import provenance_of
from lopt.runs.provenance import provenance
from lopt.tables import aligned
from lopt.training.run_config import RunConfig
from lopt.training.runtime import prepare_cpu
from meta_tasks import make_family

OUT = Path(__file__).parent / "results" / "shares.json"
FIRST_SEED = 900
FIGURES = ("mean", "final", "validation")
"""Logarithms of a run's losses."""


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("rule", metavar="RULE", help="run folder or rule file")
    parser.add_argument("--config", required=True, metavar="FILE", help="whose families give the tasks")
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.6, 1.0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--keep", nargs=2, metavar=("SHARE", "FILE"))
    args = parser.parse_args()
    prepare_cpu()
    if args.keep:
        account = {**provenance_of(args.rule), "share": float(args.keep[0])}
        save_rule(with_share(load_rule(args.rule), float(args.keep[0])), args.keep[1], account)
    record: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {"rows": []}
    shares = [0.0, *args.shares]
    wanted = {"rule": args.rule, "steps": args.steps, "networks": args.networks}
    for entry in load(RunConfig, args.config).tasks:
        family = make_family(entry.family, entry.options, args.data)
        spec = family.sample_spec(Generator().manual_seed(0))
        for share in shares:
            key = {**wanted, "family": entry.family, "options": entry.options, "share": share}
            if any(key.items() <= row.items() for row in record["rows"]):
                continue
            rule = with_share(load_rule(args.rule), share)
            task = family.build(spec)
            seeds = range(FIRST_SEED, FIRST_SEED + args.networks)
            curves = train_networks(rule.on(task.graph), task, seeds, args.steps, total_steps=args.steps)
            figures = (
                curves.log_relative.mean(1), curves.final_loss.log(), curves.metrics["validation"]["loss"].log(),
            )  # fmt: skip
            # A run that did not end well has no logarithm; it would not be a lead.
            found = {
                name: [x if math.isfinite(x) else None for x in values.tolist()]
                for name, values in zip(FIGURES, figures, strict=True)
            }
            record["rows"].append({**key, **found})
            write_results({**record, "provenance": provenance()}, OUT)
    print(table([row for row in record["rows"] if wanted.items() <= row.items()], args.shares))


def with_share(rule: LearnedRule, share: float) -> LearnedRule:
    """The rule moved from fresh (0) to itself (1): the base rate, and what is zero in a fresh one."""
    with torch.random.fork_rng(devices=[]):
        fresh = dict(LearnedRule(rule.config).named_parameters())
    with torch.no_grad():
        for name, value in rule.named_parameters():
            if name == "log_rate" or not fresh[name].any():
                value.copy_(torch.lerp(fresh[name], value, share))
    return rule


def table(rows: Sequence[dict[str, Any]], shares: Sequence[float]) -> str:
    """A line for each share."""
    header = ["share", *FIGURES, "kinds worse"]
    lines = []
    for share in shares:
        cells, worse = [], []
        for name in FIGURES:
            differences = [difference(row, rows, name) for row in rows if row["share"] == share]
            average, interval = mean_with_interval(differences)
            cells.append(f"{average:+.3f} ± {interval:.3f}")
            worse.append(str(sum(value > 0.005 for value in differences)))
        lines.append([f"{share:g}", *cells, ", ".join(worse)])
    return aligned(header, lines)


def difference(row: dict[str, Any], rows: Sequence[dict[str, Any]], name: str) -> float:
    """Mean over networks of a figure less its value at share 0."""
    (fresh,) = (
        other
        for other in rows
        if other["share"] == 0.0 and all(other[key] == row[key] for key in ("family", "options"))
    )
    pairs = [(a, b) for a, b in zip(row[name], fresh[name], strict=True) if b is not None]
    return mean(math.inf if a is None else a - b for a, b in pairs)


if __name__ == "__main__":
    main()
