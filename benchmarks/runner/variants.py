"""Rules that differ in one thing, each meta-trained with several meta-seeds, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from benchmarks.runner.benchmark import View, fingerprint
from benchmarks.runner.recipe import Recipe
from benchmarks.runner.speedup import geometric_mean
from lopt.rules import LearnedRule
from lopt.rules.io import load_rule, provenance_of
from lopt.tables import aligned

RULES = Path(__file__).parents[1] / "rules"
"""In the folder of a benchmark's name, NAME.SEED.safetensors."""

FRESH = "fresh"
"""The first variant before meta-training; its random weights are multiplied by zero, so that one seed says all."""


class Variant(NamedTuple):
    """What is different, in words and as overrides of a config."""

    words: str
    overrides: tuple[str, ...] = ()


def rule(**changes: Any) -> tuple[str, ...]:
    """Overrides of the rule of a config."""
    return tuple(word for key, value in changes.items() for word in (f"--rule.{key}", json.dumps(value)))


def per_parameter_mlp(width: int, **changes: Any) -> tuple[str, ...]:
    """Overrides that put an MLP of four layers for each scalar by itself in the place of the config's AxisNet."""
    return rule(metanet={"name": "mlp", "width": width, "layers": 4}, **changes)


def recipes(
    config: Path, variants: Mapping[str, Variant], seeds: tuple[int, ...], *changes: str
) -> dict[str, Recipe]:
    """Every variant with every meta-seed, as NAME.SEED, and the fresh rule."""
    trained = {
        f"{name}.{seed}": Recipe(config, (*variant.overrides, "--seed", str(seed), *changes))
        for name, variant in variants.items()
        for seed in seeds
    }
    return {FRESH: Recipe(config, trained=False), **trained}


def overview_of(variants: Mapping[str, Variant], pairs: tuple[tuple[str, str], ...]) -> View:
    """For each variant and task, training loss and test accuracy over the meta-seeds; and some against others.

    The losses of the first of each of `pairs` are divided by those of the second with the same meta-seed.
    """

    def overview(summary: Mapping[str, Any]) -> tuple[Any, str]:
        tasks = summary["tasks"]
        words = {name: variant.words for name, variant in variants.items()}
        words[FRESH] = "the rule before meta-training"
        figures = {
            name: {task: _of_variant(name, record["entries"]) for task, record in tasks.items()}
            for name in words
        }
        against = {
            " / ".join(pair): {
                task: _ratio(*(_losses(name, record["entries"]) for name in pair))
                for task, record in tasks.items()
            }
            for pair in pairs
        }
        entries = {key: entry for record in tasks.values() for key, entry in record["entries"].items()}
        unmoved = _unmoved(summary["benchmark"], entries, variants)
        text = "### Variants\n\n" + _variants(figures, words, unmoved) + "\n\n" + _against(against)
        return {"variants": figures, "loss_ratio": against, "unmoved": unmoved}, text

    return overview


def _of_variant(name: str, entries: Mapping[str, Any]) -> dict[str, list[float | None]]:
    own = _by_seed(name, entries).values()
    accuracies = [(entry.get("test_accuracy") or {}).get("mean") for entry in own]
    return {
        "loss": [entry["mean_train_loss"]["mean"] for entry in own],
        "accuracy": [None if accuracy is None else 100 * accuracy for accuracy in accuracies],
    }


def _unmoved(benchmark: str, entries: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """For each variant with how many meta-seeds no validation was better than that of the fresh rule, which is kept."""
    folder = RULES / benchmark
    kept = [
        key for key, entry in entries.items() if _is_fresh(folder / f"{key}.safetensors", entry["digest"])
    ]
    return {name: sum(key.partition(".")[0] == name for key in kept) for name in names}


def _is_fresh(path: Path, digest: str | None) -> bool:
    """Whether a rule file, if it is the one that was tested, comes from a run that kept what it began with."""
    if not path.exists() or provenance_of(path).get("outer_steps") != 0:
        return False
    rule = load_rule(path)
    return isinstance(rule, LearnedRule) and fingerprint(rule) == digest


def _losses(name: str, entries: Mapping[str, Any]) -> dict[str, float | None]:
    """Mean training loss by meta-seed."""
    return {seed: entry["mean_train_loss"]["mean"] for seed, entry in _by_seed(name, entries).items()}


def _by_seed(name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries NAME.SEED of one variant; that of a rule without a meta-seed has an empty one."""
    parts = {key: key.partition(".") for key in entries}
    return {seed: entries[key] for key, (variant, _, seed) in parts.items() if variant == name}


def _ratio(own: Mapping[str, float | None], other: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Of losses with the same meta-seed: geometric mean, its interval, and every one; None without any.

    A meta-seed with which either has diverged has no ratio: these are counted.
    """
    pairs = [(own[seed], other[seed]) for seed in sorted(own.keys() & other.keys())]
    values = [a / b for a, b in pairs if a is not None and b is not None]
    diverged = len(pairs) - len(values)
    return {**geometric_mean(values), "values": values, "diverged": diverged} if values else None


def _variants(figures: Mapping[str, Any], words: Mapping[str, str], unmoved: Mapping[str, int]) -> str:
    shown = {
        name: by_task for name, by_task in figures.items() if any(loss["loss"] for loss in by_task.values())
    }
    columns = [
        (task, key, title)
        for task in next(iter(figures.values()))
        for key, title in (("loss", "loss"), ("accuracy", "accuracy, %"))
        if any(value is not None for by_task in shown.values() for value in by_task[task][key])
    ]
    header = ["variant", "what is different", "unmoved", *(f"{task}: {title}" for task, _, title in columns)]
    rows = [
        [
            name,
            words[name],
            str(unmoved.get(name) or "-"),
            *(_cell(by_task[task][key]) for task, key, _ in columns),
        ]
        for name, by_task in shown.items()
    ]
    return (
        "Mean training loss and test accuracy, mean ± deviation over the meta-seeds (each the mean of the test seeds)."
        " The deviation is what luck in meta-training makes: smaller differences say nothing. Unmoved: with how many"
        " meta-seeds nothing was better in validation than the fresh rule, which then is what was tested.\n\n"
        + aligned(header, rows)
    )


def _cell(values: list[float | None]) -> str:
    finite = [value for value in values if value is not None]
    if not finite:
        return "diverged" if values else "-"
    spread = f" ± {stdev(finite):.2g}" if len(finite) > 1 else ""
    lost = f" ({len(values) - len(finite)} diverged)" if len(finite) < len(values) else ""
    return f"{mean(finite):.4g}{spread}{lost}"


def _against(against: Mapping[str, Mapping[str, Any]]) -> str:
    tasks = [task for task in next(iter(against.values())) if any(row[task] for row in against.values())]
    rows = [
        [pair, *(_interval(row[task]) for task in tasks)]
        for pair, row in against.items()
        if any(row.values())
    ]
    return (
        "Mean training loss of one variant over that of another with the same meta-seed (below 1: the first is ahead):"
        " geometric mean over the meta-seeds with a 95 % confidence interval (Student's t of the logarithms)."
        " Meta-seeds with which either has diverged are left out, and counted.\n\n"
        + aligned(["variants", *tasks], rows)
    )


def _interval(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return "-"
    lost = f"; {interval['diverged']} diverged" if interval["diverged"] else ""
    if interval["low"] is None:
        return f"{interval['mean']:.3f} (one meta-seed{lost})"
    return f"{interval['mean']:.3f} ({interval['low']:.3f} to {interval['high']:.3f}{lost})"
