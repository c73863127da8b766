from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import lopt
from lopt.errors import ConfigError
from lopt.metanets.base import Metanet
from lopt.optim.loss_guard import PATIENCE, LossGuard, base_of
from lopt.rules.forms import FORMS
from tests.optim.kit import RULE, batches, give_gradients, learned, mlp, mlp_graph, same, values


def judged(losses, guard: LossGuard | None = None) -> list[bool]:
    guard = guard or LossGuard()
    verdicts = []
    for loss in losses:
        guard.observe(loss)
        verdicts.append(guard.fallback)
    return verdicts


def noisy(level: float, count: int, seed: int = 0) -> list[float]:
    return (level + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(seed))).tolist()


def test_noise_alone_is_no_alarm():
    assert not any(judged(noisy(1.0, 10_000)))


def test_falling_loss_is_no_alarm():
    assert not any(judged([math.exp(-step / 50) for step in range(500)]))


def test_rise_and_return():
    guard = LossGuard()
    assert not any(judged(noisy(1.0, 100), guard))
    rise = judged(noisy(2.0, 20), guard)
    assert rise.index(True) < 10
    assert all(rise[rise.index(True) :])
    after = judged(noisy(1.0, 100), guard)
    assert not any(after[60:])
    assert guard.fallback_steps == sum(rise) + sum(after)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_non_finite_loss(loss):
    guard = LossGuard()
    judged(noisy(1.0, 20), guard)
    assert judged([loss], guard) == [True]
    assert math.isfinite(guard.smooth)
    assert not judged(noisy(1.0, 30), guard)[-1]


def test_new_level_after_patience():
    guard = LossGuard()
    judged(noisy(1.0, 50), guard)
    verdicts = judged(noisy(3.0, PATIENCE + 50), guard)
    assert any(verdicts)
    assert not verdicts[-1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["axisnet", "lstm"])
def test_base_is_the_rule_with_silent_metanet(name, form):
    """At the start the metanet's heads are zero: the fresh rule is its base."""
    fresh = lopt.make_rule(name, update_form=form)
    trained = lopt.make_rule(name, update_form=form)
    with torch.no_grad():
        for parameter in trained.metanet.parameters():
            parameter.normal_(std=0.1)
    results = []
    for rule in (fresh, base_of(trained), trained):
        model = mlp()
        give_gradients(model)
        learned(model.parameters(), rule=rule).step()
        results.append(values(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])
    assert base_of(lopt.make_rule("adam")).state_dict() == {}


def test_optimizer_falls_back_and_returns():
    models = [mlp(), mlp()]
    guarded = learned(models[0].parameters(), graph=mlp_graph(), loss_guard=True)
    base = learned(models[1].parameters(), graph=mlp_graph(), rule=base_of(RULE))
    for model, optimizer in zip(models, (guarded, base), strict=True):
        give_gradients(model)
        optimizer.observe(math.nan)
        optimizer.step()
    assert guarded.guard.fallback
    assert guarded.guard.fallback_steps == 1
    assert same(values(models[0]), values(models[1]))
    for seed in range(30):
        guarded.zero_grad()
        give_gradients(models[0], seed)
        guarded.observe(1.0)
        guarded.step()
    assert not guarded.guard.fallback


class Contrary(Metanet):
    """Turns Adam's direction round."""

    def forward(self, graph, features, context, memory=None):
        raw = features.new_zeros(7, features.shape[-1])
        raw[1] = -2.0
        return raw, memory


