"""Rules beside tuned baselines: what is tuned, on which networks all meet, and what is measured."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lopt.comparison.comparison import Comparison
from lopt.comparison.figures import Figures
from lopt.comparison.results import Entry, TaskComparison
from lopt.comparison.timing import time_step
from lopt.comparison.tuning import Budget, Seeds, Tuned, find_baseline, tune
from lopt.config import Count, Settings, from_mapping
from lopt.errors import ConfigError
from lopt.inner.checks import check_task
from lopt.inner.evaluation import Curves, train_networks
from lopt.inner.task import Task
from lopt.numerics.defaults import torchs_defaults
from lopt.rules import load_rule
from lopt.rules.base import Rule
from lopt.runs.provenance import provenance
from meta_tasks import named_task

Path = str | os.PathLike[str]

TEST_SEEDS = (101, 102, 103, 104, 105)
LONG_FACTOR = 3
FIXED = " (one setting)"
"""What a baseline is called at the one setting that is best over all tasks."""


class Runs(Settings):
    """How long networks are trained, and which."""

    steps: Count
    seeds: Seeds


class Meeting(Runs):
    """Where rules and baselines meet."""

    long_factor: Count
    budget: Budget


@dataclass(frozen=True)
class Runner:
    """A rule with everything set."""

    rule: Rule
    tuned: Tuned | None = None
    """How a baseline's learning rate and schedule were found; None for a rule, which runs as it is."""

    def curves(self, task: Task, steps: int, seeds: Sequence[int], label: str) -> Curves:
        schedule = self.tuned.schedule if self.tuned else "constant"
        bound = self.rule.on(task.graph)
        return train_networks(
            bound, task, seeds, steps, schedule=schedule, total_steps=steps, splits=("test",), label=label
        )


@torchs_defaults()
def compare(
    rules: Mapping[str, Rule | Path] | Sequence[Path],
    tasks: Sequence[Task | str],
    baselines: Sequence[str] = ("adam", "adamw"),
    *,
    steps: int = 300,
    seeds: Sequence[int] = TEST_SEEDS,
    budget: Budget | None = None,
    long_factor: int = LONG_FACTOR,
    progress: bool = True,
    on_task: Callable[[Comparison], object] = lambda _: None,
) -> Comparison:
    """Tune every baseline on the budget's seeds, then run everything on fresh seeds at two horizons.

    All meet the same networks and batches. Rules run as they are (lr = 1) and are told the horizon; baselines keep
    at the long horizon the learning rate tuned at the short one, with the schedule stretched. With several tasks a
    baseline is also shown at the one setting that is best over all of them: a rule is not tuned for each either.

    Args:
        rules: by the name to show; learned rules, any others, or what `lopt.load_rule` takes. The first one is the
            summary's "learned".
        tasks: tasks, or their names.
        baselines: "sgd", "adam", "adamw", "adafactor", "lion", "muon", "normuon", "soap_muon",
            "schedule_free_adamw", a class of torch.optim ("NAdam"), or any optimizer's dotted name
            ("pytorch_optimizer.SOAP").
        steps: the horizon, also of the tuning unless `budget` says otherwise.
        seeds: test seeds; none may be among the budget's.
        budget: of the tuning of each baseline on each task; None: `Budget(steps=steps)`.
        long_factor: the long horizon is that many times `steps`.
        progress: show on stderr what is being trained, and how far it is.
        on_task: called with each task's own comparison as soon as it is there.

    Raises `ConfigError` for names that are not there or clash, for seeds that overlap, and for numbers out of range.
    """
    budget = Budget(steps=steps) if budget is None else budget
    found = {"steps": steps, "seeds": seeds, "long_factor": long_factor, "budget": budget}
    meeting = from_mapping(Meeting, found, "compare")
    _check(rules, tasks, baselines)
    seeds, budget = meeting.seeds, meeting.budget
    overlap = sorted(set(seeds) & set(budget.seeds))
    if overlap and baselines:
        raise ConfigError(f"compare: expected test seeds that tuning does not see, found {overlap} in both.")
    named = rules if isinstance(rules, Mapping) else {str(rule): rule for rule in rules}
    loaded = {name: rule if isinstance(rule, Rule) else load_rule(rule) for name, rule in named.items()}
    built = [named_task(task) if isinstance(task, str) else task for task in tasks]
    for task in built:
        check_task(task, relative=False, splits=("test",))
    tuned = [
        {n: tune(find_baseline(n), task, budget, f"tune {n}" if progress else "") for n in baselines}
        for task in built
    ]
    fixed = best_over_all(tuned) if len(built) > 1 else {}
    compared = []
    for task, own in zip(built, tuned, strict=True):
        runners = {name: Runner(rule) for name, rule in loaded.items()}
        runners |= {name: Runner(find_baseline(name).make(found.lr), found) for name, found in own.items()}
        runners |= {
            name + FIXED: Runner(find_baseline(name).make(found.lr), found) for name, found in fixed.items()
        }
        compared.append(_on_task(task, runners, own, steps, long_factor * steps, seeds, progress))
        on_task(Comparison((compared[-1],), provenance()))
    return Comparison(tuple(compared), provenance())


