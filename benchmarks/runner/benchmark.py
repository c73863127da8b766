"""A benchmark: its protocol as data, and the loop that does what its log does not hold yet."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.runner.log import FIELDS, Log, Record, Run, canonical
from benchmarks.runner.pictures import plot_tasks
from benchmarks.runner.recipe import Recipe
from benchmarks.runner.search import Search, Setting, search_of
from lopt.comparison.figures import Figures, Statistic
from lopt.comparison.timing import time_step, times_in_turns
from lopt.comparison.tuning import Trial, find_baseline
from lopt.files import digest
from lopt.inner.evaluation import Curves, train_networks
from lopt.inner.task import Task
from lopt.rules import LearnedRule, pretrained_names
from lopt.rules.base import Rule
from lopt.runs.provenance import provenance
from meta_tasks import make_task

CURVE_POINTS = 50
"""A logged curve holds at most that many points, each the mean over a stretch of the run."""

NEIGHBOURS = 3
"""Learning rates that a search starts with where a near case has been tuned."""

FINALISTS = 3
"""Settings of a search that are tried on further seeds."""

SPLIT = {"tune": "validation", "test": "test"}
"""Where the metrics of a run are taken, by its purpose: no test example chooses anything."""


@dataclass(frozen=True)
class Case:
    """A task, and how long it is trained on."""

    spec: tuple[str, Mapping[str, Any]]
    """Family and spec, the arguments of `meta_tasks.make_task`."""
    steps: int = 1000
    near: str | None = None
    """A case of the same benchmark: a baseline is tuned there, and here only at that best learning rate and its
    neighbours, with that schedule."""


View = Callable[[Mapping[str, Any]], "tuple[Any, str]"]
"""From a summary to further figures and the Markdown that shows them."""


@dataclass(frozen=True)
class Benchmark:
    """Which optimizers meet on which tasks."""

    name: str
    title: str
    protocol: str
    """What is held against what, and how: a paragraph of the report."""
    cases: Mapping[str, Case]
    baselines: tuple[str, ...] = ("sgd", "adam", "adamw", "adafactor", "lion", "muon", "schedule_free_adamw")
    """Each is tuned by `benchmarks.runner.search`."""
    rules: tuple[str, ...] = tuple(pretrained_names())
    """By default all that ship with lopt; those in benchmarks/rules/NAME and those that are asked for come on top."""
    rates: int = 9
    """Learning rates that a baseline's search starts with."""
    tuning_seeds: tuple[int, ...] = (1, 2, 3)
    """The search sees the first; the others decide between its finalists. A single seed is too kind to high rates,
    with which one network learns fast and the next one dies."""
    test_seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    """Rules that the benchmark makes itself, by name."""
    compiled: bool = False
    """Whether steps are also timed under `torch.compile`."""
    overview: View | None = None
    """What stands above the tables of the tasks."""
    picture: Callable[[Mapping[str, Any], Path], None] = plot_tasks


class Worker:
    """Does the runs of a benchmark that its log does not hold, and adds them to it."""

    def __init__(self, benchmark: Benchmark, log: Log, data: str | None = None, label: bool = True) -> None:
        self.benchmark, self.log, self.label = benchmark, log, label
        self.task: Callable[[str], Task] = cache(lambda case: make_task(*benchmark.cases[case].spec, data))

    def tune_and_test(self, name: str, case: str) -> None:
        """All runs of one baseline on one task."""
        best = self.tune(name, case)
        run = self.run(name, case, "test", (best.lr, best.schedule), self.benchmark.test_seeds)
        self.test_and_time(run, find_baseline(name).make(best.lr))

    def tune(self, name: str, case: str) -> Trial:
        """The best setting of one baseline on one task: a search on one seed, then its finalists on all seeds."""
        first, others = self.benchmark.tuning_seeds[:1], self.benchmark.tuning_seeds[1:]
        search, trials = self._search(name, case), list[Trial]()
        while settings := search.next(trials):
            trials += [self._trial(name, case, setting, first) for setting in settings]
        finalists = sorted(trials, key=lambda trial: trial.score)[:FINALISTS]
        if others:
            finalists = [self._confirmed(name, case, trial, others) for trial in finalists]
        return min(finalists, key=lambda trial: trial.score)

    def _confirmed(self, name: str, case: str, trial: Trial, seeds: tuple[int, ...]) -> Trial:
        """The same trial with its mean score over the search's seed and further ones."""
        again = self._trial(name, case, (trial.lr, trial.schedule), seeds)
        return replace(trial, score=(trial.score + len(seeds) * again.score) / (1 + len(seeds)))

    def _search(self, name: str, case: str) -> Search:
        near = self.benchmark.cases[case].near
        if near is None:
            return search_of(name, self.benchmark.rates)
        tuned = self.tune(name, near)
        return Search(tuned.lr, NEIGHBOURS, first=tuned.schedule, then=())

    def test(self, name: str, rule: LearnedRule, case: str) -> None:
        """The test run of a learned rule, as it is: lr 1, told the horizon."""
        run = self.run(name, case, "test", (1.0, "constant"), self.benchmark.test_seeds, fingerprint(rule))
        self.test_and_time(run, rule)

    def test_and_time(self, run: Run, rule: Rule) -> None:
        """A run that is tested, and what a step of it costs when compiled, if the benchmark asks for that."""
        self.do(run, rule)
        if self.benchmark.compiled:
            self.do(replace(run, purpose="time", seeds=()), rule)

    def time_in_turns(self, names: Sequence[str], rules: Mapping[str, LearnedRule], case: str) -> None:
        """What a step costs with each of those that were tested, timed anew and side by side.

        Of rules that have changed since their test it is what they cost now.
        """
        runs, made = dict[str, Run](), dict[str, Rule]()
        spec = canonical(self.benchmark.cases[case].spec)
        for record in self.log.records():
            run = Run(**{name: record[name] for name in FIELDS})
            tested = run.task == case and run.purpose == "test" and canonical(run.spec) == spec
            if tested and run.optimizer in names:
                runs[run.optimizer] = run
                made[run.optimizer] = rules.get(run.optimizer) or find_baseline(run.optimizer).make(run.lr)
        start = time.perf_counter()
        times = times_in_turns(made, self.task(case))
        seconds = round((time.perf_counter() - start) / max(len(runs), 1), 1)
        for name, run in runs.items():
            record = {**asdict(replace(run, purpose="time", seeds=())), "seconds": seconds}
            record |= {"step_time": asdict(times[name]), "provenance": provenance()}
            self.log.add(record)
            print(line(record), flush=True)

    def _trial(self, name: str, case: str, setting: Setting, seeds: tuple[int, ...]) -> Trial:
        lr, schedule = setting
        record = self.do(self.run(name, case, "tune", setting, seeds), find_baseline(name).make(lr))
        return Trial(lr, schedule, score(record))

    def do(self, run: Run, rule: Rule) -> Record:
        """The record of a run out of the log, or else of the run itself."""
        known = self.log.by_key()
        if run.key in known:
            return known[run.key]
        label = f"{run.task} {run.optimizer} {run.lr:g} {run.schedule}" if self.label else ""
        task = self.task(run.task)
        record = timed(run, rule, task) if run.purpose == "time" else perform(run, rule, task, label)
        self.log.add(record)
        print(line(record), flush=True)
        return record

    def run(
        self,
        name: str,
        case: str,
        purpose: str,
        setting: Setting,
        seeds: tuple[int, ...],
        digest: str | None = None,
    ) -> Run:
        """The run of one setting."""
        case_ = self.benchmark.cases[case]
        return Run(case, case_.spec, name, digest, *setting, seeds, purpose, case_.steps)