def test_guard_limits_a_harmful_rule():
    harmful = lopt.make_rule("axisnet")
    harmful.metanet = Contrary()
    final = []
    for guard in (False, True):
        model = mlp()
        optimizer = learned(model.parameters(), rule=harmful, loss_guard=guard)
        for x, y in batches(150):

            def closure(model=model, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad()
                loss = (model(x) - y).square().mean()
                loss.backward()
                return loss

            loss = optimizer.step(closure)
        final.append(loss.item())
    assert optimizer.guard.fallback_steps > 0
    assert final[1] < 1.0 < final[0]


def test_guard_is_saved_and_loaded():
    model = mlp()
    optimizer = learned(model.parameters(), loss_guard=True)
    give_gradients(model)
    optimizer.observe(0.5)
    optimizer.step()
    other = learned(model.parameters(), loss_guard=True)
    other.load_state_dict(optimizer.state_dict())
    assert other.guard == optimizer.guard
    assert other.guard.count == 1


def test_guard_lets_a_distributed_checkpoint_make_state():
    model = mlp()
    optimizer = learned(model.parameters(), loss_guard=True)
    for seed in range(3):
        optimizer.zero_grad()
        give_gradients(model, seed)
        optimizer.observe(1.0)
        optimizer.step()
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    resumed = learned(model.parameters(), loss_guard=True)
    resumed.zero_grad()
    set_optimizer_state_dict(model, resumed, saved)
    assert same(resumed.state_dict()["state"], optimizer.state_dict()["state"])
    give_gradients(model)
    with pytest.raises(ConfigError, match="loss_guard"):
        resumed.step()


def test_guard_without_losses_says_so():
    model = mlp()
    optimizer = learned(model.parameters(), loss_guard=True)
    give_gradients(model)
    with pytest.raises(
        ConfigError, match=r"loss_guard: expected a closure, or observe\(loss\) before each step"
    ):
        optimizer.step()


def test_a_batch_without_a_loss():
    """Lightning's closure returns None where `training_step` leaves a batch out."""
    model = mlp()
    optimizer = learned(model.parameters(), loss_guard=True)
    give_gradients(model)
    assert optimizer.step(lambda: None) is None
    assert optimizer.guard.count == 0
    optimizer.observe(None)
    optimizer.step()
    with pytest.raises(ConfigError, match="loss_guard"):
        optimizer.step()


def wrapper_of(optimizer):
    """An object with a copy of the optimizer's `__dict__`, whose step is the optimizer's: as in Fabric."""
    kind = type(
        "Wrapper", (type(optimizer),), {"__init__": lambda self: None, "step": lambda self: optimizer.step()}
    )
    wrapper = kind()
    vars(wrapper).update({key: value for key, value in vars(optimizer).items() if key != "step"})
    return wrapper


def test_a_wrapper_observes_for_the_optimizer():
    model = mlp()
    optimizer = learned(model.parameters(), loss_guard=True)
    wrapper = wrapper_of(optimizer)
    saved = learned(mlp().parameters(), loss_guard=True)
    saved.observe(1.0)
    optimizer.load_state_dict(saved.state_dict())
    for seed in range(3):
        optimizer.zero_grad()
        give_gradients(model, seed)
        if seed == 1:
            model[0].weight.grad[0, 0] = math.nan
        wrapper.observe(2.0)
        wrapper.step()
    assert wrapper.guard is optimizer.guard
    assert optimizer.guard.count == 4
    assert wrapper.skipped_steps == optimizer.skipped_steps == 1
    assert wrapper.graph is optimizer.graph


def test_a_checkpoint_of_numbers_from_before():
    optimizer = learned(mlp().parameters(), loss_guard=True)
    state = optimizer.state_dict()
    state["loss_guard"] = {"fallback": True, "count": 12, "smooth": 0.5, "best": 0.4, "fallback_steps": 3}
    optimizer.load_state_dict(state)
    assert optimizer.guard == LossGuard(fallback=True, count=12, smooth=0.5, best=0.4, fallback_steps=3)


@pytest.mark.parametrize(
    "loss", [{"loss": 1.0}, (1.0, 2.0), torch.ones(3), torch.ones((), dtype=torch.cfloat), "1"]
)
def test_a_loss_that_is_no_number_is_told(loss: object) -> None:
    optimizer = lopt.LearnedOptimizer([torch.ones(2, requires_grad=True)], rule="lopt-small", loss_guard=True)
    with pytest.raises(ConfigError, match=r"^loss: expected a number or a one-element tensor"):
        optimizer.step(lambda: loss)
