"""Cohorts: horizons, and fresh networks in the place of some."""

from __future__ import annotations

import math

import pytest
import torch

from lopt.inner.step import Networks
from lopt.training.cohort import Cohort, Horizons, replace_at
from tests.helpers import TinyTask, flat_state, seeded, small_rule


def test_horizons_are_log_uniform_in_whole_truncations() -> None:
    lengths, told = Horizons(20, 2000, 10, known=0.25).draw(4000, seeded(0), first=False)
    assert (lengths % 10 == 0).all()
    assert lengths.min() >= 20
    assert lengths.max() <= 2000
    # Half of the logarithms lie below that of sqrt(20 * 2000) = 200.
    assert (lengths <= 200).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (told > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(told[told > 0], lengths[told > 0])


def test_a_horizon_of_whole_truncations_is_kept() -> None:
    for truncation in (5, 10, 20, 25):
        for steps in range(truncation, 100 * truncation, truncation):
            lengths, _ = Horizons(steps, steps, truncation).draw(2, seeded(0), first=False)
            assert lengths.tolist() == [steps, steps]


def test_first_lives_are_staggered() -> None:
    """Cut at random: among lives of one length, every number of truncations is as likely to end one."""
    lengths, _ = Horizons(100, 100, 10).draw(4000, seeded(0), first=True)
    assert set(lengths.tolist()) == {10.0 * k for k in range(1, 11)}
    counts = torch.bincount((lengths / 10).long())[1:]
    assert (counts.float() / 400 - 1).abs().max() < 0.2


def test_nobody_or_everybody_may_be_told() -> None:
    for known in (0.0, 1.0):
        lengths, told = Horizons(5, 50, 5, known).draw(50, seeded(0), first=False)
        assert torch.equal(told, known * lengths)


def test_a_shared_horizon_is_log_uniform_and_never_cut() -> None:
    generator, lengths = seeded(0), []
    for _ in range(400):
        drawn, told = Horizons(20, 2000, 1, known=1.0, shared=True).draw(3, generator, first=True)
        assert torch.equal(drawn, told)
        assert (drawn == drawn[0]).all()
        lengths.append(drawn[0])
    assert (torch.stack(lengths) <= 200).float().mean().item() == pytest.approx(0.5, abs=0.08)


def start(count: int = 4) -> tuple[Cohort, Horizons, object]:
    task, rule, horizons = TinyTask(), small_rule().float(), Horizons(10, 100, 5, known=1.0)
    bound = rule.on(task.graph)
    return Cohort.start(task, {"family": 0}, bound, count, horizons, seeded(0)), horizons, bound


def test_start_gives_fresh_networks() -> None:
    cohort, _, _ = start()
    assert cohort.ages.tolist() == [0.0] * 4
    assert cohort.initial.isnan().all()
    state = cohort.networks.state["w"]
    assert torch.equal(state["total_steps"], cohort.horizons)
    assert (state["step"] == 0).all()
    assert not torch.equal(cohort.networks.params["w"][0], cohort.networks.params["w"][1])


def test_restart_replaces_those_that_are_due_and_no_others() -> None:
    cohort, horizons, bound = start()
    cohort.networks = Networks(
        {name: p + 1 for name, p in cohort.networks.params.items()},
        {n: {key: v + 7 for key, v in s.items()} for n, s in cohort.networks.state.items()},
    )
    cohort.ages, cohort.initial = cohort.ages + 5, torch.arange(4.0)
    before = cohort.networks
    lengths = cohort.horizons
    due = torch.tensor([False, True, False, True])
    cohort.restart(due, bound, horizons, seeded(1))  # type: ignore[arg-type]
    assert cohort.ages.tolist() == [5, 0, 5, 0]
    assert cohort.initial[~due].tolist() == [0, 2]
    assert cohort.initial[due].isnan().all()
    assert torch.equal(cohort.horizons[~due], lengths[~due])
    for name, p in cohort.networks.params.items():
        assert torch.equal(p[~due], before.params[name][~due])
        assert not (p[due] == before.params[name][due]).all()
    for key, value in flat_state(cohort.networks.state).items():
        assert torch.equal(value[~due], flat_state(before.state)[key][~due])
    assert (cohort.networks.state["w"]["momenta"][due] == 0).all()
    assert (cohort.networks.state["w"]["step"][due] == 0).all()
    assert torch.equal(cohort.networks.state["w"]["total_steps"][due], cohort.horizons[due])


def test_restart_of_nobody_draws_nothing() -> None:
    cohort, horizons, bound = start()
    generator = seeded(1)
    before = generator.get_state()
    networks = cohort.networks
    cohort.restart(torch.zeros(4, dtype=torch.bool), bound, horizons, generator)  # type: ignore[arg-type]
    assert cohort.networks is networks
    assert torch.equal(generator.get_state(), before)


def test_a_network_that_is_not_finite_leaves_nothing_behind() -> None:
    cohort, _, _ = start()
    spoilt = {
        name: p.clone().index_fill_(0, torch.tensor([2]), math.nan)
        for name, p in cohort.networks.params.items()
    }
    fresh = Networks(
        {name: p[:1] for name, p in cohort.networks.params.items()},
        {n: {key: v[:1] for key, v in s.items()} for n, s in cohort.networks.state.items()},
    )
    repaired = replace_at(Networks(spoilt, cohort.networks.state), torch.tensor([2]), fresh)
    assert all(torch.isfinite(p).all() for p in repaired.params.values())
    assert torch.equal(repaired.params["w"][2], cohort.networks.params["w"][0])
