"""Compiled inner steps: the same values and derivatives; where nothing can be compiled, one warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import lopt
from lopt.errors import ConfigError
from lopt.inner import compiled
from lopt.inner.step import Networks
from lopt.training.cohort import Cohort, Horizons
from lopt.training.config import MetaConfig
from lopt.training.estimators import ES, PES, Estimator, Mixture, TruncatedBackprop, WholeLives
from tests.helpers import TinyTask, flat_state, relative_error, seeded, small_rule

COUNT, STEPS = 3, 3
ESTIMATORS: dict[str, Estimator] = {
    "second order": TruncatedBackprop(STEPS),
    "first order": TruncatedBackprop(STEPS, second_order=False),
    "probes": TruncatedBackprop(STEPS, outer_data="validation"),
    "es": ES(STEPS),
    "pes": PES(STEPS),
    "lives": WholeLives(STEPS),
    "mixture": Mixture(STEPS),
}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compilers, which take long: what is done around them remains."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(compiled, "kernel_of", lambda function, examples, any_sizes: function)


def traced(function: Callable[..., Any], examples: list[torch.Tensor], any_sizes: bool) -> Any:
    """In the place of `kernel_of`: the operations that it would compile."""
    return make_fx(function)(*examples)


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
def test_all_around_compilation_changes_nothing(name: str, uncompiled: None) -> None:
    assert_same(ESTIMATORS[name], start())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["second order", "first order", "pes", "lives"])
def test_compiled_is_the_same(name: str) -> None:
    assert_same(ESTIMATORS[name], start())


@pytest.mark.parametrize("estimator", [TruncatedBackprop(1, compiled=True), ES(1, compiled=True)])
def test_nothing_in_a_shipped_rule_hinders_compilation(
    estimator: Estimator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced only, which is quick: the compiler's own work is for the slow tests."""
    monkeypatch.setattr(compiled, "kernel_of", traced)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="eager", **options))
    rule, task = lopt.load_rule("lopt-small"), TinyTask()
    cohort = Cohort.start(task, {}, rule.on(task.graph), 2, Horizons(4, 40, 1), seeded(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator(rule, cohort, seeded(1))


@pytest.mark.parametrize("name", ["pes", "lives"])
def test_what_was_traced_once_is_right_for_other_meta_parameters_and_states(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that the code took for a constant would be what it was at the first step."""
    monkeypatch.setattr(compiled, "kernel_of", traced)
    assert_same(ESTIMATORS[name], start())


def test_compiled_once_for_each_number_of_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(function: Callable[..., Any], examples: list[torch.Tensor], any_sizes: bool) -> Any:
        made.append(len(examples[0]))
        return function

    monkeypatch.setattr(compiled, "kernel_of", counted)
    rule, task = small_rule(), TinyTask(dtype=torch.float64)
    for count in (2, 3, 2):
        cohort = Cohort.start(task, {}, rule.on(task.graph), count, Horizons(4, 40, STEPS), seeded(0))
        ES(STEPS, compiled=True)(rule, cohort, seeded(1))
    assert made == [4, 6]  # both of each pair


def test_the_order_of_names_is_not_taken_to_be_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint may have another: steps taken and steps planned would then change places."""
    monkeypatch.setattr(compiled, "kernel_of", traced)
    rule, cohort = small_rule(), start()
    params, state = cohort.networks
    turned = Networks(params, {name: dict(reversed(list(own.items()))) for name, own in state.items()})
    for networks in (cohort.networks, turned):
        found, plain = (
            ES(1, compiled=each)(rule, replace(cohort, networks=networks), seeded(1))
            for each in (True, False)
        )
        torch.testing.assert_close(found.networks.params, plain.networks.params, rtol=1e-10, atol=1e-12)


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
                TruncatedBackprop(STEPS, compiled=True)(rule, cohort, seeded(seed))
    assert len(calls) == 10


@pytest.mark.parametrize("name", ["second order", "es"])
def test_without_a_compiler_steps_run_as_they_are_with_one_warning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **_: Any) -> Any:
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    monkeypatch.setattr(compiled, "kernel_of", fails)
    rule, cohort = small_rule(), start()
    estimator = replace(ESTIMATORS[name], compiled=True)
    with pytest.warns(
        UserWarning, match=r"^inner steps run uncompiled: RuntimeError: no C\+\+ compiler$"
    ) as found:
        estimates = [estimator(rule, cohort, seeded(1)) for _ in range(2)]
    assert len(found) == 1
    plain = ESTIMATORS[name](rule, cohort, seeded(1))
    for estimate in estimates:
        assert relative_error(estimate.gradient, plain.gradient) < 1e-10


def test_compiled_code_lives_as_long_as_the_graph(uncompiled: None) -> None:
    cohort, rule = start(), small_rule()
    for _ in range(2):
        TruncatedBackprop(STEPS, compiled=True)(rule, cohort, seeded(1))
    assert len(cohort.task.graph.__dict__[compiled.KEPT]) == 1


def test_rematerialisation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^estimator\.rematerialise: expected false beside meta\.compile"):
        MetaConfig(compile=True, estimator={"rematerialise": True})
