"""A table of trained networks: do what the log does not hold yet, then report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import lopt
from benchmarks.runner.benchmark import Benchmark, Worker
from benchmarks.runner.log import Log
from benchmarks.runner.report import section, task_table, write_section
from benchmarks.runner.summary import summarise
from lopt.cli.compare import labels
from lopt.comparison.report import write_results
from lopt.errors import ConfigError
from lopt.files import output_path, user_path
from lopt.rules import LearnedRule
from lopt.runs.provenance import commit
from lopt.training.runtime import prepare_cpu

NAMES = ("neural_graphs", "families", "transfer", "ablation", "from_adam")
"""Each is a module of this package with two benchmarks, FULL and QUICK."""

HOME = Path(__file__).parents[1]
RUNS = Path("runs/benchmarks")
"""Where rules are meta-trained that a benchmark makes itself."""

QUICK_HOME = RUNS / "quick"


def run(args: argparse.Namespace) -> int:
    """Do what is asked for and not logged yet, then make the report."""
    benchmark = find_benchmark(args.name, args.quick)
    home = user_path(args.out) if args.out else QUICK_HOME if args.quick else HOME
    log = Log(home / "results" / benchmark.name)
    output_path(home / "REPORT.md")  # one that cannot be written is noticed before any long work
    if not args.report:
        commit()  # that of the code as it was loaded, whatever is committed in the hours to come
        prepare_cpu()
        work(benchmark, log, home, args)
    elif not log.records():
        raise ConfigError(
            f"{log.folder}: expected runs to report, found none; run it without --report first."
        )
    report(benchmark, log, home)
    return 0


def find_benchmark(name: str, quick: bool) -> Benchmark:
    """A benchmark by name, or the quick version of it."""
    if name not in NAMES:
        raise ConfigError(f"there is no benchmark {name!r}; there are {', '.join(NAMES)}")
    module: Any = import_module(f"benchmarks.{name}")
    return module.QUICK if quick else module.FULL


def work(benchmark: Benchmark, log: Log, home: Path, args: argparse.Namespace) -> None:
    """All runs that are asked for: the rules first, then baseline by baseline."""
    rules = find_rules(benchmark, home, args.rules)
    cases = chosen(args.tasks, benchmark.cases, "task")
    names = chosen(
        args.only, [*dict.fromkeys([*rules, *benchmark.recipes]), *benchmark.baselines], "optimizer"
    )
    worker = Worker(benchmark, log, args.data)
    for case in cases:  # missing data are noticed before any long work
        worker.task(case)
    if args.time:
        for case in cases:
            worker.time_in_turns(names, rules, case)
        return
    for name in names:
        if name in benchmark.recipes and name not in rules:
            path = home / "rules" / benchmark.name / f"{name}.safetensors"
            benchmark.recipes[name].make(
                path, (QUICK_HOME if args.quick else RUNS) / benchmark.name, args.data
            )
            rules[name] = lopt.load_rule(path)
        for case in cases:
            if name in rules:
                worker.test(name, rules[name], case)
            else:
                worker.tune_and_test(name, case)


def find_rules(benchmark: Benchmark, home: Path, given: Sequence[str]) -> dict[str, LearnedRule]:
    """The benchmark's own rules, those kept beside its results, and those given; a later one replaces its namesake."""
    kept = map(str, sorted((home / "rules" / benchmark.name).glob("*.safetensors")))
    paths = labels(benchmark.rules) | labels(list(kept)) | labels(given)
    clash = sorted(set(paths) & set(benchmark.baselines))
    if clash:
        raise ConfigError(f"{clash[0]!r} is both a rule and a baseline; give the rule another name.")
    return {name: lopt.load_rule(path) for name, path in paths.items()}


def chosen(wanted: Sequence[str] | None, known: Sequence[str] | Any, what: str) -> list[str]:
    """What was asked for, in the benchmark's order; all if nothing was."""
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise ConfigError(
            f"there is no {what} {unknown[0]!r} in this benchmark; there are {', '.join(known)}"
        )
    return [name for name in known if not wanted or name in wanted]


def report(benchmark: Benchmark, log: Log, home: Path) -> None:
    """Summary, pictures and the report's section out of the log; the tables on stdout."""
    summary = summarise(benchmark, log.records())
    extra = ""
    if benchmark.overview:
        summary["overview"], extra = benchmark.overview(summary)
    picture = Path("images") / f"{benchmark.name}.png"
    benchmark.picture(summary, home / picture)
    write_results(summary, home / "results" / f"{benchmark.name}.json")
    write_section(home / "REPORT.md", benchmark.name, section(summary, [picture.as_posix()], extra))
    print("\n\n".join([extra, *(task_table(name, task) for name, task in summary["tasks"].items())]))
    print(f"\nreport: {home / 'REPORT.md'}   figures: {home / 'results' / benchmark.name}.json")
