"""Perceptrons side by side: their derivatives, each as if it were alone, what is masked stays at zero."""

from __future__ import annotations

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from lopt.weight_space.perceptrons import (
    Examples,
    PerceptronShape,
    Schooling,
    accuracy,
    gradient,
    initial,
    logits,
    train,
)
from tests.helpers import seeded

SHAPE = PerceptronShape(sizes=(6, 5, 4, 3))
HOW = Schooling(epochs=60, batch=8, lr=3e-2)


def examples(count: int = 40) -> Examples:
    inputs = torch.randn(count, 6, generator=seeded(0))
    return Examples(inputs, inputs[:, :3].argmax(1), 0.0, 1.0)


def test_what_they_say_and_the_gradient_are_those_of_the_module() -> None:
    params = {name: value.double() for name, value in initial(SHAPE, range(3)).items()}
    data, model = examples(), SHAPE.build()
    inputs = data.inputs.double()

    def loss(one: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, one, (inputs,)), data.labels)

    expected = vmap(lambda one: functional_call(model, one, (inputs,)))(params)
    torch.testing.assert_close(logits(SHAPE, params, inputs).mT, expected)
    found = gradient(SHAPE, params, inputs, data.labels)
    for name, value in vmap(grad(loss))(params).items():
        torch.testing.assert_close(found[name], value)


def test_each_is_trained_as_if_alone_and_learns() -> None:
    params, data = initial(SHAPE, range(3)), examples()
    before = {name: value.clone() for name, value in params.items()}
    together = train(SHAPE, params, data, HOW)
    alone = train(SHAPE, {name: value[1:2] for name, value in params.items()}, data, HOW)
    for name, value in params.items():
        assert torch.equal(value, before[name]), "the initial weights are left as they are"
        torch.testing.assert_close(together[name][1:2], alone[name], rtol=1e-4, atol=1e-5)
    assert accuracy(SHAPE, together, data).min() > 90 > accuracy(SHAPE, params, data).max()


def test_weights_that_are_not_there_stay_at_zero() -> None:
    params, data = initial(SHAPE, range(2)), examples()
    masks = {name: torch.rand(params[name].shape, generator=seeded(1)) < 0.5 for name in SHAPE.weights}
    trained = train(SHAPE, params, data, HOW, masks)
    for name, mask in masks.items():
        assert not trained[name][~mask].any()
        changed = trained[name][mask] != params[name][mask]
        assert changed.double().mean() > 0.5, "those behind dead neurons stay"
