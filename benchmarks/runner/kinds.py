"""What rows of the meta-test suite come to: rules beside baselines, tuned for each kind and at one setting for all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lopt.comparison.protocol import FIXED

Row = dict[str, Any]
"""What came of one optimizer on one kind: `settings`, one for each learning rate."""
FRESH = "fresh"
"""The rule that was not meta-trained, beside which the others of a look are shown."""
STRETCH = 10
"""Curves are kept as means over that many steps, and steps to a loss are counted so."""


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Each rule beside each baseline, tuned for each kind and at its one best setting, and beside the best of all."""
    budget = rows[-1]["budget"]
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["budget"] == budget:
            found.setdefault(row["optimizer"], {})[row["kind"]] = row
    # Kinds that every optimizer has been through: none is judged on others than the rest.
    kinds = [
        kind for kind in next(iter(found.values())) if all(kind in by_kind for by_kind in found.values())
    ]
    rules = [name for name, by_kind in found.items() if next(iter(by_kind.values()))["rule"]]
    shown: dict[str, dict[str, dict[str, Any]]] = {}
    fixed: dict[str, float | None] = {}
    for name, by_kind in found.items():
        settings = {kind: {s["lr"]: s for s in by_kind[kind]["settings"]} for kind in kinds}
        shown[name] = {kind: min(by_rate.values(), key=score) for kind, by_rate in settings.items()}
        if name in rules:
            continue
        fixed[name] = lr = fixed_rate(settings)
        if lr is not None:
            shown[name + FIXED] = {kind: by_rate[lr] for kind, by_rate in settings.items()}
    baselines = [name for name in shown if name not in rules]
    tuned = [name for name in baselines if not name.endswith(FIXED)]
    against = {name: shown[name] for name in baselines}
    if tuned:
        against["best tuned"] = {
            kind: min((shown[name][kind] for name in tuned), key=lambda s: mean(s["final"])) for kind in kinds
        }
    return {
        "budget": budget, "kinds": kinds, "fixed": fixed, "rules": rules, "shown": shown,
        "beside_fresh": {
            rule: gains(shown[rule], shown[FRESH]) for rule in rules if FRESH in rules and rule != FRESH
        },
        "compared": {
            rule: {name: compared(shown[rule], other, budget["steps"]) for name, other in against.items()}
            for rule in rules
        },
    }  # fmt: skip


def score(setting: Mapping[str, Any]) -> float:
    """By what a rate is chosen: the mean validation loss of the tuning seeds."""
    return mean(setting["validation"])


def mean(values: Sequence[float | None]) -> float:
    """inf if any network diverged."""
    return math.inf if not values or None in values else sum(values) / len(values)  # type: ignore[arg-type]


def fixed_rate(settings: Mapping[str, Mapping[float, Mapping[str, Any]]]) -> float | None:
    """The rate with the lowest geometric mean of validation losses, among those that every kind was tried with and
    with which nothing diverged."""
    common = set.intersection(*(set(by_rate) for by_rate in settings.values()))
    scores = {lr: [score(by_rate[lr]) for by_rate in settings.values()] for lr in sorted(common)}
    finite = {lr: sum(map(math.log, s)) for lr, s in scores.items() if all(map(math.isfinite, s))}
    return min(finite, key=lambda lr: finite[lr]) if finite else None


def compared(
    rule: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]], steps: int
) -> dict[str, Any]:
    """The rule over the other one: geometric means over kinds of loss ratios, and of steps to the other's final loss.

    A kind on which the rule never comes down to it counts as if it came at the last step, and in `unreached`. Kinds on
    which one of them diverged have no ratio: they are counted in `diverged` and `other_diverged`, and as ahead or not.
    """
    kinds = {
        kind: {
            **{key: _ratio(mean(own[key]), mean(other[kind][key])) for key in ("final", "test")},
            "steps": steps_to(own["curve"], mean(other[kind]["final"])),
        }
        for kind, own in rule.items()
    }
    both = [found for found in kinds.values() if 0 < found["final"] < math.inf]
    return {
        "final": geometric(found["final"] for found in both),
        "test": geometric(found["test"] for found in both),
        "speed": geometric(steps / (found["steps"] or steps) for found in both),
        "ahead": sum(found["final"] < 1 for found in kinds.values()),
        "test_ahead": sum(found["test"] < 1 for found in kinds.values()),
        "worst_final": max(found["final"] for found in kinds.values()),
        "unreached": sum(found["steps"] is None for found in both),
        "diverged": sum(math.isinf(mean(own["final"])) for own in rule.values()),
        "other_diverged": sum(math.isinf(mean(other[kind]["final"])) for kind in rule),
        "by_kind": kinds,
    }


