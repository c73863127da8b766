"""Whether two commits meta-train alike: fixed-seed runs at both, compared figure by figure and bit by bit.

    python -m benchmarks.same_curves COMMIT_A COMMIT_B

A refactoring must not move a curve, and equal curves over some outer steps say more than any unit test. Each commit
is checked out into a temporary folder and trains a small rule on digits (a convolution and a perceptron) with
backpropagation and with PES: about a minute in all. The exit code is 1 at a difference, and the first one is told.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lopt.cli.arguments import Parser
from lopt.errors import ConfigError

ROOT = Path(__file__).parents[1]
ESTIMATORS = ("backprop", "pes")
TIMED = ("inner_steps_per_second", "memory_mib", "seconds")
"""What figures begin with that differ from run to run."""

TASKS = """
name: same
seed: 5
tasks:
  - {family: mlp, options: {dataset: digits, widths: {low: 8, high: 16, log: true}, depth: 1, batch_size: 16}}
  - {family: cnn, options: {dataset: digits, widths: {low: 4, high: 6}, depth: 2, strides: alternate, batch_size: 16}}
validation:
  - {family: mlp, options: {dataset: digits, widths: [12], batch_size: 16}}
  - {family: cnn, options: {dataset: digits, widths: [4, 6], strides: alternate, batch_size: 16}}
"""
META = (
    "steps: 6, cohorts: 4, cohorts_per_step: 2, networks: 2, cohort_turns: 4, truncation: 5, shortest_horizon: 10,"
    " longest_horizon: 20, warmup: 2, validate_every: 3, validation_steps: 10, validation_networks: 2"
)

DIALECTS = (
    "rule: {{metanet: {{name: axisnet, width: 8, neuron_width: 16}}}}\n"
    "meta: {{{meta}, estimator: {{name: {estimator}}}}}\n",
    "rule: {{metanet: axisnet, options: {{width: 8, neuron_width: 16}}}}\n"
    "meta: {{{meta}, estimator: {{name: {estimator}}}}}\n",
    "rule: {{metanet: axisnet, options: {{width: 8, neuron_width: 16}}}}\n"
    "meta: {{{meta}, estimator: {estimator}}}\n",
)
"""The same run in the words that configs have had over time, newest first. A commit is given the first it takes."""

Outcome = dict[str, tuple[list[dict[str, Any]], dict[str, torch.Tensor]]]
"""By estimator: what was logged, and the rule that was kept."""


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("commits", metavar="COMMIT", nargs=2)
    commits = parser.parse_args().commits
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [
            train_at(commit, Path(folder) / side) for commit, side in zip(commits, ("a", "b"), strict=True)
        ]
    difference = first_difference(*outcomes)
    print(f"{commits[0]} and {commits[1]}: {difference or 'the same curves and the same rules, bit for bit'}")
    return 1 if difference else 0


def train_at(commit: str, folder: Path) -> Outcome:
    """The runs of both estimators with the code of a commit."""
    outcome: Outcome = {}
    with checked_out(commit, folder / "code") as code:
        for estimator in ESTIMATORS:
            run = folder / estimator
            _train(code, commit, estimator, run)
            lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            metrics = [{key: v for key, v in line.items() if not key.startswith(TIMED)} for line in lines]
            outcome[estimator] = metrics, load_file(run / "rule.safetensors")
    return outcome


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A git worktree of a commit, for as long as it is needed."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def _train(code: Path, commit: str, estimator: str, run: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    refusals = []
    for dialect in DIALECTS:
        config = run.with_suffix(".yaml")
        config.write_text(TASKS + dialect.format(meta=META, estimator=estimator))
        command = [sys.executable, "-m", "lopt", "train", str(config), "--out", str(run)]
        done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return
        refusals.append(done.stderr.strip().splitlines()[-1])
    raise ConfigError(f"{commit}: took the run in none of {len(DIALECTS)} dialects: {'; '.join(refusals)}")


def first_difference(a: Outcome, b: Outcome) -> str | None:
    """Estimator, outer step, figure and both values; None if all is equal."""
    for estimator in ESTIMATORS:
        (metrics_a, rule_a), (metrics_b, rule_b) = a[estimator], b[estimator]
        for row_a, row_b in zip(metrics_a, metrics_b, strict=False):
            for name in (
                name for name in row_a if name in row_b
            ):  # what one of them does not log has not moved
                # As text: a figure that is not a number equals itself here.
                if json.dumps(row_a[name]) != json.dumps(row_b[name]):
                    place = f"{estimator}, outer step {row_a['step']}: {name}"
                    return f"{place} is {row_a[name]} and {row_b[name]}"
        if len(metrics_a) != len(metrics_b):
            return f"{estimator}: {len(metrics_a)} and {len(metrics_b)} records logged"
        if rule_a.keys() != rule_b.keys():
            return (
                f"{estimator}: the rules have other meta-parameters: {sorted(rule_a.keys() ^ rule_b.keys())}"
            )
        for name, value in rule_a.items():
            if not torch.equal(value, rule_b[name]):
                return f"{estimator}: {name} of the rule differs by up to {(value - rule_b[name]).abs().max():.2g}"
    return None


if __name__ == "__main__":
    sys.exit(main())