def perform(run: Run, rule: Rule, task: Task, label: str = "") -> Record:
    """Train the networks of a run; its record."""
    split, start = SPLIT[run.purpose], time.perf_counter()
    curves = train_networks(
        rule.on(task.graph), task, run.seeds, run.steps,
        schedule=run.schedule, total_steps=run.steps, splits=(split,), label=label,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    record = {**asdict(run), "seconds": round(seconds, 1), "figures": _figures(curves)}
    if run.purpose == "test":
        record["step_time"] = asdict(time_step(rule, task, clock=time.process_time))
    return {**record, "provenance": provenance()}


def timed(run: Run, rule: Rule, task: Task) -> Record:
    """Milliseconds of processor time for a step, a compiled step and a gradient."""
    start = time.perf_counter()
    timing = asdict(time_step(rule, task, clock=time.process_time))
    torch.compiler.reset()  # a function is compiled for eight optimizers at most
    timing["compiled_ms"] = time_step(rule, task, clock=time.process_time, compiled=True).optimizer_ms
    seconds = time.perf_counter() - start
    return {**asdict(run), "seconds": round(seconds, 1), "step_time": timing, "provenance": provenance()}


def line(record: Record) -> str:
    """What to say of a finished run."""
    if record["purpose"] == "time":
        shown = ", ".join(f"{name} {ms:.2f}" for name, ms in record["step_time"].items())
        return f"{record['task']} {record['optimizer']}: {shown}"
    split, figures = SPLIT[record["purpose"]], record["figures"]
    metrics = ("accuracy", "loss") if f"{split}_accuracy" in figures else ("loss",)
    shown = ", ".join(
        f"{split} {metric} {Statistic.read(figures[f'{split}_{metric}'])}" for metric in metrics
    )
    setting = f"lr {record['lr']:g} {record['schedule']}"
    return f"{record['task']} {record['optimizer']} {setting}: {shown} ({record['seconds']:.0f} s)"


TIE = 1e-6
"""Weight of the validation loss beside the accuracy: it decides between equal accuracies alone."""


def score(record: Record) -> float:
    """What tuning lowers: minus validation accuracy where there is one, else validation loss; inf if diverged."""
    figures = record["figures"]
    loss = figures["validation_loss"]["mean"]
    if loss is None or figures["diverged"]:
        return math.inf
    return TIE * loss - figures["validation_accuracy"]["mean"] if "validation_accuracy" in figures else loss


def fingerprint(rule: LearnedRule) -> str:
    """Of a rule's config and meta-parameters."""
    whole = json.dumps(rule.describe(), sort_keys=True) + digest(rule.state_dict())
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _figures(curves: Curves) -> dict[str, Any]:
    figures = Figures.of(curves, points=CURVE_POINTS).record()
    del figures["steps_to_baseline"]  # the baseline may still be running
    return _short(figures)


def _short(value: Any) -> Any:
    """Floats to six digits: a log of a thousand runs stays small."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
