"""Networks that other networks teach or begin: distillation, fine-tuning, and a value network with its target.

The other network is trained when the task is made, always the same. B examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from meta_tasks.meta_test.classifiers import images
from meta_tasks.meta_test.kind import SIZES, Kind
from meta_tasks.module_task import Pair
from meta_tasks.networks import convnet, mlp

TEMPERATURE = 2.0
OLD_CLASSES = 6
ACTIONS, DISCOUNT, PERIODS = 3, 0.9, 3


def fitted(build: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], steps: int) -> nn.Module:
    """A network after so many steps of Adam on a loss, frozen; its random numbers are always the same."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        module = build()
        optimizer = torch.optim.Adam(module.parameters(), 3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(module).backward()
            optimizer.step()
    return module.requires_grad_(False)


@cache
def teacher() -> nn.Module:
    """A perceptron that knows digits."""
    pictures, labels = images("train", torch.Generator())
    return fitted(
        lambda: mlp(64, (96, 96), 10), lambda network: F.cross_entropy(network(pictures), labels), 100
    )


def lessons(split: str, generator: Generator) -> Pair:
    """Digits, and what the teacher says of them: logits (N, 10)."""
    pictures, _ = images(split, generator)
    return pictures, teacher()(pictures).detach()


def divergence(logits: Tensor, taught: Tensor) -> dict[str, Tensor]:
    """Divergence from the teacher's softened answer, times the temperature squared; how often both say the same.

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    said, meant = ((x / TEMPERATURE).log_softmax(-1) for x in (logits, taught.to(logits.dtype)))
    loss = TEMPERATURE**2 * (meant.exp() * (meant - said)).sum(-1).mean()
    return {"loss": loss, "agreement": (logits.argmax(-1) == taught.argmax(-1)).to(logits.dtype).mean()}


@cache
def pretrained() -> nn.Module:
    """A convolutional network that knows the first six digits."""
    pictures, labels = images("train", torch.Generator())
    old = labels < OLD_CLASSES
    return fitted(
        lambda: convnet((1, 8, 8), (12, 16), OLD_CLASSES, strides="none"),
        lambda network: F.cross_entropy(network(pictures[old]), labels[old]),
        60,
    )


def fine_tuned() -> nn.Module:
    """The pretrained body with a fresh head for the other four."""
    network = copy.deepcopy(pretrained()).requires_grad_(True)
    network.head = nn.Linear(16, 10 - OLD_CLASSES)
    return network


def new_digits(split: str, generator: Generator) -> Pair:
    """Digits of the classes that the pretrained network has not seen, 120 of them to learn from."""
    pictures, labels = images(split, generator)
    new = labels >= OLD_CLASSES
    few = slice(120 if split == "train" else None)
    return pictures[new][few], labels[new][few] - OLD_CLASSES


def dynamics(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """A cart between walls, pushed left, not, or right: next states (N, 2) and rewards (N), highest at rest at .5."""
    place, speed = state.unbind(-1)
    speed = (speed + 0.3 * (action - 1) - 0.2 * (3 * place).sin()).clamp(-1, 1)
    place = (place + 0.3 * speed).clamp(-1, 1)
    return torch.stack([place, speed], -1), torch.exp(-4 * (place - 0.5) ** 2 - speed**2)


def value_network() -> nn.Module:
    """States (B, 2) -> values of each action (B, actions)."""
    return mlp(2, (32, 32), ACTIONS)


def replay(split_size: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random states and actions, what they led to and what they brought."""
    state = 2 * torch.rand(split_size, 2, generator=generator) - 1
    action = torch.randint(ACTIONS, (split_size,), generator=generator)
    return state, action, *dynamics(state, action)


@cache
def target_network() -> nn.Module:
    """The network of the period before, itself the third of its line."""
    state, action, after, reward = replay(SIZES["train"], torch.Generator().manual_seed(9))
    value = reward
    for _ in range(PERIODS):
        # Each period regresses on what the period before makes of the next state.
        error = partial(_error_on, state, action, value)
        network = fitted(value_network, error, 100)
        value = reward + DISCOUNT * network(after).amax(-1)
    return network


def _error_on(state: Tensor, action: Tensor, target: Tensor, network: nn.Module) -> Tensor:
    return bellman_error(network(state), target, action)


def bellman_error(values: Tensor, target: Tensor, action: Tensor) -> Tensor:
    """Huber's loss of the values of the actions taken (Mnih et al. 2015)."""
    return F.smooth_l1_loss(values.gather(-1, action[:, None])[:, 0], target)


def transitions(split: str, generator: Generator) -> Pair:
    """States, and (N, 2) the action taken beside its value by the target network, which stays for this period."""
    state, action, after, reward = replay(SIZES[split], generator)
    value = reward + DISCOUNT * target_network()(after).amax(-1)
    return state, torch.stack([action.float(), value], -1)


def q_learning(values: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The error of the values, and the value of the best action."""
    action, target = targets.unbind(-1)
    loss = bellman_error(values, target.to(values.dtype), action.long())
    return {"loss": loss, "best": values.amax(-1).mean()}


KINDS = {
    "distillation": Kind(lambda: mlp(64, (24,), 10), lessons, divergence),
    "fine_tuning": Kind(fine_tuned, new_digits, batch_size=16),
    "dqn": Kind(value_network, transitions, q_learning),
}
