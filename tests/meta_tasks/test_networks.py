from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from meta_tasks import make_task, named_task
from meta_tasks.networks import ACTIVATIONS, Activation, TransformerLanguageModel, convnet, mlp, siren
from meta_tasks.recurrent import LstmLanguageModel
from meta_tasks.resnet import ResNet
from meta_tasks.vit import VisionTransformer


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_of_the_published_networks() -> None:
    # Kofinas et al. 2024: FM-16 and C10-32.
    assert count(convnet((1, 28, 28), (16, 32, 32), 10)) == 14_378
    assert count(convnet((3, 32, 32), (32, 64, 64), 10)) == 56_970


def test_named_tasks_are_the_published_networks(fabricated: str) -> None:
    for name, parameters, outputs in (("fm-16", 14_378, 13), ("c10-32", 56_970, 15)):
        task = named_task(name, fabricated)
        inputs, _ = task.sample("train", 1, torch.Generator())
        assert inputs.shape[1] == 128
        assert count(task.module) == parameters  # type: ignore[attr-defined]
        # Stride 2 without padding: (28 - 3) // 2 + 1 = 13, (32 - 3) // 2 + 1 = 15.
        assert task.module[:6](inputs[0]).shape[-1] == outputs  # type: ignore[attr-defined]


@pytest.mark.parametrize("strides", ["first", "alternate", "none"])
@pytest.mark.parametrize("head", ["average", "flatten"])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_convnet_fits_every_size(strides: str, head: str, kernel: int) -> None:
    for size in (8, 14, 28):
        network = convnet((3, size, size), (4, 4, 4), 5, kernel=kernel, strides=strides, head=head)
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_leave_no_state(norm: str) -> None:
    network = convnet((1, 8, 8), (12, 9), 10, norm=norm)
    assert not list(network.buffers())
    assert count(network) == count(convnet((1, 8, 8), (12, 9), 10)) + 2 * (12 + 9)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_mlp_layers(activation: str) -> None:
    network = mlp(4, (3, 2), 5, activation, "layer")
    assert count(network) == (4 * 3 + 3) + 2 * 3 + (3 * 2 + 2) + 2 * 2 + (2 * 5 + 5)
    assert sum(isinstance(layer, ACTIVATIONS[activation]) for layer in network) == 2


def test_siren_initialisation_keeps_the_variance() -> None:
    # The paper: pre-activations of the hidden layers are N(0, 1), hence sines of variance about 1/2.
    torch.manual_seed(0)
    network = siren((256, 256, 256), 1, 30.0)
    hidden = network[:-1](torch.rand(2000, 2) * 2 - 1)
    assert hidden.var().item() == pytest.approx(0.5, abs=0.05)
    assert network[2].weight.abs().max().item() <= math.sqrt(6 / 256) / 30


@pytest.mark.parametrize("network", ["rnn", "lstm", "transformer"])
def test_language_models_do_not_look_ahead(network: str) -> None:
    task = make_task("char_lm", {"network": network, "depth": 2})
    codes = torch.randint(20, (1, 16))
    changed = codes.clone()
    changed[0, 9] = (codes[0, 9] + 1) % 20
    difference = (task.module(codes) - task.module(changed)).abs().amax((0, 2))  # type: ignore[attr-defined]
    assert difference[:9].max() == 0
    assert difference[9:].min() > 0


def test_lstm_equals_torch() -> None:
    torch.manual_seed(0)
    model = LstmLanguageModel(5, 4, 1)
    reference = torch.nn.LSTM(4, 4, batch_first=True)
    ours = (model.inputs[0].weight, model.recurrent[0].weight, model.inputs[0].bias, torch.zeros(16))
    with torch.no_grad():
        for theirs, value in zip(reference.parameters(), ours, strict=True):
            theirs.copy_(value)
    codes = torch.randint(5, (3, 7))
    expected = model.head(reference(model.embedding(codes))[0])
    torch.testing.assert_close(model(codes), expected)
    assert model.inputs[0].bias[4:8].tolist() == [1.0] * 4


def test_resnet_is_the_published_one() -> None:
    # He et al. 2016, section 4.2: 6 n + 2 layers on CIFAR-10; n = 3 has 0.27 million parameters (with their
    # parameter-free shortcuts; ours are 1x1 convolutions with norms, 16 * 32 + 32 * 64 + 2 * (32 + 64) more).
    network = ResNet((3, 32, 32), (16, 32, 64), 3, 10, "batch")
    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(layers) == 6 * 3 + 2 + 2
    assert count(network) - (16 * 32 + 32 * 64 + 2 * (32 + 64)) == 269_722
    assert not list(network.buffers())
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vit_without_positions_takes_patches_in_any_order() -> None:
    torch.manual_seed(0)
    network = VisionTransformer((1, 4, 4), 2, 8, 2, 2, 3)
    image = torch.randn(1, 1, 4, 4)
    swapped = torch.cat([image[..., 2:], image[..., :2]], -1)
    assert not torch.allclose(network(image), network(swapped), atol=1e-4)
    with torch.no_grad():
        network.position.zero_()
    torch.testing.assert_close(network(image), network(swapped))


def test_attention_equals_torch() -> None:
    torch.manual_seed(0)
    attention = TransformerLanguageModel(5, 6, 8, 1, 2).blocks[0].attention
    x = torch.randn(3, 6, 8)
    query, key, value = (
        layer(x).reshape(3, 6, 2, 4).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(attention(x), attention.output(mixed.transpose(1, 2).reshape(3, 6, 8)))