def _on_task(
    task: Task, runners: Mapping[str, Runner], tuned: dict[str, Tuned], steps: int, long_steps: int,
    seeds: Sequence[int], progress: bool,
) -> TaskComparison:  # fmt: skip
    short, long = (
        {
            name: runner.curves(task, length, seeds, name if progress else "")
            for name, runner in runners.items()
        }
        for length in (steps, long_steps)
    )
    best = min(tuned, key=lambda name: short[name].mean_loss.mean().item(), default=None)
    entries = {}
    for name, runner in runners.items():
        horizon, long_horizon = (
            Figures.of(curves[name], curves[best].final_loss.mean().item() if best else None)
            for curves in (short, long)
        )
        times, own = time_step(runner.rule, task), runner.tuned
        entries[name] = Entry(
            "baseline" if own else "rule", horizon, long_horizon, times.optimizer_ms, times.gradient_ms,
            own.lr if own else None, own.schedule if own else None, bool(own and own.at_edge),
        )  # fmt: skip
    return TaskComparison(task.name, steps, long_steps, tuple(seeds), tuned, entries, best)


def best_over_all(tuned: Sequence[Mapping[str, Tuned]]) -> dict[str, Tuned]:
    """For each baseline the setting whose score, relative to the best on each task, has the lowest mean logarithm.

    Only settings that were tried on every task, without diverging on any, are considered; where scores may be
    negative or zero, as of accuracies, there is no such mean, and the sum of scores decides.
    """
    chosen = {}
    for name in tuned[0]:
        scores = [{(t.lr, t.schedule): t.score for t in by_task[name].trials} for by_task in tuned]
        shared = [s for s in scores[0] if all(math.isfinite(other.get(s, math.inf)) for other in scores)]
        if shared:
            positive = all(other[setting] > 0 for other in scores for setting in shared)
            weigh = math.log if positive else float
            lr, schedule = min(shared, key=lambda s: sum(weigh(other[s]) for other in scores))
            chosen[name] = replace(tuned[0][name], lr=lr, schedule=schedule, at_edge=False)
    return chosen


@dataclass(frozen=True)
class Evaluation:
    """One rule on one task."""

    task: str
    seeds: tuple[int, ...]
    figures: Figures
    ms_per_step: float
    gradient_ms_per_step: float

    def record(self) -> dict[str, Any]:
        """JSON-able, in one level."""
        times = {"ms_per_step": self.ms_per_step, "gradient_ms_per_step": self.gradient_ms_per_step}
        return {"task": self.task, "seeds": list(self.seeds), **times, **self.figures.record()}


@torchs_defaults()
def evaluate(
    rule: Rule, task: Task, *, steps: int = 300, seeds: Sequence[int] = TEST_SEEDS, progress: bool = True
) -> Evaluation:
    """What one rule comes to on fresh networks of one task, and what its steps take.

    Raises `ConfigError` for names in place of rule and task, and for steps and seeds that are none.
    """
    for what, kind, given in (("rule", Rule, rule), ("task", Task, task)):
        if not isinstance(given, kind):
            raise ConfigError(
                f"evaluate: expected a {what}, found {given!r}; `lopt.load_rule` and"
                " `meta_tasks.named_task` give what has a name"
            )
    seeds = from_mapping(Runs, {"steps": steps, "seeds": seeds}, "evaluate").seeds
    check_task(task, relative=False, splits=("test",))
    curves = Runner(rule).curves(task, steps, seeds, task.name if progress else "")
    times = time_step(rule, task)
    return Evaluation(task.name, tuple(seeds), Figures.of(curves), times.optimizer_ms, times.gradient_ms)


def _check(rules: Mapping[str, Any] | Sequence[Any], tasks: Sequence[Any], baselines: Sequence[str]) -> None:
    """Before any long work."""
    for what, given in (("rules", rules), ("tasks", tasks), ("baselines", baselines)):
        if isinstance(given, str) or not isinstance(given, Mapping | Sequence):
            raise ConfigError(
                f"compare: {what}: expected several, found {given!r}; write [{given!r}] for one"
            )
    if not rules or not tasks:
        raise ConfigError(
            "compare: expected at least one rule and one task, found none; baselines alone have nothing to meet."
        )
    # A rule itself has no name to show, so that in a list there are none.
    kinds: tuple[type, ...] = (str, os.PathLike, *([Rule] if isinstance(rules, Mapping) else []))
    own = list(rules.values() if isinstance(rules, Mapping) else rules)
    strangers = [rule for rule in own if not isinstance(rule, kinds)]
    if strangers:
        raise ConfigError(
            f"compare: rules: expected names or paths, found {type(strangers[0]).__name__}; write"
            ' {"NAME": rule} for a rule itself'
        )
    for task in tasks:
        if not isinstance(task, (Task, str)):
            raise ConfigError(f"compare: tasks: expected tasks or their names, found {task!r}")
    for name in baselines:
        find_baseline(name)
    clash = sorted(set(map(str, rules)) & {shown for name in baselines for shown in (name, name + FIXED)})
    if clash:
        raise ConfigError(
            f"compare: {clash[0]!r} is both a rule and a baseline; show the rule under another name."
        )