def gains(
    rule: Mapping[str, Mapping[str, Any]], fresh: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Of each loss the mean logarithm over a kind's networks, less that of the fresh rule on the same ones: its mean
    over kinds with half of its 95 % interval, on how many it is below zero, and each kind's.

    Kinds on which a network of one of the two diverged are left out and named.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in ("final", "test"):
        pairs = {kind: (own[key], fresh[kind][key]) for kind, own in rule.items()}
        by_kind = {
            kind: sum(math.log(a / b) for a, b in zip(own, other, strict=True)) / len(own)
            for kind, (own, other) in pairs.items()
            if None not in (*own, *other)
        }
        average, interval = mean_with_interval(list(by_kind.values()))
        found[key] = {
            "mean": average,
            "interval": interval,
            "better": sum(value < 0 for value in by_kind.values()),
            "diverged": [kind for kind in pairs if kind not in by_kind],
            "by_kind": by_kind,
        }
    return found


def mean_with_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return sum(values) / len(values) if values else math.nan, 1.96 * error


def _ratio(own: float, other: float) -> float:
    return math.inf if math.isinf(own) else own / other


def steps_to(curve: Sequence[float | None], target: float) -> int | None:
    """After how many steps two stretches in a row have a mean of at most the target; None if never."""
    for index, (a, b) in enumerate(zip(curve[:-1], curve[1:], strict=True)):
        if a is not None and b is not None and (a + b) / 2 <= target * 1.001:  # curves have four digits
            return (index + 2) * STRETCH
    return None


def geometric(values: Iterable[float]) -> float:
    """The geometric mean."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


HEADER = (
    "final loss", "held-out loss", "steps to its final loss, times fewer", "never", "ahead, final", "ahead, held-out",
    "worst final", "diverged, it and the other",
)  # fmt: skip


def table(summary: Mapping[str, Any]) -> str:
    """As Markdown."""
    count = len(summary["kinds"])
    budget = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in summary["budget"].items())
    lines = [
        f"{count} kinds; {budget}. Losses of the rule over the other's, geometric means: below 1 the rule is better."
    ]
    compared_rules = {rule: against for rule, against in summary["compared"].items() if against}
    for rule, against in compared_rules.items():
        lines += ["", f"| {rule} against | {' | '.join(HEADER)} |", "|---|" + "--:|" * len(HEADER)]
        for name, f in against.items():
            cells = (
                *(f"{f[key]:.2f}" for key in ("final", "test", "speed")),
                f["unreached"],
                *(f"{f[key]} of {count}" for key in ("ahead", "test_ahead")),
                f"{f['worst_final']:.2f}",
                f"{f['diverged']}, {f['other_diverged']}",
            )
            lines.append(f"| {shown_name(name, summary['fixed'])} | {' | '.join(map(str, cells))} |")
    if summary["beside_fresh"]:
        lines += [
            "",
            "| logarithm of the loss less the fresh rule's | final | held-out | better |",
            "|---|--:|--:|--:|",
        ]
    for rule, found in summary["beside_fresh"].items():
        cells = (f"{f['mean']:+.3f} ± {f['interval']:.3f}" for f in found.values())
        better = ", ".join(str(f["better"]) for f in found.values())
        lines.append(f"| {rule} | {' | '.join(cells)} | {better} |")
    return "\n".join(lines)


def shown_name(name: str, fixed: Mapping[str, float | None]) -> str:
    """With the learning rate, where it is the same for all kinds."""
    own = name.removesuffix(FIXED)
    return name if own == name else f"{own}, {fixed[own]:g} for all"
