"""Rules beside tuned baselines on one task: the figures, and the summary that decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lopt.comparison.figures import figures, finite
from lopt.comparison.timing import time_step
from lopt.comparison.tuning import Budget, Tuned, find_baseline, tune
from lopt.errors import ConfigError
from lopt.inner.evaluation import Curves, train_networks
from lopt.inner.task import Task
from lopt.rules.base import Rule
from lopt.runs.provenance import provenance

HORIZONS = ("horizon", "long_horizon")
"""The keys of an entry's figures at the two horizons."""

Runner = tuple[Rule, str]
"""A rule with everything set, and the schedule of its learning rate."""


def compare(
    rules: Mapping[str, Rule],
    task: Task,
    *,
    baselines: Sequence[str] = ("adam", "adamw"),
    steps: int = 300,
    seeds: Sequence[int] = (101, 102, 103, 104, 105),
    budget: Budget | None = None,
    long_factor: int = 3,
    chunk: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Tune every baseline on the budget's seeds, then run everything on fresh seeds at two horizons.

    All meet the same networks and batches. Rules run as they are (lr = 1) and are told the horizon; baselines keep
    at the long horizon the learning rate tuned at the short one, with the schedule stretched.

    Args:
        rules: learned rules (or any others) by the name to show. The first one is the summary's "learned".
        baselines: names that `lopt.comparison.tuning.find_baseline` knows.
        steps: the horizon, also of the tuning unless `budget` says otherwise.
        seeds: test seeds; none may be among the budget's.
        budget: of the tuning of each baseline; None: `Budget(steps=steps)`.
        long_factor: the long horizon is that many times `steps`.
        chunk: how many networks to train at a time; None: all.
        progress: show on stderr what is being trained, and how far it is.

    Returns a JSON-able dict: "task", "steps", "long_steps", "seeds", "tuned" (for each baseline its budget and
    trials), "entries" (for each rule and baseline its figures, see `lopt.comparison.figures.figures`, at "horizon" and
    "long_horizon"), "best_baseline" (the lowest mean training loss), "summary" and "provenance". A figure that is
    not finite is None. Raises `ConfigError` for names that clash and seeds that overlap.
    """
    budget = budget or Budget(steps=steps)
    _check(rules, baselines, seeds, budget)
    tuned = {
        n: tune(find_baseline(n), task, budget, chunk, f"tune {n}" if progress else "") for n in baselines
    }
    runners: dict[str, Runner] = {name: (rule, "constant") for name, rule in rules.items()}
    runners |= {name: (find_baseline(name).make(best.lr), best.schedule) for name, best in tuned.items()}
    lengths = dict(zip(HORIZONS, (steps, long_factor * steps), strict=True))
    curves = {
        horizon: {
            n: _run(runner, task, length, seeds, chunk, n if progress else "")
            for n, runner in runners.items()
        }
        for horizon, length in lengths.items()
    }
    best = _best([curves["horizon"][name] for name in baselines], baselines)
    entries = {name: _entry(name, runners[name], task, curves, tuned.get(name), best) for name in runners}
    return {
        "task": task.name,
        "steps": steps,
        "long_steps": long_factor * steps,
        "seeds": list(seeds),
        "tuned": {name: _json(found.record()) for name, found in tuned.items()},
        "entries": entries,
        "best_baseline": best,
        "summary": summary(entries, next(iter(rules)), best),
        "provenance": provenance(),
    }


def evaluate(
    rule: Rule,
    task: Task,
    *,
    steps: int = 300,
    seeds: Sequence[int] = (101, 102, 103, 104, 105),
    schedule: str = "constant",
    chunk: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The figures (`lopt.comparison.figures.figures`) of one rule on fresh networks of one task, and its step time."""
    curves = _run((rule, schedule), task, steps, seeds, chunk, task.name if progress else "")
    return {"task": task.name, "seeds": list(seeds), **_times(rule, task), **figures(curves)}


def summary(entries: Mapping[str, Any], learned: str, best_baseline: str | None) -> dict[str, Any]:
    """The learned rule beside the best baseline, in means over the seeds."""
    long = entries[learned]["long_horizon"]
    baseline = entries[best_baseline] if best_baseline else None
    return {
        "learned": _summary_of(learned, entries[learned]),
        "best_baseline": _summary_of(best_baseline, baseline) if baseline else None,
        "long_horizon": {
            "steps": long["steps"],
            "learned_final_train_loss": long["final_train_loss"]["mean"],
            "best_baseline_final_train_loss": baseline
            and baseline["long_horizon"]["final_train_loss"]["mean"],
            "diverged": long["diverged"] > 0,
        },
    }


def _summary_of(name: str | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    found = entry["horizon"]
    means = ("mean_train_loss", "final_train_loss", "test_loss", "test_accuracy")
    return {
        "name": name,
        **{key: found[key]["mean"] if key in found else None for key in means},
        "steps_to_baseline": found["steps_to_baseline"],
        "ms_per_step": entry["ms_per_step"],
        "diverged": found["diverged"] > 0,
    }


def _entry(
    name: str,
    runner: Runner,
    task: Task,
    curves: Mapping[str, Mapping[str, Curves]],
    tuned: Tuned | None,
    best: str | None,
) -> dict[str, Any]:
    targets = {h: c[best].final_loss.mean().item() if best else None for h, c in curves.items()}
    setting = {"lr": tuned.lr, "schedule": tuned.schedule, "at_edge": tuned.at_edge} if tuned else {}
    return {
        "kind": "baseline" if tuned else "rule",
        **setting,
        **_times(runner[0], task),
        **{horizon: figures(found[name], targets[horizon]) for horizon, found in curves.items()},
    }


def _run(
    runner: Runner, task: Task, steps: int, seeds: Sequence[int], chunk: int | None, label: str
) -> Curves:
    rule, schedule = runner
    options: dict[str, Any] = {"total_steps": steps, "splits": ("test",), "chunk": chunk, "label": label}
    return train_networks(rule.on(task.graph), task, seeds, steps, schedule=schedule, **options)


def _best(curves: Sequence[Curves], names: Sequence[str]) -> str | None:
    losses = dict(zip(names, (c.mean_loss.mean().item() for c in curves), strict=True))
    return min(losses, key=lambda name: losses[name], default=None)


def _times(rule: Rule, task: Task) -> dict[str, float]:
    found = time_step(rule, task)
    return {"ms_per_step": found.optimizer_ms, "gradient_ms_per_step": found.gradient_ms}


def _check(rules: Mapping[str, Rule], baselines: Sequence[str], seeds: Sequence[int], budget: Budget) -> None:
    if not rules:
        raise ConfigError(
            "compare: expected at least one rule, found none; baselines alone have nothing to meet."
        )
    clash = sorted(set(rules) & set(baselines))
    if clash:
        raise ConfigError(
            f"compare: {clash[0]!r} is both a rule and a baseline; show the rule under another name."
        )
    overlap = sorted(set(seeds) & set(budget.seeds))
    if overlap and baselines:
        raise ConfigError(f"compare: expected test seeds that tuning does not see, found {overlap} in both.")


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return finite(value) if isinstance(value, float) else value
