"""Compiled inner steps: the same values and derivatives; where nothing can be compiled, one warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import lopt
from lopt.errors import ConfigError
from lopt.inner import compiled
from lopt.training.cohort import Cohort, Horizons
from lopt.training.config import MetaConfig
from lopt.training.estimators import ES, PES, Estimator, Mixture, TruncatedBackprop
from tests.helpers import TinyTask, flat_state, relative_error, seeded, small_rule

COUNT, STEPS = 3, 3
ESTIMATORS: dict[str, Estimator] = {
    "second order": TruncatedBackprop(STEPS),
    "first order": TruncatedBackprop(STEPS, second_order=False),
    "probes": TruncatedBackprop(STEPS, outer_data="validation"),
    "es": ES(STEPS),
    "pes": PES(STEPS),
    "mixture": Mixture(STEPS),
}


def uncompiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    """In the place of `torch.compile`, which takes long: what is done around it remains."""
    return function


def start(task: Any = None) -> Cohort:
    rule, task = small_rule(), task or TinyTask(dtype=torch.float64)
    return Cohort.start(task, {}, rule.on(task.graph), COUNT, Horizons(4, 40, STEPS), seeded(0))


def assert_same(estimator: Estimator, cohort: Cohort) -> None:
    """Over two truncations of the cohort, of which the second finds everything compiled."""
    rule = small_rule()
    for seed in (1, 2):
        plain = estimator(rule, cohort, seeded(seed))
        found = replace(estimator, compiled=True)(rule, cohort, seeded(seed))
        assert relative_error(found.gradient, plain.gradient) < 1e-9
        torch.testing.assert_close(found.losses, plain.losses, rtol=1e-10, atol=1e-12)
        for a, b in (
            (found.networks, plain.networks),
            *([] if plain.twins is None else [(found.twins[0], plain.twins[0])]),
        ):  # type: ignore[index]
            torch.testing.assert_close(a.params, b.params, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(flat_state(a.state), flat_state(b.state), rtol=1e-10, atol=1e-12)
            assert not any(
                value.requires_grad for value in [*a.params.values(), *flat_state(a.state).values()]
            )
        cohort = replace(cohort, networks=plain.networks, twins=plain.twins, initial=plain.losses[0])


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_all_around_compilation_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", uncompiled)
    assert_same(ESTIMATORS[name], start())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["second order", "first order", "pes"])
def test_compiled_is_the_same(name: str) -> None:
    assert_same(ESTIMATORS[name], start())


def test_nothing_in_a_shipped_rule_hinders_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced only, which is quick: the compiler's own work is for the slow tests."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="eager", **options))
    rule, task = lopt.load_rule("lopt-small"), TinyTask()
    cohort = Cohort.start(task, {}, rule.on(task.graph), 2, Horizons(4, 40, 1), seeded(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ES(1, compiled=True)(rule, cohort, seeded(1))


@pytest.mark.slow
def test_many_architectures_are_compiled_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself gives up on a function after eight."""
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(len(inputs))
        return graph

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=backend, **options))
    rule = small_rule()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width in range(2, 12):
            cohort = start(TinyTask(width, dtype=torch.float64))
            for seed in (1, 2):
                ES(STEPS, compiled=True)(rule, cohort, seeded(seed))
    assert len(calls) == 10


def test_without_a_compiler_steps_run_as_they_are_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def fails(*args: Any) -> Any:
            raise RuntimeError("no C++ compiler\nand a long story")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    rule, cohort = small_rule(), start()
    estimator = TruncatedBackprop(STEPS, compiled=True)
    with pytest.warns(
        UserWarning, match=r"^inner steps run uncompiled: RuntimeError: no C\+\+ compiler$"
    ) as found:
        estimates = [estimator(rule, cohort, seeded(1)) for _ in range(2)]
    assert len(found) == 1
    plain = TruncatedBackprop(STEPS)(rule, cohort, seeded(1))
    for estimate in estimates:
        assert relative_error(estimate.gradient, plain.gradient) < 1e-10


def test_compiled_code_lives_as_long_as_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", uncompiled)
    cohort, rule = start(), small_rule()
    for _ in range(2):
        TruncatedBackprop(STEPS, compiled=True)(rule, cohort, seeded(1))
    assert len(cohort.task.graph.__dict__[compiled.KEPT]) == 1


def test_rematerialisation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^estimator\.rematerialise: expected false beside meta\.compile"):
        MetaConfig(compile=True, estimator={"rematerialise": True})
