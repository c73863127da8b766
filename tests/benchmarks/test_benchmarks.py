"""The benchmarks' own promises: what is held against what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lopt
from benchmarks import ablation, families, from_adam, transfer
from benchmarks.runner import variants
from benchmarks.runner.benchmark import Benchmark, fingerprint
from benchmarks.runner.command import NAMES, find_benchmark
from lopt import config as configs
from lopt.cli.train import parse_overrides
from lopt.errors import ConfigError
from lopt.rules import LearnedRule
from lopt.training.run_config import RunConfig
from meta_tasks import FAMILIES, SUITES, make_task
from tests.helpers import small_rule


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quick", [False, True])
def test_every_case_is_a_task_and_the_cases_they_are_tuned_near_are_there(name: str, quick: bool) -> None:
    benchmark = find_benchmark(name, quick)
    for case in benchmark.cases.values():
        configs.from_mapping(FAMILIES[case.spec[0]].spec_class, case.spec[1], "")
        if case.near is not None:
            assert benchmark.cases[case.near].near is None


def test_families_are_kept_from_training_and_choosing() -> None:
    for suite in SUITES.values():
        assert not set(families.NAMES) & set(suite.validation)
    assert set(families.NAMES) <= set(
        SUITES["base"].test
    )  # which a test of the suites keeps from the train part


def test_transfer_covers_what_it_says() -> None:
    cases = transfer.FULL.cases
    assert {name for values in transfer.AXES.values() for name in values.values()} == set(cases)
    for width, name in transfer.AXES["width"].items():
        assert cases[name].spec[1]["widths"] == [width] * transfer.DEPTH
    for depth, name in transfer.AXES["depth"].items():
        assert len(cases[name].spec[1]["widths"]) == depth
    for batch, name in transfer.AXES["batch"].items():
        assert cases[name].spec[1]["batch_size"] == batch
    for steps, name in transfer.AXES["steps"].items():
        assert cases[name].steps == steps
    assert [transfer.AXES[axis][at] for axis, at in (("width", 32), ("depth", 3), ("batch", 128))] == [
        "base"
    ] * 3


def config_of(benchmark: Benchmark, key: str) -> RunConfig:
    recipe = benchmark.recipes[key]
    return configs.load(RunConfig, recipe.config, parse_overrides(recipe.overrides))


@pytest.mark.parametrize(
    ("benchmark", "key"), [(b, key) for b in (ablation.FULL, from_adam.FULL) for key in b.recipes]
)
def test_every_variant_is_a_valid_config_that_differs_from_the_whole_as_it_says(
    benchmark: Benchmark, key: str
) -> None:
    whole_name = next(name for name in benchmark.recipes if name != variants.FRESH).partition(".")[0]
    variant, _, seed = key.partition(".")
    found = config_of(benchmark, key)
    assert found.seed == int(seed or 0)
    same = found == config_of(benchmark, f"{whole_name}.{seed or 0}")
    assert same == (variant in (whole_name, variants.FRESH))
    # The budget: outer steps, networks and the steps that each gradient looks through.
    whole = config_of(benchmark, f"{whole_name}.0").meta
    for field in ("steps", "networks", "cohorts", "truncation"):
        assert getattr(found.meta, field) == getattr(whole, field)
    faster = benchmark is ablation.FULL and variant.endswith("-constant")
    assert found.meta.learning_rate == (6e-3 if faster else whole.learning_rate)


@pytest.mark.parametrize(
    ("benchmark", "graph", "other"),
    [
        (ablation.FULL, "whole.0", "no-graph.0"),
        (from_adam.FULL, "graph.0", "factored.0"),
        (from_adam.FULL, "graph.0", "alone.0"),
        (from_adam.FULL, "paths.0", "factored.0"),
        (from_adam.FULL, "paths-constant.0", "factored-constant.0"),
        (ablation.FULL, "paths.0", "per-parameter.0"),
        (ablation.FULL, "paths-constant.0", "per-parameter-constant.0"),
    ],
)
def test_without_the_graph_there_are_as_many_meta_parameters(
    benchmark: Benchmark, graph: str, other: str
) -> None:
    counts = []
    for config in (config_of(benchmark, graph), config_of(benchmark, other)):
        rule = LearnedRule(config.rule)
        counts.append(sum(p.numel() for p in rule.parameters()))
    # Next to equal; of the pairs with a constant direction the network without the graph has 3 % more.
    more = 0.035 if other.endswith("-constant.0") else 0.02
    assert -0.02 < counts[1] / counts[0] - 1 < more


def test_from_adam_starts_as_adam() -> None:
    """All variants, fresh, take the steps of Adam with cosine decay."""
    task = make_task("mlp", {"dataset": "digits", "widths": [8]})
    torch.manual_seed(0)
    shapes = {name: spec.shape for name, spec in task.graph.parameters.items()}
    first = {name: torch.randn(shape) for name, shape in shapes.items()}
    gradients = [{name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(5)]
    expected = {name: p.clone().requires_grad_() for name, p in first.items()}
    adam = torch.optim.Adam(expected.values(), lr=1e-2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=5, eta_min=1e-4)
    for grads in gradients:
        for name, p in expected.items():
            p.grad = grads[name]
        adam.step()
        cosine.step()
    for key in ("graph.0", "factored.0", "alone.0", "paths.0", "paths-constant.0", "factored-constant.0"):
        config = config_of(from_adam.FULL, key).rule
        bound = LearnedRule(config).on(task.graph)
        params, state = first, bound.init(first, total_steps=5)
        for grads in gradients:
            params, state = bound.update(grads, state, params)
        torch.testing.assert_close(params, dict(expected), rtol=0, atol=1e-6)


def test_a_recipe_makes_its_rule_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    recipe = ablation.QUICK.recipes["whole.0"]
    recipe.make(tmp_path / "rules" / "whole.0.safetensors", tmp_path / "runs", None)
    made = lopt.load_rule(tmp_path / "rules" / "whole.0.safetensors").state_dict()
    assert (tmp_path / "runs" / "whole.0" / "checkpoint.safetensors").exists()
    # A stop between meta-training and copying: the finished run gives the same rule again.
    recipe.make(tmp_path / "again" / "whole.0.safetensors", tmp_path / "runs", None)
    torch.testing.assert_close(
        lopt.load_rule(tmp_path / "again" / "whole.0.safetensors").state_dict(), made, rtol=0, atol=0
    )

    with pytest.raises(ConfigError, match="holds a run of another config"):
        replace(recipe, overrides=(*recipe.overrides, "--meta.steps", "3")).make(
            tmp_path / "again" / "whole.0.safetensors", tmp_path / "runs", None
        )


def test_the_fresh_rule_is_not_trained(tmp_path: Path) -> None:
    ablation.FULL.recipes[variants.FRESH].make(tmp_path / "fresh.safetensors", tmp_path / "runs", None)
    rule = lopt.load_rule(tmp_path / "fresh.safetensors")
    assert not (tmp_path / "runs").exists()
    assert all(torch.equal(p, torch.zeros_like(p)) for n, p in rule.named_parameters() if "head" in n)


def test_variants_are_gathered_over_meta_seeds() -> None:
    def entry(loss: float | None, accuracy: float | None) -> dict[str, object]:
        return {
            "digest": None,
            "mean_train_loss": {"mean": loss},
            **({} if accuracy is None else {"test_accuracy": {"mean": accuracy}}),
        }

    entries = {
        "whole.0": entry(1.0, 0.5),
        "whole.1": entry(3.0, 0.7),
        "no-graph.0": entry(2.0, 0.5),
        "no-graph.1": entry(3.0, 0.5),
        "no-graph.2": entry(9.0, 0.5),
        "es.0": entry(None, 0.1),
        "pes.0": entry(None, 0.1),
        "pes.1": entry(3.0, 0.5),
        "adamw": entry(9.0, 0.1),
    }
    plain = {"whole.0": entry(1.0, None), "no-graph.1": entry(1.0, None)}
    assert ablation.FULL.overview is not None
    figures, text = ablation.FULL.overview(
        {"benchmark": "ablation", "tasks": {"t": {"entries": entries}, "plain": {"entries": plain}}}
    )
    assert figures["variants"]["whole"]["t"] == {"loss": [1.0, 3.0], "accuracy": [50.0, 70.0]}
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "2 ± 1.4" in rows["whole"]
    assert "60 ± 14" in rows["whole"]
    assert "diverged" in rows["es"]
    assert "adamw" not in rows
    assert "plain: accuracy" not in text
    # Losses of the same meta-seed: 1 / 2 and 3 / 3; on the other task no meta-seed has both.
    ratio = figures["loss_ratio"]["whole / no-graph"]
    assert ratio["plain"] is None
    assert ratio["t"]["values"] == [0.5, 1.0]
    assert ratio["t"]["mean"] == pytest.approx(0.5**0.5)
    assert ratio["t"]["low"] < ratio["t"]["mean"] < ratio["t"]["high"]
    assert ratio["t"]["diverged"] == 0
    assert "0.707 (" in text
    # The first of two has diverged, so there is no ratio for it.
    assert figures["loss_ratio"]["pes / whole"]["t"]["values"] == [1.0]
    assert "1.000 (one meta-seed; 1 diverged)" in text


def test_runs_that_kept_the_fresh_rule_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "RULES", tmp_path)
    entries = {}
    for seed, (variant, steps) in enumerate([("es", 0), ("es", 20), ("pes", 0), ("whole", 0)]):
        rule, path = small_rule(seed), tmp_path / "ablation" / f"{variant}.{seed}.safetensors"
        path.parent.mkdir(exist_ok=True)
        lopt.save_rule(rule, path, {"outer_steps": steps})
        digest = fingerprint(rule) if variant != "whole" else "another"
        entries[f"{variant}.{seed}"] = {"digest": digest, "mean_train_loss": {"mean": 1.0}}
    assert ablation.FULL.overview is not None
    figures, text = ablation.FULL.overview({"benchmark": "ablation", "tasks": {"t": {"entries": entries}}})
    counts = {name: count for name, count in figures["unmoved"].items() if count}
    assert counts == {"es": 1, "pes": 1}, "of a rule that has been trained anew since nothing is known"
    rows = {line.split("|")[1].strip(): line.split("|") for line in text.splitlines() if line.startswith("|")}
    assert [rows[name][3].strip() for name in ("variant", "es", "whole")] == ["unmoved", "1", "-"]
